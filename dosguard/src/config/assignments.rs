//! Assignments of sysctl keys, such as `rule.smtp.limit = 3/60s`: from live settings to the ones that are wanted.
//!
//! All of them are looked at, alone and together, before any takes effect.

use std::fmt;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::keys::{self, Key, KeyError};
use super::policy::{Policy, PolicyError, RuleName};
use super::sizes::Sizes;

/// A key, the value that it shall have, and who says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    key: String,
    value: String,
    place: Place,
}

/// Where an assignment comes from. As text the beginning of an error: `` `file` line 3:  ``, or nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// The command line.
    Argument,
    /// A file.
    Line {
        /// The file.
        file: PathBuf,
        /// The line in it, from 1.
        number: usize,
    },
}

/// Why assignments cannot be. Nothing of them took effect.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{place}{problem}")]
pub struct AssignmentError {
    place: Place,
    problem: Box<AssignmentProblem>,
}

/// What is wrong with an assignment.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AssignmentProblem {
    /// It is not `KEY=VALUE`.
    #[error("`{text}` is no assignment\nhint: such as `rule.default.limit=100/1s`")]
    Shape {
        /// What was written.
        text: String,
    },
    /// The key is a pattern.
    #[error("`{text}` cannot be set\nhint: patterns are for reading; name one key")]
    Pattern {
        /// What was written.
        text: String,
    },
    /// There is no such key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The key is only for reading, and the value is not the one that it has.
    #[error("`{key}` cannot be set: {reason}")]
    Fixed {
        /// The key.
        key: Key,
        /// Why, and what there is to do.
        reason: String,
    },
    /// The key does not take the value.
    #[error("`{key}`: {error}")]
    Value {
        /// The key.
        key: Key,
        /// Why not.
        error: PolicyError,
    },
    /// The rules are at odds with each other or with themselves.
    #[error("`rule.{rule}` was not changed: {error}")]
    Rules {
        /// The rule.
        rule: RuleName,
        /// Why.
        error: PolicyError,
    },
}

impl Assignment {
    /// From `KEY=VALUE`, with blanks around either.
    ///
    /// # Errors
    ///
    /// There is no `=`. The key and the value are not looked at.
    pub fn parse(text: &str, place: Place) -> Result<Self, AssignmentError> {
        match text.split_once('=') {
            Some((key, value)) => {
                Ok(Self { key: key.trim().to_owned(), value: value.trim().to_owned(), place })
            }
            None => {
                let problem = AssignmentProblem::Shape { text: text.to_owned() };
                Err(AssignmentError { place, problem: Box::new(problem) })
            }
        }
    }

    /// The key as it was written.
    pub fn key(&self) -> &str {
        &self.key
    }
}

/// The assignments in the text of `file`, one a line. Empty lines and those that begin with `#` or `;` are skipped.
///
/// # Errors
///
/// A line is none; the first is reported.
pub fn parse_lines(text: &str, file: &Path) -> Result<Vec<Assignment>, AssignmentError> {
    let lines = text.lines().map(str::trim).enumerate();
    let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with(['#', ';']));
    lines
        .map(|(at, line)| Assignment::parse(line, Place::Line { file: file.to_owned(), number: at + 1 }))
        .collect()
}

/// The settings with all assignments, of which the last one of a key counts. What is only for reading may be assigned the
/// value that it has: so a dump can be read back. `command` calls dosguard for the instance, for hints.
///
/// # Errors
///
/// An assignment is wrong, or what they come to together.
pub fn apply(
    live: &Policy,
    sizes: &Sizes,
    assignments: &[Assignment],
    command: &str,
) -> Result<Policy, AssignmentError> {
    let mut wanted = live.clone();
    let mut set = Vec::new();
    for Assignment { key: text, value, place } in assignments {
        let failed = |problem| AssignmentError { place: place.clone(), problem: Box::new(problem) };
        if keys::is_pattern(text) {
            return Err(failed(AssignmentProblem::Pattern { text: text.clone() }));
        }
        // Not parsed alone, so that an unknown rule is named with its nearest neighbour.
        for (key, now) in keys::select(live, sizes, text, command).map_err(|error| failed(error.into()))? {
            if now != *value
                && let Some(reason) = key.fixed(command)
            {
                return Err(failed(AssignmentProblem::Fixed { key, reason }));
            }
            key.assign(&mut wanted, value)
                .map_err(|error| failed(AssignmentProblem::Value { key: key.clone(), error }))?;
            set.push((key, place));
        }
    }
    wanted.check_rules().map_err(|(rule, error)| {
        let other = match &error {
            PolicyError::DuplicatePort { first, .. } => Some(first.clone()),
            _ => None,
        };
        // The last one that had to do with it is the one to look at.
        let concerned = |key: &Key| {
            matches!(key, Key::Rule { rule: of, .. } if *of == rule || Some(of) == other.as_ref())
        };
        let place = set.iter().rev().find(|(key, _)| concerned(key));
        let place = place.map_or(Place::Argument, |(_, place)| (*place).clone());
        AssignmentError { place, problem: Box::new(AssignmentProblem::Rules { rule, error }) }
    })?;
    Ok(wanted)
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Argument => Ok(()),
            Self::Line { file, number } => write!(f, "`{}` line {number}: ", file.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::policy::NamedRule;

    fn live() -> Policy {
        let mut policy = Policy::default();
        for (name, ports) in [("smtp", "tcp/25,tcp/587"), ("web", "tcp/80")] {
            let (name, ports) = (name.parse().unwrap(), ports.parse().unwrap());
            policy.add_rule(NamedRule { name, ports, spec: policy.rules[0].spec }).unwrap();
        }
        policy
    }

    fn wanted(text: &str) -> Result<Policy, String> {
        let lines = parse_lines(text, Path::new("f")).map_err(|error| error.to_string())?;
        apply(&live(), &Sizes::default(), &lines, "dosguard --instance mail")
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_dump_read_back_changes_nothing() {
        let dump: Vec<_> = keys::all(&live(), &Sizes::default())
            .iter()
            .map(|(key, value)| format!("{key} = {value}"))
            .collect();
        assert_eq!(wanted(&dump.join("\n")), Ok(live()));
    }

    #[test]
    fn what_belongs_together_is_looked_at_together() {
        let swapped = wanted("rule.smtp.ports=tcp/80\n# and\nrule.web.ports = tcp/25,tcp/587\n").unwrap();
        assert_eq!(swapped.rule("web").unwrap().ports.to_string(), "tcp/25,tcp/587");
        for order in ["rule.web.ban=2d\nrule.web.ban_max=4d", "rule.web.ban_max=4d\nrule.web.ban=2d"] {
            wanted(order).unwrap();
        }
        let last = wanted("rule.web.limit=1/1s\nrule.web.limit=2/1s").unwrap();
        assert_eq!(last.rule("web").unwrap().spec.limit, 2);
    }

    #[test]
    fn an_error_names_file_line_and_what_is_accepted() {
        let cases = [
            (
                "\ncore.mode",
                "`f` line 2: `core.mode` is no assignment\nhint: such as `rule.default.limit=100/1s`",
            ),
            ("core.*=1", "`f` line 1: `core.*` cannot be set\nhint: patterns are for reading; name one key"),
            ("core.mood=1", "`f` line 1: no such key as `core.mood`\nhint: did you mean `core.mode`?"),
            ("rule.wed.ban=1s", "`f` line 1: no such rule as `wed`\nhint: did you mean `web`?"),
            (
                "core.abi=0",
                "`f` line 1: `core.abi` cannot be set: it is the layout of what is loaded into the kernel\nhint: a version of \
                 dosguard has one, and another version may have another",
            ),
            (
                "size.bans = 65536\nsize.deny = 7",
                "`f` line 2: `size.deny` cannot be set: it is chosen when the instance is loaded\nhint: set it under `[size]` in \
                 the configuration file; then `dosguard --instance mail detach --all`, with which bans and counters go, and attach or run it \
                 again",
            ),
            (
                "core.mode=off",
                "`f` line 1: `core.mode`: no such mode as `off`\nhint: `enforce`, or `monitor` to count and report and drop \
                 nothing",
            ),
            (
                "events.rate = 1000001",
                "`f` line 1: `events.rate`: `1000001` cannot be the rate of events\nhint: a whole number from 0 to 1000000: \
                 events of one kind that each CPU reports in a second",
            ),
            (
                "core.ipv4_prefix=33",
                "`f` line 1: `core.ipv4_prefix`: IPv4 sources cannot have `33` bits\nhint: from 1 to 32",
            ),
            (
                "rule.web.ports=tcp/81,tcp/500-600\nrule.smtp.limit=1/1s",
                "`f` line 2: `rule.web` was not changed: port `tcp/587` is in rule `smtp` and in rule `web`\nhint: name each \
                 port in one rule only",
            ),
            (
                "rule.web.ports=",
                "`f` line 1: `rule.web` was not changed: rule `web` has no ports\nhint: name some, such as `tcp/25` or \
                 `tcp/8000-8100`",
            ),
            (
                "rule.web.ban_max=1s",
                "`f` line 1: `rule.web` was not changed: ban_max `1s` is shorter than ban `1m`\nhint: a ban_max of `1m` or \
                 more, or a shorter ban",
            ),
            (
                "rule.default.ports=tcp/1",
                "`f` line 1: `rule.default.ports`: rule `default` covers every port that no other rule names, and cannot have \
                 `ports`\nhint: give a rule for certain ports another name",
            ),
        ];
        for (text, message) in cases {
            assert_eq!(wanted(text).unwrap_err(), message, "{text}");
        }
    }

    #[test]
    fn assignments_are_split_at_the_first_equals_sign() {
        let parse = |text| Assignment::parse(text, Place::Argument).map(|found| (found.key, found.value));
        assert_eq!(parse("rule.smtp.limit = 3/60s"), Ok(("rule.smtp.limit".into(), "3/60s".into())));
        assert_eq!(parse("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert!(parse("a").is_err());
    }
}
