//! Replication, as the control process commands it: who the nodes are (`nodes`), this node's replicas (`replicas`), paths to replicated volumes and
//! coordinators of them (`serving`), or the way to one on another node (`forwarding`), their sizes (`growing`), replicas that come and go meanwhile (`changing`), snapshots (`snapshots`), what scrubs found (`damage`), in the words of the contract (`words`). All of it is on reactor 0:
//! replicas are on drives whose home it is.

mod changing;
mod damage;
mod forwarding;
mod growing;
mod nodes;
mod replicas;
mod serving;
mod snapshots;
mod words;

use std::cell::{OnceCell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;

use keelblock_hugepages::BufferPool;

use super::{CommandError, Commander};
use crate::reactor::Handle;
use crate::replication::node::{Node, Served};
use crate::replication::session::PrivateKey;
use crate::store::VolumeId;
use crate::volume::forward::serve::Doors;
pub use changing::Wanted;
pub use replicas::NewReplica;
use serving::Serving;
pub use serving::{Epoch, Path};
pub use words::{answer_of, forward_of, keys_of, named_of, record_of, route_of, uuid_bytes};

/// Bytes in which the streams of all volumes that are coordinated here keep data until it is settled.
const STREAM_BYTES: usize = 64 << 20;

/// What a process that replicates is started with.
#[derive(Clone)]
pub struct Replicating {
    /// Where peers connect.
    pub listen: SocketAddr,
    /// This node's key.
    pub key: PrivateKey,
    /// See [`Credentials::secret`](crate::replication::session::Credentials::secret).
    pub secret: [u8; 32],
    /// Of this process.
    pub incarnation: [u8; 16],
}

/// A replica of this node.
struct Here {
    replica: [u8; 16],
    served: Served,
}

/// What reactor 0 has of replication.
pub(super) struct Replication {
    with: Replicating,
    node: Node,
    /// Where peers connect, once it has begun.
    at: RefCell<Option<SocketAddr>>,
    replicas: RefCell<BTreeMap<VolumeId, Here>>,
    /// Why a replica is not served.
    errors: RefCell<BTreeMap<VolumeId, String>>,
    coordinators: RefCell<BTreeMap<VolumeId, Rc<Serving>>>,
    /// What other nodes forward to them.
    doors: Rc<Doors>,
    buffers: OnceCell<Rc<BufferPool>>,
}

impl Replication {
    /// Over reactor 0's part of it.
    pub fn new(handle: &Handle, with: Replicating, node: Node) -> Self {
        let doors = Rc::new(Doors::new(handle));
        node.replicas().forward_to(Some(doors.clone()));
        Self {
            doors,
            with,
            node,
            at: RefCell::default(),
            replicas: RefCell::default(),
            errors: RefCell::default(),
            coordinators: RefCell::default(),
            buffers: OnceCell::new(),
        }
    }

    fn buffers(&self) -> Result<Rc<BufferPool>, CommandError> {
        if let Some(buffers) = self.buffers.get() {
            return Ok(buffers.clone());
        }
        // Only this reactor takes and gives back.
        let made = BufferPool::new(STREAM_BYTES, || {});
        let made = made.map_err(|e| CommandError::field("volume_id", e.to_string()))?;
        Ok(self.buffers.get_or_init(|| Rc::new(made)).clone())
    }
}

impl Commander {
    /// Ends all coordinators, which gives their leases back, then what is done for others: the process ends.
    pub(super) async fn end_replication(&self) {
        let Some(replication) = &self.replication else {
            return;
        };
        let coordinated: Vec<VolumeId> = {
            let all = replication.coordinators.borrow();
            all.keys().copied().collect()
        };
        for volume in coordinated {
            // It says itself what it could not do.
            let _ = self.stop_serving(volume).await;
        }
        let replicas = std::mem::take(&mut *replication.replicas.borrow_mut());
        for here in replicas.into_values() {
            here.served.stop().await;
        }
        self.registry
            .hub()
            .run_on_all(|hub| async move {
                if let Some(node) = hub.replication() {
                    node.stop();
                }
            })
            .await;
    }

    fn replication(&self) -> Result<&Replication, CommandError> {
        self.replication.as_ref().ok_or(CommandError::NoReplication)
    }
}
