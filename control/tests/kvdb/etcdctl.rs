//! The embedded server under `etcdctl`, as an operator would use it.
use crate::backend::Backend;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

struct Ctl<'a>(&'a Backend);

impl Ctl<'_> {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("etcdctl");
        command
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &self.0.address, "--command-timeout", "20s"])
            .args(args);
        command
    }

    /// What it prints; it must succeed.
    fn run(&self, args: &[&str]) -> String {
        let output = self.command(args).output().expect("etcdctl runs");
        assert!(
            output.status.success(),
            "etcdctl {args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// What it prints on standard error; it must fail.
    fn fails(&self, args: &[&str]) -> String {
        let output = self.command(args).output().expect("etcdctl runs");
        assert!(!output.status.success(), "etcdctl {args:?} should fail");
        String::from_utf8(output.stderr).unwrap()
    }
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn etcdctl_puts_gets_watches_leases_and_compacts() {
    if Command::new("etcdctl").arg("version").output().is_err() {
        eprintln!("not run: there is no etcdctl here");
        return;
    }
    let backend = Backend::embedded().await;
    tokio::task::spawn_blocking(move || drive(&Ctl(&backend)))
        .await
        .unwrap();
}

fn drive(ctl: &Ctl<'_>) {
    assert_eq!(ctl.run(&["put", "/a/1", "one"]), "OK\n");
    assert_eq!(ctl.run(&["put", "/a/2", "two"]), "OK\n");
    assert_eq!(ctl.run(&["get", "/a/1"]), "/a/1\none\n");
    assert_eq!(
        ctl.run(&["get", "--prefix", "/a/", "--order=DESCEND", "--keys-only"]),
        "/a/2\n\n/a/1\n\n"
    );
    assert!(
        ctl.run(&["get", "--prefix", "/a/", "-w", "json"])
            .contains("\"count\":2")
    );
    assert_eq!(
        ctl.run(&["get", "--prefix", "/a/", "--limit", "1"]),
        "/a/1\none\n"
    );
    watches(ctl);
    assert_eq!(ctl.run(&["del", "--prefix", "/a/"]), "3\n");

    let granted = ctl.run(&["lease", "grant", "300"]);
    let id = granted.split_whitespace().nth(1).expect("an id").to_owned();
    ctl.run(&["put", "--lease", &id, "/leased", "x"]);
    assert!(ctl.run(&["lease", "list"]).contains(&id));
    assert!(
        ctl.run(&["lease", "timetolive", &id, "--keys"])
            .contains("/leased")
    );
    assert!(
        ctl.run(&["lease", "keep-alive", "--once", &id])
            .contains("keepalived")
    );
    ctl.run(&["lease", "revoke", &id]);
    assert_eq!(ctl.run(&["get", "/leased"]), "");

    let mut txn = ctl.command(&["txn"]);
    let mut child = txn
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("etcdctl runs");
    child
        .stdin
        .take()
        .unwrap()
        .write_all(b"version(\"/t\") = \"0\"\n\nput /t made\n\nput /t changed\n\n")
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(
        String::from_utf8(output.stdout)
            .unwrap()
            .contains("SUCCESS")
    );
    assert_eq!(ctl.run(&["get", "/t"]), "/t\nmade\n");

    assert!(
        ctl.run(&["endpoint", "health"]).is_empty()
            || ctl
                .run(&["endpoint", "health", "-w", "json"])
                .contains("true")
    );
    let status = ctl.run(&["endpoint", "status", "-w", "json"]);
    assert!(
        status.contains("\"dbSize\"") && status.contains("\"leader\""),
        "{status}"
    );
    assert!(ctl.run(&["member", "list"]).contains("keelblock"));
    ctl.run(&["compact", "3"]);
    assert!(
        ctl.fails(&["get", "/a/1", "--rev", "2"])
            .contains("compacted")
    );
    assert!(
        ctl.fails(&["member", "add", "x", "--peer-urls=http://127.0.0.1:1"])
            .contains("nimplemented")
    );
}

fn watches(ctl: &Ctl<'_>) {
    let mut command = ctl.command(&["watch", "--prefix", "/a/", "--rev", "1"]);
    let mut watching = Killed(
        command
            .stdout(Stdio::piped())
            .spawn()
            .expect("etcdctl runs"),
    );
    let mut lines = BufReader::new(watching.0.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap);
    for expected in ["PUT", "/a/1", "one", "PUT", "/a/2", "two"] {
        assert_eq!(lines.next().as_deref(), Some(expected));
    }
    ctl.run(&["put", "/a/3", "three"]);
    for expected in ["PUT", "/a/3", "three"] {
        assert_eq!(lines.next().as_deref(), Some(expected));
    }
}
