//! NVMe Qualified Names (NVMe Base 2.1, 4.7): UTF-8, at most 223 bytes, null-terminated in a field of 256.

/// The well-known NQN of every discovery subsystem.
pub const DISCOVERY_NQN: &str = "nqn.2014-08.org.nvmexpress.discovery";
/// The longest NQN in bytes.
pub const NQN_LEN_MAX: usize = 223;
/// Length of a field that holds one.
pub const NQN_FIELD_LEN: usize = 256;

/// What is wrong with a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NqnError {
    /// No terminator in the field.
    #[error("the name is not terminated")]
    NotTerminated,
    /// The empty name.
    #[error("the name is empty")]
    Empty,
    /// More than [`NQN_LEN_MAX`] bytes.
    #[error("the name has {0} bytes, more than 223")]
    TooLong(usize),
    /// Not UTF-8.
    #[error("the name is not UTF-8")]
    NotUtf8,
    /// Not `nqn.` and a domain.
    #[error("the name does not start with `nqn.`")]
    NotNqn,
}

/// Reads the name in a field.
pub fn nqn_field(field: &[u8]) -> Result<&str, NqnError> {
    let end = field
        .iter()
        .position(|&c| c == 0)
        .ok_or(NqnError::NotTerminated)?;
    match end {
        0 => return Err(NqnError::Empty),
        n if n > NQN_LEN_MAX => return Err(NqnError::TooLong(n)),
        _ => {}
    }
    std::str::from_utf8(&field[..end]).map_err(|_| NqnError::NotUtf8)
}

/// Writes a name into a field of zeroes.
pub fn put_nqn(field: &mut [u8], name: &str) -> Result<(), NqnError> {
    if name.len() > NQN_LEN_MAX {
        return Err(NqnError::TooLong(name.len()));
    }
    field[..name.len()].copy_from_slice(name.as_bytes());
    Ok(())
}

/// Checks a name that a person gave.
pub fn check_nqn(name: &str) -> Result<(), NqnError> {
    match name.len() {
        0 => Err(NqnError::Empty),
        n if n > NQN_LEN_MAX => Err(NqnError::TooLong(n)),
        _ if !name.starts_with("nqn.") => Err(NqnError::NotNqn),
        _ => Ok(()),
    }
}
