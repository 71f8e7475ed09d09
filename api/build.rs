//! Compiles the contracts without a system `protoc`.
use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["keelblock/datapath.proto", "keelblock/admin.proto"];
    println!("cargo:rerun-if-changed=proto");
    let set = protox::compile(files, ["proto"])?;
    let out = std::env::var("OUT_DIR")?;
    std::fs::write(Path::new(&out).join("descriptors.bin"), prost::Message::encode_to_vec(&set))?;
    tonic_prost_build::configure().compile_fds(set)?;
    Ok(())
}
