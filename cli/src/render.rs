//! How answers are shown: a table for people, JSON for programs.
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;
use std::io::{IsTerminal, Write};

/// The form in which a command prints its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Columns, for people.
    Table,
    /// One JSON document on standard output.
    Json,
}

/// An answer: data for programs, and the same for people.
pub struct Answer {
    json: serde_json::Value,
    text: String,
}

impl Answer {
    /// `data` as JSON, `text` for people.
    pub fn new(data: impl Serialize, text: impl Into<String>) -> Answer {
        let json = serde_json::to_value(data).expect("answers are plain structs with string keys");
        Answer {
            json,
            text: text.into(),
        }
    }

    /// That a command failed, for one that is asked again.
    pub fn failed(failure: &crate::failure::Failure) -> Answer {
        let text = failure.to_string();
        Answer::new(serde_json::json!({ "error": text }), format!("{text}\n"))
    }

    /// Prints it in the place of the one before, if a person looks on; else below it.
    pub fn print_over(&self, format: Format) {
        let terminal = std::io::stdout().is_terminal();
        if format == Format::Table && terminal {
            // To the first cell, and nothing from there on.
            let _ = write!(std::io::stdout().lock(), "\x1b[H\x1b[J");
        }
        self.print(format);
    }

    /// Prints it. A reader that went away (`keelctl … | head`) is not an error.
    pub fn print(&self, format: Format) {
        let shown = match format {
            Format::Json => format!("{:#}", self.json),
            Format::Table => self.text.trim_end().to_owned(),
        };
        if !shown.is_empty() {
            let _ = writeln!(std::io::stdout().lock(), "{shown}");
        }
    }
}

/// Rows under headings, without borders; a heading that ends in `>` is aligned to the right.
pub fn table(headings: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(headings.iter().map(|h| h.trim_end_matches('>')));
    for row in rows {
        table.add_row(row);
    }
    for (column, heading) in table.column_iter_mut().zip(headings) {
        column.set_padding((0, 2));
        if heading.ends_with('>') {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
        .lines()
        .map(|line| line.trim_end().to_owned() + "\n")
        .collect()
}

/// Names and values of one thing, one per line. Values that are empty are left out.
pub fn facts(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let shown = rows.iter().filter(|(_, value)| !value.is_empty());
    shown
        .map(|(name, value)| format!("{name:width$}  {value}\n"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_align_and_have_no_trailing_blanks() {
        let text = table(
            &["NAME", "SIZE>"],
            [
                vec!["a".into(), "1 GiB".into()],
                vec!["long-name".into(), "10 GiB".into()],
            ],
        );
        assert_eq!(
            text,
            "NAME         SIZE\na           1 GiB\nlong-name  10 GiB\n"
        );
    }

    #[test]
    fn facts_leave_out_what_is_empty() {
        assert_eq!(
            facts(&[
                ("id", "7".into()),
                ("error", String::new()),
                ("state", "up".into())
            ]),
            "id     7\nstate  up\n"
        );
    }
}
