//! What a killed `up` left behind: its programs are told to stop by the system when it dies, but that takes them a moment, and
//! one that hangs would hold the ports and the drive. They are known by what they run and where: a node's directory.
use super::screen::Screen;
use crate::failure::{Failure, Result};
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long they may take to end by themselves, and again after each signal.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often to look.
const LOOK: Duration = Duration::from_millis(50);

/// Ends all programs of a node that run in `node_dir`. The caller holds the data directory's lock, so they belong to nobody.
pub fn end_leftovers(node_dir: &Path, screen: &Screen) -> Result<()> {
    for signal in [None, Some(Signal::TERM), Some(Signal::KILL)] {
        let pids = running_in(node_dir);
        if pids.is_empty() {
            return Ok(());
        }
        if let Some(signal) = signal {
            screen.note(&format!(
                "Ending what an earlier run left behind in {}: {pids:?}",
                node_dir.display()
            ));
            for pid in pids.iter().filter_map(|p| Pid::from_raw(*p)) {
                // One that is gone by now is what we want.
                let _ = kill_process(pid, signal);
            }
        }
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline && !running_in(node_dir).is_empty() {
            std::thread::sleep(LOOK);
        }
    }
    match running_in(node_dir) {
        pids if pids.is_empty() => Ok(()),
        pids => Err(Failure::local(
            format!("directory {}", node_dir.display()),
            format!(
                "processes {pids:?} of an earlier run do not end. End them, or choose another directory with --data"
            ),
        )),
    }
}

/// Processes of ours that run a node's program in `node_dir`.
fn running_in(node_dir: &Path) -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pids = entries.filter_map(|e| e.ok()?.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        let proc = Path::new("/proc").join(pid.to_string());
        // The kernel cuts names off at 15 bytes.
        let name = fs::read_to_string(proc.join("comm")).unwrap_or_default();
        name.starts_with("keelblock-")
            && fs::read_link(proc.join("cwd")).is_ok_and(|cwd| cwd == node_dir)
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    #[test]
    fn leftovers_are_ended_and_others_are_not() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let program = dir.path().join("keelblock-datapath");
        fs::copy("/bin/sleep", &program).unwrap();
        let run = |cwd: &Path| {
            Command::new(&program)
                .arg0("keelblock-datapath")
                .arg("1000")
                .current_dir(cwd)
                .spawn()
                .unwrap()
        };
        let here = fs::canonicalize(dir.path()).unwrap();
        let (mut ours, mut others) = (run(&here), run(other.path()));
        // Its name is set only after `spawn` may have returned.
        let deadline = Instant::now() + Duration::from_secs(30);
        while running_in(&here).is_empty() {
            assert!(Instant::now() < deadline, "the program is not seen");
            std::thread::sleep(LOOK);
        }
        // A child that ended stays as a zombie, without a working directory, until it is waited for.
        let reaper = std::thread::spawn(move || ours.wait().unwrap());
        end_leftovers(&here, &Screen::silent()).unwrap();
        assert!(!reaper.join().unwrap().success());
        assert!(
            others.try_wait().unwrap().is_none(),
            "a program in another directory was ended"
        );
        others.kill().unwrap();
        others.wait().unwrap();
    }
}
