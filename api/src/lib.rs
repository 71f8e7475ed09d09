//! Protocol contracts, generated types and the shared-memory channel.
//!
//! Every `.proto` file under `api/proto` is compiled by `build.rs`; each package becomes a module of the private `contracts`
//! tree, nested as its name is, and gets its public name here. A new package needs its `pub use` below and nothing else.

/// Exit code of a control process whose node was decommissioned (`docs/membership.md`): whoever keeps it running does not start it again.
pub const EXIT_LEFT: u8 = 3;

pub mod channel;
pub mod json;
pub mod openapi;
mod redacted;
pub mod stats;
#[cfg(feature = "tokens")]
pub mod tokens;

/// All generated code, a module per protobuf package.
#[allow(missing_docs, clippy::all, rustdoc::all)]
mod contracts {
    include!(concat!(env!("OUT_DIR"), "/contracts.rs"));
}

/// Commands from the control process to the data path (`proto/keelblock/datapath.proto`).
pub use contracts::keelblock::datapath::v1 as datapath;

/// Keelblock's own services beside the OpenStorage SDK (`proto/keelblock/admin.proto`).
pub use contracts::keelblock::admin::v1 as admin;

/// The part of etcd's v3 API that the KVDB speaks (`proto/etcd/`).
pub mod etcd {
    pub use super::contracts::{etcdserverpb, mvccpb};
}

/// The OpenStorage SDK, package `openstorage.api` (`proto/openstorage/`).
pub use contracts::openstorage::api as openstorage;

/// The `FileDescriptorSet` of all contracts, imports and comments included.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
