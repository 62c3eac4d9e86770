//! Keys, as they are listed, found and not found.

use super::*;
use crate::config::policy::Policy;

fn policy() -> Policy {
    let mut policy = Policy::default();
    let spec = policy.rules[0].spec;
    let rule = NamedRule { name: "smtp".parse().unwrap(), ports: "tcp/25,tcp/587".parse().unwrap(), spec };
    policy.add_rule(rule).unwrap();
    policy
}

fn list(pattern: &str) -> Result<Vec<String>, String> {
    let keys = select(&policy(), &Sizes::default(), pattern, "dosguard --instance mail")
        .map_err(|error| error.to_string())?;
    Ok(keys.into_iter().map(|(key, value)| format!("{key} = {value}")).collect())
}

#[test]
fn every_key_is_listed_in_order_and_parses() {
    let policy = policy();
    let sizes = Sizes::default();
    let keys = all(&policy, &sizes);
    let shown: Vec<_> = keys.iter().map(|(key, value)| format!("{key} = {value}")).collect();
    assert_eq!(shown.len(), 5 + 6 + 2 * RuleField::ALL.len());
    assert_eq!(
        shown[..26],
        [
            "core.mode = enforce",
            "core.ipv4_prefix = 32",
            "core.ipv6_prefix = 64",
            "core.proof_age = 1h",
            "events.rate = 1000",
            &format!("core.abi = {ABI_VERSION}"),
            "size.bans = 65536",
            "size.sources = 131072",
            "size.offenders = 65536",
            "size.allow = 262144",
            "size.deny = 262144",
            "rule.default.ports = every other",
            "rule.default.limit = 100/1s",
            "rule.default.action = ban",
            "rule.default.ban = 1m",
            "rule.default.ban_max = 1d",
            "rule.default.forget = 1d",
            "rule.default.scope = all",
            "rule.default.refresh = false",
            "rule.default.mode = enforce",
            "rule.default.max_connections = none",
            "rule.default.close = false",
            "rule.default.require_proof = true",
            "rule.default.unproven_ban = 10s",
            "rule.default.flood_limit = none",
            "rule.smtp.ports = tcp/25,tcp/587",
        ]
    );
    for (key, value) in keys {
        assert_eq!(key.to_string().parse(), Ok(key.clone()));
        assert_eq!(key.get(&policy, &sizes), Some(value));
        assert_eq!(key.fixed("dosguard").is_none(), key.setting(&policy).is_some());
    }
}

#[test]
fn everything_listed_can_be_set_again_and_changes_nothing() {
    let before = policy();
    let mut after = before.clone();
    for (key, value) in all(&before, &Sizes::default()) {
        key.assign(&mut after, &value).unwrap();
    }
    assert_eq!(after, before);
}

#[test]
fn keys_are_found_by_name_and_by_pattern() {
    assert_eq!(list("core.ipv6_prefix").unwrap(), ["core.ipv6_prefix = 64"]);
    assert_eq!(list("rule.*.limit").unwrap(), ["rule.default.limit = 100/1s", "rule.smtp.limit = 100/1s"]);
    assert_eq!(list("rule.smtp.ban*").unwrap(), ["rule.smtp.ban = 1m", "rule.smtp.ban_max = 1d"]);
    assert_eq!(list("*").unwrap().len(), 39);
}

#[test]
fn unknown_keys_get_a_hint() {
    let cases = [
        ("size.ban", "no such key as `size.ban`\nhint: did you mean `size.bans`?"),
        ("core.ipv4_prefx", "no such key as `core.ipv4_prefx`\nhint: did you mean `core.ipv4_prefix`?"),
        ("rule.smtp.lmit", "no such key as `rule.smtp.lmit`\nhint: did you mean `rule.smtp.limit`?"),
        (
            "rule.smtp.colour",
            "no such key as `rule.smtp.colour`\nhint: a rule has `ports`, `limit`, `action`, `ban`, `ban_max`, \
             `forget`, `scope`, `refresh`, `mode`, `max_connections`, `close`, `require_proof`, `unproven_ban`, \
             `flood_limit`",
        ),
        (
            "rule.SMTP.limit",
            "no such key as `rule.SMTP.limit`\nhint: a rule's name stands second, as in `rule.smtp.limit`",
        ),
        (
            "limit",
            "no such key as `limit`\nhint: `core.mode`, `core.ipv4_prefix`, `core.ipv6_prefix`, `core.proof_age`, `events.rate` or \
             `rule.<name>.limit`; `sysctl -a` shows all",
        ),
        ("rule.smpt.limit", "no such rule as `smpt`\nhint: there are `default`, `smtp`"),
        ("rule.smt.limit", "no such rule as `smt`\nhint: did you mean `smtp`?"),
        (
            "rule.imap.*",
            "no key matches `rule.imap.*`\nhint: `dosguard --instance mail sysctl -a` lists every key",
        ),
    ];
    for (text, message) in cases {
        assert_eq!(list(text).unwrap_err(), message);
    }
}

#[test]
fn patterns_match_as_in_a_shell() {
    for (pattern, text) in
        [("*", ""), ("*", "a.b"), ("a*c", "abbc"), ("a?c", "abc"), ("*a*b*", "xaxbx"), ("", "")]
    {
        assert!(matches(pattern, text), "{pattern} {text}");
    }
    for (pattern, text) in [("?", ""), ("a", "ab"), ("a*c", "abd"), ("a?c", "ac"), ("*ab", "abc"), ("", "a")]
    {
        assert!(!matches(pattern, text), "{pattern} {text}");
    }
    assert!(!matches(&"*a".repeat(40), &"a".repeat(2_000).replace("aa", "ab")[..60]));
}

#[test]
fn distance_counts_edits() {
    for (from, to, edits) in
        [("", "abc", 3), ("kitten", "sitting", 3), ("limit", "limit", 0), ("ban", "bna", 2)]
    {
        assert_eq!(distance(from, to), edits);
        assert_eq!(distance(to, from), edits);
    }
}
