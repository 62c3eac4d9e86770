//! What people are told: that it says something, and that a terminal has nothing to obey in it.

use std::error::Error;

/// Whether it is a control character, or changes the direction of writing.
fn is_obeyed(c: char) -> bool {
    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}')
}

/// One line of text that anybody may be shown.
pub fn assert_plain(text: &str) {
    assert!(!text.contains(is_obeyed), "{text:?}");
}

/// An error of one line, and hints behind it. What it quotes is as it was: whoever shows it sees to that.
pub fn assert_says(error: &(dyn Error + 'static)) -> String {
    let mut said = String::new();
    let mut cause = Some(error);
    while let Some(error) = cause {
        let text = error.to_string();
        let (what, hint) = text.split_once("\nhint: ").unwrap_or((&text, "-"));
        assert!(!what.trim().is_empty() && !hint.trim().is_empty(), "{text:?}");
        said += &text;
        said.push('\n');
        cause = error.source();
    }
    said
}

/// The number behind `line ` in an error, which must be one of so many.
pub fn assert_names_line(error: &str, begin: &str, lines: usize) {
    let rest = error.strip_prefix(begin).and_then(|rest| rest.strip_prefix("line "));
    let digits = rest.map(|rest| rest.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default());
    let line = digits.and_then(|digits| digits.parse::<usize>().ok());
    assert!(line.is_some_and(|line| (1..=lines).contains(&line)), "{lines} lines: {error:?}");
}
