//! Has a running data path export one volume, for scripts: opens a pool of one drive, makes the volume, exports it to any host.
//!
//! `export SOCKET DRIVE VOLUME_BYTES NQN [LBA_BYTES]`, for example
//! `export datapath.sock memory:134217728 67108864 nqn.2026-01.io.keelblock:test 4096`

use keelblock_api::channel;
use keelblock_api::datapath::datapath_client::DatapathClient;
use keelblock_api::datapath::{
    AnaState, CreateVolumeRequest, DriveSpec, ExportRequest, HelloRequest, Namespace,
    OpenPoolRequest,
};

const VOLUME_ID: &str = "6b65656c-0000-4000-8000-000000000001";

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (lba_bytes, args) = match &args[..] {
        [rest @ .., lba] if rest.len() == 4 => (lba.parse()?, rest),
        rest if rest.len() == 4 => (4096, rest),
        _ => return Err("export SOCKET DRIVE VOLUME_BYTES NQN [LBA_BYTES]".into()),
    };
    let size_bytes: u64 = args[2].parse()?;
    let (channel, _stats) = channel::connect(&args[0]);
    let mut client = DatapathClient::new(channel);
    let hello = HelloRequest {
        cluster_id: "example".into(),
        node_id: "1".into(),
    };
    let hello = client.hello(hello).await?.into_inner();
    let drive = DriveSpec {
        drive_id: "drive".into(),
        path: args[1].clone(),
        size_bytes: size_bytes * 5 / 4 + (64 << 20),
    };
    let pool = OpenPoolRequest {
        pool_id: "pool".into(),
        drives: vec![drive],
        format: true,
        allow_missing: false,
    };
    client.open_pool(pool).await?;
    let volume = CreateVolumeRequest {
        volume_id: VOLUME_ID.into(),
        pool_id: "pool".into(),
        size_bytes,
    };
    client.create_volume(volume).await?;
    let namespace = Namespace {
        nsid: 1,
        volume_id: VOLUME_ID.into(),
        lba_bytes,
        nguid: vec![1; 16],
        uuid: vec![2; 16],
        reservation: Vec::new(),
    };
    let export = ExportRequest {
        nqn: args[3].clone(),
        serial: "EXAMPLE".into(),
        namespaces: vec![namespace],
        allowed_hosts: Vec::new(),
        allow_any_host: true,
        ana_state: AnaState::AnaOptimized.into(),
        cntlid_min: 1,
        cntlid_max: 4096,
    };
    client.export(export).await?;
    println!("{} serves {}", hello.nvme_address, args[3]);
    Ok(())
}
