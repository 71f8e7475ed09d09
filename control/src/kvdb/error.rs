//! What can go wrong inside the embedded KVDB, and how etcd says it: clients match on status code and message.
use tonic::{Code, Status};

/// An error of the embedded store.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The request names no key.
    #[error("etcdserver: key is not provided")]
    EmptyKey,
    /// A transaction would change one key twice.
    #[error("etcdserver: duplicate key given in txn request")]
    DuplicateKey,
    /// A transaction has more than [`super::txn::TXN_OPS_MAX`] operations.
    #[error("etcdserver: too many operations in txn request")]
    TooManyOps,
    /// A request is larger than [`super::txn::REQUEST_BYTES_MAX`].
    #[error("etcdserver: request is too large")]
    TooLarge,
    /// `ignore_value` or `ignore_lease` on a key that does not exist.
    #[error("etcdserver: key not found")]
    KeyNotFound,
    /// `ignore_value` together with a value.
    #[error("etcdserver: value is provided")]
    ValueProvided,
    /// `ignore_lease` together with a lease.
    #[error("etcdserver: lease is provided")]
    LeaseProvided,
    /// Unknown sort order or target.
    #[error("etcdserver: invalid sort option")]
    InvalidSort,
    /// The revision asked for is gone.
    #[error("etcdserver: mvcc: required revision has been compacted")]
    Compacted {
        /// The oldest revision that is left.
        compacted: u64,
    },
    /// The revision asked for has not happened.
    #[error("etcdserver: mvcc: required revision is a future revision")]
    FutureRevision,
    /// No such lease.
    #[error("etcdserver: requested lease not found")]
    LeaseNotFound,
    /// The lease id is taken.
    #[error("etcdserver: lease already exists")]
    LeaseExists,
    /// A time to live below one second or above [`super::lease::TTL_MAX_S`].
    #[error("etcdserver: too large lease TTL")]
    LeaseTtl,
    /// The database file failed: what was asked for may or may not have happened.
    #[error(
        "etcdserver: the KVDB's file failed: {0}; it takes no more writes until the process is restarted"
    )]
    Storage(String),
    /// Bytes in the database file that this version cannot have written.
    #[error("etcdserver: damaged record in table {table}: {what}")]
    Damaged {
        /// Which table.
        table: &'static str,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The store is shutting down.
    #[error("etcdserver: server stopped")]
    Stopped,
}

impl From<StoreError> for Status {
    fn from(error: StoreError) -> Self {
        use StoreError::*;
        let code = match error {
            EmptyKey | DuplicateKey | TooManyOps | TooLarge | KeyNotFound | ValueProvided
            | LeaseProvided | InvalidSort => Code::InvalidArgument,
            Compacted { .. } | FutureRevision | LeaseTtl => Code::OutOfRange,
            LeaseNotFound => Code::NotFound,
            LeaseExists => Code::FailedPrecondition,
            Damaged { .. } => Code::DataLoss,
            Storage(_) | Stopped => Code::Unavailable,
        };
        Status::new(code, error.to_string())
    }
}

macro_rules! storage_error {
    ($($from:ty),*) => { $(
        impl From<$from> for StoreError {
            fn from(error: $from) -> Self {
                StoreError::Storage(error.to_string())
            }
        }
    )* };
}
storage_error!(
    redb::StorageError,
    redb::TableError,
    redb::TransactionError,
    redb::CommitError,
    redb::DatabaseError,
    redb::SetDurabilityError
);
