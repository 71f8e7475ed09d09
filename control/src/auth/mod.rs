//! Who may call what (`docs/auth.md`). `authenticators` are read from the file of `--auth` and say who a token is of; `rules` are patterns of services and methods, `roles` are
//! named rules in the KVDB, beside those that are always there; `ownership` is whose a volume is; `door` is the one check in front of all services, for gRPC and REST, and tells them the `caller`;
//! `nodes` is how nodes say to each other who they are.

mod authenticators;
mod caller;
mod door;
mod nodes;
mod ownership;
mod roles;
mod rules;

pub use authenticators::{AuthFileError, Authenticators};
pub use caller::{Caller, User};
pub use door::Door;
pub use nodes::{AsNode, Way};
pub use ownership::{Access, Acls, OwnershipRecord, OwnershipWish};
pub use roles::RoleRecord;
pub use rules::RuleRecord;
