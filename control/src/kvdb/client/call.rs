//! A call to the KVDB: bounded in time, with the token of whoever is logged in, and at the next server if one does not take it.
//!
//! A change is only sent again if it cannot have been done: no connection came to be, or the server did not know the token. Reads are.
use super::options::{Options, password};
use super::{KvError, chain};
use keelblock_api::etcd::etcdserverpb::AuthenticateRequest;
use keelblock_api::etcd::etcdserverpb::auth_client::AuthClient;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Code, ConnectError, Request, Status};

/// A server, and what a request to it carries.
pub(super) type Door = InterceptedService<Channel, Stamp>;

/// What a request carries: who sends it, and that a server without a leader shall refuse it rather than let it wait.
#[derive(Debug, Clone)]
pub(super) struct Stamp {
    token: Option<MetadataValue<Ascii>>,
}

impl Interceptor for Stamp {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let metadata = request.metadata_mut();
        metadata.insert("hasleader", MetadataValue::from_static("true"));
        if let Some(token) = &self.token {
            metadata.insert("token", token.clone());
        }
        Ok(request)
    }
}

/// What a call does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// It changes nothing, or only the same again.
    Read,
    /// If its answer is lost, nobody knows whether it was done.
    Change,
}

/// The servers, and who is logged in.
#[derive(Debug)]
pub(super) struct Servers {
    /// Where they are, for messages.
    pub endpoints: String,
    channels: Vec<Channel>,
    /// The one that is used.
    current: AtomicUsize,
    login: Option<Login>,
}

#[derive(Debug)]
struct Login {
    user: String,
    password_file: PathBuf,
    token: Mutex<Option<MetadataValue<Ascii>>>,
}

impl Login {
    fn token(&self) -> std::sync::MutexGuard<'_, Option<MetadataValue<Ascii>>> {
        // Nothing that holds the lock can panic.
        self.token
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Servers {
    pub fn new(options: &Options) -> Result<Self, KvError> {
        let login = options.login.clone();
        Ok(Self {
            endpoints: options.endpoints.clone(),
            channels: options.channels()?,
            current: AtomicUsize::new(0),
            login: login.map(|(user, password_file)| Login {
                user,
                password_file,
                token: Mutex::new(None),
            }),
        })
    }

    /// Makes a call. `what` says in a message what was waited for.
    ///
    /// # Errors
    /// [`KvError`]; of a change that is *unavailable* it is not known whether it was done.
    pub async fn call<T, F>(
        &self,
        what: &str,
        kind: Kind,
        within: Duration,
        make: impl Fn(Door) -> F,
    ) -> Result<T, KvError>
    where
        F: Future<Output = Result<tonic::Response<T>, Status>>,
    {
        let answer = tokio::time::timeout(within, self.attempts(what, kind, make));
        match answer.await {
            Ok(answer) => answer,
            Err(_) => {
                self.leave(self.at());
                let ms = within.as_millis();
                Err(self.unavailable(format!("no answer in {ms} ms to {what}")))
            }
        }
    }

    async fn attempts<T, F>(
        &self,
        what: &str,
        kind: Kind,
        make: impl Fn(Door) -> F,
    ) -> Result<T, KvError>
    where
        F: Future<Output = Result<tonic::Response<T>, Status>>,
    {
        let mut others = self.channels.len() - 1;
        let mut logged_in_again = false;
        loop {
            let at = self.at();
            let called = async {
                let token = self.token(at).await?;
                let door = InterceptedService::new(self.channels[at].clone(), Stamp { token });
                make(door).await
            };
            let status = match called.await {
                Ok(response) => return Ok(response.into_inner()),
                Err(status) => status,
            };
            if self.login.is_some() && !logged_in_again && token_is_old(&status) {
                self.forget_token();
                logged_in_again = true;
                continue;
            }
            let error = self.error(what, &status);
            if !error.is_transient() {
                return Err(error);
            }
            self.leave(at);
            let again = kind == Kind::Read || never_sent(&status);
            if !again || others == 0 {
                return Err(error);
            }
            others -= 1;
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.channels.len()
    }

    /// The server that is used.
    pub fn at(&self) -> usize {
        self.current.load(Ordering::Relaxed) % self.channels.len()
    }

    /// The next one is used from now on, unless somebody left this one already.
    pub fn leave(&self, at: usize) {
        let next = (at + 1) % self.channels.len();
        let _ = self
            .current
            .compare_exchange(at, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// The next call logs in again.
    pub fn forget_token(&self) {
        if let Some(login) = &self.login {
            *login.token() = None;
        }
    }

    async fn token(&self, at: usize) -> Result<Option<MetadataValue<Ascii>>, Status> {
        let Some(login) = &self.login else {
            return Ok(None);
        };
        if let Some(token) = login.token().clone() {
            return Ok(Some(token));
        }
        let refused = |why: &KvError| Status::permission_denied(why.to_string());
        let request = AuthenticateRequest {
            name: login.user.clone(),
            password: password(&login.password_file).map_err(|e| refused(&e))?,
        };
        let mut client = AuthClient::new(self.channels[at].clone());
        let token = client.authenticate(request).await?.into_inner().token;
        let token = MetadataValue::try_from(token.as_str())
            .map_err(|_| Status::internal("its token is no header value"))?;
        *login.token() = Some(token.clone());
        Ok(Some(token))
    }

    /// Nobody answers.
    pub fn unavailable(&self, reason: String) -> KvError {
        KvError::Unavailable {
            endpoints: self.endpoints.clone(),
            reason,
        }
    }

    /// What an answer means that is an error.
    pub fn error(&self, what: &str, status: &Status) -> KvError {
        let message = status.message();
        match status.code() {
            Code::OutOfRange if message.contains("compacted") => KvError::Compacted,
            Code::NotFound if message.contains("lease not found") => KvError::LeaseNotFound,
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown => {
                self.unavailable(format!("{what}: {}", chain(status)))
            }
            Code::PermissionDenied | Code::Unauthenticated => self.denied(message),
            Code::InvalidArgument | Code::FailedPrecondition if concerns_users(message) => {
                self.denied(message)
            }
            _ => KvError::Refused(message.to_owned()),
        }
    }

    fn denied(&self, message: &str) -> KvError {
        KvError::Denied {
            user: match &self.login {
                Some(login) => format!("user {}", login.user),
                None => "who names no user".into(),
            },
            reason: message.to_owned(),
        }
    }
}

/// Whether a server does not know the token, any more: it restarted, it let the time run out, or users and roles were changed since.
fn token_is_old(status: &Status) -> bool {
    let message = status.message();
    message.contains("invalid auth token") || message.contains("revision of auth store is old")
}

fn concerns_users(message: &str) -> bool {
    message.contains("user name is empty") || message.contains("auth")
}

/// Whether the request never left: there was no connection.
fn never_sent(status: &Status) -> bool {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if error.is::<ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}
