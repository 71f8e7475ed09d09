//! Packets between nodes that are dropped, by the firewall of a network namespace of this test's own.
//!
//! All is on one address, and connections come from any port. What A sends to B is either for a port that B listens on, and comes from a socket of A, or from a port that A
//! listens on, and is for a socket of B.

use std::io::{self, Write};
use std::process::{Command, Stdio};

use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::groups::Groups;

/// Of the key-value database.
pub const KVDB: &str = "kvdb";

/// Somebody who can be cut off.
#[derive(Clone, Debug)]
pub struct Party {
    /// Its group.
    pub name: String,
    /// Ports that it listens on for nodes.
    pub ports: Vec<u16>,
    /// Ports that it listens on for hosts; `up` and `keelctl` use others.
    pub hosts: Vec<u16>,
}

/// Leaves for a network namespace of its own, with nothing in it but its own loopback; before there are threads.
///
/// # Errors
/// It needs root, `ip` and `nft`.
pub fn leave() -> io::Result<()> {
    // SAFETY: of what `unshare` can do wrong, a separate table of file descriptors for instance, only the network is asked for; there is one thread.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?;
    run("ip", &["link", "set", "lo", "up"], "")?;
    run("nft", &["list", "ruleset"], "")
}

/// The firewall's rules: nothing but what [`Cuts::drop_between`] and [`Cuts::drop_hosts_of`] say.
#[derive(Debug)]
pub struct Cuts<'a> {
    groups: &'a Groups,
    rules: Vec<String>,
}

impl<'a> Cuts<'a> {
    /// Nothing is cut.
    pub fn new(groups: &'a Groups) -> Self {
        Self {
            groups,
            rules: Vec::new(),
        }
    }

    /// Adds what `from` sends to `to`.
    pub fn drop_between(&mut self, from: &Party, to: &Party) {
        let group = |party: &Party| self.groups.path(&party.name);
        let (a, b) = (group(from), group(to));
        if !to.ports.is_empty() {
            let ports = set(&to.ports);
            self.rules.push(format!(
                "out socket cgroupv2 level 2 \"{a}\" tcp dport {ports} counter drop"
            ));
        }
        if !from.ports.is_empty() {
            let ports = set(&from.ports);
            self.rules.push(format!(
                "in socket cgroupv2 level 2 \"{b}\" tcp sport {ports} counter drop"
            ));
        }
    }

    /// Adds what it and its hosts send each other.
    pub fn drop_hosts_of(&mut self, party: &Party) {
        let ports = set(&party.hosts);
        for side in ["dport", "sport"] {
            self.rules
                .push(format!("in tcp {side} {ports} counter drop"));
        }
    }

    /// Puts the rules in place, in one step, instead of those that are there.
    ///
    /// # Errors
    /// The firewall does not take them.
    pub fn apply(&self) -> io::Result<()> {
        let mut text = String::from(
            "table inet deaths\ndelete table inet deaths\ntable inet deaths {\n\
             chain in { type filter hook input priority 0; }\n\
             chain out { type filter hook output priority 0; }\n}\n",
        );
        for rule in &self.rules {
            text.push_str("add rule inet deaths ");
            text.push_str(rule);
            text.push('\n');
        }
        run("nft", &["-f", "-"], &text)
    }

    /// How many packets the rules have dropped since they are in place.
    ///
    /// # Errors
    /// The firewall does not say.
    pub fn dropped() -> io::Result<u64> {
        let output = Command::new("nft").args(["list", "ruleset"]).output()?;
        if !output.status.success() {
            return Err(io::Error::other("nft does not say what it dropped"));
        }
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut words = text.split_whitespace();
        let mut sum = 0;
        while words.any(|w| w == "packets") {
            sum += words
                .next()
                .and_then(|n| n.parse::<u64>().ok())
                .unwrap_or_default();
        }
        Ok(sum)
    }
}

fn set(ports: &[u16]) -> String {
    let words: Vec<String> = ports.iter().map(u16::to_string).collect();
    format!("{{ {} }}", words.join(", "))
}

fn run(program: &str, words: &[&str], input: &str) -> io::Result<()> {
    let said = |e: io::Error| io::Error::new(e.kind(), format!("{program}: {e}"));
    let mut command = Command::new(program);
    command
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().map_err(said)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).map_err(said)?;
    }
    let output = child.wait_with_output().map_err(said)?;
    if output.status.success() {
        return Ok(());
    }
    let words = words.join(" ");
    let why = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(io::Error::other(format!(
        "{program} {words}: {why}\n{input}"
    )))
}
