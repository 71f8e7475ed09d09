//! Calls to the data path.
use crate::error::OpError;
use keelblock_api::channel::StatsSource;
use keelblock_api::datapath::HelloReply;
use keelblock_api::datapath::datapath_client::DatapathClient;
use keelblock_api::stats::StatsReader;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

/// An ordinary command. The data path answers from memory or after a few device writes.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Whether the data path can be used.
#[derive(Debug, Clone)]
pub enum LinkState {
    /// It cannot, and why.
    Down(String),
    /// It can; who it said it is.
    Up(Arc<HelloReply>),
}

/// The connection to the data path. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Link {
    client: DatapathClient<Channel>,
    stats: StatsSource,
    socket: PathBuf,
    state: watch::Receiver<LinkState>,
    /// Counts commands whose outcome is not known.
    doubts: watch::Sender<u64>,
}

impl Link {
    /// A connection to the data path that listens at `socket`; made when first used. The sender is the supervisor's.
    pub fn new(socket: &Path) -> (Self, watch::Sender<LinkState>) {
        let (channel, stats) = keelblock_api::channel::connect(socket);
        let (sender, state) = watch::channel(LinkState::Down("it has not answered yet".into()));
        let client = DatapathClient::new(channel);
        (
            Self {
                client,
                stats,
                socket: socket.to_owned(),
                state,
                doubts: watch::Sender::new(0),
            },
            sender,
        )
    }

    /// Whether it can be used.
    pub fn state(&self) -> LinkState {
        self.state.borrow().clone()
    }

    /// Waits until it can be used, or cannot any more.
    pub async fn changed(&mut self) {
        // The sender lives as long as the supervisor; after it there is nothing to wait for.
        if self.state.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Who the data path said it is; an error that says what to do when it cannot be used.
    pub fn up(&self) -> Result<Arc<HelloReply>, OpError> {
        match self.state() {
            LinkState::Up(hello) => Ok(hello),
            LinkState::Down(reason) => Err(self.down(&reason)),
        }
    }

    fn down(&self, reason: &str) -> OpError {
        OpError::Datapath {
            reason: reason.to_owned(),
            socket: self.socket.display().to_string(),
        }
    }

    /// Its counters, if it has been connected to.
    pub fn stats(&self) -> Option<Arc<StatsReader>> {
        self.stats.current()
    }

    /// A command, in [`CALL_TIMEOUT`]. One whose outcome is unknown has everything reconciled.
    pub async fn call<T, F>(
        &self,
        what: &str,
        command: impl FnOnce(DatapathClient<Channel>) -> F,
    ) -> Result<T, OpError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        self.call_for(CALL_TIMEOUT, what, command).await
    }

    /// The same, of a command that may take longer.
    pub async fn call_for<T, F>(
        &self,
        limit: Duration,
        what: &str,
        command: impl FnOnce(DatapathClient<Channel>) -> F,
    ) -> Result<T, OpError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let result = self.call_within(limit, what, command).await;
        if result.as_ref().is_err_and(OpError::is_uncertain) {
            self.doubts.send_modify(|count| *count += 1);
        }
        result
    }

    /// Changes when a command of [`Link::call`] may or may not have been done: what the data path holds must be looked at again.
    pub(super) fn doubts(&self) -> watch::Receiver<u64> {
        self.doubts.subscribe()
    }

    /// A command. An error that [`OpError::is_uncertain`] leaves open whether it was done; any other means that it was refused.
    pub async fn call_within<T, F>(
        &self,
        limit: Duration,
        what: &str,
        command: impl FnOnce(DatapathClient<Channel>) -> F,
    ) -> Result<T, OpError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        match tokio::time::timeout(limit, command(self.client.clone())).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(self.refusal(what, &status)),
            Err(_) => Err(self.down(&format!("no answer to \"{what}\" in {} s", limit.as_secs()))),
        }
    }

    fn refusal(&self, what: &str, status: &Status) -> OpError {
        let message = status.message();
        match status.code() {
            Code::InvalidArgument | Code::OutOfRange => OpError::invalid(what, message),
            Code::ResourceExhausted if message.ends_with("try again") => {
                OpError::NoSpace(format!("{what}: {message}"))
            }
            Code::ResourceExhausted => OpError::NoSpace(format!(
                "{what}: {message}. Delete volumes or snapshots that nobody needs, or make the pool larger: `keelctl service drive \
                 add PATH`, or `keelctl service pool expand` where its drives can grow"
            )),
            Code::FailedPrecondition | Code::AlreadyExists | Code::NotFound => {
                OpError::State(format!("{what}: {message}"))
            }
            Code::Aborted => OpError::Busy(format!("{what}: {message}")),
            Code::Unimplemented => OpError::NotYet(format!(
                "{what}: the data path of this version cannot do that ({message})"
            )),
            Code::DataLoss | Code::PermissionDenied => {
                OpError::Internal(format!("{what}: {message}"))
            }
            _ => self.down(&innermost(status)),
        }
    }
}

/// The cause at the bottom, which tells more than "transport error".
fn innermost(status: &Status) -> String {
    let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(status);
    let mut text = status.message().to_owned();
    while let Some(error) = cause {
        text = error.to_string();
        cause = error.source();
    }
    text
}
