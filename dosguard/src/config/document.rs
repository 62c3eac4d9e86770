//! From a TOML document to a policy, with the place of everything that is wrong.
//!
//! The document's tables are walked by hand, not by derived deserialisation: that would lose the place of a value once
//! it is read, while most of what can be wrong shows only then (a limit out of range, a port in two rules).

use std::borrow::Cow;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::field::{self, RuleField};
use super::file::Problem;
use super::policy::{MAX_ALLOWED, NamedRule, Policy, PolicyError, RuleName, default_spec};
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

/// The policy that the document describes.
pub(super) fn policy(text: &str) -> Result<Policy, Located> {
    let document = DeTable::parse(text).map_err(|error| {
        // Without a place: something is missing at the end.
        let at = error.span().map_or(text.len(), |span| span.start);
        Located { at, problem: Problem::Syntax { message: error.message().to_owned() } }
    })?;
    let mut policy = Policy::default();
    for entry in entries(document.get_ref()) {
        match entry.key {
            "interfaces" => {
                for (name, at) in entry.texts(r#"interfaces = ["eth0"]"#)? {
                    policy.add_interface(name).map_err(located(at))?;
                }
            }
            "allow" => allow(&mut policy, &entry)?,
            "source" => source(&mut policy, &entry)?,
            "rule" => {
                for rule in entries(entry.table("[rule.default]")?) {
                    add_rule(&mut policy, &rule)?;
                }
            }
            _ => {
                return Err(
                    entry.unknown("the file", "`interfaces`, `allow`, `[source]` and `[rule.<name>]`")
                );
            }
        }
    }
    Ok(policy)
}

fn allow(policy: &mut Policy, entry: &Entry<'_>) -> Result<(), Located> {
    let networks = entry.texts(r#"allow = ["192.0.2.0/24", "2001:db8::/32"]"#)?;
    if networks.len() > MAX_ALLOWED {
        return Err(located(entry.at)(PolicyError::TooManyAllowed { count: networks.len() }));
    }
    for (network, at) in networks {
        policy.allow.push(network.parse().map_err(located(at))?);
    }
    Ok(())
}

fn source(policy: &mut Policy, entry: &Entry<'_>) -> Result<(), Located> {
    for entry in entries(entry.table("[source]")?) {
        match entry.key {
            "ipv4_prefix" => policy.prefixes.ipv4 = entry.prefix("IPv4", 32, "ipv4_prefix = 32")?,
            "ipv6_prefix" => policy.prefixes.ipv6 = entry.prefix("IPv6", 128, "ipv6_prefix = 64")?,
            _ => return Err(entry.unknown("`[source]`", "`ipv4_prefix` and `ipv6_prefix`")),
        }
    }
    Ok(())
}

fn add_rule(policy: &mut Policy, rule: &Entry<'_>) -> Result<(), Located> {
    let fields = entries(rule.table("[rule.smtp]")?);
    let name: RuleName = rule.key.parse().map_err(located(rule.at))?;
    let mut spec = default_spec();
    let mut parts = Vec::new();
    // Where each field that was given stands; the rule's own name for those that were not.
    let place =
        |field: RuleField| fields.iter().find(|entry| entry.key == field.name()).map(|entry| entry.at);
    for entry in &fields {
        let Some(field) = RuleField::from_name(entry.key) else {
            let accepted = RuleField::ALL.map(RuleField::name).join("`, `");
            return Err(entry.unknown(&format!("`[rule.{name}]`"), &format!("`{accepted}`")));
        };
        if field == RuleField::Ports {
            if name.is_default() {
                return Err(located(entry.at)(PolicyError::DefaultWithPorts));
            }
            parts = entry.texts(field.example())?;
        } else {
            let (text, at) = entry.text(field.example())?;
            field.assign(&mut spec, text).map_err(located(at))?;
        }
    }
    if place(RuleField::Limit).is_none() && !name.is_default() {
        return Err(Located { at: rule.at, problem: Problem::NoLimit { name } });
    }
    if place(RuleField::BanMax).is_none() {
        // Who asks for a first ban above the usual longest one has said enough.
        spec.ban_max_ns = spec.ban_max_ns.max(spec.ban_ns);
    }
    field::check(&spec).map_err(located(place(RuleField::BanMax).unwrap_or(rule.at)))?;
    let mut ports = Ports::default();
    for (part, at) in &parts {
        ports.add(part).map_err(located(*at))?;
    }
    policy.add_rule(NamedRule { name, ports, spec }).map_err(|error| {
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

    fn prefix(&self, family: &'static str, longest: u8, example: &'static str) -> Result<u8, Located> {
        let number = self.value.get_ref().as_integer().ok_or_else(|| self.wrong_type(example))?;
        match u8::from_str_radix(number.as_str(), number.radix()) {
            Ok(bits) if (1..=longest).contains(&bits) => Ok(bits),
            _ => {
                let bits = number.to_string();
                Err(located(self.value.span().start)(PolicyError::SourcePrefix { family, bits, longest }))
            }
        }
    }

    fn wrong_type(&self, example: &'static str) -> Located {
        wrong_type(format!("`{}`", self.key), self.value, example)
    }

    fn unknown(&self, place: &str, accepted: &str) -> Located {
        let (key, place, accepted) = (self.key.to_owned(), place.to_owned(), accepted.to_owned());
        Located { at: self.at, problem: Problem::UnknownKey { key, place, accepted } }
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
mod tests {
    use super::*;
    use crate::config::file::parse;
    use std::path::Path;

    const FULL: &str = r#"
interfaces = ["eth0", "eth1"]
allow = ["192.0.2.0/24", "2001:db8::/32"]

[source]
ipv4_prefix = 24
ipv6_prefix = 0x38

[rule.smtp]
ports   = ["tcp/587", "tcp/25"]
limit   = "3/60s"
action  = "drop"
ban     = "10m"
ban_max = "12h"
forget  = "0s"
scope   = "syn"

[rule.default]
ban = "2d"

[rule.game]
ports = ["tcp/8000-8100"]
limit = "5/1s"
"#;

    fn read(text: &str) -> Result<Policy, String> {
        parse(text, Path::new("f")).map_err(|error| error.to_string())
    }

    #[test]
    fn everything_that_can_be_said_is_understood() {
        let policy = read(FULL).unwrap();
        assert_eq!(policy.interfaces, ["eth0", "eth1"]);
        let allow: Vec<_> = policy.allow.iter().map(ToString::to_string).collect();
        assert_eq!(allow, ["192.0.2.0/24", "2001:db8::/32"]);
        assert_eq!((policy.prefixes.ipv4, policy.prefixes.ipv6), (24, 56));
        let values = |name: &str| RuleField::ALL.map(|field| field.get(policy.rule(name).unwrap())).join(" ");
        assert_eq!(values("smtp"), "tcp/25,tcp/587 3/1m drop 10m 12h 0s syn");
        assert_eq!(values("default"), "every other 100/1s ban 2d 2d 1d all");
        assert_eq!(values("game"), "tcp/8000-8100 5/1s ban 1m 1d 1d all");
        let names: Vec<_> = policy.rules.iter().map(|rule| rule.name.as_str()).collect();
        assert_eq!(names, ["default", "smtp", "game"], "default first, then as in the file");
    }

    #[test]
    fn what_is_left_out_is_as_by_default() {
        for text in ["", "# nothing\r\n", "[rule.default]", "[rule]\n[source]", "allow = []\ninterfaces = []"]
        {
            assert_eq!(read(text).unwrap(), Policy::default(), "{text}");
        }
    }

    /// Documents with something wrong in them, and what is said: place, message, and the beginning of the hint.
    const WRONG: &[(&str, &str, &str)] = &[
        (
            "mode = \"enforce\"",
            "1, column 1: unknown key `mode` in the file",
            "the keys here are `interfaces`, `allow`, `[source]` and",
        ),
        (
            "[rule.a]\nlimit = \"1/1s\"\n refresh = true",
            "3, column 2: unknown key `refresh` in `[rule.a]`",
            "the keys here are `ports`, `limit`,",
        ),
        (
            "[source]\nipv5_prefix = 1",
            "2, column 1: unknown key `ipv5_prefix` in `[source]`",
            "the keys here are `ipv4_prefix` and",
        ),
        (
            "interfaces = \"eth0\"",
            "1, column 14: `interfaces` cannot be a string",
            "such as `interfaces = [\"eth0\"]`",
        ),
        (
            "interfaces = [\"eth0\", 1]",
            "1, column 23: an entry of `interfaces` cannot be an integer",
            "such as",
        ),
        ("interfaces = [\"a b\"]", "1, column 15: `a b` cannot be an interface's name", "a name as in"),
        ("interfaces = [\"a\", \"a\"]", "1, column 20: interface `a` is named twice", "name each"),
        (
            "allow = [\n  \"192.0.2.0/24\",\n  \"192.0.2.7/24\"]",
            "3, column 3: `192.0.2.7/24` has bits set after its first 24",
            "did you mean `192.0.2.0/24`?",
        ),
        ("allow = [\"::/0\"]", "1, column 10: `::/0` would cover every IPv4 address too", "write `2000::/3`"),
        ("source = 1", "1, column 10: `source` cannot be an integer", "such as `[source]`"),
        ("[source]\nipv4_prefix = 33", "2, column 15: IPv4 sources cannot have `33` bits", "from 1 to 32"),
        ("[source]\nipv6_prefix = 0", "2, column 15: IPv6 sources cannot have `0` bits", "from 1 to 128"),
        (
            "[source]\nipv6_prefix = \"64\"",
            "2, column 15: `ipv6_prefix` cannot be a string",
            "such as `ipv6_prefix = 64`",
        ),
        ("[rule]\nlimit = \"1/1s\"", "2, column 9: `limit` cannot be a string", "such as `[rule.smtp]`"),
        ("[rule.Web]", "1, column 7: `Web` cannot be a rule's name", "1 to 15 of"),
        ("[rule.\"a.b\"]", "1, column 7: `a.b` cannot be a rule's name", "1 to 15 of"),
        (
            "[rule.a]\nports = [\"tcp/1\"]",
            "1, column 7: rule `a` has no limit",
            "such as `limit = \"100/1s\"`",
        ),
        ("[rule.a]\nlimit = \"1/1s\"", "1, column 7: rule `a` has no ports", "such as `ports = ["),
        (
            "[rule.a]\nlimit = \"1/1s\"\nports = []",
            "3, column 1: rule `a` has no ports",
            "such as `ports = [",
        ),
        ("[rule.default]\nports = []", "2, column 1: rule `default` covers every port", "give a rule"),
        (
            "[rule.a]\nlimit = \"1/1s\"\nports = [\"udp/53\"]",
            "3, column 10: `udp/53`: protocol `udp`",
            "only `tcp`",
        ),
        (
            "[rule.a]\nlimit = \"1/1s\"\nports = [\"tcp/1\", \"tcp/1-2\"]",
            "3, column 19: `tcp/1-2`: port `tcp/1` is named twice",
            "name each",
        ),
        (
            "[rule.a]\nlimit = \"1/1s\"\nports = [\"tcp/5\"]\n[rule.b]\nlimit = \"1/1s\"\nports = [\"tcp/1\", \"tcp/4-6\"]",
            "6, column 19: port `tcp/5` is in rule `a` and in rule `b`",
            "name each port in one rule only",
        ),
        (
            "[rule.default]\nlimit = 100",
            "2, column 9: `limit` cannot be an integer",
            "such as `limit = \"100/1s\"`",
        ),
        (
            "[rule.default]\nlimit = \"0/1s\"",
            "2, column 9: limit `0/1s`: the count is zero",
            "from 1 to 500000",
        ),
        (
            "[rule.default]\nlimit = \"5/0s\"",
            "2, column 9: limit `5/0s`: the window is zero",
            "a window from",
        ),
        (
            "[rule.default]\nban = \"-5s\"",
            "2, column 7: ban: duration `-5s` is negative",
            "a whole number and",
        ),
        ("[rule.default]\nban = \"0s\"", "2, column 7: ban `0s`: a ban cannot be zero", "such as `10m`"),
        (
            "[rule.default]\nban_max = \"5s\"\nban = \"9s\"",
            "2, column 1: ban_max `5s` is shorter than ban `9s`",
            "a ban_max of `9s`",
        ),
        ("[rule.default]\nscope = \"source\"", "2, column 9: no such scope as `source`", "`all` packets"),
        (
            "[rule.default]\naction = true",
            "2, column 10: `action` cannot be a boolean",
            "such as `action = \"ban\"`",
        ),
        ("[rule.default]\nban = 10m", "2, column 7: ", "the file is TOML: each key once, texts in quotes"),
        ("[rule.default]\n[rule.default]", "2, column ", "the file is TOML"),
        ("[rule.default", "1, column ", "the file is TOML"),
    ];

    #[test]
    fn each_error_has_its_place_and_says_what_is_accepted() {
        for (text, message, hint) in WRONG {
            let said = read(text).unwrap_err();
            assert!(said.starts_with(&format!("`f` line {message}")), "{text}\n{said}");
            assert!(said.contains(&format!("\nhint: {hint}")), "{text}\n{said}");
            assert_eq!(said.lines().count(), 2, "{said}");
        }
    }

    #[test]
    fn the_first_error_of_the_file_is_reported() {
        let said = read("[rule.z]\nlimit = \"no\"\n[rule.a]\nban = \"no\"\n[x]").unwrap_err();
        assert!(said.starts_with("`f` line 2, column 9: limit `no`"), "{said}");
    }

    #[test]
    fn damaged_files_are_errors_with_a_place_in_the_file() {
        let lines = FULL.lines().count() + 1;
        for at in 0..FULL.len() {
            for put in ["", "\"", "]", "0", "ä", "\n"] {
                let damaged = format!("{}{put}{}", &FULL[..at], &FULL[at + 1..]);
                for text in [damaged.as_str(), &FULL[..at]] {
                    if let Err(super::super::file::FileError::Invalid { line, .. }) =
                        parse(text, Path::new("f"))
                    {
                        assert!((1..=lines + 1).contains(&line), "{text}");
                    }
                }
            }
        }
    }
}
