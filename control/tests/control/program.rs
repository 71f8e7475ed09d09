//! The program itself: how it refuses to start, and that it may be killed.
use crate::fake::Fake;
use keelblock_control::kvdb::Client;
use std::net::{TcpListener, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn command(dir: &Path, extra: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_keelblock-control"));
    command
        .current_dir(dir)
        .stderr(Stdio::piped())
        .stdout(Stdio::null());
    let common = ["--cluster-id", "test", "--datapath-socket", "dp.sock"];
    let any = "127.0.0.1:0";
    let ports = ["--sdk", any, "--rest", any, "--gossip", any];
    let has = |flag: &str| extra.contains(&flag);
    command
        .args(common)
        .args(ports.chunks(2).filter(|p| !has(p[0])).flatten());
    for (flag, value) in [
        ("--data", "control"),
        ("--node-id", "n1"),
        ("--kvdb", "127.0.0.1:0"),
        ("--drive", "memory:1G"),
    ] {
        if !has(flag) {
            command.args([flag, value]);
        }
    }
    command.args(extra);
    command
}

/// It ends by itself, with exit code 1 (2 for the command line); what it says.
fn fails(dir: &Path, extra: &[&str]) -> String {
    let Output { status, stderr, .. } = command(dir, extra).output().unwrap();
    assert!(!status.success());
    String::from_utf8(stderr)
        .unwrap()
        .lines()
        .last()
        .unwrap_or_default()
        .to_owned()
}

#[test]
fn what_is_wrong_with_the_start_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    let busy = TcpListener::bind("127.0.0.1:0").unwrap();
    let busy = busy.local_addr().unwrap().to_string();
    for flag in ["--sdk", "--rest", "--kvdb"] {
        let said = fails(at, &[flag, &busy]);
        assert!(
            said.contains(&busy) && said.contains(flag) && said.contains("in use"),
            "{said}"
        );
    }
    let busy = UdpSocket::bind("127.0.0.1:0").unwrap();
    let busy = busy.local_addr().unwrap().to_string();
    let said = fails(at, &["--gossip", &busy]);
    assert!(said.contains(&busy) && said.contains("in use"), "{said}");
    let said = fails(at, &["--data", "no/such/directory"]);
    assert!(said.contains("no/such/directory"), "{said}");
    let said = fails(at, &["--drive", "/no/such/drive"]);
    assert!(
        said.contains("/no/such/drive") && said.contains("size"),
        "{said}"
    );
    let said = fails(at, &["--drive", "/no/such/dir/drive,1G"]);
    assert!(said.contains("directory does not exist"), "{said}");
    let said = fails(at, &["--node-id", "another"]);
    assert!(said.contains("belongs to node n1"), "{said}");
}

/// Starts it and waits until its KVDB answers.
async fn start(dir: &Path, kvdb: &str) -> Program {
    let program = Program(
        command(dir, &["--kvdb", kvdb])
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    let client = Client::new(kvdb).unwrap();
    for _ in 0..200 {
        if matches!(client.get("/test/cluster").await, Ok(Some(_))) {
            return program;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("it does not come up");
}

/// Killed in the middle of many writes, it has every one that was acknowledged.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_process_has_every_write_that_it_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let kvdb = {
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        free.local_addr().unwrap().to_string()
    };
    let mut last = 0;
    for round in 0..3 {
        let mut program = start(dir.path(), &kvdb).await;
        let client = Client::new(&kvdb).unwrap();
        if let Some(kv) = client.get("/count").await.unwrap() {
            let found: u64 = String::from_utf8(kv.value).unwrap().parse().unwrap();
            assert!(
                found == last || found == last + 1,
                "round {round}: {found} after {last} was acknowledged"
            );
        }
        let writer = tokio::spawn(async move {
            let mut acknowledged = last;
            while client
                .put("/count", (acknowledged + 1).to_string())
                .await
                .is_ok()
            {
                acknowledged += 1;
            }
            acknowledged
        });
        tokio::time::sleep(Duration::from_millis(300)).await;
        program.0.kill().unwrap();
        program.0.wait().unwrap();
        let acknowledged = writer.await.unwrap();
        assert!(acknowledged > last, "nothing was written in round {round}");
        last = acknowledged;
    }
}

/// The same, with a data path beside it: its exports stay, and it is found again.
#[tokio::test(flavor = "multi_thread")]
async fn the_data_path_outlives_a_killed_control_process() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::start(&dir.path().join("dp.sock"));
    let kvdb = {
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        free.local_addr().unwrap().to_string()
    };
    for _ in 0..2 {
        let mut program = start(dir.path(), &kvdb).await;
        for _ in 0..200 {
            if !fake.memory().pools.is_empty() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(fake.memory().pools.len(), 1);
        program.0.kill().unwrap();
        program.0.wait().unwrap();
        fake.memory().pools.clear();
    }
}
