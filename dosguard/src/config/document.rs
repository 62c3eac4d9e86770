//! From a TOML document to a policy, with the place of everything that is wrong.
//!
//! The document's tables are walked by hand, not by derived deserialisation: that would lose the place of a value once
//! it is read, while most of what can be wrong shows only then (a limit out of range, a port in two rules).

use std::borrow::Cow;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::cidr::Cidr;
use super::duplicate;
use super::field::{self, RuleField, parse_mode};
use super::file::Problem;
use super::keys::nearest;
use super::policy::{
    MAX_LISTED, NamedRule, Policy, PolicyError, RuleName, default_spec, parse_events_rate,
    parse_source_prefix,
};
use super::ports::Ports;

/// A problem, and the byte where it is.
pub(super) struct Located {
    pub(super) at: usize,
    pub(super) problem: Problem,
}

/// A key of a table with its value.
struct Entry<'a> {
    key: &'a str,
    at: usize,
    value: &'a Spanned<DeValue<'a>>,
}

/// A text value and the byte where it begins.
type Text<'a> = (&'a str, usize);

/// What may stand at the top.
const TOP: [&str; 7] = ["interfaces", "mode", "allow", "deny", "source", "events", "rule"];

/// The policy that the document describes.
pub(super) fn policy(text: &str) -> Result<Policy, Located> {
    let document = DeTable::parse(text).map_err(|error| {
        // Without a place: something is missing at the end.
        let at = error.span().map_or(text.len(), |span| span.start);
        let problem = duplicate::found(text, &error)
            .unwrap_or_else(|| Problem::Syntax { message: error.message().to_owned() });
        Located { at, problem }
    })?;
    let mut policy = Policy::default();
    for entry in entries(document.get_ref()) {
        match entry.key {
            "interfaces" => {
                for (name, at) in entry.texts(r#"interfaces = ["eth0"]"#)? {
                    policy.add_interface(name).map_err(located(at))?;
                }
            }
            "mode" => {
                let (mode, at) = entry.text(r#"mode = "monitor""#)?;
                policy.mode = parse_mode(mode).map_err(located(at))?;
            }
            "allow" => policy.allow = networks(&entry, r#"allow = ["192.0.2.0/24", "2001:db8::/32"]"#)?,
            "deny" => policy.deny = networks(&entry, r#"deny = ["203.0.113.0/24"]"#)?,
            "events" => events(&mut policy, &entry)?,
            "source" => source(&mut policy, &entry)?,
            "rule" => {
                for rule in entries(entry.table("[rule.default]")?) {
                    add_rule(&mut policy, &rule)?;
                }
            }
            _ => return Err(entry.unknown("the file", &TOP)),
        }
    }
    Ok(policy)
}

fn networks(entry: &Entry<'_>, example: &'static str) -> Result<Vec<Cidr>, Located> {
    let networks = entry.texts(example)?;
    if networks.len() > MAX_LISTED {
        let list = if entry.key == "deny" { "deny" } else { "allow" };
        return Err(located(entry.at)(PolicyError::TooManyListed { list, count: networks.len() }));
    }
    networks.into_iter().map(|(network, at)| network.parse().map_err(located(at))).collect()
}

fn events(policy: &mut Policy, entry: &Entry<'_>) -> Result<(), Located> {
    for entry in entries(entry.table("[events]")?) {
        match entry.key {
            "rate" => {
                let number = entry.integer("rate = 1000")?;
                let at = entry.value.span().start;
                policy.events_rate = parse_events_rate(&number).map_err(located(at))?;
            }
            _ => return Err(entry.unknown("`[events]`", &["rate"])),
        }
    }
    Ok(())
}

fn source(policy: &mut Policy, entry: &Entry<'_>) -> Result<(), Located> {
    for entry in entries(entry.table("[source]")?) {
        match entry.key {
            "ipv4_prefix" => policy.prefixes.ipv4 = entry.prefix("IPv4", 32, "ipv4_prefix = 32")?,
            "ipv6_prefix" => policy.prefixes.ipv6 = entry.prefix("IPv6", 128, "ipv6_prefix = 64")?,
            _ => return Err(entry.unknown("`[source]`", &["ipv4_prefix", "ipv6_prefix"])),
        }
    }
    Ok(())
}

fn add_rule(policy: &mut Policy, rule: &Entry<'_>) -> Result<(), Located> {
    let fields = entries(rule.table("[rule.smtp]")?);
    let name: RuleName = rule.key.parse().map_err(located(rule.at))?;
    let mut named = NamedRule { name, ports: Ports::default(), spec: default_spec() };
    let mut parts = Vec::new();
    // Where each field that was given stands; the rule's own name for those that were not.
    let place =
        |field: RuleField| fields.iter().find(|entry| entry.key == field.name()).map(|entry| entry.at);
    for entry in &fields {
        let Some(field) = RuleField::from_name(entry.key) else {
            let place = format!("`[rule.{}]`", named.name);
            return Err(entry.unknown(&place, &RuleField::ALL.map(RuleField::name)));
        };
        match field {
            RuleField::Ports if named.name.is_default() => {
                return Err(located(entry.at)(PolicyError::DefaultWithPorts));
            }
            RuleField::Ports => parts = entry.texts(field.example())?,
            RuleField::Refresh => named.spec.refresh = entry.boolean(field.example())?,
            _ => {
                let (text, at) = entry.text(field.example())?;
                field.assign(&mut named, text).map_err(located(at))?;
            }
        }
    }
    if place(RuleField::Limit).is_none() && !named.name.is_default() {
        return Err(Located { at: rule.at, problem: Problem::NoLimit { name: named.name } });
    }
    if place(RuleField::BanMax).is_none() {
        named.spec = field::with_room_for_ban(named.spec);
    }
    field::check(&named.spec).map_err(located(place(RuleField::BanMax).unwrap_or(rule.at)))?;
    for (part, at) in &parts {
        named.ports.add(part).map_err(located(*at))?;
    }
    policy.add_rule(named).map_err(|error| {
        let at = match error {
            PolicyError::DuplicatePort { port, .. } => naming(&parts, port),
            PolicyError::NoPorts { .. } => place(RuleField::Ports),
            _ => None,
        };
        located(at.unwrap_or(rule.at))(error)
    })
}

/// Where the part stands that names the port.
fn naming(parts: &[Text<'_>], port: u16) -> Option<usize> {
    let names = |part: &str| part.parse::<Ports>().is_ok_and(|ports| ports.contains(port));
    parts.iter().find(|(part, _)| names(part)).map(|(_, at)| *at)
}

impl<'a> Entry<'a> {
    fn text(&self, example: &'static str) -> Result<Text<'a>, Located> {
        let text = self.value.get_ref().as_str().ok_or_else(|| self.wrong_type(example))?;
        Ok((text, self.value.span().start))
    }

    fn texts(&self, example: &'static str) -> Result<Vec<Text<'a>>, Located> {
        let array = self.value.get_ref().as_array().ok_or_else(|| self.wrong_type(example))?;
        let text = |entry: &'a Spanned<DeValue<'a>>| match entry.get_ref().as_str() {
            Some(text) => Ok((text, entry.span().start)),
            None => Err(wrong_type(format!("an entry of `{}`", self.key), entry, example)),
        };
        array.iter().map(text).collect()
    }

    fn table(&self, example: &'static str) -> Result<&'a DeTable<'a>, Located> {
        self.value.get_ref().as_table().ok_or_else(|| self.wrong_type(example))
    }

    fn boolean(&self, example: &'static str) -> Result<bool, Located> {
        self.value.get_ref().as_bool().ok_or_else(|| self.wrong_type(example))
    }

    /// A whole number, in decimal whatever it was written in.
    fn integer(&self, example: &'static str) -> Result<String, Located> {
        let number = self.value.get_ref().as_integer().ok_or_else(|| self.wrong_type(example))?;
        let decimal = i128::from_str_radix(number.as_str(), number.radix()).map(|number| number.to_string());
        Ok(decimal.unwrap_or_else(|_| number.to_string()))
    }

    fn prefix(&self, family: &'static str, longest: u8, example: &'static str) -> Result<u8, Located> {
        let bits = self.integer(example)?;
        let at = self.value.span().start;
        parse_source_prefix(family, longest, &bits).map_err(located(at))
    }

    fn wrong_type(&self, example: &'static str) -> Located {
        wrong_type(format!("`{}`", self.key), self.value, example)
    }

    fn unknown(&self, place: &str, accepted: &[&str]) -> Located {
        let hint = match nearest(self.key, accepted.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("the keys here are `{}`", accepted.join("`, `")),
        };
        let (key, place) = (self.key.to_owned(), place.to_owned());
        Located { at: self.at, problem: Problem::UnknownKey { key, place, hint } }
    }
}

/// A table's entries in the order of the file, so that the first error in it is the one reported.
fn entries<'a>(table: &'a DeTable<'a>) -> Vec<Entry<'a>> {
    let entry = |(key, value): (&'a Spanned<_>, &'a Spanned<DeValue<'a>>)| -> Entry<'a> {
        let name: &'a Cow<'a, str> = key.get_ref();
        Entry { key: name, at: key.span().start, value }
    };
    let mut entries: Vec<_> = table.iter().map(entry).collect();
    entries.sort_by_key(|entry| entry.at);
    entries
}

fn wrong_type(what: String, value: &Spanned<DeValue<'_>>, example: &'static str) -> Located {
    let kind = value.get_ref().type_str();
    let article = if kind.starts_with(['a', 'i']) { "an" } else { "a" };
    let found = format!("{article} {kind}");
    Located { at: value.span().start, problem: Problem::WrongType { what, found, example } }
}

/// Puts an error of another module at its place.
fn located<E: Into<Problem>>(at: usize) -> impl FnOnce(E) -> Located {
    move |error| Located { at, problem: error.into() }
}

#[cfg(test)]
mod tests;
