//! The target as the rest of the data path sees it: started on every reactor, commanded on the main one.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use super::foreign::Foreign;
use super::home::Home;
use super::message::{Answer, Mail, Message, Request, discovery_entry};
use super::node::{Node, home_of};
use super::seam::{
    ControllerInfo, DISCOVERY_NQN, DiscoveryEntry, ExportConfig, ExportError, HostId, NodeIdentity,
    TargetEvent,
};
use super::subsystem::Subsystem;
use super::view::Volumes;
use crate::reactor::{Endpoint, Handle, NetError, Notify};

/// Events that wait to be taken; more push out the oldest, which control learns from what it enumerates.
const EVENTS_MAX: usize = 4096;

/// An export and who is connected to it.
pub type ExportState = (ExportConfig, Vec<ControllerInfo>);

/// What the main reactor has more.
pub struct MainPart {
    next_question: Cell<u64>,
    questions: RefCell<BTreeMap<u64, Rc<Question>>>,
    events: RefCell<VecDeque<TargetEvent>>,
    has_events: Notify,
    exports: RefCell<BTreeMap<Arc<str>, DiscoveryEntry>>,
    discovery: RefCell<Option<Rc<Home>>>,
}

#[derive(Default)]
struct Question {
    answer: RefCell<Option<Answer>>,
    answered: Notify,
}

impl MainPart {
    fn new() -> Self {
        Self {
            next_question: Cell::new(0),
            questions: RefCell::default(),
            events: RefCell::default(),
            has_events: Notify::new(),
            exports: RefCell::default(),
            discovery: RefCell::default(),
        }
    }

    /// An answer came.
    pub(super) fn answered(&self, id: u64, answer: Answer) {
        if let Some(question) = self.questions.borrow_mut().remove(&id) {
            question.answer.replace(Some(answer));
            question.answered.notify();
        }
    }

    /// An event came.
    pub(super) fn event(&self, event: TargetEvent) {
        let mut events = self.events.borrow_mut();
        if events.len() == EVENTS_MAX {
            events.pop_front();
        }
        events.push_back(event);
        self.has_events.notify();
    }
}

/// The target on one reactor.
#[derive(Clone)]
pub struct Target {
    node: Rc<Node>,
}

impl Target {
    /// Starts the target on a reactor. The main reactor (0) listens and serves discovery; `mesh` joins the reactors' parts, and
    /// `identity.address` is where to listen and what the discovery log says.
    ///
    /// # Errors
    /// The address cannot be listened on.
    pub fn start(
        handle: &Handle,
        mesh: Endpoint<Mail>,
        volumes: Box<dyn Volumes>,
        mut identity: NodeIdentity,
    ) -> Result<Self, NetError> {
        if handle.id().0 != 0 {
            let node = Node::start(handle.clone(), mesh, volumes, identity, None);
            return Ok(Self { node });
        }
        let listener = Node::listen(handle, identity.address)?;
        identity.address = listener.local_addr();
        let discovery = Subsystem::discovery(&identity, handle.now().0);
        let node = Node::start(
            handle.clone(),
            mesh,
            volumes,
            identity,
            Some(MainPart::new()),
        );
        let home = node.add_home(Arc::from(DISCOVERY_NQN), discovery);
        let target = Self { node: node.clone() };
        target.main().discovery.replace(Some(home));
        handle.spawn("nvmf-accept", node.accept(listener));
        Ok(target)
    }

    /// Where hosts connect.
    pub fn address(&self) -> SocketAddr {
        self.node.address
    }

    /// The subsystem in which a volume is exported here, and whether its reservation lets a host read or write. `None`: it is not, or not yet.
    pub fn allows(
        &self,
        volume: &[u8; 16],
        host: &HostId,
        write: bool,
    ) -> Option<(Arc<str>, bool)> {
        self.node.allows(volume, host, write)
    }

    /// Commands of hosts on other nodes that are done here.
    pub fn foreign(&self) -> &Foreign {
        &self.node.foreign
    }

    fn main(&self) -> &MainPart {
        self.node
            .main
            .as_ref()
            .expect("the target is commanded on the main reactor")
    }

    async fn ask(&self, nqn: &str, request: Request) -> Answer {
        let main = self.main();
        let id = main.next_question.get();
        main.next_question.set(id + 1);
        let question = Rc::new(Question::default());
        main.questions.borrow_mut().insert(id, question.clone());
        self.node.send(
            home_of(nqn, self.node.handle.reactors()),
            Message::Ask { id, request },
        );
        loop {
            if let Some(answer) = question.answer.take() {
                return answer;
            }
            question.answered.notified().await;
        }
    }

    /// Exports a subsystem, or changes one without disturbing connections that stay allowed. It is in force on every reactor when this
    /// returns.
    ///
    /// # Errors
    /// The configuration is refused; what was there is as before.
    pub async fn export(&self, config: ExportConfig) -> Result<(), ExportError> {
        let entry = discovery_entry(&config, self.node.address);
        match self
            .ask(&config.nqn.clone(), Request::Export(Box::new(config)))
            .await
        {
            Answer::Refused(refused) => Err(refused),
            _ => {
                self.main()
                    .exports
                    .borrow_mut()
                    .insert(entry.nqn.clone(), entry);
                self.update_discovery();
                Ok(())
            }
        }
    }

    /// Removes a subsystem and ends its connections. An unknown one is removed already.
    pub async fn unexport(&self, nqn: &str) {
        let nqn: Arc<str> = Arc::from(nqn);
        self.ask(&nqn, Request::Unexport { nqn: nqn.clone() }).await;
        self.main().exports.borrow_mut().remove(&nqn);
        self.update_discovery();
    }

    /// One export, and who is connected to it.
    pub async fn inspect(&self, nqn: &str) -> Option<ExportState> {
        match self
            .ask(
                nqn,
                Request::Inspect {
                    nqn: Arc::from(nqn),
                },
            )
            .await
        {
            Answer::Export(found) => found.map(|state| *state),
            _ => None,
        }
    }

    /// All exports, by NQN.
    pub async fn list(&self) -> Vec<ExportState> {
        let names: Vec<Arc<str>> = self.main().exports.borrow().keys().cloned().collect();
        let mut all = Vec::with_capacity(names.len());
        for nqn in names {
            all.extend(self.inspect(&nqn).await);
        }
        all
    }

    /// A reservation is in the KVDB: the command that waits for it completes.
    pub async fn commit_reservation(&self, nqn: &str, nsid: u32, generation: u64) {
        let nqn: Arc<str> = Arc::from(nqn);
        self.ask(
            &nqn,
            Request::CommitReservation {
                nqn: nqn.clone(),
                nsid,
                generation,
            },
        )
        .await;
    }

    /// The next event for the control process.
    pub async fn next_event(&self) -> TargetEvent {
        loop {
            let next = self.main().events.borrow_mut().pop_front();
            match next {
                Some(event) => return event,
                None => self.main().has_events.notified().await,
            }
        }
    }

    fn update_discovery(&self) {
        let entries = self.main().exports.borrow().values().cloned().collect();
        let now = self.node.handle.now().0;
        if let Some(home) = &*self.main().discovery.borrow() {
            home.run(|s| s.set_discovery_log(entries, now));
        }
    }
}
