//! Each node's processes in a control group of their own, so that the firewall can tell whose a packet is, although all are on this machine.
//!
//! A socket belongs to the group that its process was in when it was made, so processes must begin there: the programs that `up` starts are scripts, which enter the group
//! that is named like their working directory (`node-1`, `kvdb`) and become the program.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::programs::program;

/// Groups, until this is dropped.
#[derive(Debug)]
pub struct Groups {
    /// The directory of all groups: a child of the root of the second hierarchy.
    dir: PathBuf,
    names: Vec<String>,
}

impl Groups {
    /// Makes groups of these names.
    ///
    /// # Errors
    /// There is no hierarchy of version 2, or this process may not make groups in it (that needs root).
    pub fn new(names: &[String]) -> io::Result<Self> {
        let mounts = fs::read_to_string("/proc/mounts")?;
        let root = mounts
            .lines()
            .map(|line| line.split(' ').collect::<Vec<_>>())
            .find(|words| words.get(2) == Some(&"cgroup2"))
            .and_then(|words| words.get(1).map(PathBuf::from))
            .ok_or_else(|| io::Error::other("no control groups of version 2 are mounted"))?;
        let dir = root.join(format!("keelblock-deaths-{}", std::process::id()));
        fs::create_dir(&dir)?;
        let groups = Self {
            dir,
            names: names.to_vec(),
        };
        for name in names {
            fs::create_dir(groups.dir.join(name))?;
        }
        Ok(groups)
    }

    /// A group as `nft` names it: below `/sys/fs/cgroup`, wherever the hierarchy is mounted. It is at the second level below the hierarchy's root.
    pub fn path(&self, name: &str) -> String {
        let path = self.dir.join(name);
        let below = path.strip_prefix("/sys/fs/cgroup").unwrap_or(&path);
        below.display().to_string()
    }

    /// Scripts in place of a node's programs, and `keelblock` and `keelctl` themselves, in `into`; `ignored`: signals that they leave alone, by name.
    ///
    /// # Errors
    /// Files that cannot be written.
    pub fn wrap(&self, into: &Path, ignored: &str) -> io::Result<()> {
        fs::create_dir_all(into)?;
        for name in ["keelblock", "keelctl"] {
            fs::copy(program(name), into.join(name))?;
        }
        for name in ["keelblock-datapath", "keelblock-control"] {
            let (groups, real) = (self.dir.display(), program(name));
            let script = format!(
                "#!/bin/sh\ntrap '' {ignored}\necho $$ > '{groups}'/\"${{PWD##*/}}\"/cgroup.procs || exit 1\nexec '{}' \"$@\"\n",
                real.display()
            );
            let at = into.join(name);
            fs::write(&at, script)?;
            fs::set_permissions(&at, fs::Permissions::from_mode(0o755))?;
        }
        Ok(())
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        // Their processes have ended; should one be left, so is its group, and no test depends on it.
        for name in &self.names {
            let _ = fs::remove_dir(self.dir.join(name));
        }
        let _ = fs::remove_dir(&self.dir);
    }
}
