//! The reference of the program: one page in Markdown with every key of the configuration and every bound.
//!
//! `kubemq config reference` prints it; `deploy/reference.md` is that output, and a test tells when it is stale.

use crate::config::keys::KEYS;
use crate::limits;

/// Returns the page.
#[must_use]
pub fn page() -> String {
    let mut text = String::from(
        "# Reference\n\nMade by `kubemq config reference > deploy/reference.md`; a test tells when it is stale.\n\n\
         ## Configuration\n\n\
         A flag beats an environment variable, which beats the file, which beats the default. Sizes are in bytes or with \
         KiB, MiB or GiB. `config.example.yaml` holds the same as a file, `kubemq config print` says what holds and where \
         it came from.\n\n\
         | Key | Default | Takes | Environment | Meaning |\n|---|---|---|---|---|\n",
    );
    for key in KEYS {
        let names: Vec<String> = key.env.iter().map(|name| format!("`{name}`")).collect();
        let default = if key.default.is_empty() { String::new() } else { format!("`{}`", key.default) };
        text.push_str(&format!(
            "| `{}` | {default} | {} | {} | {} |\n",
            key.name,
            key.bounds(),
            names.join(", "),
            key.doc
        ));
    }
    text.push_str(
        "\n## Bounds\n\nNothing grows without one of these. What is configured comes first, with its key and default; the \
         rest is fixed. The last column names the test of it.\n\n",
    );
    text.push_str(&limits::markdown());
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_reference_in_the_repository_is_current() {
        let kept = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/reference.md"));
        assert!(
            kept.is_ok_and(|kept| kept == super::page()),
            "deploy/reference.md is stale: kubemq config reference > deploy/reference.md"
        );
    }
}
