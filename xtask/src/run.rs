//! Running commands from the workspace's root, one visible step at a time.
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What went wrong, in words for a person. A task has no caller that could do anything else with it.
pub type Outcome<T = ()> = Result<T, String>;

/// The workspace's root: the parent of this package.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask lies inside the workspace")
        .to_path_buf()
}

/// The cargo that runs this task, so that a toolchain chosen outside is kept.
pub fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args).current_dir(root());
    // What cargo set for this task: build scripts look at it, and crates with one (ring) would be built again, with all that needs
    // them, whenever cargo is then used without.
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&*name);
        }
    }
    command
}

/// The command as a person would type it.
pub fn shown(command: &Command) -> String {
    let mut words: Vec<String> = command
        .get_envs()
        .filter_map(|(k, v)| {
            v.map(|v| format!("{}={:?}", k.to_string_lossy(), v.to_string_lossy()))
        })
        .collect();
    let program = Path::new(command.get_program());
    words.push(
        program
            .file_name()
            .unwrap_or(program.as_os_str())
            .to_string_lossy()
            .into_owned(),
    );
    words.extend(command.get_args().map(|a| a.to_string_lossy().into_owned()));
    words.join(" ")
}

/// Runs a step with its output shown; an error names the step.
pub fn step(command: &mut Command) -> Outcome<Duration> {
    let name = shown(command);
    println!("\n==> {name}");
    let start = Instant::now();
    let status = command
        .status()
        .map_err(|e| format!("cannot start `{name}`: {e}"))?;
    println!("    {:.0} s", start.elapsed().as_secs_f64());
    if status.success() {
        Ok(start.elapsed())
    } else {
        Err(format!("`{name}` failed ({status})"))
    }
}

/// Runs a step, shows its output as it comes, and hands each line of its standard output to `see`.
/// The error says which step failed; `see` has had all lines by then.
pub fn step_seen(command: &mut Command, mut see: impl FnMut(&str)) -> Outcome<Duration> {
    let name = shown(command);
    println!("\n==> {name}");
    let start = Instant::now();
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|e| format!("cannot start `{name}`: {e}"))?;
    let stdout = child.stdout.take().expect("stdout was asked to be a pipe");
    for line in BufReader::new(stdout).split(b'\n') {
        let line = line.map_err(|e| format!("cannot read the output of `{name}`: {e}"))?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        see(&line);
    }
    let status = child
        .wait()
        .map_err(|e| format!("cannot wait for `{name}`: {e}"))?;
    println!("    {:.0} s", start.elapsed().as_secs_f64());
    if status.success() {
        Ok(start.elapsed())
    } else {
        Err(format!("`{name}` failed ({status})"))
    }
}
