//! The processes that are measured: the KVDB (embedded, by itself, or etcd) and one control process.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Clock ticks of a second: what the kernel counts the time of processes in.
const TICKS_PER_S: f64 = 100.0;

/// A program; it ends with this.
pub struct Process {
    child: Child,
}

/// What a process has used so far.
#[derive(Debug, Clone, Copy, Default)]
pub struct Used {
    /// Resident memory, in MiB.
    pub resident_mib: f64,
    /// Time of processors, in seconds.
    pub cpu_s: f64,
    /// Bytes that it had written to drives.
    pub written: u64,
}

impl Process {
    fn start(mut command: Command, log: &Path) -> Result<Self, String> {
        let file = std::fs::File::create(log).map_err(|e| format!("{}: {e}", log.display()))?;
        let both = file.try_clone().map_err(|e| e.to_string())?;
        command.stdin(Stdio::null()).stdout(file).stderr(both);
        let child = command.spawn();
        let child = child.map_err(|e| format!("{command:?} does not start: {e}"))?;
        Ok(Self { child })
    }

    /// The embedded KVDB by itself.
    pub fn embedded(dir: &Path, at: SocketAddr) -> Result<Self, String> {
        let mut command = Command::new(program("keelblock-control")?);
        command.args(["kvdb", "--cluster-id", CLUSTER, "--listen"]);
        command
            .arg(at.to_string())
            .arg("--data")
            .arg(dir.join("kvdb"));
        Self::start(command, &dir.join("kvdb.log"))
    }

    /// etcd, one member.
    pub fn etcd(dir: &Path, at: SocketAddr) -> Result<Self, String> {
        let (clients, peers) = (format!("http://{at}"), format!("http://{}", free_port()?));
        let mut command = Command::new("etcd");
        command.arg("--data-dir").arg(dir.join("etcd")).args([
            "--listen-client-urls",
            &clients,
            "--advertise-client-urls",
            &clients,
            "--listen-peer-urls",
            &peers,
            "--initial-advertise-peer-urls",
            &peers,
            "--initial-cluster",
            &format!("default={peers}"),
        ]);
        Self::start(command, &dir.join("etcd.log"))
    }

    /// A node's control process.
    pub fn control(
        dir: &Path,
        kvdb: SocketAddr,
        sdk: SocketAddr,
        rest: SocketAddr,
    ) -> Result<Self, String> {
        let mut command = Command::new(program("keelblock-control")?);
        let drive = format!("{},1G", dir.join("drive.img").display());
        command
            .args(["--cluster-id", CLUSTER, "--node-id", NODE, "--data"])
            .arg(dir.join("control"))
            .arg("--datapath-socket")
            .arg(dir.join("dp.sock"))
            .args(["--sdk", &sdk.to_string(), "--rest", &rest.to_string()])
            .args(["--etcd", &kvdb.to_string(), "--drive", &drive]);
        Self::start(command, &dir.join("control.log"))
    }

    /// What it has used.
    pub fn used(&self) -> Used {
        let read = |name: &str| {
            std::fs::read_to_string(format!("/proc/{}/{name}", self.child.id())).unwrap_or_default()
        };
        let of = |text: &str, name: &str| {
            let line = text.lines().find_map(|l| l.strip_prefix(name));
            line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok())
                .unwrap_or(0)
        };
        let stat = read("stat");
        let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let ticks = after_name.split_whitespace().skip(11).take(2);
        let ticks: u64 = ticks.filter_map(|t| t.parse::<u64>().ok()).sum();
        Used {
            resident_mib: of(&read("status"), "VmRSS:") as f64 / 1024.0,
            cpu_s: ticks as f64 / TICKS_PER_S,
            written: of(&read("io"), "write_bytes:"),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Of the cluster.
pub const CLUSTER: &str = "scale";
/// The node that is real but for its data path.
pub const NODE: &str = "node-1";

/// A program of the build that this is of, or of `KEELBLOCK_BIN_DIR`.
pub fn program(name: &str) -> Result<PathBuf, String> {
    let given = std::env::var_os("KEELBLOCK_BIN_DIR").map(PathBuf::from);
    let exe = std::env::current_exe().map_err(|e| e.to_string())?;
    // target/PROFILE/examples/NAME
    let built = || exe.parent().and_then(Path::parent).map(PathBuf::from);
    let path = given.or_else(built).map(|dir| dir.join(name));
    let path = path.filter(|path| path.exists());
    path.ok_or_else(|| {
        format!("{name} is not built: `cargo xtask bench control` builds it, or name its directory in KEELBLOCK_BIN_DIR")
    })
}

/// An address that nobody has at the moment.
pub fn free_port() -> Result<SocketAddr, String> {
    let listener = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr());
    listener.map_err(|e| format!("no free port: {e}"))
}
