//! Compiles every contract under `proto/` without a system `protoc`.
use std::path::{Path, PathBuf};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = Path::new("proto");
    println!("cargo:rerun-if-changed=proto");
    let mut files = Vec::new();
    find(root, &mut files)?;
    files.sort();
    let set = protox::compile(files, [root])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(
        out.join("descriptors.bin"),
        prost::Message::encode_to_vec(&set),
    )?;
    // One file holds a module per package, nested as the packages are, so that they can refer to each other.
    let mut config = tonic_prost_build::Config::new();
    // Names tie a generated type to its descriptor: the JSON gateway needs that.
    config.enable_type_names();
    // Of each volume that is listed: filled faster than a hash table, and always in the same order.
    config.btree_map([".openstorage.api.RuntimeStateMap"]);
    // They have bytes that nobody prints: `src/redacted.rs`.
    config.skip_debug([
        "keelblock.datapath.v1.DataKey",
        "keelblock.admin.v1.RotateTokenRequest",
        "keelblock.admin.v1.RotateTokenReply",
    ]);
    tonic_prost_build::configure()
        .include_file("contracts.rs")
        .compile_fds_with_config(set, config)?;
    Ok(())
}

/// Collects the `.proto` files below `folder`.
fn find(folder: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            find(&path, files)?;
        } else if path.extension().is_some_and(|e| e == "proto") {
            files.push(path);
        }
    }
    Ok(())
}
