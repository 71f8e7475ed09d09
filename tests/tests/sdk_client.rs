//! The public client of the SDK (PyPI: `libopenstorage-openstorage`) as the oracle: names and numbers of everything that we have are its own, and it works
//! unchanged. `KEELBLOCK_TEST_PYTHON` names the Python that has it, if that is not `python3`.
use keelblock_tests::cluster::Cluster;
use keelblock_tests::programs::workspace;
use std::process::Command;

/// The Python that has the client; `None`, and said, if there is none.
fn python() -> Option<String> {
    let python = std::env::var("KEELBLOCK_TEST_PYTHON").unwrap_or_else(|_| "python3".into());
    let mut command = Command::new(&python);
    command.args(["-c", "import openstorage.api_pb2_grpc"]);
    if command.output().is_ok_and(|o| o.status.success()) {
        return Some(python);
    }
    eprintln!(
        "not run: {python} has no client of the OpenStorage SDK; `pip install libopenstorage-openstorage`, and name that Python by KEELBLOCK_TEST_PYTHON"
    );
    None
}

fn client(python: &str, words: [&str; 2]) {
    let script = workspace().join("tests/sdk/client.py");
    let output = Command::new(python).arg(script).args(words).output();
    let output = output.expect("it runs");
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{errors}");
    print!("{said}");
}

#[test]
fn names_and_numbers_are_those_of_the_public_client() {
    let Some(python) = python() else { return };
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("descriptors.bin");
    std::fs::write(&file, keelblock_api::DESCRIPTORS).unwrap();
    client(&python, ["contracts", file.to_str().unwrap()]);
}

#[test]
fn the_public_client_drives_the_life_of_a_volume() {
    let Some(python) = python() else { return };
    let cluster = Cluster::builder().volume("other:16M").start();
    client(&python, ["life", &cluster.ready().nodes[0].sdk.to_string()]);
}
