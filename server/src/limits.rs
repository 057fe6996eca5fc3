//! Every bound of the program in one list: its value, what happens at it, the metric that shows it, the test that
//! shows it.
//!
//! The list is told by `kubemq config reference` and kept in `deploy/reference.md`. It bounds nothing itself: a bound
//! stands where it is used. Its tests hold it to the sources: a constant that is neither listed nor named as something
//! else, a value that is not the one in the source, a test or metric that does not exist, all are failures.

mod table;
#[cfg(test)]
mod tests;

pub use table::LIMITS;

use crate::config::keys::Key;

/// One bound.
#[derive(Debug)]
pub struct Limit {
    /// What is bounded.
    pub what: &'static str,
    /// Where its value is from.
    pub value: Value,
    /// What happens when it is reached.
    pub reached: &'static str,
    /// The metric that shows how near it is, with the label where one metric shows several; empty where there is
    /// nothing to fill up.
    pub metric: &'static str,
    /// The file and the name of the test that reaches it.
    pub test: (&'static str, &'static str),
}

/// Where the value of a bound is from.
#[derive(Debug)]
pub enum Value {
    /// It is configured.
    Configured(&'static Key),
    /// It is fixed.
    Fixed {
        /// The source file and the constant or field in it.
        place: (&'static str, &'static str),
        /// The value as people read it.
        is: &'static str,
    },
}

impl Limit {
    const fn configured(
        key: &'static Key,
        what: &'static str,
        reached: &'static str,
        metric: &'static str,
        test: (&'static str, &'static str),
    ) -> Self {
        Self { what, value: Value::Configured(key), reached, metric, test }
    }

    const fn fixed(
        place: (&'static str, &'static str),
        is: &'static str,
        what: &'static str,
        reached: &'static str,
        metric: &'static str,
        test: (&'static str, &'static str),
    ) -> Self {
        Self { what, value: Value::Fixed { place, is }, reached, metric, test }
    }
}

/// Returns the list as a table in Markdown: first what is configured, then what is fixed, in the order of the list.
#[must_use]
pub fn markdown() -> String {
    let mut text = String::from("| Bound | Value | At the bound | Metric | Reached by |\n|---|---|---|---|---|\n");
    let configured = |limit: &&Limit| matches!(limit.value, Value::Configured(_));
    for limit in LIMITS.iter().filter(configured).chain(LIMITS.iter().filter(|limit| !configured(limit))) {
        let value = match &limit.value {
            Value::Configured(key) => {
                format!("`{}`, {}", key.name, if key.default == "0" { "none" } else { key.default })
            }
            Value::Fixed { is, .. } => (*is).to_owned(),
        };
        let metric = if limit.metric.is_empty() { String::new() } else { format!("`{}`", limit.metric) };
        let (file, name) = limit.test;
        text.push_str(&format!("| {} | {value} | {} | {metric} | `{file}` {name} |\n", limit.what, limit.reached));
    }
    text
}
