//! What a check found: for people as text, for programs as JSON.

use std::fmt::Write;

use super::super::superblock::Superblock;

/// Problems of which the text is kept.
const PROBLEMS_KEPT: usize = 200;

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// `superblock`, `table`, `bitmap`, `page`, `entry`, `catalogue`, `journal`, `leak`, `unmarked`, `shared`, `data`, `unreadable`, `size`.
    pub kind: &'static str,
    /// Of what, where, and how.
    pub what: String,
}

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Each superblock copy, in a word or two.
    pub copies: Vec<String>,
    /// Id of the drive, its name, and the pool's.
    pub drive: Option<(String, String, String)>,
    /// Whether it was closed.
    pub clean: bool,
    /// Of the superblock.
    pub checkpoint: u64,
    /// Blocks of the drive.
    pub blocks: u64,
    /// Blocks that never hold pages or data.
    pub fixed: u64,
    /// Blocks that the bitmaps say are in use.
    pub used: u64,
    /// Pages that were reached.
    pub pages: u64,
    /// Data blocks that were reached from a map.
    pub data: u64,
    /// Data blocks that only the journal refers to.
    pub journal_data: u64,
    /// Records of the journal that an opening would apply.
    pub journal_records: u64,
    /// Live lanes, snapshots, hidden snapshots, and those being deleted.
    pub roots: [u64; 4],
    /// Data blocks that were read and compared.
    pub data_read: u64,
    /// Entries that say that their block is damaged.
    pub poisoned: u64,
    /// Subtrees of maps that were lost to damage.
    pub lost: u64,
    /// Blocks that are marked and not reached, after pages were lost.
    pub cut_off: u64,
    /// The first of what is wrong.
    pub problems: Vec<Problem>,
    /// How much is wrong.
    pub problem_count: u64,
    /// What is worth knowing and nothing wrong.
    pub notes: Vec<String>,
}

impl Report {
    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.problem_count == 0
    }

    pub(super) fn problem(&mut self, kind: &'static str, what: String) {
        self.problem_count += 1;
        if self.problems.len() < PROBLEMS_KEPT {
            self.problems.push(Problem { kind, what });
        }
    }

    pub(super) fn note(&mut self, what: String) {
        self.notes.push(what);
    }

    pub(super) fn take(&mut self, superblock: &Superblock) {
        self.drive = Some((
            superblock.drive_id.to_string(),
            superblock.drive.to_string(),
            superblock.pool.to_string(),
        ));
        self.clean = superblock.clean;
        self.checkpoint = superblock.checkpoint.0;
        self.blocks = superblock.layout.blocks();
        self.fixed = superblock.layout.fixed_blocks();
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut out = String::new();
        let mut line = |text: String| out.push_str(&(text + "\n"));
        if let Some((id, drive, pool)) = &self.drive {
            line(format!("drive {drive} of pool {pool}, {id}"));
            let state = if self.clean {
                "closed"
            } else {
                "not closed: its journal counts"
            };
            line(format!("checkpoint {}, {state}", self.checkpoint));
            let [live, snapshots, hidden, deleting] = self.roots;
            line(format!(
                "{live} lanes, {snapshots} snapshots, {hidden} hidden, {deleting} being deleted"
            ));
            line(format!(
                "{} blocks: {} fixed, {} pages, {} data, {} only in the journal ({} records), {} free",
                self.blocks,
                self.fixed,
                self.pages,
                self.data,
                self.journal_data,
                self.journal_records,
                (self.blocks - self.fixed).saturating_sub(self.used)
            ));
            if self.data_read > 0 {
                line(format!(
                    "{} data blocks were read and compared",
                    self.data_read
                ));
            }
            if self.poisoned > 0 {
                line(format!("{} blocks are known to be damaged", self.poisoned));
            }
            if self.lost + self.cut_off > 0 {
                line(format!(
                    "{} parts of maps are lost to damage, and {} blocks are marked that nothing leads to any more",
                    self.lost, self.cut_off
                ));
            }
        }
        for note in &self.notes {
            line(format!("note: {note}"));
        }
        for problem in &self.problems {
            line(format!("PROBLEM {}: {}", problem.kind, problem.what));
        }
        line(match self.problem_count {
            0 => "clean".to_owned(),
            n => format!("{n} problems"),
        });
        out
    }

    /// For programs.
    pub fn json(&self) -> String {
        let strings = |list: &[String]| {
            let all: Vec<String> = list.iter().map(|s| quoted(s)).collect();
            format!("[{}]", all.join(","))
        };
        let mut out = String::from("{");
        if let Some((id, drive, pool)) = &self.drive {
            let _ = write!(
                out,
                "\"id\":{},\"drive\":{},\"pool\":{},",
                quoted(id),
                quoted(drive),
                quoted(pool)
            );
        }
        let _ = write!(out, "\"ok\":{},\"clean\":{},", self.is_clean(), self.clean);
        let [live, snapshots, hidden, deleting] = self.roots;
        let numbers = [
            ("checkpoint", self.checkpoint),
            ("blocks", self.blocks),
            ("fixed", self.fixed),
            ("used", self.used),
            ("pages", self.pages),
            ("data", self.data),
            ("journal_data", self.journal_data),
            ("journal_records", self.journal_records),
            ("lanes", live),
            ("snapshots", snapshots),
            ("hidden", hidden),
            ("deleting", deleting),
            ("data_read", self.data_read),
            ("poisoned", self.poisoned),
            ("lost", self.lost),
            ("cut_off", self.cut_off),
            ("problem_count", self.problem_count),
        ];
        for (name, number) in numbers {
            let _ = write!(out, "\"{name}\":{number},");
        }
        let problems: Vec<String> = self
            .problems
            .iter()
            .map(|p| {
                format!(
                    "{{\"kind\":{},\"what\":{}}}",
                    quoted(p.kind),
                    quoted(&p.what)
                )
            })
            .collect();
        let _ = write!(
            out,
            "\"copies\":{},\"notes\":{},\"problems\":[{}]}}",
            strings(&self.copies),
            strings(&self.notes),
            problems.join(",")
        );
        out
    }
}

/// A JSON string.
pub(super) fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => {
                out.push('\\');
                out.push(c);
            }
            c if c.is_control() => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
