//! The cluster's token: since when it is this one, and another one.
use super::Services;
use crate::error::OpError;
use crate::membership::TokenShown;
use keelblock_api::admin::{ClusterTokenReply, FormerToken, RotateTokenReply, RotateTokenRequest};
use zeroize::Zeroizing;

fn shown(token: TokenShown) -> ClusterTokenReply {
    let former = |(since_unix_ms, until_unix_ms): (u64, u64)| FormerToken {
        since_unix_ms,
        until_unix_ms,
    };
    ClusterTokenReply {
        since_unix_ms: token.since_unix_ms.unwrap_or(0),
        former: token.former.into_iter().map(former).collect(),
    }
}

impl Services {
    pub(super) async fn token_shown(&self) -> Result<ClusterTokenReply, OpError> {
        self.node().cluster_token().await.map(shown)
    }

    pub(super) async fn rotated_token(
        &self,
        mut request: RotateTokenRequest,
    ) -> Result<RotateTokenReply, OpError> {
        let said = Zeroizing::new(std::mem::take(&mut request.token));
        let said = Some(said).filter(|t| !t.is_empty());
        let grace = request.grace_minutes;
        let changed = self.to_the_end(|node| async move { node.rotate_token(said, grace).await });
        let (now, made) = changed.await?;
        Ok(RotateTokenReply {
            token: made.map(|t| t.to_string()).unwrap_or_default(),
            now: Some(shown(now)),
        })
    }
}
