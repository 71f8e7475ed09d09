//! Who calls, as the services are told.
use std::sync::Arc;

/// A user, by a token that was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// What it is called: what volumes are owned by.
    pub name: String,
    /// Names of its roles.
    pub roles: Vec<String>,
    /// Names of its groups.
    pub groups: Vec<String>,
}

/// Who calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// Nobody asks: this node was started without `--auth`.
    Anybody,
    /// No token.
    Guest,
    /// A user.
    User(Arc<User>),
    /// Another node of the cluster, which has asked who asks itself.
    Node,
}

impl Caller {
    /// What it is called in words and in the log.
    pub fn name(&self) -> &str {
        match self {
            Self::Anybody => "anybody",
            Self::Guest => "guest",
            Self::User(user) => &user.name,
            Self::Node => "another node",
        }
    }
}
