//! Settings of rules.

use super::*;
use crate::config::policy::{RuleName, default_spec};

fn rule() -> NamedRule {
    let name: RuleName = "smtp".parse().unwrap();
    NamedRule { name, ports: "tcp/25".parse().unwrap(), spec: default_spec() }
}

#[test]
fn what_is_read_can_be_written_and_changes_nothing() {
    for field in RuleField::ALL {
        assert_eq!(RuleField::from_name(field.name()), Some(field));
        let mut written = rule();
        field.assign(&mut written, &field.get(&rule())).unwrap();
        assert_eq!(written, rule());
    }
    assert_eq!(RuleField::from_name("colour"), None);
}

#[test]
fn each_setting_changes_its_own_value() {
    let mut rule = rule();
    let values = [
        (RuleField::Ports, "tcp/25,tcp/587"),
        (RuleField::Limit, "3/1m"),
        (RuleField::Action, "drop"),
        (RuleField::Ban, "10m"),
        (RuleField::BanMax, "2d"),
        (RuleField::Forget, "0s"),
        (RuleField::Scope, "syn"),
        (RuleField::Refresh, "true"),
        (RuleField::Mode, "monitor"),
        (RuleField::MaxConnections, "100"),
        (RuleField::Close, "true"),
        (RuleField::RequireProof, "false"),
        (RuleField::UnprovenBan, "5s"),
        (RuleField::FloodLimit, "20000/1s"),
    ];
    for (field, value) in values {
        field.assign(&mut rule, value).unwrap();
    }
    assert_eq!(values.map(|(field, _)| field.get(&rule)), values.map(|(_, value)| value));
    assert_eq!((rule.spec.limit, rule.spec.window_ns), (3, 60_000_000_000));
    check(&rule.spec).unwrap();
}

#[test]
fn a_bad_value_changes_nothing_and_says_what_is_accepted() {
    let cases = [
        (
            RuleField::Limit,
            "0/1s",
            "limit `0/1s`: the count is zero\nhint: from 1 to 500000 SYNs, such as `100/1s`",
        ),
        (
            RuleField::Ban,
            "5",
            "ban: duration `5` has no unit\nhint: a whole number and a unit: ns, us, ms, s, m, h or d, such as `10m`",
        ),
        (
            RuleField::Ban,
            "0s",
            "ban `0s`: a ban cannot be zero\nhint: such as `10m`; action `drop` is the one without bans",
        ),
        (
            RuleField::Action,
            "Ban",
            "no such action as `Ban`\nhint: `ban`, `drop` for only the SYNs over the limit, or `challenge`",
        ),
        (
            RuleField::Scope,
            "",
            "no such scope as ``\nhint: `all` packets of the source, or only its `syn` to the rule's ports",
        ),
        (
            RuleField::Refresh,
            "yes",
            "refresh cannot be `yes`\nhint: `true` if a SYN that arrives during a ban restarts its clock, or `false`",
        ),
        (
            RuleField::Mode,
            "off",
            "no such mode as `off`\nhint: `enforce`, or `monitor` to count and report and drop nothing",
        ),
        (
            RuleField::MaxConnections,
            "0",
            "max_connections cannot be `0`\nhint: from 1 to 10000000 established connections of one source, such as `100`, \
             or `none` for any number (in a file `\"none\"`)",
        ),
        (
            RuleField::Close,
            "2",
            "close cannot be `2`\nhint: `true` if connections of a source that holds too many are closed, or `false`",
        ),
        (
            RuleField::UnprovenBan,
            "0s",
            "unproven_ban `0s`: a ban cannot be zero\nhint: such as `10s`; action `drop` is the one without bans",
        ),
        (
            RuleField::UnprovenBan,
            "50ms",
            "unproven_ban `50ms` is too short\nhint: `100ms` or more, such as `10s`",
        ),
        (
            RuleField::FloodLimit,
            "any",
            "flood_limit: limit `any` is not a count and a window\nhint: a number of SYNs, a slash and a window, such as \
             `100/1s`, or `none` for any number (in a file `\"none\"`)",
        ),
        (RuleField::Ports, "tcp/0", "`tcp/0`: there is no port `0`\nhint: from 1 to 65535"),
    ];
    for (field, value, message) in cases {
        let mut written = rule();
        assert_eq!(field.assign(&mut written, value).unwrap_err().to_string(), message);
        assert_eq!(written, rule());
    }
}

#[test]
fn settings_that_belong_together_are_looked_at_together() {
    let mut rule = rule();
    RuleField::Ban.assign(&mut rule, "2d").unwrap();
    assert_eq!(
        check(&rule.spec).unwrap_err().to_string(),
        "ban_max `1d` is shorter than ban `2d`\nhint: a ban_max of `2d` or more, or a shorter ban"
    );
    RuleField::BanMax.assign(&mut rule, "4d").unwrap();
    check(&rule.spec).unwrap();
}
