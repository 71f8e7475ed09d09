//! How nodes say to each other who they are: by a token that each makes for every call, with a key that follows from what all nodes of the cluster have from the KVDB.
use crate::gossip::GossipRecord;
use crate::node::Node;
use crate::records::unix_ms;
use keelblock_api::tokens::{Claims, SigningKey, TokenError, VerifyingKey, sign, verify};
use ring::hmac;
use tonic::metadata::AsciiMetadataValue;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Request, Status};

/// Who such tokens are of. No authenticator has this name.
pub(super) const ISSUER: &str = "keelblock.node";
/// What their key is made for.
const PURPOSE: &[u8] = b"keelblock node token 1";
/// For how long one is good.
const LIFE_S: u64 = 300;

/// The way to another node's services.
pub type Way = InterceptedService<Channel, AsNode>;

/// What nodes' tokens are signed and verified with.
struct NodeKeys {
    signing: SigningKey,
    verifying: VerifyingKey,
}

impl NodeKeys {
    /// From what all nodes of the cluster have.
    fn new(secret: &[u8]) -> Option<Self> {
        let made = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), PURPOSE);
        Some(Self {
            signing: SigningKey::shared_secret(made.as_ref(), "HS256").ok()?,
            verifying: VerifyingKey::shared_secret(made.as_ref()).ok()?,
        })
    }

    /// A token of a node.
    fn token(&self, node_id: &str, now_s: u64) -> Option<String> {
        let claims = Claims {
            iss: ISSUER.into(),
            sub: node_id.into(),
            iat: now_s,
            exp: now_s + LIFE_S,
            ..Default::default()
        };
        sign(&claims, &self.signing).ok()
    }

    /// The node that a token is of.
    fn node_of(&self, token: &str, now_s: u64, skew_s: u64) -> Result<String, TokenError> {
        let claims = verify(token, [&self.verifying], now_s, skew_s)?;
        match claims.iss == ISSUER {
            true => Ok(claims.sub),
            false => Err(TokenError::Signature),
        }
    }
}

/// Brings a node's token with the calls that follow.
#[derive(Clone)]
pub struct AsNode(Option<AsciiMetadataValue>);

impl Interceptor for AsNode {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            let metadata = request.metadata_mut();
            metadata.insert("authorization", token.clone());
        }
        Ok(request)
    }
}

impl Node {
    /// The keys of nodes' tokens: by what is seen, or else by the KVDB.
    async fn node_keys(&self) -> Option<NodeKeys> {
        let seen = self.coordination.seen().gossip_secret();
        if let Some(secret) = seen {
            return NodeKeys::new(&*secret);
        }
        let key = self.registry.keys().gossip();
        let found = self.registry.get::<GossipRecord>(&key).await;
        let secret = found.ok().flatten()?.record.bytes()?;
        NodeKeys::new(&*secret)
    }

    /// A way to another node, as this node, for calls that begin now.
    pub(crate) async fn as_node(&self, channel: Channel) -> Way {
        let keys = self.node_keys().await;
        let token = keys.and_then(|keys| keys.token(self.node_id(), unix_ms() / 1000));
        if token.is_none() {
            tracing::warn!("no token for another node can be made: one with --auth refuses it");
        }
        let value = token.map(|t| AsciiMetadataValue::try_from(format!("bearer {t}")));
        let value = value.and_then(Result::ok).map(|mut value| {
            value.set_sensitive(true);
            value
        });
        InterceptedService::new(channel, AsNode(value))
    }

    /// The node that a token is of.
    pub(super) async fn node_of(
        &self,
        token: &str,
        now_s: u64,
        skew_s: u64,
    ) -> Result<String, TokenError> {
        let keys = self.node_keys().await.ok_or(TokenError::Algorithm)?;
        keys.node_of(token, now_s, skew_s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nodes_token_is_of_its_cluster_and_soon_over() {
        let keys = |secret: &[u8]| NodeKeys::new(secret).unwrap();
        let (ours, theirs) = (keys(&[1; 32]), keys(&[2; 32]));
        let token = ours.token("n1", 1000).unwrap();
        assert_eq!(ours.node_of(&token, 1000, 0).unwrap(), "n1");
        assert_eq!(theirs.node_of(&token, 1000, 0), Err(TokenError::Signature));
        assert_eq!(ours.node_of(&token, 1300, 0), Err(TokenError::Expired(0)));
        assert!(ours.node_of(&token, 1359, 60).is_ok());
        let other = Claims {
            iss: "other".into(),
            sub: "n1".into(),
            iat: 1000,
            exp: 2000,
            ..Default::default()
        };
        let other = sign(&other, &ours.signing).unwrap();
        assert_eq!(ours.node_of(&other, 1000, 0), Err(TokenError::Signature));
    }
}
