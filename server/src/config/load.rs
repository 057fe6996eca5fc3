//! Gathering what was given: flag, environment, file. Nothing here knows what a value means.
//!
//! A file is YAML or TOML, read into paths and texts. A path that names no key is refused with the nearest one;
//! everything that is wrong is collected, so that one start reports all of it.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value as Tree;

use super::keys::{KEYS, Key};
use super::legacy::{self, Treatment};

/// Files that are looked for when none is named.
const DEFAULT_FILES: [&str; 3] = ["config.yaml", "config.yml", "config.toml"];
/// The most that a configuration file may have; anything longer is some other file.
const MAX_FILE_BYTES: u64 = 1024 * 1024;
/// How far a misspelt key may be from one that exists to be taken for it: a share of its length.
const NEAR: f64 = 0.6;

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A flag on the command line.
    Flag(String),
    /// An environment variable.
    Environment(String),
    /// A file, by the name under which it is known.
    File(String),
    /// Nobody gave one.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(flag) => write!(f, "flag {flag}"),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::File(name) => write!(f, "file {name}"),
            Self::Default => f.write_str("default"),
        }
    }
}

/// Something that keeps the server from starting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The key and where it was given, or the file.
    pub place: String,
    /// What is wrong.
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "configuration validation error: {}: {}", self.place, self.text)
    }
}

/// Everything that may give a value, strongest first: flags, environment, file.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// Key, flag, and value.
    pub flags: Vec<(&'static Key, String, String)>,
    /// The variables of the process.
    pub environment: BTreeMap<String, String>,
    /// The file that the command line names.
    pub file: Option<PathBuf>,
    /// Directories in which a file is looked for when none is named.
    pub directories: Vec<PathBuf>,
}

/// A text that somebody gave for a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Given {
    pub(super) text: String,
    pub(super) origin: Origin,
}

/// What was given, not yet checked.
#[derive(Debug, Default)]
pub(super) struct Raw {
    /// By name of the key.
    pub(super) values: BTreeMap<&'static str, Given>,
    pub(super) warnings: Vec<String>,
    pub(super) problems: Vec<Problem>,
    /// The file that was read.
    pub(super) file: Option<String>,
}

/// Gathers what `sources` give.
pub(super) fn load(sources: &Sources) -> Raw {
    let mut raw = Raw::default();
    match read_file(sources) {
        Ok(Some((name, tree))) => {
            raw.take_file(&name, &tree);
            raw.file = Some(name);
        }
        Ok(None) => {}
        Err(problem) => raw.problems.push(problem),
    }
    raw.take_environment(&sources.environment);
    for (key, flag, text) in &sources.flags {
        raw.values.insert(key.name, Given { text: text.clone(), origin: Origin::Flag(flag.clone()) });
    }
    raw
}

impl Raw {
    fn take_file(&mut self, name: &str, tree: &Tree) {
        let mut leaves = Vec::new();
        flatten("", tree, &mut leaves);
        let mut found: BTreeMap<String, (String, Option<String>)> = BTreeMap::new();
        for (path, text) in leaves {
            if let Some((other, _)) = found.insert(path.to_ascii_lowercase(), (path.clone(), text)) {
                self.problem(name, &path, format!("is given twice, also as `{other}`"));
            }
        }
        for key in KEYS {
            // The first that is given wins, the others are known all the same.
            for path in key.paths().collect::<Vec<_>>().into_iter().rev() {
                match found.remove(&path.to_ascii_lowercase()) {
                    Some((_, Some(text))) => {
                        self.values.insert(key.name, Given { text, origin: Origin::File(name.to_owned()) });
                    }
                    Some((path, None)) => self.problem(name, &path, "is one value, not a section".to_owned()),
                    None => {}
                }
            }
        }
        for (path, text) in found.into_values() {
            match legacy::treatment(&path) {
                Some(treatment) => self.legacy(treatment, &path, name, text.as_deref().unwrap_or_default()),
                None => self.problem(name, &path, unknown(&path)),
            }
        }
    }

    fn take_environment(&mut self, environment: &BTreeMap<String, String>) {
        let given = |name: &str| environment.get(name).map(String::as_str).filter(|text| !text.trim().is_empty());
        for key in KEYS {
            if let Some((name, text)) = key.env.iter().find_map(|&name| Some((name, given(name)?))) {
                let origin = Origin::Environment(name.to_owned());
                self.values.insert(key.name, Given { text: text.to_owned(), origin });
            }
        }
        for (name, treatment) in legacy::ENVIRONMENT {
            if let Some(text) = given(name) {
                self.legacy(*treatment, name, "the environment", text);
            }
        }
    }

    fn legacy(&mut self, treatment: Treatment, key: &str, place: &str, text: &str) {
        match treatment {
            Treatment::Ignored => {
                self.warnings.push(format!("`{key}` in {place} has no effect in this version"));
            }
            Treatment::Protects if legacy::is_off(text) => {}
            Treatment::Protects => {
                let text = "this version cannot protect the server yet, and starting it open is not what was asked for";
                self.problem(place, key, text.to_owned());
            }
        }
    }

    fn problem(&mut self, place: &str, key: &str, text: String) {
        self.problems.push(Problem { place: format!("`{key}` in {place}"), text });
    }
}

/// Collects the values of a tree with their paths. A section that stands where nothing is inside has no value.
fn flatten(path: &str, tree: &Tree, leaves: &mut Vec<(String, Option<String>)>) {
    let text = match tree {
        Tree::Object(fields) if path.is_empty() || !fields.is_empty() => {
            for (name, field) in fields {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                // A key that takes one value and was given a section is reported by itself.
                match field {
                    Tree::Object(_) if is_key(&path) => leaves.push((path, None)),
                    field => flatten(&path, field, leaves),
                }
            }
            return;
        }
        // Written down without a value: not given.
        Tree::Object(_) | Tree::Null => return,
        Tree::String(text) => text.clone(),
        Tree::Array(items) => items.iter().map(scalar).collect::<Vec<_>>().join(","),
        other => scalar(other),
    };
    leaves.push((path.to_owned(), Some(text)));
}

fn scalar(tree: &Tree) -> String {
    tree.as_str().map_or_else(|| tree.to_string(), str::to_owned)
}

fn is_key(path: &str) -> bool {
    KEYS.iter().any(|key| key.paths().any(|name| name.eq_ignore_ascii_case(path)))
}

/// Returns what to say about a path that names nothing.
fn unknown(path: &str) -> String {
    match nearest(path) {
        Some(name) => format!("there is no such key, did you mean `{name}`?"),
        None => "there is no such key, `kubemq config print` shows all".to_owned(),
    }
}

/// Returns the name of the key that was most likely meant by `path`.
pub(super) fn nearest(path: &str) -> Option<&'static str> {
    let path = path.to_ascii_lowercase();
    let leaf = |path: &str| path.rsplit('.').next().unwrap_or_default().to_owned();
    let names = KEYS.iter().flat_map(|key| key.paths());
    let near = names.map(|name| {
        let lower = name.to_ascii_lowercase();
        let whole = strsim::normalized_damerau_levenshtein(&path, &lower);
        // The right word in the wrong section is near too.
        let last = strsim::normalized_damerau_levenshtein(&leaf(&path), &leaf(&lower)) * 0.9;
        (whole.max(last), name)
    });
    near.filter(|(likeness, _)| *likeness >= NEAR).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, name)| name)
}

/// Returns the file that `sources` name or that lies where one is looked for, as a tree with its name.
fn read_file(sources: &Sources) -> Result<Option<(String, Tree)>, Problem> {
    if let Some(path) = &sources.file {
        return read_path(path).map(Some);
    }
    if let Some(config) = sources.environment.get("CONFIG").map(|text| text.trim()).filter(|text| !text.is_empty()) {
        return match encoded(config) {
            Some(text) => {
                let name = "the environment variable CONFIG".to_owned();
                parse_either(&text).map(|tree| Some((name.clone(), tree))).map_err(|text| Problem { place: name, text })
            }
            None => read_path(Path::new(config)).map(Some),
        };
    }
    let candidates = sources.directories.iter().flat_map(|dir| DEFAULT_FILES.map(|name| dir.join(name)));
    match candidates.into_iter().find(|path| path.is_file()) {
        Some(path) => read_path(&path).map(Some),
        None => Ok(None),
    }
}

/// Returns the text when `config` holds it in base64, and nothing when it is a path.
fn encoded(config: &str) -> Option<String> {
    if Path::new(config).exists() || config.contains(' ') {
        return None;
    }
    let joined: String = config.split_whitespace().collect();
    let text = String::from_utf8(STANDARD.decode(joined).ok()?).ok()?;
    // A short path may happen to decode, into nothing that anybody writes.
    text.chars().all(|letter| !letter.is_control() || letter.is_whitespace()).then_some(text)
}

fn read_path(path: &Path) -> Result<(String, Tree), Problem> {
    let place = path.display().to_string();
    let problem = |text: String| Problem { place: place.clone(), text };
    let unreadable = |error: std::io::Error| problem(format!("the file cannot be read: {error}"));
    if std::fs::metadata(path).map_err(unreadable)?.len() > MAX_FILE_BYTES {
        return Err(problem("the file is too large for a configuration".to_owned()));
    }
    let text = std::fs::read_to_string(path).map_err(unreadable)?;
    let tree = match path.extension().and_then(|extension| extension.to_str()).unwrap_or_default() {
        "yaml" | "yml" => parse_yaml(&text),
        "toml" => parse_toml(&text),
        _ => Err("the name must end with .yaml, .yml or .toml".to_owned()),
    };
    Ok((place.clone(), tree.map_err(problem)?))
}

fn parse_either(text: &str) -> Result<Tree, String> {
    match parse_yaml(text) {
        Ok(tree) => Ok(tree),
        Err(yaml) => parse_toml(text).map_err(|toml| format!("{yaml}; {toml}")),
    }
}

fn parse_yaml(text: &str) -> Result<Tree, String> {
    let tree = serde_yaml::from_str(text).map_err(|error| format!("this is not valid YAML: {error}"))?;
    sections(tree).ok_or_else(|| "this is not valid YAML: there are no keys in it".to_owned())
}

fn parse_toml(text: &str) -> Result<Tree, String> {
    let tree = toml::from_str(text).map_err(|error| format!("this is not valid TOML: {error}"))?;
    sections(tree).ok_or_else(|| "this is not valid TOML: there are no keys in it".to_owned())
}

/// Returns the tree when it has keys; an empty file has none to object to.
fn sections(tree: Tree) -> Option<Tree> {
    match tree {
        Tree::Object(_) | Tree::Null => Some(tree),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from_yaml(text: &str) -> Raw {
        let mut raw = Raw::default();
        raw.take_file("test.yaml", &parse_yaml(text).unwrap());
        raw
    }

    fn text<'a>(raw: &'a Raw, key: &str) -> Option<&'a str> {
        raw.values.get(key).map(|given| given.text.as_str())
    }

    fn problems(raw: &Raw) -> Vec<String> {
        raw.problems.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn yaml_and_toml_say_the_same() {
        let yaml = from_yaml("grpc:\n  port: 50001\nQUEUE:\n  MaxDelaySeconds: '7'\ndata: /a\napi:\n");
        let mut toml = Raw::default();
        let tree = parse_toml("data = '/a'\n[grpc]\nport = 50001\n[queue]\nmaxdelayseconds = 7\n[api]\n").unwrap();
        toml.take_file("test.yaml", &tree);
        assert_eq!(problems(&yaml), Vec::<String>::new());
        assert_eq!(yaml.values, toml.values);
        assert_eq!(text(&yaml, "grpc.port"), Some("50001"));
        assert_eq!(text(&yaml, "queue.maxDelaySeconds"), Some("7"));
        assert_eq!(text(&yaml, "store.storePath"), Some("/a"));
        assert_eq!(yaml.values.len(), 3);
    }

    #[test]
    fn misspelt_keys_are_refused_with_the_nearest() {
        let rows = [
            ("grpc: {prot: 1}", "`grpc.prot`", "did you mean `grpc.port`?"),
            ("queue: {maxDelaySecond: 1}", "`queue.maxDelaySecond`", "did you mean `queue.maxDelaySeconds`?"),
            ("store: {maxDelaySeconds: 1}", "`store.maxDelaySeconds`", "did you mean `queue.maxDelaySeconds`?"),
            ("logs: {level: info}", "`logs.level`", "did you mean `log.level`?"),
            ("zebra: 1", "`zebra`", "there is no such key, `kubemq config print` shows all"),
            ("grpc: 5", "`grpc`", "there is no such key"),
            ("host: {name: x}", "`host`", "is one value, not a section"),
            ("grpc: {port: 1, Port: 2}", "`grpc.", "is given twice"),
        ];
        for (file, place, text) in rows {
            let raw = from_yaml(file);
            let said = problems(&raw);
            assert_eq!(said.len(), 1, "{file}: {said:?}");
            assert!(said[0].contains(place) && said[0].contains(text), "{file}: {said:?}");
        }
    }

    #[test]
    fn everything_wrong_in_a_file_is_reported_at_once() {
        let raw = from_yaml("grpc: {prot: 1}\nzebra: 1\napi: {prot: 1}\n");
        assert_eq!(raw.problems.len(), 3);
    }

    #[test]
    fn keys_of_the_original_are_named_and_protection_is_not_ignored() {
        let raw = from_yaml("broker: {diskSyncSeconds: 1}\nqueue: {maxInflight: 5}\nauthentication: {enable: false}\n");
        let warned = [
            "`broker.diskSyncSeconds` in test.yaml has no effect in this version",
            "`queue.maxInflight` in test.yaml has no effect in this version",
        ];
        assert_eq!((raw.warnings.as_slice(), problems(&raw).len()), (warned.map(str::to_owned).as_slice(), 0));
        let raw = from_yaml("authentication: {enable: true}\nsecurity: {cert: {filename: a.pem}, key: {data: ''}}\n");
        let said = problems(&raw);
        assert_eq!(said.len(), 2, "{said:?}");
        assert!(said.iter().all(|said| said.contains("cannot protect")), "{said:?}");
    }

    #[test]
    fn flag_beats_environment_beats_file_and_commercial_names_win() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.yaml");
        std::fs::write(&file, "grpc: {port: 1}\nconnectors: {grpc: {port: 2}}\nlog: {level: warn}\n").unwrap();
        let mut sources =
            Sources { directories: vec![dir.path().join("none"), dir.path().into()], ..Sources::default() };
        let raw = load(&sources);
        assert_eq!(
            raw.values["grpc.port"],
            Given { text: "2".into(), origin: Origin::File(file.display().to_string()) }
        );
        let environment = [("GRPC_PORT", "3"), ("CONNECTORS_GRPC_PORT", "4"), ("LOG_LEVEL", " "), ("API_PORT", "5")];
        sources.environment = environment.map(|(name, text)| (name.to_owned(), text.to_owned())).into();
        let raw = load(&sources);
        let origin = Origin::Environment("CONNECTORS_GRPC_PORT".into());
        assert_eq!(raw.values["grpc.port"], Given { text: "4".into(), origin });
        assert_eq!(text(&raw, "log.level"), Some("warn"), "an empty variable gives nothing");
        sources.flags = vec![(&super::super::keys::GRPC_PORT, "--grpc-port".into(), "6".into())];
        let raw = load(&sources);
        assert_eq!(raw.values["grpc.port"], Given { text: "6".into(), origin: Origin::Flag("--grpc-port".into()) });
        assert_eq!(text(&raw, "api.port"), Some("5"));
    }

    #[test]
    fn the_environment_holds_a_configuration_or_names_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("settings.toml");
        std::fs::write(&file, "grpc.port = 9").unwrap();
        let yaml = STANDARD.encode("grpc:\n  port: 7\n");
        let toml = STANDARD.encode("grpc.port = 8\n");
        let rows = [
            (yaml.clone(), Ok("7")),
            (yaml[..8].to_owned() + "\n" + &yaml[8..], Ok("7")),
            (toml, Ok("8")),
            (file.display().to_string(), Ok("9")),
            (dir.path().join("none.yaml").display().to_string(), Err("the file cannot be read")),
            (STANDARD.encode("\tgrpc = [\n"), Err("is not valid TOML")),
            (STANDARD.encode("just words"), Err("there are no keys in it")),
        ];
        for (config, expected) in rows {
            let sources = Sources { environment: [("CONFIG".to_owned(), config.clone())].into(), ..Sources::default() };
            let raw = load(&sources);
            match expected {
                Ok(port) => assert_eq!((text(&raw, "grpc.port"), problems(&raw)), (Some(port), vec![]), "{config}"),
                Err(said) => assert!(problems(&raw).join("").contains(said), "{config}: {:?}", raw.problems),
            }
        }
    }

    #[test]
    fn files_that_are_none() {
        let dir = tempfile::tempdir().unwrap();
        let rows = [
            ("a.yaml", "grpc: [", "this is not valid YAML"),
            ("a.toml", "grpc = ", "this is not valid TOML"),
            ("a.toml", "grpc: {}", "this is not valid TOML"),
            ("a.json", "{}", "the name must end with .yaml, .yml or .toml"),
            ("a.yaml", "- 1", "there are no keys in it"),
        ];
        for (name, content, said) in rows {
            let path = dir.path().join(name);
            std::fs::write(&path, content).unwrap();
            let raw = load(&Sources { file: Some(path), ..Sources::default() });
            assert!(problems(&raw).join("").contains(said), "{content}: {:?}", raw.problems);
        }
        let path = dir.path().join("large.yaml");
        std::fs::write(&path, "#".repeat(2 << 20)).unwrap();
        let raw = load(&Sources { file: Some(path), ..Sources::default() });
        assert!(problems(&raw).join("").contains("too large"), "{:?}", raw.problems);
        let path = dir.path().join("empty.yaml");
        std::fs::write(&path, "# nothing\n").unwrap();
        let raw = load(&Sources { file: Some(path), ..Sources::default() });
        assert_eq!((raw.problems.len(), raw.values.len()), (0, 0));
    }
}
