//! The lines of the result, and the section of the results' file that they stand in.

use std::fmt::Write as _;
use std::time::Duration;

use kubemq_server::cli::bench::time;

use super::stage::mebibytes;

/// The heading of the section.
pub(crate) const HEADING: &str = "# Pushes";

/// How long a killed broker took to come back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Restart {
    /// To the line that says it is ready.
    pub(crate) ready: Duration,
    /// To the first message that was received, when there was one; both from the start of the process.
    pub(crate) first: Option<Duration>,
}

/// What one push showed.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    scale: f64,
    pub(crate) pushed: String,
    pub(crate) time: Duration,
    /// Bytes, as is the rest.
    pub(crate) peak: u64,
    pub(crate) end: u64,
    pub(crate) ceiling: u64,
    /// Whether the kernel would kill above the ceiling.
    enforced: bool,
    pub(crate) disk: u64,
    pub(crate) restart: Option<Restart>,
    /// What is demanded, what was found, and whether that is enough.
    pub(crate) demands: Vec<(String, String, bool)>,
}

impl Row {
    pub(crate) fn new(name: &'static str, scale: f64, ceiling: u64, enforced: bool) -> Self {
        let (pushed, time) = (String::new(), Duration::ZERO);
        Self { name, scale, pushed, time, peak: 0, end: 0, ceiling, enforced, disk: 0, restart: None, demands: vec![] }
    }

    /// Returns whether everything holds that is demanded.
    pub(crate) fn held(&self) -> bool {
        self.demands.iter().all(|(_, _, held)| *held)
    }

    /// Returns the row as a line of the table.
    pub(crate) fn line(&self) -> String {
        let ceiling = if self.enforced { "" } else { " (watched)" };
        let mebibytes_of = |bytes| mebibytes(bytes).replace(" MiB", "");
        let memory = format!(
            "{} / {} / {}{ceiling}",
            mebibytes_of(self.peak),
            mebibytes_of(self.end),
            mebibytes_of(self.ceiling)
        );
        let restart = self.restart.map_or_else(|| "–".to_owned(), Restart::text);
        let mut demands = String::new();
        for (demand, found, held) in &self.demands {
            let separator = if demands.is_empty() { "" } else { "; " };
            let mark = if *held { "" } else { " **no**" };
            write!(demands, "{separator}{demand}: {found}{mark}").ok();
        }
        let scale = if (self.scale - 1.0).abs() < 1e-9 { String::new() } else { format!(" (scale {})", self.scale) };
        format!(
            "| {} | {}{scale} | {} | {memory} | {} | {restart} | {} | {} |",
            self.name,
            self.pushed.replace('|', "/"),
            text(self.time),
            mebibytes_of(self.disk),
            demands.replace('|', "/").replace('\n', " "),
            if self.held() { "yes" } else { "**no**" }
        )
    }
}

impl Restart {
    fn text(self) -> String {
        let first = self.first.map_or_else(|| "–".to_owned(), text);
        format!("{} / {first}", text(self.ready))
    }
}

/// Returns a duration as text.
pub(crate) fn text(duration: Duration) -> String {
    time(duration.as_secs_f64() * 1e6)
}

/// Returns the section with `lines`, and with those of `old` for pushes that were not run now, in the order of `names`.
pub(crate) fn section(conditions: &[(&str, String)], old: &str, lines: &[(&str, String)], names: &[&str]) -> String {
    let mut text = format!(
        "{HEADING}\n\nWritten by `kubemq-bench push`, each row in a fresh process and directory; the broker runs in a memory cgroup that kills it above the ceiling. Memory and disk in MiB; restart after `kill -9`, from the start of the process. The conditions are those of the newest row.\n\n"
    );
    for (name, value) in conditions {
        writeln!(text, "- {name}: {value}").ok();
    }
    text.push_str("\n| Push | Pushed | Time | RSS peak / end / ceiling | Disk at the end | Restart: ready / first receive | Demanded: found | Holds |\n|---|---|---|---|---|---|---|---|\n");
    for name in names {
        let new = lines.iter().find(|(of, _)| of == name).map(|(_, line)| line.as_str());
        let start = format!("| {name} |");
        if let Some(line) = new.or_else(|| old.lines().find(|line| line.starts_with(&start))) {
            writeln!(text, "{line}").ok();
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_were_not_run_stay() {
        let names = ["one", "two", "three"];
        let old = section(&[], "", &[("three", "| three | a |".to_owned()), ("one", "| one | b |".to_owned())], &names);
        let new = section(&[], &old, &[("two", "| two | c |".to_owned()), ("one", "| one | d |".to_owned())], &names);
        let rows: Vec<_> =
            new.lines().filter(|line| !line.contains("---")).filter(|line| line.starts_with('|')).collect();
        assert_eq!(rows[1..], ["| one | d |", "| two | c |", "| three | a |"]);
    }

    #[test]
    fn a_demand_that_does_not_hold_marks_the_row() {
        let mut row = Row::new("name", 0.5, 1 << 20, true);
        row.demands.push(("a ≤ 1".to_owned(), "1".to_owned(), true));
        assert!(row.line().ends_with("| a ≤ 1: 1 | yes |"), "{}", row.line());
        row.demands.push(("b ≤ 1".to_owned(), "2".to_owned(), false));
        assert!(row.line().ends_with("| a ≤ 1: 1; b ≤ 1: 2 **no** | **no** |"), "{}", row.line());
    }
}
