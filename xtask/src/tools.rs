//! The tools that tests use beside cargo: what for, and which Debian package brings them.
use crate::run::{Outcome, find_program};

/// A program that some tests need.
pub struct Tool {
    /// Program in PATH.
    pub program: &'static str,
    /// Debian package that brings it.
    pub package: &'static str,
    /// What cannot run without it.
    pub needed_for: &'static str,
}

/// What the tests with a real Linux host need (a kernel with modules comes on top, see [`missing_for_guest`]).
pub const GUEST: &[Tool] = &[
    Tool {
        program: "qemu-system-x86_64",
        package: "qemu-system-x86",
        needed_for: "guest tests: the machine",
    },
    Tool {
        program: "busybox",
        package: "busybox-static",
        needed_for: "guest tests: its user space",
    },
    Tool {
        program: "nvme",
        package: "nvme-cli",
        needed_for: "guest tests: discover and connect",
    },
    Tool {
        program: "fio",
        package: "fio",
        needed_for: "guest tests: verified I/O",
    },
    Tool {
        program: "cpio",
        package: "cpio",
        needed_for: "guest tests: the initramfs",
    },
    Tool {
        program: "modprobe",
        package: "kmod",
        needed_for: "guest tests: the initramfs",
    },
    Tool {
        program: "mkfs.ext4",
        package: "e2fsprogs",
        needed_for: "guest tests: a file system",
    },
];

/// What other tests use.
pub const OTHER: &[Tool] = &[
    Tool {
        program: "setpriv",
        package: "util-linux",
        needed_for: "tests: start-up as an unprivileged user (as root only)",
    },
    Tool {
        program: "unshare",
        package: "util-linux",
        needed_for: "tests: start-up on a full disk",
    },
    Tool {
        program: "python3",
        package: "python3",
        needed_for: "conformance: the script",
    },
];

/// Debian packages that the guest tests lack here; empty when they can run.
pub fn missing_for_guest() -> Vec<&'static str> {
    let mut missing: Vec<_> = GUEST
        .iter()
        .filter(|t| find_program(t.program).is_none())
        .map(|t| t.package)
        .collect();
    if kernel().is_none() {
        missing.push("linux-image-amd64");
    }
    missing
}

/// Release of a kernel in /boot whose modules are installed.
fn kernel() -> Option<String> {
    let entries = std::fs::read_dir("/boot").ok()?;
    entries
        .filter_map(|e| {
            e.ok()?
                .file_name()
                .to_str()?
                .strip_prefix("vmlinuz-")
                .map(str::to_owned)
        })
        .find(|release| std::path::Path::new("/lib/modules").join(release).is_dir())
}

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
    for tool in GUEST.iter().chain(OTHER) {
        let found = find_program(tool.program);
        let state = found.map_or(format!("MISSING, package {}", tool.package), |p| {
            p.display().to_string()
        });
        println!("{:20} {:45} {state}", tool.program, tool.needed_for);
    }
    let state = kernel().unwrap_or_else(|| "MISSING, package linux-image-amd64".into());
    println!(
        "{:20} {:45} {state}",
        "kernel", "guest tests: Debian's kernel with modules"
    );
    let state = if has_nightly() {
        "there"
    } else {
        "MISSING, `rustup toolchain install nightly`"
    };
    println!(
        "{:20} {:45} {state}",
        "nightly toolchain", "AddressSanitizer"
    );
    let missing = missing_for_guest();
    if !missing.is_empty() {
        println!(
            "\napt-get install --no-install-recommends {}",
            missing.join(" ")
        );
    }
    Ok(())
}
