//! Starting where something is wrong: each time a clear error, and nothing left running. And starting where nothing special is
//! there: no root, no hugepages.
use keelblock_tests::cluster::Cluster;
use keelblock_tests::guest::find_program;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[test]
fn check_passes_twice_and_finds_its_data() {
    let builder = Cluster::builder();
    let (code, said) = builder.run(&["--check"]);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("nvme connect -t tcp"), "{said}");
    let (code, said) = builder.run(&["--check"]);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("of an earlier run verified"), "{said}");
}

/// A node of three is killed under load, both times; the second time data of the first are there.
#[test]
fn three_nodes_are_checked_with_a_death() {
    let size = ["--nodes", "3", "--size", "512M", "--reactors", "1"];
    let builder = Cluster::builder().arg(&size).volume("v:64M:3");
    for _ in 0..2 {
        let (code, said) = builder.run(&["--check"]);
        assert_eq!(code, 0, "{said}");
        assert!(said.contains("was killed under load"), "{said}");
    }
}

#[test]
fn one_reactor_and_two_on_file_and_memory() {
    for reactors in ["1", "2"] {
        for device in ["file", "memory"] {
            let builder = Cluster::builder();
            let (code, said) = builder.run(&[
                "--check",
                "--reactors",
                reactors,
                "--device",
                device,
                "--volume",
                "v:64M",
            ]);
            assert_eq!(code, 0, "{reactors} reactors, {device}: {said}");
            assert!(said.contains(&format!("{reactors} reactor")), "{said}");
        }
    }
}

#[test]
fn a_busy_port_is_named() {
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = holder.local_addr().unwrap().port().to_string();
    let (code, said) = Cluster::builder()
        .arg(&["--port-base", &port])
        .run(&["--check"]);
    assert_eq!(code, 1, "{said}");
    assert!(
        said.contains(&port) && said.contains("--port-base"),
        "{said}"
    );
}

#[test]
fn a_data_directory_that_cannot_be_made_is_named() {
    let builder = Cluster::builder();
    std::fs::write(builder.data(), "in the way").unwrap();
    let (code, said) = builder.run(&["--check"]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("--data"), "{said}");
}

#[test]
fn a_missing_device_is_named() {
    let (code, said) = Cluster::builder().run(&["--check", "--device", "/nonexistent/drive"]);
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("/nonexistent/drive"), "{said}");
}

#[test]
fn more_than_the_disk_holds_is_refused() {
    let (code, said) = Cluster::builder().run(&["--check", "--size", "1000P"]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("--size") && said.contains("free"), "{said}");
}

/// A file system of 8 MiB, mounted in a name space of its own, so that no rights are needed where the kernel allows that.
#[test]
fn a_full_disk_is_told() {
    let builder = Cluster::builder();
    let mount = builder.data();
    std::fs::create_dir(&mount).unwrap();
    let script = format!(
        "mount -t tmpfs -o size=8m none {} && exec \"$@\"",
        mount.display()
    );
    let unshare = ["unshare", "--user", "--map-root-user", "--mount"];
    let probe = std::process::Command::new(unshare[0])
        .args(&unshare[1..])
        .args(["sh", "-c", &script, "sh", "true"])
        .status();
    if !probe.is_ok_and(|s| s.success()) {
        eprintln!("SKIPPED: this system lets nobody mount a tmpfs in a user name space");
        return;
    }
    let builder = builder.prefix(&[&unshare[..], &["sh", "-c", &script, "sh"]].concat());
    let (code, said) = builder.run(&["--check"]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("free"), "{said}");
}

#[test]
fn what_several_nodes_cannot_do_is_refused_in_words() {
    let refused = |words: &[&str], why: &str| {
        let (code, said) = Cluster::builder().run(words);
        assert_eq!(code, 2, "{said}");
        assert!(said.contains(why), "{said}");
    };
    refused(&["--nodes", "2", "--volume", "a:16M:3"], "there are 2");
    let memory = ["--nodes", "3", "--device", "memory", "--volume", "a:16M:3"];
    refused(&memory, "memory");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("drive.img");
    std::fs::write(&file, vec![0; 1 << 20]).unwrap();
    let file = file.to_str().unwrap();
    refused(&["--nodes", "2", "--device", file], "each of 2 nodes");
}

#[test]
fn two_on_one_directory_are_refused() {
    let mut cluster = Cluster::builder().volume("a:16M").start();
    let (code, said) = cluster.builder_mut().run(&["--check"]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("another `keelblock up`"), "{said}");
    cluster.stop();
}

#[test]
fn a_program_that_dies_at_once_is_quoted() {
    let (code, said) = Cluster::builder().run(&["--check", "--cpus", "4000", "--reactors", "1"]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("datapath.log"), "{said}");
}

/// Root drops to nobody, without capabilities; anybody else is unprivileged already. The tests' machines have no hugepages, and
/// nobody could reserve any.
#[test]
fn needs_no_root_and_no_hugepages() {
    let builder = Cluster::builder();
    let builder = if is_root() {
        if find_program("setpriv").is_none() {
            eprintln!("SKIPPED: setpriv of util-linux is missing");
            return;
        }
        std::fs::set_permissions(builder.dir(), std::fs::Permissions::from_mode(0o777)).unwrap();
        let programs = builder.dir().join("programs");
        std::fs::create_dir(&programs).unwrap();
        for name in ["keelblock", "keelblock-datapath", "keelblock-control"] {
            std::fs::copy(
                keelblock_tests::programs::program(name),
                programs.join(name),
            )
            .unwrap();
        }
        let drop_rights = [
            "setpriv",
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "--bounding-set=-all",
            "--no-new-privs",
        ];
        builder.prefix(&drop_rights).programs(programs)
    } else {
        builder
    };
    let (code, said) = builder.run(&["--check", "--volume", "v:64M"]);
    assert_eq!(code, 0, "{said}");
    assert!(
        said.contains("plain pages") || said.contains("hugepages"),
        "{said}"
    );
}
