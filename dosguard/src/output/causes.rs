//! Errors as text: what went wrong and why on one line, and what to do on lines behind it.

use std::error::Error;

use anyhow::Chain;

/// The causes on one line, each said once, and the hints of all of them.
pub(crate) fn message_and_hints<'a>(
    causes: impl Iterator<Item = &'a (dyn Error + 'static)>,
) -> (String, Vec<String>) {
    let mut message = String::new();
    let mut hints = Vec::new();
    for cause in causes {
        let text = cause.to_string();
        let (text, hint) = match text.split_once("\nhint: ") {
            Some((text, hint)) => (text, Some(hint)),
            None => (text.as_str(), None),
        };
        hints.extend(hint.map(str::to_owned));
        if message.is_empty() {
            text.clone_into(&mut message);
        } else if !message.contains(text) {
            message += ": ";
            message += text;
        }
    }
    (message, hints)
}

/// An error with its causes, without what to do.
pub(crate) fn in_brief(error: &(dyn Error + 'static)) -> String {
    message_and_hints(Chain::new(error)).0
}

/// The same, and what to do on lines of its own.
pub(crate) fn in_full(error: &(dyn Error + 'static)) -> String {
    let (message, hints) = message_and_hints(Chain::new(error));
    hints.into_iter().fold(message, |text, hint| text + "\nhint: " + &hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_joined_and_hints_come_last() {
        let inner = anyhow::anyhow!("the disk is full\nhint: delete something");
        let error = inner.context("cannot write `x`: the disk is full").context("cannot save");
        let error: &(dyn Error + 'static) = error.as_ref();
        assert_eq!(in_brief(error), "cannot save: cannot write `x`: the disk is full");
        assert_eq!(in_full(error), "cannot save: cannot write `x`: the disk is full\nhint: delete something");
    }
}
