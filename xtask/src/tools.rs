//! The tools that tests use beside cargo: what for, and which Debian package brings them.
use crate::run::Outcome;
use keelblock_tests::guest;

/// What other tests use: program, package, what for.
const OTHER: [(&str, &str, &str); 6] = [
    (
        "setpriv",
        "util-linux",
        "tests: start-up as an unprivileged user (as root only)",
    ),
    ("unshare", "util-linux", "tests: start-up on a full disk"),
    (
        "python3",
        "python3",
        "conformance: the script; tests: the SDK's public client",
    ),
    (
        "etcd",
        "etcd-server",
        "tests: the KVDB's suite on a real etcd",
    ),
    (
        "etcdctl",
        "etcd-client",
        "tests: the embedded KVDB under etcdctl",
    ),
    ("openssl", "openssl", "tests: etcd with TLS"),
];

/// Whether rustup has a nightly toolchain (for the sanitizers).
pub fn has_nightly() -> bool {
    std::process::Command::new("cargo")
        .args(["+nightly", "--version"])
        .env_remove("RUSTUP_TOOLCHAIN")
        .output()
        .is_ok_and(|o| o.status.success())
}

/// Prints the table; fails on nothing, since each test says itself what it lacks.
pub fn report() -> Outcome {
    let guest = guest::TOOLS
        .iter()
        .map(|t| (t.program, t.package, "guest tests: a real Linux host"));
    for (program, package, needed_for) in guest.chain(OTHER) {
        let found = guest::find_program(program);
        let state = found.map_or(format!("MISSING, package {package}"), |p| {
            p.display().to_string()
        });
        println!("{program:20} {needed_for:55} {state}");
    }
    let state =
        guest::kernel().unwrap_or_else(|| format!("MISSING, package {}", guest::KERNEL_PACKAGE));
    println!(
        "{:20} {:55} {state}",
        "kernel", "guest tests: a readable kernel with modules"
    );
    let state = if has_nightly() {
        "there"
    } else {
        "MISSING, `rustup toolchain install nightly`"
    };
    println!(
        "{:20} {:55} {state}",
        "nightly toolchain", "AddressSanitizer"
    );
    let missing = guest::missing();
    if !missing.is_empty() {
        println!(
            "\napt-get install --no-install-recommends {}",
            missing.join(" ")
        );
    }
    Ok(())
}
