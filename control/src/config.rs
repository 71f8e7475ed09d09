//! What the control process is told on its command line.
use crate::kvdb::client::Options;
use crate::membership::TokenSource;
use crate::names;
use crate::secrets::Source;
use clap::{Parser, Subcommand};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

/// The whole command line.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "keelblock-control",
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
pub struct Args {
    /// Something else than a node's control process.
    #[command(subcommand)]
    pub other: Option<Other>,
    /// The control process of a node.
    #[command(flatten)]
    pub node: Option<Config>,
}

/// What this program can be besides.
#[derive(Debug, Clone, Subcommand)]
pub enum Other {
    /// Serve the embedded KVDB (etcd v3) by itself, for several nodes of one machine.
    Kvdb(KvdbConfig),
}

/// The embedded KVDB by itself.
#[derive(Debug, Clone, Parser)]
pub struct KvdbConfig {
    /// Id of the cluster.
    #[arg(long, value_parser = id)]
    pub cluster_id: String,
    /// Directory of this process.
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
    /// Where it is served.
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:9019")]
    pub listen: SocketAddr,
}

/// The control process of a Keelblock node: volumes, attachments, the embedded key-value database, and the servers for SDK,
/// REST and metrics. I/O goes on without it.
#[derive(Debug, Clone, Parser)]
pub struct Config {
    /// Id of the cluster, the same on all its nodes and for ever.
    #[arg(long, value_parser = id)]
    pub cluster_id: String,
    /// Id of this node in the cluster.
    #[arg(long, value_parser = id)]
    pub node_id: String,
    /// Directory of this process: its identity and the embedded KVDB.
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
    /// The socket that the data path of this node listens on.
    #[arg(long, value_name = "PATH")]
    pub datapath_socket: PathBuf,
    /// Where the OpenStorage SDK and the admin service are served (gRPC).
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:9020")]
    pub sdk: SocketAddr,
    /// Where REST, Swagger UI, metrics and health are served (HTTP).
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:9021")]
    pub rest: SocketAddr,
    /// Where other nodes' control processes reach this one (UDP): an address of this machine, not 0.0.0.0.
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:9023", value_parser = gossip)]
    pub gossip: SocketAddr,
    /// Where the embedded KVDB is served (etcd v3).
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:9019")]
    pub kvdb: SocketAddr,
    /// Use the KVDB at these addresses instead of serving one: etcd, or what `keelblock-control kvdb` serves.
    #[arg(long, value_name = "ADDR:PORT,...", conflicts_with = "kvdb")]
    pub etcd: Option<String>,
    /// The certificates (PEM) that those of etcd are signed by: connections are TLS then.
    #[arg(long, value_name = "FILE", requires = "etcd")]
    pub etcd_ca: Option<PathBuf>,
    /// The certificate (PEM) by which etcd knows this process.
    #[arg(long, value_name = "FILE", requires = "etcd_key", requires = "etcd_ca")]
    pub etcd_cert: Option<PathBuf>,
    /// The key (PEM) of that certificate.
    #[arg(long, value_name = "FILE", requires = "etcd_cert")]
    pub etcd_key: Option<PathBuf>,
    /// The user of etcd that this process is.
    #[arg(
        long,
        value_name = "NAME",
        requires = "etcd_password_file",
        requires = "etcd"
    )]
    pub etcd_user: Option<String>,
    /// A file whose first line is that user's password; it is read again whenever this process logs in.
    #[arg(long, value_name = "FILE", requires = "etcd_user")]
    pub etcd_password_file: Option<PathBuf>,
    /// A file whose first line is the cluster's token: a node without it does not join. The first node that has one sets it.
    #[arg(long, value_name = "FILE", group = "cluster_token")]
    pub cluster_token_file: Option<PathBuf>,
    /// The same from a variable of this process' environment.
    #[arg(long, value_name = "NAME", group = "cluster_token")]
    pub cluster_token_env: Option<String>,
    /// A label of this node (repeatable), like zone=a: set at each start. `region`, `zone` and `rack` say where it is.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    pub labels: Vec<(String, String)>,
    /// A drive of this node's pool (repeatable): PATH, PATH,SIZE for a file to be made, or memory:SIZE (lost at the end).
    #[arg(long = "drive", value_name = "SPEC")]
    pub drives: Vec<DriveSpec>,
    /// Name of the pool that the drives are in.
    #[arg(long, value_name = "NAME", default_value = "default", value_parser = id)]
    pub pool: String,
    /// A file with the cluster key, which opens encrypted volumes: 64 hexadecimal digits a line, the present key first. The same on all nodes.
    #[arg(long, value_name = "PATH", group = "cluster_key")]
    pub cluster_key_file: Option<PathBuf>,
    /// The same from a variable of this process' environment.
    #[arg(long, value_name = "NAME", group = "cluster_key")]
    pub cluster_key_env: Option<String>,
    /// The same from what a command prints (run by `sh -c` whenever the key is needed).
    #[arg(long, value_name = "COMMAND", group = "cluster_key")]
    pub cluster_key_command: Option<String>,
    /// Who may call: a file that says whose tokens count, and that calls need one or are a guest's (docs/auth.md). The same on all nodes.
    #[arg(long, value_name = "FILE")]
    pub auth: Option<PathBuf>,
    /// A file whose end is a part of what `keelctl service diags` collects, like the log of the data path (repeatable).
    #[arg(long = "diags-file", value_name = "PATH")]
    pub diags_files: Vec<PathBuf>,
    /// Log lines as JSON.
    #[arg(long)]
    pub log_json: bool,
}

impl Config {
    /// How the KVDB at these addresses is reached.
    pub fn kvdb_options(&self, endpoints: &str) -> Options {
        let identity = self.etcd_cert.clone().zip(self.etcd_key.clone());
        let login = self.etcd_user.clone().zip(self.etcd_password_file.clone());
        Options {
            endpoints: endpoints.into(),
            ca: self.etcd_ca.clone(),
            identity,
            login,
        }
    }

    /// All of it for people, without what may be a secret: a command line may have one in it.
    pub fn shown(&self) -> String {
        let mut shown = self.clone();
        shown.cluster_key_command = self.cluster_key_command.as_ref().map(|_| "left out".into());
        format!("{shown:#?}\n")
    }

    /// Where the cluster's token comes from.
    pub fn token_source(&self) -> TokenSource {
        let file = self.cluster_token_file.clone().map(TokenSource::File);
        let variable = self.cluster_token_env.clone().map(TokenSource::Variable);
        file.or(variable).unwrap_or_default()
    }

    /// Where the cluster key comes from.
    pub fn key_source(&self) -> Source {
        let file = self.cluster_key_file.clone().map(Source::File);
        let variable = self.cluster_key_env.clone().map(Source::Variable);
        let command = self.cluster_key_command.clone().map(Source::Command);
        file.or(variable).or(command).unwrap_or_default()
    }
}

/// An address that others can send to.
fn gossip(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text
        .parse()
        .map_err(|_| "write ADDR:PORT, like 10.0.0.7:9023")?;
    match address.ip().is_unspecified() {
        true => Err(
            "other nodes are told this address: give one of this machine that they reach".into(),
        ),
        false => Ok(address),
    }
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.into(), value.into())),
        _ => Err("write KEY=VALUE, like zone=a".into()),
    }
}

fn id(text: &str) -> Result<String, String> {
    names::check_id(text).map(|()| text.to_owned())
}

/// A drive as the command line has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriveSpec {
    /// A path, or `memory:BYTES`.
    pub path: String,
    /// For a file that is not there yet: its size. 0 = as it is.
    pub size_bytes: u64,
}

impl DriveSpec {
    /// Whether what it holds ends with the data path.
    pub fn is_memory(&self) -> bool {
        self.path.starts_with("memory:")
    }

    /// Why it cannot be opened, as far as that can be seen from here; the data path finds the rest.
    pub fn unusable(&self) -> Option<String> {
        let path = std::path::Path::new(&self.path);
        if self.is_memory() || (path.exists() && !path.is_dir()) {
            return None;
        }
        if path.is_dir() {
            return Some(format!(
                "drive {}: it is a directory; give a file in it, like {0}/drive.img,10G",
                self.path
            ));
        }
        if self.size_bytes == 0 {
            return Some(format!(
                "drive {}: there is none; give a size to have a file made, like {0},10G",
                self.path
            ));
        }
        match path.parent() {
            Some(dir) if dir.as_os_str().is_empty() || dir.is_dir() => None,
            _ => Some(format!("drive {}: its directory does not exist", self.path)),
        }
    }
}

impl FromStr for DriveSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(size) = text.strip_prefix("memory:") {
            return Ok(Self {
                path: format!("memory:{}", size_bytes(size)?),
                size_bytes: 0,
            });
        }
        let (path, size_bytes) = match text.rsplit_once(',') {
            Some((path, size)) => (path, size_bytes(size)?),
            None => (text, 0),
        };
        if path.is_empty() {
            return Err("give a path, PATH,SIZE or memory:SIZE".into());
        }
        // The data path has a working directory of its own.
        let path = std::path::absolute(path).map_err(|e| e.to_string())?;
        let path = path.to_str().ok_or("the path is not UTF-8")?.to_owned();
        Ok(Self { path, size_bytes })
    }
}

/// Bytes, or a number with K, M, G or T (powers of 1024).
fn size_bytes(text: &str) -> Result<u64, String> {
    let wrong =
        || format!("`{text}` is not a size: write bytes, or a number with K, M, G or T, like 10G");
    let (digits, shift) = match text.char_indices().last() {
        Some((at, unit)) if !unit.is_ascii_digit() => {
            let shift = "KMGT".find(unit.to_ascii_uppercase()).ok_or_else(wrong)?;
            (&text[..at], 10 * (shift as u32 + 1))
        }
        _ => (text, 0),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    let bytes = number.checked_mul(1 << shift).ok_or_else(wrong)?;
    if bytes == 0 { Err(wrong()) } else { Ok(bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drives_are_read() {
        let drive = |path: &str, size_bytes| {
            Ok(DriveSpec {
                path: path.into(),
                size_bytes,
            })
        };
        assert_eq!("/dev/sdb".parse(), drive("/dev/sdb", 0));
        assert_eq!("/a/b.img,4096".parse(), drive("/a/b.img", 4096));
        assert_eq!("/a,b.img,10G".parse(), drive("/a,b.img", 10 << 30));
        assert_eq!("memory:2M".parse(), drive("memory:2097152", 0));
        for bad in [
            "",
            ",1G",
            "memory:",
            "memory:x",
            "/a,0",
            "/a,1X",
            "/a,99999999999T",
            "memory:0",
            "/a,ä",
        ] {
            assert!(bad.parse::<DriveSpec>().is_err(), "{bad}");
        }
        assert!(
            "drive.img"
                .parse::<DriveSpec>()
                .unwrap()
                .path
                .starts_with('/')
        );
    }

    #[test]
    fn drives_that_cannot_be_are_told_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| DriveSpec {
            path: dir.path().join(name).to_str().unwrap().into(),
            size_bytes: 0,
        };
        assert!(at("none").unusable().unwrap().contains("give a size"));
        assert!(at("").unusable().unwrap().contains("directory"));
        assert!(
            DriveSpec {
                size_bytes: 4096,
                ..at("no/dir")
            }
            .unusable()
            .unwrap()
            .contains("directory")
        );
        assert_eq!(
            DriveSpec {
                size_bytes: 4096,
                ..at("new")
            }
            .unusable(),
            None
        );
        assert_eq!("memory:4096".parse::<DriveSpec>().unwrap().unusable(), None);
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Args::command().debug_assert();
    }

    #[test]
    fn a_node_serves_a_kvdb_or_uses_one_and_a_kvdb_can_be_alone() {
        let node = "keelblock-control --cluster-id c --node-id n --data d --datapath-socket s";
        let read = |line: String| Args::try_parse_from(line.split(' ').map(str::to_owned));
        assert_eq!(read(node.into()).unwrap().node.unwrap().etcd, None);
        let other = read(format!("{node} --etcd 127.0.0.1:2379")).unwrap();
        assert_eq!(other.node.unwrap().etcd.as_deref(), Some("127.0.0.1:2379"));
        assert!(read(format!("{node} --etcd a:1 --kvdb 127.0.0.1:1")).is_err());
        for nowhere in ["0.0.0.0:9023", "[::]:9023", "9023"] {
            assert!(
                read(format!("{node} --gossip {nowhere}")).is_err(),
                "{nowhere}"
            );
        }
        for half in [
            "--etcd-ca ca",
            "--etcd a:1 --etcd-ca ca --etcd-cert c",
            "--etcd a:1 --etcd-cert c --etcd-key k",
            "--etcd a:1 --etcd-user u",
            "--etcd a:1 --etcd-password-file p",
        ] {
            assert!(read(format!("{node} {half}")).is_err(), "{half}");
        }
        let all = "--etcd a:1 --etcd-ca ca --etcd-cert c --etcd-key k --etcd-user u --etcd-password-file p";
        let all = read(format!("{node} {all}")).unwrap().node.unwrap();
        let options = all.kvdb_options("a:1");
        assert_eq!(options.identity, Some(("c".into(), "k".into())));
        assert_eq!(options.login, Some(("u".into(), "p".into())));
        assert!(read("keelblock-control".into()).is_err_and(|e| e.use_stderr()));
        let with_key = read(format!("{node} --cluster-key-command pass"));
        let source = with_key.unwrap().node.unwrap().key_source();
        assert_eq!(source, Source::Command("pass".into()));
        assert!(
            read(format!(
                "{node} --cluster-key-command a --cluster-key-env b"
            ))
            .is_err()
        );
        let alone = read("keelblock-control kvdb --cluster-id c --data d".into()).unwrap();
        assert!(matches!(alone.other, Some(Other::Kvdb(k)) if k.listen.port() == 9019));
    }
}
