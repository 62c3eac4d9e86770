//! A configuration as a file that says the same.

use std::fmt::Write as _;

use dosguard::config::field::RuleField;
use dosguard::config::file::Configuration;
use dosguard::config::policy::NamedRule;
use dosguard::config::services::{ExportFormat, LogFormat, Services};
use dosguard::config::sizes::Size;

/// A basic string of TOML. Those of JSON are some of them, but for DEL.
fn quoted(text: &str) -> String {
    serde_json::to_string(text).unwrap().replace('\u{7f}', "\\u007f")
}

fn list<T: AsRef<str>>(texts: impl IntoIterator<Item = T>) -> String {
    let texts: Vec<_> = texts.into_iter().map(|text| quoted(text.as_ref())).collect();
    format!("[{}]", texts.join(", "))
}

/// All of it, nothing left to what is assumed.
pub fn written(configuration: &Configuration) -> String {
    let Configuration { policy, services, sizes, .. } = configuration;
    let mut text =
        format!("interfaces = {}\nmode = {}\n", list(&policy.interfaces), quoted(policy.mode.name()));
    let networks = |networks: &[dosguard::config::cidr::Cidr]| list(networks.iter().map(ToString::to_string));
    let (allow, deny) = (networks(&policy.allow), networks(&policy.deny));
    writeln!(text, "allow = {allow}\ndeny = {deny}\nevents.rate = {}", policy.events_rate).unwrap();
    let (ipv4, ipv6) = (policy.prefixes.ipv4, policy.prefixes.ipv6);
    writeln!(text, "[source]\nipv4_prefix = {ipv4}\nipv6_prefix = {ipv6}").unwrap();
    writeln!(text, "proof_age = {}\n[size]", quoted(&policy.proof_age.to_string())).unwrap();
    for size in Size::ALL {
        writeln!(text, "{} = {}", size.name(), sizes.get(size)).unwrap();
    }
    policy.rules.iter().for_each(|each| rule(&mut text, each));
    daemon(&mut text, services);
    text
}

fn rule(text: &mut String, rule: &NamedRule) {
    writeln!(text, "[rule.{}]", rule.name).unwrap();
    for field in RuleField::ALL {
        let value = field.get(rule);
        let value = match field {
            RuleField::Ports if rule.name.is_default() => continue,
            RuleField::Ports => list(value.split(',')),
            RuleField::Refresh | RuleField::Close | RuleField::RequireProof => value,
            RuleField::MaxConnections if value.parse::<u32>().is_ok() => value,
            _ => quoted(&value),
        };
        writeln!(text, "{field} = {value}").unwrap();
    }
}

const fn format(format: LogFormat) -> &'static str {
    match format {
        LogFormat::Human => "human",
        LogFormat::Json => "json",
    }
}

fn daemon(text: &mut String, services: &Services) {
    let Services { log, history, hooks, exports, connections, metrics } = services;
    let syslog = log.syslog.as_deref().unwrap_or("off");
    writeln!(text, "[log]\nstdout = {}", quoted(log.stdout.map_or("off", format))).unwrap();
    writeln!(text, "journald = {}\nsyslog = {}", log.journald, quoted(syslog)).unwrap();
    if let Some(file) = &log.file {
        let path = quoted(file.path.to_str().unwrap());
        writeln!(text, "[log.file]\npath = {path}\nformat = {}", quoted(format(file.format))).unwrap();
        writeln!(text, "max_size = \"{}\"\nkeep = {}", file.max_bytes, file.keep).unwrap();
    }
    writeln!(text, "[history]\nkeep = \"{}\"\nmax_size = \"{}\"", history.keep, history.max_bytes).unwrap();
    let listen = metrics.map_or_else(|| "off".to_owned(), |address| address.to_string());
    writeln!(text, "[metrics]\nlisten = {}", quoted(&listen)).unwrap();
    let namespaces = list(&connections.namespaces);
    writeln!(text, "[connections]\ninterval = \"{}\"", connections.interval).unwrap();
    writeln!(text, "namespaces = {namespaces}\nmethod = {}", quoted(connections.by.name())).unwrap();
    for hook in hooks {
        let kinds = list(hook.on.iter().map(|kind| kind.name()));
        writeln!(text, "[[hook]]\non = {kinds}\nrun = {}", list(&hook.run)).unwrap();
        writeln!(text, "timeout = \"{}\"\nat_most = {}", hook.timeout, hook.at_most).unwrap();
    }
    for export in exports {
        let format = match export.format {
            ExportFormat::Plain => "plain",
            ExportFormat::HostsDeny => "hosts.deny",
        };
        let path = quoted(export.path.to_str().unwrap());
        writeln!(text, "[[export]]\npath = {path}\nformat = \"{format}\"").unwrap();
    }
}
