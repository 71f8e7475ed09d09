//! The ports of a node.
use crate::failure::{Failure, Result};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

/// Where everything listens: this machine only.
const ADDRESS: Ipv4Addr = Ipv4Addr::LOCALHOST;
/// Distance between the first ports of two nodes.
const PORTS_PER_NODE: u16 = 10;

/// What a node listens on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ports {
    /// NVMe/TCP, volumes and discovery.
    pub nvme: SocketAddr,
    /// OpenStorage SDK and admin (gRPC).
    pub sdk: SocketAddr,
    /// REST, Swagger UI and metrics.
    pub rest: SocketAddr,
    /// Key-value database (etcd v3).
    pub kvdb: SocketAddr,
}

impl Ports {
    /// The ports of node `index` (from 0), all of them free now.
    pub fn choose(base: Option<u16>, index: u16) -> Result<Ports> {
        let numbers = match base {
            Some(0) => return any(),
            None => [4420, 9020, 9021, 9019].map(|p| p + index * PORTS_PER_NODE),
            Some(base) => {
                let first = base
                    .checked_add(index * PORTS_PER_NODE)
                    .filter(|first| *first <= u16::MAX - 3);
                let first = first.ok_or_else(|| {
                    Failure::Usage(format!("--port-base {base} leaves no room for all ports"))
                })?;
                [0, 1, 2, 3].map(|i| first + i)
            }
        };
        let names = ["NVMe/TCP", "the SDK", "REST", "the key-value database"];
        for (number, name) in numbers.into_iter().zip(names) {
            free(number, name)?;
        }
        let [nvme, sdk, rest, kvdb] = numbers.map(|p| SocketAddr::from((ADDRESS, p)));
        Ok(Ports {
            nvme,
            sdk,
            rest,
            kvdb,
        })
    }
}

/// Fails with words for a person if a port cannot be listened on.
fn free(port: u16, name: &str) -> Result<()> {
    let at = SocketAddr::from((ADDRESS, port));
    let why = match TcpListener::bind(at) {
        Ok(_) => return Ok(()),
        Err(e) if e.kind() == ErrorKind::AddrInUse => {
            "another program listens there. Stop it, or choose other ports with --port-base".into()
        }
        Err(e) if e.kind() == ErrorKind::PermissionDenied => {
            format!("{e}. Choose ports from 1024 up with --port-base")
        }
        Err(e) => e.to_string(),
    };
    Err(Failure::local(format!("port {at} for {name}"), why))
}

/// Ports that were free a moment ago; held together while choosing, so that they differ.
fn any() -> Result<Ports> {
    let fail = |e: std::io::Error| Failure::local("find free ports", e);
    let bind = || TcpListener::bind((ADDRESS, 0)).map_err(fail);
    let held = [bind()?, bind()?, bind()?, bind()?];
    let [nvme, sdk, rest, kvdb] = held.map(|l| l.local_addr().map_err(fail));
    Ok(Ports {
        nvme: nvme?,
        sdk: sdk?,
        rest: rest?,
        kvdb: kvdb?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_port_is_told_by_name() {
        let holder = TcpListener::bind((ADDRESS, 0)).unwrap();
        let port = holder.local_addr().unwrap().port();
        let refused = free(port, "NVMe/TCP").unwrap_err().to_string();
        assert!(
            refused.contains(&port.to_string()) && refused.contains("--port-base"),
            "{refused}"
        );
    }

    #[test]
    fn free_ports_differ() {
        let p = Ports::choose(Some(0), 0).unwrap();
        let set: std::collections::HashSet<_> = [p.nvme, p.sdk, p.rest, p.kvdb].into();
        assert_eq!(set.len(), 4);
    }

    #[test]
    fn a_base_at_the_end_is_refused() {
        assert_eq!(Ports::choose(Some(65534), 0).unwrap_err().exit_code(), 2);
    }
}
