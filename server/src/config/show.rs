//! The configuration as people and programs read it: what holds now, and what could be said.

use super::keys::{AUTO, KEYS, Key, Kind, size};
use super::{Config, Value};

/// One line of what holds now.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Line {
    /// The name of the key.
    pub key: &'static str,
    /// Its value.
    pub value: String,
    /// Where the value came from.
    pub origin: String,
}

/// Returns every key with the value that holds and where it came from.
#[must_use]
pub fn listing(config: &Config) -> Vec<Line> {
    let line = |setting: &super::Setting| Line {
        key: setting.key.name,
        value: written(setting.key, &setting.value),
        origin: setting.origin.to_string(),
    };
    config.settings.iter().map(line).collect()
}

fn written(key: &Key, value: &Value) -> String {
    match (&key.kind, value) {
        (Kind::BytesOrAuto { .. }, Value::Number(0)) => AUTO.to_owned(),
        (Kind::Bytes { .. } | Kind::BytesOrAuto { .. }, Value::Number(bytes)) => size(*bytes),
        (_, value) => value.to_string(),
    }
}

/// Returns a configuration file with every key, its meaning, bounds and default.
#[must_use]
pub fn example() -> String {
    let mut text = String::from(
        "# Every key that the server knows, with its default. Keys that are left out keep it.\n\
         # A flag beats an environment variable, which beats this file.\n",
    );
    let mut sections: Vec<&str> = Vec::new();
    for key in KEYS {
        let section = key.name.split_once('.').map_or("", |(section, _)| section);
        if !sections.contains(&section) {
            sections.push(section);
        }
    }
    sections.sort_by_key(|section| !section.is_empty());
    for section in sections {
        let indent = if section.is_empty() { "" } else { "  " };
        if !section.is_empty() {
            text.push_str(&format!("\n{section}:\n"));
        }
        for key in KEYS {
            let (head, leaf) = key.name.split_once('.').unwrap_or(("", key.name));
            if head != section {
                continue;
            }
            let about = format!(
                "{} Takes {}. Environment: {}. Since {}.",
                key.doc,
                key.bounds(),
                key.env.join(", "),
                key.since
            );
            text.push('\n');
            for line in wrap(&about, 110) {
                text.push_str(&format!("{indent}# {line}\n"));
            }
            match key.default {
                "" => text.push_str(&format!("{indent}# {leaf}:\n")),
                default => text.push_str(&format!("{indent}{leaf}: {default}\n")),
            }
        }
    }
    text
}

fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let full = lines.last().is_some_and(|line| !line.is_empty() && line.len() + 1 + word.len() > width);
        if full {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Sources;

    #[test]
    fn the_example_is_a_configuration_that_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("example.yaml");
        std::fs::write(&file, example()).unwrap();
        let read = Config::load(&Sources { file: Some(file), ..Sources::default() }).unwrap();
        let bare = Config::load(&Sources::default()).unwrap();
        let values = |config: &Config| -> Vec<_> { listing(config).into_iter().map(|line| line.value).collect() };
        assert_eq!(values(&read), values(&bare));
        let from_file = listing(&read).iter().filter(|line| line.origin.starts_with("file ")).count();
        assert_eq!(from_file, KEYS.iter().filter(|key| !key.default.is_empty()).count());
    }

    #[test]
    fn the_example_in_the_repository_is_current() {
        let kept = include_str!("../../../deploy/config.example.yaml");
        assert!(
            kept == example(),
            "deploy/config.example.yaml is stale: kubemq config example > deploy/config.example.yaml"
        );
    }

    #[test]
    fn each_value_is_shown_with_its_origin() {
        let mut sources = Sources::default();
        sources.environment.insert("LIMITS_TAIL_CACHE".to_owned(), "1073741824".to_owned());
        sources.assignment("--set", "grpc.port=0").unwrap();
        let lines = listing(&Config::load(&sources).unwrap());
        let find =
            |key: &str| lines.iter().find(|line| line.key == key).map(|line| (line.value.clone(), line.origin.clone()));
        assert_eq!(find("limits.tailCache"), Some(("1GiB".into(), "environment LIMITS_TAIL_CACHE".into())));
        assert_eq!(find("grpc.port"), Some(("0".into(), "flag --set grpc.port".into())));
        assert_eq!(find("api.port"), Some(("8080".into(), "default".into())));
        assert_eq!(lines.len(), KEYS.len());
    }
}
