//! What can be wrong with bytes from a peer.

/// Bytes that a peer of this version does not send. The session ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// There are fewer bytes than the message needs.
    #[error("{what} ends after {have} bytes, needs {need}")]
    Short {
        /// Of what.
        what: &'static str,
        /// Bytes that it needs.
        need: usize,
        /// Bytes that there are.
        have: usize,
    },
    /// There are more bytes than the message says.
    #[error("{what} has {extra} bytes too many")]
    Trailing {
        /// What.
        what: &'static str,
        /// How many.
        extra: usize,
    },
    /// It does not begin as such a message does.
    #[error("{what} has a wrong magic number")]
    Magic {
        /// What.
        what: &'static str,
    },
    /// The checksum does not match.
    #[error("{what} has checksum {actual:#010x}, says {expected:#010x}")]
    Checksum {
        /// Of what.
        what: &'static str,
        /// As the message says.
        expected: u32,
        /// As its bytes have it.
        actual: u32,
    },
    /// Reserved bytes are not zero: a later version sent it.
    #[error("{what} has reserved bytes that are not zero, at {at}")]
    Reserved {
        /// What.
        what: &'static str,
        /// Offset.
        at: usize,
    },
    /// A field has a value that it cannot have.
    #[error("{what} is {value}, which it cannot be")]
    Value {
        /// The field.
        what: &'static str,
        /// Its value.
        value: u64,
    },
    /// An id is no id.
    #[error("{what} is not 1 to 64 letters, digits, '.', '_' and '-'")]
    Name {
        /// Whose.
        what: &'static str,
    },
}

impl WireError {
    /// A field with a value that it cannot have.
    pub(super) fn value(what: &'static str, value: impl Into<u64>) -> Self {
        let value = value.into();
        Self::Value { what, value }
    }
}
