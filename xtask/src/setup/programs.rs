//! The programs that the lab and the virtual machines use, by the names Debian packages them under.

use super::{Report, Want, apt};
use crate::host;

/// A package, and the programs of it that we start.
type Tool = (&'static str, &'static [&'static str]);

/// What the lab, the demo and the tests start.
pub const LAB: &[Tool] = &[
    ("bpftool", &["bpftool"]),
    ("curl", &["curl"]),
    ("ethtool", &["ethtool"]),
    ("faketime", &["faketime"]),
    ("hping3", &["hping3"]),
    ("iproute2", &["ip", "ss", "tc"]),
    ("ipset", &["ipset"]),
    ("iptables", &["ip6tables-restore", "iptables-restore"]),
    ("net-tools", &["netstat"]),
    ("nftables", &["nft"]),
    ("nginx", &["nginx"]),
    ("nmap", &["nmap"]),
    ("postfix", &["postconf", "postfix"]),
    ("prometheus", &["promtool"]),
    ("shellcheck", &["shellcheck"]),
    ("strace", &["strace"]),
    ("systemd", &["systemd-analyze"]),
    ("tcpd", &["tcpdmatch"]),
    ("tcpdump", &["tcpdump"]),
    ("util-linux", &["nsenter", "prlimit", "setpriv", "taskset", "unshare"]),
    ("xdp-tools", &["xdp-filter"]),
];

/// The services that come with packages of which only a program is wanted. They would be started at once and at every boot.
const SERVICES: &[(&str, &str)] =
    &[("nginx", "nginx.service"), ("postfix", "postfix.service"), ("prometheus", "prometheus.service")];

/// What it takes to boot Debian's kernels. Its package tools are not in the list: they are there on Debian, and
/// elsewhere another package manager cannot bring them to any use.
pub const VM: &[Tool] = &[("cpio", &["cpio"]), ("qemu-system-x86", &["qemu-system-x86_64"])];

/// Installs the packages of `tools` of which a program is missing.
pub fn ensure(tools: &[Tool], want: Want, report: &mut Report) {
    if want == Want::No {
        return;
    }
    // By program, not by package: that holds for every distribution, and for what was built from source.
    let on_this_machine = |program: &str| host::find(program).is_some();
    let before = missing(tools, on_this_machine);
    for (package, programs) in tools.iter().filter(|tool| !before.contains(tool)) {
        report.found(package, &programs.join(", "));
    }
    if before.is_empty() {
        return;
    }

    let packages: Vec<&str> = before.iter().map(|(package, _)| *package).collect();
    let unwanted = services(&packages);
    let masked = if unwanted.is_empty() { Ok(()) } else { apt::mask(&unwanted) };
    let why = match masked.and_then(|()| apt::install(&packages)) {
        Ok(()) => "apt-get installed it, but it is not there".to_owned(),
        Err(error) => format!("{error:#}"),
    };
    let after = missing(tools, on_this_machine);
    for tool in before {
        let (package, programs) = tool;
        let programs = programs.join(", ");
        if after.contains(&tool) {
            let hint = format!("install the package with {programs} (Debian's name: {package})");
            report.failed(want, package, &why, &hint);
        } else {
            report.installed(package, &programs);
        }
    }
}

/// The services that must not be started with these packages.
fn services(packages: &[&str]) -> Vec<&'static str> {
    SERVICES.iter().filter(|(package, _)| packages.contains(package)).map(|(_, service)| *service).collect()
}

/// The tools of which a program is missing, going by `is_there`.
fn missing(tools: &[Tool], is_there: impl Fn(&str) -> bool) -> Vec<Tool> {
    let incomplete = |(_, programs): &&Tool| !programs.iter().all(|program| is_there(program));
    tools.iter().filter(incomplete).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_is_missing_if_any_of_its_programs_is() {
        let packages = |is_there: fn(&str) -> bool| -> Vec<&str> {
            missing(LAB, is_there).iter().map(|(package, _)| *package).collect()
        };
        assert!(packages(|_| true).is_empty());
        assert_eq!(packages(|program| program != "tc" && program != "hping3"), ["hping3", "iproute2"]);
        assert_eq!(packages(|_| false).len(), LAB.len());
    }

    #[test]
    fn services_are_those_of_packages_that_are_installed_now() {
        assert_eq!(services(&["ethtool", "nginx"]), ["nginx.service"]);
        assert!(services(&["ethtool"]).is_empty());
        for (package, _) in SERVICES {
            assert!(LAB.iter().any(|(known, _)| known == package), "{package}");
        }
    }
}
