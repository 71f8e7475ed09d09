//! Large drives and many snapshots: what opening costs, what the data path keeps in memory, and whether accounts add up.
//!
//! The drives are sparse files behind loop devices, since a file as a drive is preallocated: this needs root. [`drives`] is about size,
//! [`snapshots`] about a thousand snapshots of one volume.

pub mod drives;
pub mod rest;
pub mod snapshots;
pub mod writer;

use std::path::Path;
use std::process::Command;

/// What the offline check counts on a drive that nobody uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accounts {
    /// Blocks in use.
    pub used: u64,
    /// Of these, pages.
    pub pages: u64,
    /// And data.
    pub data: u64,
}

/// Checks a drive.
///
/// # Errors
/// It has problems, or cannot be read.
pub fn accounts(drive: &Path) -> Result<Accounts, String> {
    let mut check = Command::new(crate::programs::program("keelblock-datapath"));
    let output = check.args(["check", "--json"]).arg(drive).output();
    let output = output.map_err(|e| format!("the check does not start: {e}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(format!("the offline check: {text}{said}"));
    }
    let report: serde_json::Value =
        serde_json::from_str(&text).map_err(|e| format!("the check's report: {e}: {text}"))?;
    let number = |name: &str| report[name].as_u64().ok_or(format!("no {name} in {text}"));
    Ok(Accounts {
        used: number("used")?,
        pages: number("pages")?,
        data: number("data")?,
    })
}
