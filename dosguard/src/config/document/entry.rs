//! A document's keys and values, each with its place.

use std::borrow::Cow;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::config::bytes::ByteSize;
use crate::config::file::Problem;
use crate::config::keys::nearest;
use crate::config::units::Span;

/// A byte of one of the files; the later of two is the greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::config) struct Place {
    /// Which of the files.
    pub(in crate::config) file: usize,
    /// Which byte of it.
    pub(in crate::config) byte: usize,
}

/// A problem, and where it is.
pub(in crate::config) struct Located {
    pub(in crate::config) at: Place,
    pub(in crate::config) problem: Problem,
}

/// A key of a table with its value.
pub(super) struct Entry<'a> {
    pub(super) key: &'a str,
    pub(super) at: Place,
    value: &'a Spanned<DeValue<'a>>,
}

/// A text value and where it begins.
pub(super) type Text<'a> = (&'a str, Place);

/// A table, and where it begins.
pub(super) type Table<'a> = (Vec<Entry<'a>>, Place);

impl<'a> Entry<'a> {
    /// Where its value begins.
    pub(super) fn value_at(&self) -> Place {
        self.place_of(self.value)
    }

    fn place_of(&self, value: &Spanned<DeValue<'_>>) -> Place {
        Place { file: self.at.file, byte: value.span().start }
    }

    pub(super) fn text(&self, example: &'static str) -> Result<Text<'a>, Located> {
        let text = self.value.get_ref().as_str().ok_or_else(|| self.wrong_type(example))?;
        Ok((text, self.value_at()))
    }

    pub(super) fn texts(&self, example: &'static str) -> Result<Vec<Text<'a>>, Located> {
        let array = self.value.get_ref().as_array().ok_or_else(|| self.wrong_type(example))?;
        let text = |entry: &'a Spanned<DeValue<'a>>| match entry.get_ref().as_str() {
            Some(text) => Ok((text, self.place_of(entry))),
            None => Err(self.wrong_entry(entry, example)),
        };
        array.iter().map(text).collect()
    }

    /// The entries of a table in the order of the file, so that the first error in it is the one reported.
    pub(super) fn table(&self, example: &'static str) -> Result<Vec<Entry<'a>>, Located> {
        let table = self.value.get_ref().as_table().ok_or_else(|| self.wrong_type(example))?;
        Ok(entries(table, self.at.file))
    }

    /// The tables that are each headed by its name in double brackets.
    pub(super) fn tables(&self, example: &'static str) -> Result<Vec<Table<'a>>, Located> {
        let array = self.value.get_ref().as_array().ok_or_else(|| self.wrong_type(example))?;
        let table = |entry: &'a Spanned<DeValue<'a>>| match entry.get_ref().as_table() {
            Some(table) => Ok((entries(table, self.at.file), self.place_of(entry))),
            None => Err(self.wrong_entry(entry, example)),
        };
        array.iter().map(table).collect()
    }

    pub(super) fn boolean(&self, example: &'static str) -> Result<bool, Located> {
        self.value.get_ref().as_bool().ok_or_else(|| self.wrong_type(example))
    }

    /// A whole number, in decimal whatever it was written in.
    pub(super) fn integer(&self, example: &'static str) -> Result<String, Located> {
        let number = self.value.get_ref().as_integer().ok_or_else(|| self.wrong_type(example))?;
        let decimal = i128::from_str_radix(number.as_str(), number.radix()).map(|number| number.to_string());
        Ok(decimal.unwrap_or_else(|_| number.to_string()))
    }

    /// A whole number, or text.
    pub(super) fn integer_or_text(&self, example: &'static str) -> Result<String, Located> {
        match self.value.get_ref() {
            DeValue::String(text) => Ok(text.to_string()),
            _ => self.integer(example),
        }
    }

    /// A whole number from `least` to `most`.
    pub(super) fn number(
        &self,
        key: &'static str,
        example: &'static str,
        (least, most): (u32, u32),
    ) -> Result<u32, Located> {
        let text = self.integer(example)?;
        let number = text.parse().ok().filter(|number| (least..=most).contains(number));
        number.ok_or_else(|| self.value_error(key, &text, format!("a whole number from {least} to {most}")))
    }

    /// A duration from `least` to `most`.
    pub(super) fn span(
        &self,
        key: &'static str,
        example: &'static str,
        (least, most): (Span, Span),
    ) -> Result<Span, Located> {
        let (text, at) = self.text(example)?;
        let span = text.parse().map_err(|error| located(at)(Problem::Span { key, error }))?;
        if (least..=most).contains(&span) {
            return Ok(span);
        }
        Err(self.value_error(key, text, format!("from `{least}` to `{most}`, such as `{example}`")))
    }

    /// A number of bytes, as text with a unit or as a whole number.
    pub(super) fn bytes(&self, key: &'static str, example: &'static str) -> Result<ByteSize, Located> {
        let size = match self.value.get_ref() {
            DeValue::Integer(_) => self.integer(example)?.parse(),
            _ => self.text(example)?.0.parse(),
        };
        size.map_err(|error| located(self.value_at())(Problem::Bytes { key, error }))
    }

    /// One of the values that have a name.
    pub(super) fn one_of<T>(
        &self,
        key: &'static str,
        example: &'static str,
        names: &[(&'static str, T)],
    ) -> Result<T, Located>
    where
        T: Copy,
    {
        let (text, _) = self.text(example)?;
        let found = names.iter().find(|(name, _)| *name == text);
        found.map(|(_, value)| *value).ok_or_else(|| {
            let names = names.iter().map(|(name, _)| *name);
            self.value_error(key, text, choices(text, names))
        })
    }

    /// That its value is none that it takes.
    pub(super) fn value_error(&self, key: &'static str, text: &str, accepted: String) -> Located {
        located(self.value_at())(Problem::Value { key, text: text.to_owned(), accepted })
    }

    fn wrong_type(&self, example: &'static str) -> Located {
        self.wrong(format!("`{}`", self.key), self.value, example)
    }

    fn wrong_entry(&self, value: &Spanned<DeValue<'_>>, example: &'static str) -> Located {
        self.wrong(format!("an entry of `{}`", self.key), value, example)
    }

    fn wrong(&self, what: String, value: &Spanned<DeValue<'_>>, example: &'static str) -> Located {
        let kind = value.get_ref().type_str();
        let article = if kind.starts_with(['a', 'i']) { "an" } else { "a" };
        let found = format!("{article} {kind}");
        located(self.place_of(value))(Problem::WrongType { what, found, example })
    }

    /// That the key has no meaning here.
    pub(super) fn unknown(&self, place: &str, accepted: &[&str]) -> Located {
        let hint = match nearest(self.key, accepted.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("the keys here are `{}`", accepted.join("`, `")),
        };
        let (key, place) = (self.key.to_owned(), place.to_owned());
        located(self.at)(Problem::UnknownKey { key, place, hint })
    }
}

/// A table's entries in the order of the file.
pub(super) fn entries<'a>(table: &'a DeTable<'a>, file: usize) -> Vec<Entry<'a>> {
    let entry = |(key, value): (&'a Spanned<_>, &'a Spanned<DeValue<'a>>)| -> Entry<'a> {
        let name: &'a Cow<'a, str> = key.get_ref();
        Entry { key: name, at: Place { file, byte: key.span().start }, value }
    };
    let mut entries: Vec<_> = table.iter().map(entry).collect();
    entries.sort_by_key(|entry| entry.at);
    entries
}

/// What may be written instead of `text`: the nearest, or all.
pub(super) fn choices<'a>(text: &str, names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<_> = names.collect();
    match nearest(text, names.iter().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("one of `{}`", names.join("`, `")),
    }
}

/// Puts an error of another module at its place.
pub(super) fn located<E: Into<Problem>>(at: Place) -> impl FnOnce(E) -> Located {
    move |error| Located { at, problem: error.into() }
}
