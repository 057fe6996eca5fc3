//! Rules of the sources that clippy cannot tell.

#![expect(clippy::unwrap_used, reason = "helpers of tests; a failure names its line")]

use std::path::{Path, PathBuf};

/// The crates whose code runs in the simulation, and those beside them that are shipped.
const CRATES: [&str; 7] =
    ["proto/src", "storage/src", "raft/src", "connectors/src", "server/src", "server/runtime/src", "server/broker/src"];

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Returns what is wrong with `text`.
fn violations(text: &str) -> Vec<String> {
    let code: String =
        text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n");
    let mut found = Vec::new();
    for (at, _) in code.match_indices("select!") {
        let before =
            code[..at].trim_end_matches(|character: char| character.is_alphanumeric() || "_:".contains(character));
        let path = &code[before.len()..at];
        if path.starts_with("futures") {
            found.push(format!("{path}select! is random"));
            continue;
        }
        let body = code[at + "select!".len()..].trim_start().trim_start_matches(['{', '(', '[']).trim_start();
        if !body.starts_with("biased;") {
            let line = code[..at].matches('\n').count() + 1;
            found.push(format!("line {line}: {path}select! does not begin with `biased;`"));
        }
    }
    found
}

#[test]
fn every_select_is_biased() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut files = Vec::new();
    for directory in CRATES {
        sources(&root.join(directory), &mut files);
    }
    assert!(files.len() > 20, "the sources are not where this test looks for them");
    let mut wrong = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        wrong.extend(violations(&text).into_iter().map(|violation| format!("{}: {violation}", file.display())));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_rule_sees_what_it_should() {
    assert!(violations("tokio::select! {\n    biased;\n    a = b => {}\n}").is_empty());
    assert!(violations("// tokio::select! { a }").is_empty());
    assert_eq!(violations("fn f() {\n tokio::select! { a = b => {} }\n}").len(), 1);
    assert_eq!(violations("select! { a = b => {} }").len(), 1);
    assert_eq!(violations("futures::select! { biased; }").len(), 1);
    assert_eq!(violations("futures_util::select! { biased; }").len(), 1);
}
