//! Pinning the calling thread to a core.

/// The core cannot be used by this process.
#[derive(Debug, thiserror::Error)]
#[error("cannot pin to core {core}: this process may use cores {usable:?}")]
pub struct PinError {
    /// The core that was asked for.
    pub core: usize,
    /// The cores that the process is allowed to run on.
    pub usable: Vec<usize>,
}

/// The cores that this process may use.
pub fn usable_cores() -> Vec<usize> {
    core_affinity::get_core_ids()
        .unwrap_or_default()
        .into_iter()
        .map(|c| c.id)
        .collect()
}

/// Pins the calling thread to `core`.
pub fn pin_to(core: usize) -> Result<(), PinError> {
    let usable = usable_cores();
    if usable.contains(&core) && core_affinity::set_for_current(core_affinity::CoreId { id: core })
    {
        return Ok(());
    }
    Err(PinError { core, usable })
}
