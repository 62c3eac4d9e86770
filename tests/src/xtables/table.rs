//! The table and the recipes as text, for a terminal and for `docs/xtables.md`.

use std::{collections::BTreeMap, fmt::Write as _};

use super::{
    Contender, EVERYONE, IN_EARNEST,
    sequences::{SEQUENCES, Sequence},
};

/// What each contender made of each SYN of a sequence: `.` or `x`.
pub type Decisions = BTreeMap<Contender, String>;

/// The decisions that the table of sequences expects.
#[must_use]
pub fn expected(sequence: &Sequence) -> Decisions {
    sequence
        .contenders()
        .filter_map(|contender| Some((contender, sequence.expected(contender)?.to_owned())))
        .collect()
}

/// A sequence with its decisions, those who decide alike on one line.
#[must_use]
pub fn render(sequence: &Sequence, decisions: &Decisions) -> String {
    let mut rows: Vec<(&str, Vec<Contender>)> = Vec::new();
    for (contender, row) in decisions {
        match rows.iter_mut().find(|(known, _)| known == row) {
            Some((_, contenders)) => contenders.push(*contender),
            None => rows.push((row, vec![*contender])),
        }
    }
    let mut text = format!("{}\n", sequence.name);
    let seconds = sequence.at_ms.iter().map(|at_ms| (f64::from(*at_ms) / 1000.0).to_string());
    line(&mut text, seconds, "s");
    if !sequence.from.is_empty() {
        line(&mut text, sequence.from.chars(), "source");
    }
    for (row, contenders) in rows {
        let names = if contenders == EVERYONE {
            "everyone".to_owned()
        } else {
            contenders.iter().map(|contender| contender.name()).collect::<Vec<_>>().join(", ")
        };
        line(&mut text, row.chars(), &names);
    }
    text
}

/// Every sequence with the decisions that `of` gives for it.
pub fn render_all(mut of: impl FnMut(&Sequence) -> Decisions) -> String {
    SEQUENCES.iter().map(|sequence| render(sequence, &of(sequence))).collect::<Vec<_>>().join("\n")
}

/// What a file has to say for a contender, as an administrator would write it.
#[must_use]
pub fn recipe(contender: Contender) -> String {
    let mut text = contender.recipe(25, "smtp", IN_EARNEST);
    text.push_str(&contender.config(25, "smtp", IN_EARNEST));
    text
}

fn line(text: &mut String, cells: impl Iterator<Item = impl ToString>, end: &str) {
    for cell in cells {
        // Writing to a string does not fail.
        let _ = write!(text, "{:>5}", cell.to_string());
    }
    let _ = writeln!(text, "  {end}");
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str = include_str!("../../../docs/xtables.md");

    #[track_caller]
    fn assert_documented(fence: &str, block: &str) {
        let block = format!("```{fence}\n{block}```\n");
        assert!(DOCUMENT.contains(&block), "docs/xtables.md should have this block:\n{block}");
    }

    #[test]
    fn the_document_shows_the_table_that_the_lab_confirms() {
        assert_documented("text", &render_all(expected));
    }

    #[test]
    fn the_document_shows_the_recipes_that_the_lab_plays() {
        for contender in EVERYONE {
            let fence = if contender.config(25, "smtp", IN_EARNEST).is_empty() { "text" } else { "toml" };
            assert_documented(fence, &recipe(contender));
        }
    }
}
