//! What the control plane keeps in the KVDB (`docs/kvdb.md`): the records, their keys, and reading and changing them.

mod keys;
mod registry;
mod types;

pub use keys::Keys;
pub use registry::{Registry, Versioned, encode};
pub use types::*;
