//! The ports of a node.
use crate::failure::{Failure, Result};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};

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
    /// Replication, for other nodes' data paths.
    pub replication: SocketAddr,
    /// Gossip, for other nodes' control processes (UDP).
    pub gossip: SocketAddr,
}

impl Ports {
    /// The ports of that many nodes, all of them free now. 0 as base: any that are.
    pub fn choose(base: Option<u16>, nodes: u16) -> Result<Vec<Ports>> {
        let mut any = Free::new();
        let of_node = |index| Ports::of_node(base, index, &mut any);
        (0..nodes).map(of_node).collect()
    }

    fn of_node(base: Option<u16>, index: u16, any: &mut Free) -> Result<Ports> {
        let numbers = match base {
            Some(0) => {
                return Ok(Ports {
                    nvme: any.next()?,
                    sdk: any.next()?,
                    rest: any.next()?,
                    kvdb: any.next()?,
                    replication: any.next()?,
                    gossip: any.next()?,
                });
            }
            None => [4420, 9020, 9021, 9019, 9022, 9023].map(|p| p + index * PORTS_PER_NODE),
            Some(base) => {
                let first = base
                    .checked_add(index * PORTS_PER_NODE)
                    .filter(|first| *first <= u16::MAX - 5);
                let first = first.ok_or_else(|| {
                    Failure::Usage(format!("--port-base {base} leaves no room for all ports"))
                })?;
                [0, 1, 2, 3, 4, 5].map(|i| first + i)
            }
        };
        let names = [
            "NVMe/TCP",
            "the SDK",
            "REST",
            "the key-value database",
            "replication",
        ];
        let gossip = numbers[names.len()];
        for (number, name) in numbers.into_iter().zip(names) {
            free(number, name)?;
        }
        free_udp(gossip)?;
        let [nvme, sdk, rest, kvdb, replication, gossip] =
            numbers.map(|p| SocketAddr::from((ADDRESS, p)));
        Ok(Ports {
            nvme,
            sdk,
            rest,
            kvdb,
            replication,
            gossip,
        })
    }
}

/// Fails with words for a person if a port cannot be listened on.
fn free(port: u16, name: &str) -> Result<()> {
    let at = SocketAddr::from((ADDRESS, port));
    told(at, name, TcpListener::bind(at).map(drop))
}

/// The same of a port of UDP.
fn free_udp(port: u16) -> Result<()> {
    let at = SocketAddr::from((ADDRESS, port));
    told(at, "gossip (UDP)", UdpSocket::bind(at).map(drop))
}

fn told(at: SocketAddr, name: &str, bound: std::io::Result<()>) -> Result<()> {
    let why = match bound {
        Ok(()) => return Ok(()),
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

/// Ports that nobody uses, held until all are chosen. Not of those that the system gives to outgoing connections: one of our own programs would now and
/// then take one before it is listened on.
struct Free {
    held: Vec<TcpListener>,
    range: std::ops::Range<u16>,
}

/// Lowest port that is chosen for anybody.
const FREE_FIRST: u16 = 10_000;
/// Ports that are tried for one.
const FREE_TRIES: usize = 1_000;

impl Free {
    fn new() -> Free {
        let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
        let outgoing = range
            .ok()
            .and_then(|r| r.split_whitespace().next()?.parse().ok());
        let range = FREE_FIRST..outgoing.unwrap_or(32_768).max(FREE_FIRST + 1_000);
        let held = Vec::new();
        Free { held, range }
    }

    fn next(&mut self) -> Result<SocketAddr> {
        let mut failed = None;
        for _ in 0..FREE_TRIES {
            let random =
                uuid::Uuid::new_v4().as_u128() % u128::from(self.range.end - self.range.start);
            match TcpListener::bind((ADDRESS, self.range.start + random as u16)) {
                Ok(listener) => {
                    let at = listener.local_addr();
                    self.held.push(listener);
                    return at.map_err(|e| Failure::local("find free ports", e));
                }
                Err(e) => failed = Some(e),
            }
        }
        let why = failed.map_or_else(|| "there are none".to_owned(), |e| e.to_string());
        Err(Failure::local("find free ports", why))
    }
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
        let holder = UdpSocket::bind((ADDRESS, 0)).unwrap();
        let port = holder.local_addr().unwrap().port();
        let refused = free_udp(port).unwrap_err().to_string();
        assert!(refused.contains("gossip"), "{refused}");
    }

    #[test]
    fn free_ports_differ() {
        let nodes = Ports::choose(Some(0), 3).unwrap();
        let all = nodes
            .iter()
            .flat_map(|p| [p.nvme, p.sdk, p.rest, p.kvdb, p.replication, p.gossip]);
        let set: std::collections::HashSet<_> = all.collect();
        assert_eq!(set.len(), 18);
    }

    #[test]
    fn a_base_at_the_end_is_refused() {
        assert_eq!(Ports::choose(Some(65534), 1).unwrap_err().exit_code(), 2);
    }
}
