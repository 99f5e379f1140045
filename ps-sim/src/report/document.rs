//! The blocks of docs/RELIABILITY.md that `ps-sim report` makes: where they begin and end.

use std::path::PathBuf;

use anyhow::{Context as _, Result};

use super::DOC;

fn begin(section: &str) -> String {
    format!("<!-- ps-sim report {section}: begin -->")
}

fn end(section: &str) -> String {
    format!("<!-- ps-sim report {section}: end -->")
}

/// A section between its marks.
pub(super) fn block(section: &str, content: &str) -> String {
    format!("{}\n{content}\n{}", begin(section), end(section))
}

/// The document with `block` in the place of the section's old one.
///
/// # Errors
/// Where the document has no such block.
pub(super) fn with_block(document: &str, section: &str, block: &str) -> Result<String> {
    let place = || {
        format!("{DOC} has no place for the section: `{}` to `{}`", begin(section), end(section))
    };
    let (before, rest) = document.split_once(&begin(section)).with_context(place)?;
    let (_, after) = rest.split_once(&end(section)).with_context(place)?;
    Ok(format!("{before}{block}{after}"))
}

/// The nearest folder with the document, from the current one upwards.
pub(super) fn root_above_here() -> Option<PathBuf> {
    let here = std::env::current_dir().ok()?;
    here.ancestors().find(|folder| folder.join(DOC).is_file()).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Section;
    use clap::ValueEnum;

    #[test]
    fn a_block_takes_the_place_of_the_old_one_alone() {
        let text = format!("a\n{}\nb\n{}\nc", block("x", "old"), block("y", "stays"));
        let new = with_block(&text, "x", &block("x", "new")).expect("there");
        assert_eq!(new, format!("a\n{}\nb\n{}\nc", block("x", "new"), block("y", "stays")));
        assert!(with_block(&text, "z", "").expect_err("no place").to_string().contains("z: begin"));
    }

    #[test]
    fn the_document_has_a_place_for_every_section() {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(DOC);
        let text = std::fs::read_to_string(path).expect("the document");
        for section in Section::value_variants() {
            with_block(&text, &section.name(), "").expect("a place");
        }
    }
}
