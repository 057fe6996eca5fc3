//! What a command shows, and how it ends: the only door of the client commands to standard output.
//!
//! Results go to standard output, everything else (progress, errors) to standard error, so that a script can
//! read one without the other. Nothing here knows what a queue is.

use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;

use serde::Serialize;

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people: tables and headings.
    #[default]
    Table,
    /// For programs: one JSON document per line.
    Json,
}

/// How a command ended when nothing went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It did what it was asked to: exit code 0.
    Done,
    /// The broker answered, but there was nothing to receive: exit code 3.
    Nothing,
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The broker, or something on the way to it, said no: exit code 1.
    #[error("{0}")]
    Refused(String),
    /// The command line asks for something that cannot be: exit code 2, as for a misspelt flag.
    #[error("{0}")]
    Usage(String),
    /// Standard output is closed or full: exit code 1.
    #[error("could not write to standard output: {0}")]
    Output(#[from] io::Error),
}

/// Prints `error`, if there is one, and returns the exit code of the process.
#[must_use]
pub fn finish(result: Result<Ending, Failure>) -> ExitCode {
    match result {
        Ok(Ending::Done) => ExitCode::SUCCESS,
        Ok(Ending::Nothing) => ExitCode::from(3),
        Err(failure) => {
            note(format_args!("error: {failure}"));
            ExitCode::from(if matches!(failure, Failure::Usage(_)) { 2 } else { 1 })
        }
    }
}

/// Prints a line to standard output.
///
/// # Errors
///
/// When standard output cannot be written to.
pub fn line(text: impl fmt::Display) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{text}")
}

/// Prints `value` as one line of JSON.
///
/// # Errors
///
/// When standard output cannot be written to.
pub fn json(value: &impl Serialize) -> io::Result<()> {
    line(serde_json::to_string(value)?)
}

/// Prints `value` as JSON for people, indented by four blanks.
///
/// # Errors
///
/// When standard output cannot be written to.
pub fn pretty(value: &impl Serialize) -> io::Result<()> {
    let mut text = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    value.serialize(&mut serde_json::Serializer::with_formatter(&mut text, formatter))?;
    line(String::from_utf8_lossy(&text))
}

/// Prints a remark to standard error. A closed standard error loses it and nothing else.
pub fn note(text: fmt::Arguments<'_>) {
    writeln!(io::stderr().lock(), "{text}").ok();
}

/// Prints a table: every column as wide as its widest cell, two blanks between columns.
///
/// # Errors
///
/// When standard output cannot be written to.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> io::Result<()> {
    line(render_table(header, rows))
}

fn render_table(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = header.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let header: Vec<String> = header.iter().map(|&cell| cell.to_owned()).collect();
    let render = |row: &Vec<String>| {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}")).collect();
        cells.join("  ").trim_end().to_owned()
    };
    std::iter::once(&header).chain(rows).map(render).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = vec![vec!["a".to_owned(), "1".to_owned()], vec!["longer".to_owned(), "22".to_owned()]];
        assert_eq!(render_table(&["NAME", "N"], &rows), "NAME    N\na       1\nlonger  22");
    }

    #[test]
    fn exit_codes_tell_apart_what_a_script_must_tell_apart() {
        let codes = [
            finish(Ok(Ending::Done)),
            finish(Ok(Ending::Nothing)),
            finish(Err(Failure::Refused("no".into()))),
            finish(Err(Failure::Usage("what".into()))),
        ];
        let wanted = [0, 3, 1, 2].map(ExitCode::from);
        assert_eq!(format!("{codes:?}"), format!("{wanted:?}"));
    }
}
