//! What a node does when it starts: it brings the token, and writes who and where it is (M1, M2).

use super::former::Which;
use super::record::{MemberRecord, MemberState};
use super::token::{TokenError, TokenRecord};
use super::transition::{self, Refused};
use crate::error::OpError;
use crate::kvdb::client::{Committed, Guard, Revision, Write};
use crate::node::Node;
use crate::records::{NodeRecord, Versioned, encode, unix_ms};
use uuid::Uuid;
use zeroize::Zeroizing;

/// Attempts at a change that others keep getting ahead of.
const ATTEMPTS: usize = 8;

impl From<TokenError> for OpError {
    fn from(error: TokenError) -> Self {
        Self::State(error.to_string())
    }
}

impl From<Refused> for OpError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Label(key, why) => Self::invalid(format!("label {key:?}"), why),
            gone @ Refused::Gone(_) => Self::Left(gone.to_string()),
            other => Self::State(other.to_string()),
        }
    }
}

impl Node {
    /// Compares this node's token with the check in the KVDB. The first node that brings one sets it; one that was changed is enough for a member. The revision of the check; 0: there is none.
    ///
    /// # Errors
    /// [`OpError::State`], in words: it has none, or another one.
    pub(crate) async fn bring_token(&self) -> Result<Revision, OpError> {
        let token = self.token_source().read()?;
        let key = self.registry.keys().token();
        let (source, cluster) = (self.token_source().name(), self.cluster_id().to_owned());
        for _ in 0..ATTEMPTS {
            let known = self.registry.get::<TokenRecord>(&key).await?;
            match (known, &token) {
                (None, None) => {
                    self.keep_first_token(Zeroizing::default());
                    return Ok(0);
                }
                (Some(_), None) => return Err(TokenError::Missing(cluster).into()),
                (Some(known), Some(token)) => {
                    let record = &known.record;
                    let first = match record.which(token)? {
                        Which::None => return Err(TokenError::Wrong(source, cluster).into()),
                        Which::Present => record.first(token)?,
                        Which::Former(former) => {
                            if former.until_unix_ms < unix_ms() && !self.is_member().await? {
                                return Err(TokenError::Former(source, cluster).into());
                            }
                            tracing::warn!(%source, "the cluster's token was changed since: give this node the present one");
                            former.of.first(token)?
                        }
                    };
                    self.keep_first_token(first);
                    return Ok(known.revision);
                }
                (None, Some(token)) => {
                    let record = TokenRecord::new(token, unix_ms())?;
                    let new = vec![(key.clone(), encode(&record))];
                    if self.registry.make(new).await? {
                        tracing::info!(cluster, "the cluster has this token from now on");
                    }
                }
            }
        }
        Err(OpError::Contended { what: key })
    }

    /// Whether its id is this node's, and no other's.
    async fn is_member(&self) -> Result<bool, OpError> {
        let key = self.registry.keys().member(self.node_id());
        let known = self.registry.get::<MemberRecord>(&key).await?;
        let mine = |m: &MemberRecord| {
            m.identity == self.identity() && m.state != MemberState::Decommissioned
        };
        Ok(known.is_some_and(|m| mine(&m.record)))
    }

    /// Writes who and where this node is, if it may be that. `describe` makes the record from the one that is there.
    ///
    /// # Errors
    /// [`OpError::State`]: the id is another machine's, or was decommissioned.
    pub(crate) async fn write_node(
        &self,
        describe: impl Fn(Option<NodeRecord>) -> NodeRecord,
    ) -> Result<(), OpError> {
        let keys = self.registry.keys();
        let (member_key, node_key) = (keys.member(self.node_id()), keys.node(self.node_id()));
        for _ in 0..ATTEMPTS {
            let known: Option<Versioned<MemberRecord>> = self.registry.get(&member_key).await?;
            let node = self.registry.get::<NodeRecord>(&node_key).await?;
            let before = known.as_ref().map(|k| &k.record);
            let now = unix_ms();
            let mut member =
                transition::join(before, self.node_id(), self.identity(), self.labels(), now)?;
            let new = before.is_none_or(|b| b.state == MemberState::Decommissioned);
            let revision = known.as_ref().map_or(0, |k| k.revision);
            let mut guards = vec![Guard::at(&member_key, revision)];
            if new {
                // It was right a moment ago: whoever is no member needs the one that the cluster has now.
                let token = self.bring_token().await?;
                guards.push(Guard::at(keys.token(), token));
            }
            let text = encode(&describe(node.map(|n| n.record)));
            let mut writes = vec![Write::put(&node_key, text)];
            if before != Some(&member) {
                member.changed_unix_ms = now;
                writes.push(Write::put(&member_key, encode(&member)));
                // Labels say where replicas go.
                let placement = Uuid::new_v4().to_string();
                writes.push(Write::put(keys.placements(), placement));
            }
            if self.registry.kv().commit(guards, writes).await? != Committed::No {
                if new {
                    tracing::info!(node = self.node_id(), "joined the cluster");
                }
                return Ok(());
            }
        }
        Err(OpError::Contended { what: member_key })
    }
}
