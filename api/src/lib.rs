//! Protocol contracts, generated types and the shared-memory channel.

/// Commands from the control process to the data path (`proto/keelblock/datapath.proto`).
#[allow(missing_docs)]
pub mod datapath {
    tonic::include_proto!("keelblock.datapath.v1");
}

/// Keelblock's own services beside the OpenStorage SDK (`proto/keelblock/admin.proto`).
#[allow(missing_docs)]
pub mod admin {
    tonic::include_proto!("keelblock.admin.v1");
}
