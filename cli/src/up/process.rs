//! One program of a node: started, watched, started again when it dies, stopped when asked.
use super::screen::Screen;
use crate::failure::{Failure, Result};
use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};
use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// First wait before a program that died is started again; doubled for each further death, up to the longest.
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_LONGEST: Duration = Duration::from_secs(5);
/// A program that ran this long counts as sound: the next wait is the first again.
const SOUND_AFTER: Duration = Duration::from_secs(30);
/// How long a program may take to stop when asked.
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// A log longer than this is put aside at the next start.
const LOG_LIMIT: u64 = 16 << 20;

/// What to run.
#[derive(Clone, Debug)]
pub struct Program {
    /// For messages: `node-1 datapath`.
    pub name: String,
    /// The executable.
    pub exe: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Where it runs: relative paths keep Unix socket names short, which the system limits to 107 bytes.
    pub dir: PathBuf,
    /// Where its output goes.
    pub log: PathBuf,
    /// With this exit code it has ended for good.
    pub last_code: Option<i32>,
}

/// Where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// Its process, while there is one.
    pub pid: Option<u32>,
    /// How often it ended without being asked to.
    pub deaths: u32,
    /// It ended for good, and is only started when somebody asks for that.
    pub over: bool,
}

/// What shall be of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    /// It runs.
    Running,
    /// It was asked to end.
    Stopped,
    /// It was ended without being asked, as by a power cut of its machine.
    Killed,
}

/// A program that is kept running. Dropping it kills the program.
#[derive(Debug)]
pub struct Service {
    program: Program,
    wanted: watch::Sender<Wanted>,
    state: watch::Receiver<State>,
    task: JoinHandle<()>,
}

impl Service {
    /// Starts the program and keeps it running.
    pub fn start(program: Program, screen: Screen) -> Result<Service> {
        rotate(&program.log);
        let child = spawn(&program)?;
        let (wanted, on) = watch::channel(Wanted::Running);
        let (tell, state) = watch::channel(State {
            pid: child.id(),
            deaths: 0,
            over: false,
        });
        let task = tokio::spawn(keep(program.clone(), child, on, tell, screen));
        Ok(Service {
            program,
            wanted,
            state,
            task,
        })
    }

    /// Where it stands now.
    pub fn state(&self) -> State {
        *self.state.borrow()
    }

    /// Stops it (kindly, then not), or lets it run again; comes back when that is so.
    pub async fn set_running(&mut self, run: bool) {
        let wanted = if run {
            Wanted::Running
        } else {
            Wanted::Stopped
        };
        self.bring_to(wanted).await;
    }

    /// Ends it at once, and lets it lie.
    pub async fn kill(&mut self) {
        self.bring_to(Wanted::Killed).await;
    }

    async fn bring_to(&mut self, wanted: Wanted) {
        self.wanted.send_replace(wanted);
        let run = wanted == Wanted::Running;
        // Fails only if the task is gone, and then the program is as well.
        let so = |s: &State| match run {
            true => s.pid.is_some() || s.over,
            false => s.pid.is_none() && !s.over,
        };
        let _ = self.state.wait_for(so).await;
    }

    /// The last words of its log, for error messages.
    pub fn last_words(&self) -> String {
        let text = fs::read(&self.program.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text[text.len().saturating_sub(4096)..]).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(8)..].join("\n  ");
        let log = self.program.log.display();
        if tail.is_empty() {
            format!("{log} is empty")
        } else {
            format!("the end of {log}:\n  {tail}")
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // The child goes with the task (kill_on_drop).
        self.task.abort();
    }
}

/// The life of a program.
async fn keep(
    program: Program,
    first: Child,
    mut wanted: watch::Receiver<Wanted>,
    tell: watch::Sender<State>,
    screen: Screen,
) {
    let mut child = Some(first);
    let mut backoff = BACKOFF_FIRST;
    loop {
        let Some(mut running) = child.take() else {
            let run = wanted.wait_for(|wanted| *wanted == Wanted::Running);
            if run.await.is_err() {
                return;
            }
            match spawn(&program) {
                Ok(started) => child = Some(started),
                Err(failure) => {
                    screen.note(&format!(
                        "{failure}; trying again in {:.1} s",
                        backoff.as_secs_f64()
                    ));
                    pause(&mut backoff, &mut wanted).await;
                    continue;
                }
            }
            tell.send_modify(|s| s.pid = child.as_ref().and_then(Child::id));
            continue;
        };
        let started = Instant::now();
        let ended = tokio::select! {
            status = running.wait() => Some(status),
            _ = wanted.wait_for(|wanted| *wanted != Wanted::Running) => None,
        };
        if let Some(status) = ended {
            if started.elapsed() > SOUND_AFTER {
                backoff = BACKOFF_FIRST;
            }
            let code = status.as_ref().ok().and_then(ExitStatus::code);
            let over = code.is_some() && code == program.last_code;
            tell.send_modify(|s| {
                *s = State {
                    pid: None,
                    deaths: s.deaths + u32::from(!over),
                    over,
                }
            });
            if over {
                screen.note(&format!(
                    "{} has ended for good, and is not started again: its log says why",
                    program.name
                ));
                if wanted.wait_for(|w| *w != Wanted::Running).await.is_err() {
                    return;
                }
                tell.send_modify(|s| s.over = false);
                continue;
            }
            let how = status.map_or_else(|e| e.to_string(), |s| describe(&s));
            screen.note(&format!(
                "{} {how}; starting it again in {:.1} s",
                program.name,
                backoff.as_secs_f64()
            ));
            pause(&mut backoff, &mut wanted).await;
        } else {
            // `Running` again already: whoever wanted it stopped waits until it is.
            let how = *wanted.borrow_and_update();
            match how {
                Wanted::Killed => _ = running.kill().await,
                Wanted::Running | Wanted::Stopped => stop(&mut running).await,
            }
            backoff = BACKOFF_FIRST;
            tell.send_modify(|s| s.pid = None);
        }
    }
}

/// Waits before the next start, or until it is not wanted any more.
async fn pause(backoff: &mut Duration, wanted: &mut watch::Receiver<Wanted>) {
    let wait = std::mem::replace(backoff, (*backoff * 2).min(BACKOFF_LONGEST));
    let other = wanted.wait_for(|wanted| *wanted != Wanted::Running);
    let _ = tokio::time::timeout(wait, other).await;
}

/// Asks a program to stop, and kills it if it takes too long.
async fn stop(child: &mut Child) {
    if let Some(pid) = child.id().and_then(|p| Pid::from_raw(p.cast_signed())) {
        let _ = kill_process(pid, Signal::TERM);
    }
    if tokio::time::timeout(STOP_LIMIT, child.wait())
        .await
        .is_err()
    {
        let _ = child.kill().await;
    }
}

fn spawn(program: &Program) -> Result<Child> {
    let what = || format!("start {}", program.name);
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&program.log);
    let log = log.map_err(|e| {
        Failure::local(
            format!("open {}", program.log.display()),
            super::layout::advice(&e),
        )
    })?;
    let copy = || log.try_clone().map_err(|e| Failure::local(what(), e));
    let mut command = Command::new(&program.exe);
    command.args(&program.args).current_dir(&program.dir);
    command
        .stdin(Stdio::null())
        .stdout(copy()?)
        .stderr(copy()?)
        .kill_on_drop(true);
    // A group of its own: Ctrl-C in a terminal is for us, who then stop everything in order.
    command.process_group(0);
    // SAFETY: the closure runs in the forked child before exec and makes one system call (prctl); it neither allocates nor
    // touches anything of the parent.
    unsafe {
        // If `up` is killed, its programs shall not stay behind.
        command
            .pre_exec(|| set_parent_process_death_signal(Some(Signal::TERM)).map_err(Into::into));
    }
    command
        .spawn()
        .map_err(|e| Failure::local(what(), format!("{}: {e}", program.exe.display())))
}

/// Keeps the log from growing for ever: the last long one is kept beside the new one.
fn rotate(log: &Path) {
    if File::open(log)
        .and_then(|f| f.metadata())
        .is_ok_and(|m| m.len() > LOG_LIMIT)
    {
        // Best effort: a log that cannot be renamed just goes on growing.
        let _ = fs::rename(log, log.with_extension("log.old"));
    }
}

/// How a process ended, in words.
fn describe(status: &ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with exit code {code}"),
        (None, Some(signal)) => format!("was killed by signal {signal}"),
        (None, None) => "ended".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(dir: &Path, script: &str) -> Program {
        Program {
            name: "test program".into(),
            exe: "/bin/sh".into(),
            args: vec!["-c".into(), script.into()],
            dir: dir.into(),
            log: dir.join("log"),
            last_code: None,
        }
    }

    #[tokio::test]
    async fn a_program_that_ends_for_good_is_only_started_when_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let program = Program {
            last_code: Some(3),
            ..shell(dir.path(), "echo runs; exit 3")
        };
        let mut service = Service::start(program, Screen::silent()).unwrap();
        let over = State {
            pid: None,
            deaths: 0,
            over: true,
        };
        let now = *service.state.wait_for(|s| s.over).await.unwrap();
        assert_eq!(now, over);
        // Who wants it to run as it is wanted already is not kept waiting.
        service.set_running(true).await;
        assert_eq!(service.state(), over);
        service.set_running(false).await;
        service.set_running(true).await;
        service.state.wait_for(|s| s.over).await.unwrap();
        assert_eq!(service.last_words().matches("runs").count(), 2);
    }

    #[tokio::test]
    async fn a_killed_program_comes_back_with_another_pid() {
        let dir = tempfile::tempdir().unwrap();
        let mut service =
            Service::start(shell(dir.path(), "exec sleep 1000"), Screen::silent()).unwrap();
        let first = service.state().pid.unwrap();
        kill_process(Pid::from_raw(first.cast_signed()).unwrap(), Signal::KILL).unwrap();
        let now = *service
            .state
            .wait_for(|s| s.deaths == 1 && s.pid.is_some())
            .await
            .unwrap();
        assert_ne!(now.pid, Some(first));
        service.set_running(false).await;
        assert_eq!(service.state().pid, None);
        service.set_running(true).await;
        assert!(service.state().pid.is_some());
    }

    #[tokio::test]
    async fn a_program_that_is_killed_on_purpose_is_not_asked_and_stays_away() {
        let dir = tempfile::tempdir().unwrap();
        let script = "trap 'echo asked' TERM; echo runs; while :; do sleep 0.01; done";
        let mut service = Service::start(shell(dir.path(), script), Screen::silent()).unwrap();
        while !service.last_words().contains("runs") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        service.kill().await;
        let gone = State {
            pid: None,
            deaths: 0,
            over: false,
        };
        assert_eq!(service.state(), gone);
        assert!(!service.last_words().contains("asked"));
        service.set_running(true).await;
        assert!(service.state().pid.is_some());
    }

    #[tokio::test]
    async fn what_a_program_said_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let mut service = Service::start(
            shell(dir.path(), "echo no such drive; exit 3"),
            Screen::silent(),
        )
        .unwrap();
        service.state.wait_for(|s| s.deaths > 0).await.unwrap();
        assert!(
            service.last_words().contains("no such drive"),
            "{}",
            service.last_words()
        );
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let program = Program {
            exe: dir.path().join("absent"),
            ..shell(dir.path(), "")
        };
        assert!(
            Service::start(program, Screen::silent())
                .unwrap_err()
                .to_string()
                .contains("absent")
        );
    }
}
