//! A real Linux host: Debian's kernel in QEMU without hardware help, running one of the scripts in `tests/guest`.
//!
//! A script prints what it does; a line that starts with `@host ` asks this side to do something to the target.
use crate::programs::workspace;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// A program that the guest is made of.
#[derive(Clone, Copy, Debug)]
pub struct Tool {
    /// Program in PATH.
    pub program: &'static str,
    /// Debian package that brings it.
    pub package: &'static str,
}

const fn tool(program: &'static str, package: &'static str) -> Tool {
    Tool { program, package }
}

/// Everything but the kernel.
pub const TOOLS: &[Tool] = &[
    tool("qemu-system-x86_64", "qemu-system-x86"),
    tool("busybox", "busybox-static"),
    tool("nvme", "nvme-cli"),
    tool("fio", "fio"),
    tool("cpio", "cpio"),
    tool("modprobe", "kmod"),
    tool("mkfs.ext4", "e2fsprogs"),
];

/// The package with a kernel.
pub const KERNEL_PACKAGE: &str = "linux-image-amd64";

/// Where `name` lies in PATH, or in the directories of the administrator, which a user's PATH may lack.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    dirs.map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// Release of a kernel in /boot that can be read and whose modules are installed.
pub fn kernel() -> Option<String> {
    let entries = std::fs::read_dir("/boot").ok()?;
    let kernels = entries.filter_map(|e| {
        let entry = e.ok()?;
        std::fs::File::open(entry.path()).ok()?;
        entry
            .file_name()
            .to_str()?
            .strip_prefix("vmlinuz-")
            .map(str::to_owned)
    });
    kernels
        .filter(|release| Path::new("/lib/modules").join(release).is_dir())
        .max()
}

/// Debian packages that are missing here; empty when guests can run.
pub fn missing() -> Vec<&'static str> {
    let absent = TOOLS.iter().filter(|t| find_program(t.program).is_none());
    let mut missing: Vec<_> = absent.map(|t| t.package).collect();
    if kernel().is_none() {
        missing.push(KERNEL_PACKAGE);
    }
    missing
}

/// Whether guests shall run here; says why not. `KEELBLOCK_NO_GUEST` leaves them out, as `cargo xtask test --no-guest` does.
pub fn wanted() -> bool {
    if std::env::var_os("KEELBLOCK_NO_GUEST").is_some() {
        eprintln!("SKIPPED: KEELBLOCK_NO_GUEST is set");
        return false;
    }
    let missing = missing();
    if !missing.is_empty() {
        eprintln!(
            "SKIPPED: a guest needs apt-get install {}",
            missing.join(" ")
        );
    }
    missing.is_empty()
}

/// Runs `tests/guest/SCRIPT.sh` in a guest that knows the target by `ADDR` and `PORT`, and what else `env` says. `on_host` does
/// what the script asks for.
///
/// # Panics
/// If the script fails; what it said has been shown.
pub fn run(
    script: &str,
    target: SocketAddr,
    env: &[(&str, String)],
    limit: Duration,
    mut on_host: impl FnMut(&str),
) {
    assert!(
        target.ip().is_loopback(),
        "the guest reaches this machine's loopback only"
    );
    let dir = workspace().join("tests/guest");
    let mut command = Command::new(dir.join("run.sh"));
    command.args(["-t", &limit.as_secs().to_string()]);
    let target = [
        ("ADDR", "10.0.2.2".to_owned()),
        ("PORT", target.port().to_string()),
    ];
    for (name, value) in target.iter().chain(env) {
        command.args(["-e", &format!("{name}={value}")]);
    }
    command
        .arg(dir.join(format!("{script}.sh")))
        .arg(format!("{}:/lib.sh", dir.join("lib.sh").display()));
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the guest's script starts");
    let stdout = child.stdout.take().expect("stdout was asked to be a pipe");
    for line in BufReader::new(stdout).split(b'\n') {
        let line = line.expect("the guest's output can be read");
        let line = String::from_utf8_lossy(&line)
            .trim_end_matches('\r')
            .to_owned();
        println!("{script}: {line}");
        if let Some(request) = line.strip_prefix("@host ") {
            on_host(request);
        }
    }
    let status = child.wait().expect("a child can be waited for");
    assert!(
        status.success(),
        "{script}.sh in the guest failed ({status})"
    );
}
