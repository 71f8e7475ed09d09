//! What can go wrong, and how it is told: what happened, to what, and what to do about it.
use std::process::ExitCode;
use thiserror::Error;
use tonic::Code;

/// The outcome of a command.
pub type Result<T, E = Failure> = std::result::Result<T, E>;

/// Why a command failed. Each kind has an exit code of its own ([`Failure::exit_code`]).
#[derive(Debug, Error)]
pub enum Failure {
    /// The cluster refused the request, or something failed while it was done.
    #[error("{what}: {why}")]
    Failed {
        /// The attempt, for example "create volume db".
        what: String,
        /// What the other side said.
        why: String,
    },
    /// The arguments do not make sense together.
    #[error("{0}")]
    Usage(String),
    /// The thing that was named does not exist.
    #[error("{what}: {why}")]
    NotFound {
        /// The attempt.
        what: String,
        /// What does not exist.
        why: String,
    },
    /// Nobody answers.
    #[error(
        "cannot reach the cluster at {endpoint}: {why}\nIs it running? `keelblock up` starts one on this machine; \
         --endpoint or KEELBLOCK_ENDPOINT names another."
    )]
    Unreachable {
        /// Address that was tried.
        endpoint: String,
        /// The reason the system gives.
        why: String,
    },
    /// The cluster answers, but not in time, or cannot serve this now.
    #[error(
        "{what}: {why}\nThis may pass: try again, and look at `keelctl status` if it does not."
    )]
    Unavailable {
        /// The attempt.
        what: String,
        /// What the other side said.
        why: String,
    },
}

impl Failure {
    /// 1 failed, 2 usage, 3 not found, 4 cannot be reached or served now.
    pub fn exit_code(&self) -> u8 {
        match self {
            Failure::Failed { .. } => 1,
            Failure::Usage(_) => 2,
            Failure::NotFound { .. } => 3,
            Failure::Unreachable { .. } | Failure::Unavailable { .. } => 4,
        }
    }

    /// Turns the status of a call into words: `what` says what was tried.
    pub fn from_status(what: impl Into<String>, status: &tonic::Status) -> Failure {
        let what = what.into();
        let said = status.message().trim();
        // The other side often begins with the same words.
        let said = said.strip_prefix(&format!("{what}: ")).unwrap_or(said);
        let why = if said.is_empty() {
            status.code().description().to_owned()
        } else {
            said.to_owned()
        };
        match status.code() {
            Code::NotFound => Failure::NotFound { what, why },
            Code::Unavailable | Code::Aborted => Failure::Unavailable { what, why },
            Code::DeadlineExceeded | Code::Cancelled => Failure::Unavailable {
                what,
                why: format!("no answer in time ({why})"),
            },
            Code::Unimplemented => Failure::Failed {
                what,
                why: format!("this version of the cluster cannot do that ({why})"),
            },
            _ => Failure::Failed { what, why },
        }
    }

    /// A failure of this machine rather than of the cluster.
    pub fn local(what: impl Into<String>, why: impl std::fmt::Display) -> Failure {
        Failure::Failed {
            what: what.into(),
            why: why.to_string(),
        }
    }
}

/// Prints a failure as a command's last word and gives the exit code for it.
pub fn report(program: &str, outcome: Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{program}: {failure}");
            ExitCode::from(failure.exit_code())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_become_exit_codes() {
        for (code, exit) in [
            (Code::NotFound, 3),
            (Code::Unavailable, 4),
            (Code::DeadlineExceeded, 4),
            (Code::AlreadyExists, 1),
            (Code::InvalidArgument, 1),
        ] {
            let failure =
                Failure::from_status("delete volume v", &tonic::Status::new(code, "because"));
            assert_eq!(failure.exit_code(), exit, "{code:?}");
            assert!(failure.to_string().contains("because"), "{failure}");
        }
    }

    #[test]
    fn what_was_tried_is_said_once() {
        let status = tonic::Status::new(Code::Internal, "delete volume v: because");
        let failure = Failure::from_status("delete volume v", &status);
        assert_eq!(failure.to_string(), "delete volume v: because");
    }

    #[test]
    fn a_status_without_a_message_still_says_something() {
        let failure = Failure::from_status("x", &tonic::Status::new(Code::Internal, " "));
        assert_eq!(
            failure.to_string(),
            format!("x: {}", Code::Internal.description())
        );
    }
}
