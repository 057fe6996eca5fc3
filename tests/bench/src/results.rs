//! The file that results are kept in beside the code: `RESULTS.md`, one section per command.
//!
//! A section begins with a line `# Heading` and ends before the next such line. Each command rewrites its own and
//! leaves the others as they are, so that what takes minutes and what takes hours can be repeated apart.

use anyhow::Context as _;

/// Where the results are kept.
const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/RESULTS.md");

/// Puts `section`, whose first line is its heading (`# …`), in the place of the section with the same heading, or
/// behind all others when there is none. Fails when the file cannot be read or written.
pub(crate) fn keep(section: &str) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(PATH).with_context(|| format!("could not read {PATH}"))?;
    std::fs::write(PATH, replaced(&text, section)).with_context(|| format!("could not write {PATH}"))
}

/// Returns the section whose first line is `heading`, empty when there is none. Fails when the file cannot be read.
pub(crate) fn section(heading: &str) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(PATH).with_context(|| format!("could not read {PATH}"))?;
    Ok(sections(&text).into_iter().find(|section| section.lines().next() == Some(heading)).unwrap_or_default())
}

fn sections(text: &str) -> Vec<String> {
    let mut parts: Vec<String> = Vec::new();
    for line in text.lines() {
        match parts.last_mut() {
            Some(part) if !line.starts_with("# ") => {
                part.push('\n');
                part.push_str(line);
            }
            _ => parts.push(line.to_owned()),
        }
    }
    parts
}

/// Returns `text` with `section` in its place.
fn replaced(text: &str, section: &str) -> String {
    let heading = section.lines().next().unwrap_or_default();
    let mut parts = sections(text);
    match parts.iter_mut().find(|part| part.lines().next() == Some(heading)) {
        Some(part) => section.clone_into(part),
        None => parts.push(section.to_owned()),
    }
    let mut text: String = parts.iter().map(|part| format!("{}\n\n", part.trim_end())).collect();
    text.pop();
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# One\n\nfirst\n## Below\n\n# Two\n\nsecond\n";

    #[test]
    fn a_section_takes_the_place_of_its_own_kind() {
        assert_eq!(replaced(TEXT, "# One\n\nnew\n"), "# One\n\nnew\n\n# Two\n\nsecond\n");
        assert_eq!(replaced(TEXT, "# Two\n\nnew"), "# One\n\nfirst\n## Below\n\n# Two\n\nnew\n");
    }

    #[test]
    fn a_new_section_comes_last() {
        assert_eq!(replaced(TEXT, "# Three\n\nthird\n"), format!("{TEXT}\n# Three\n\nthird\n"));
        assert_eq!(replaced("", "# One\n\nfirst"), "# One\n\nfirst\n");
    }

    #[test]
    fn the_same_again_changes_nothing() {
        assert_eq!(replaced(TEXT, "# One\n\nfirst\n## Below\n"), TEXT);
    }
}
