//! Rules as they come together from several files, and what shows only once they have.

use super::entry::{Entry, Located, Place, located};
use crate::config::field::{self, RuleField};
use crate::config::file::Problem;
use crate::config::policy::{NamedRule, Policy, PolicyError, RuleName, default_spec};
use crate::config::ports::Ports;

/// All rules that files have named so far, in the order in which they did first.
#[derive(Default)]
pub(super) struct Rules(Vec<Draft>);

/// A rule, as far as files have described it.
struct Draft {
    rule: NamedRule,
    /// Where it is named first.
    at: Place,
    /// Where each setting was said last, in the order of [`RuleField::ALL`].
    places: [Option<Place>; RuleField::ALL.len()],
    /// The ports, part by part.
    parts: Vec<(Ports, Place)>,
}

impl Rules {
    /// Takes what `[rule.NAME]` says over what was said of that rule before.
    pub(super) fn take(&mut self, entry: &Entry<'_>) -> Result<(), Located> {
        let fields = entry.table("[rule.smtp]")?;
        let name: RuleName = entry.key.parse().map_err(located(entry.at))?;
        let known = self.0.iter().position(|draft| draft.rule.name == name);
        let index = known.unwrap_or_else(|| {
            let rule = NamedRule { name, ports: Ports::default(), spec: default_spec() };
            self.0.push(Draft { rule, at: entry.at, places: Default::default(), parts: Vec::new() });
            self.0.len() - 1
        });
        fields.iter().try_for_each(|field| self.0[index].take(field))
    }

    /// Adds all rules to the policy.
    pub(super) fn finish(mut self, policy: &mut Policy) -> Result<(), Located> {
        for draft in &mut self.0 {
            draft.complete()?;
        }
        for draft in &self.0 {
            policy.add_rule(draft.rule.clone()).map_err(|error| self.locate(draft, error))?;
        }
        Ok(())
    }

    /// Where the error is that adding this rule met.
    fn locate(&self, draft: &Draft, error: PolicyError) -> Located {
        let PolicyError::DuplicatePort { port, first, second } = error else {
            let place = if matches!(error, PolicyError::NoPorts { .. }) {
                RuleField::Ports
            } else {
                RuleField::BanMax
            };
            return located(draft.place(place).unwrap_or(draft.at))(error);
        };
        let naming = |rule: &RuleName| {
            let draft = self.0.iter().find(|draft| draft.rule.name == *rule)?;
            draft.parts.iter().find(|(part, _)| part.contains(port)).map(|(_, at)| *at)
        };
        // The place that was written last is the one to look at.
        let (earlier, later) = (naming(&first), naming(&second));
        let (first, second) = if earlier > later { (second, first) } else { (first, second) };
        let at = earlier.max(later).unwrap_or(draft.at);
        located(at)(PolicyError::DuplicatePort { port, first, second })
    }
}

impl Draft {
    fn place(&self, field: RuleField) -> Option<Place> {
        self.places[field as usize]
    }

    /// Takes one setting.
    fn take(&mut self, entry: &Entry<'_>) -> Result<(), Located> {
        let Some(field) = RuleField::from_name(entry.key) else {
            let place = format!("`[rule.{}]`", self.rule.name);
            return Err(entry.unknown(&place, &RuleField::ALL.map(RuleField::name)));
        };
        match field {
            RuleField::Ports if self.rule.name.is_default() => {
                return Err(located(entry.at)(PolicyError::DefaultWithPorts));
            }
            RuleField::Ports => {
                let (mut ports, mut parts) = (Ports::default(), Vec::new());
                for (text, at) in entry.texts(field.example())? {
                    ports.add(text).map_err(located(at))?;
                    parts.push((text.parse().map_err(located(at))?, at));
                }
                (self.rule.ports, self.parts) = (ports, parts);
            }
            RuleField::Refresh => self.rule.spec.refresh = entry.boolean(field.example())?,
            RuleField::Close => self.rule.spec.connections.close = entry.boolean(field.example())?,
            RuleField::RequireProof => self.rule.spec.proof.required = entry.boolean(field.example())?,
            RuleField::MaxConnections => {
                let text = entry.integer_or_text(field.example())?;
                field.assign(&mut self.rule, &text).map_err(located(entry.at))?;
            }
            _ => {
                let (text, at) = entry.text(field.example())?;
                field.assign(&mut self.rule, text).map_err(located(at))?;
            }
        }
        self.places[field as usize] = Some(entry.at);
        Ok(())
    }

    /// Looks at the rule alone, now that all of it is there.
    fn complete(&mut self) -> Result<(), Located> {
        if self.place(RuleField::Limit).is_none() && !self.rule.name.is_default() {
            return Err(Located { at: self.at, problem: Problem::NoLimit { name: self.rule.name.clone() } });
        }
        let (ban, ban_max) = (self.place(RuleField::Ban), self.place(RuleField::BanMax));
        if ban_max.is_none() {
            self.rule.spec = field::with_room_for_ban(self.rule.spec);
        }
        // Of one file, the longest ban is to look at; of two, what the later one says.
        let overridden = ban.map(|at| at.file) > ban_max.map(|at| at.file);
        let at = if overridden { ban } else { ban_max };
        field::check(&self.rule.spec).map_err(located(at.unwrap_or(self.at)))
    }
}
