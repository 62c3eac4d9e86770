//! Calls that are allowed for some of their arguments.
//!
//! A filter sees numbers and no memory: where a path or an address says what is asked for, it cannot tell.

use std::collections::BTreeMap;

use libc::{c_int, c_long};
use seccompiler::{BackendError, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompRule};

use super::Extras;

/// What is asked of devices, terminals and interfaces: `if_nametoindex` and its like.
const IOCTLS: [u64; 9] = [
    0x5401, // TCGETS
    0x5413, // TIOCGWINSZ
    0x541b, // FIONREAD
    0x5421, // FIONBIO
    0x5450, // FIONCLEX
    0x5451, // FIOCLEX
    0x8910, // SIOCGIFNAME
    0x8913, // SIOCGIFFLAGS
    0x8933, // SIOCGIFINDEX
];

/// What `prctl` may: names of threads and of memory, and reading capabilities.
const PRCTLS: [u64; 6] = [15, 16, 23, 39, 47, 0x5356_4d41];

/// What has the kernel send signals to others: `F_SETOWN`, `F_SETSIG` and `F_SETOWN_EX`.
const SIGNALLING: [u64; 3] = [8, 10, 15];

/// What of a socket's type says what it is; the rest are flags.
const KIND: u64 = 0xf;
/// Programs that run as their owner or group.
const SET_ID: u64 = 0o6000;
/// The same, and files that everybody may write.
const SET_ID_OR_WRITABLE: u64 = 0o6002;

/// What has to hold of the arguments of these calls: all conditions of one of the rules.
pub(super) fn rules(extras: Extras) -> Result<BTreeMap<c_long, Vec<SeccompRule>>, BackendError> {
    let one_of = |argument, values: &[u64]| -> Result<Vec<SeccompRule>, BackendError> {
        values.iter().map(|value| all([is(argument, *value)?])).collect()
    };
    let no_code = || Ok(vec![all([without(2, number(libc::PROT_EXEC))?])?]);
    // It would connect, and no rule of Landlock is asked.
    let no_fast_open = |argument| Ok(vec![all([without(argument, number(libc::MSG_FASTOPEN))?])?]);
    let [owner, signal, owner_ex] = SIGNALLING;
    let mut rules = BTreeMap::from([
        (libc::SYS_socket, sockets(extras)?),
        (libc::SYS_ioctl, one_of(1, &IOCTLS)?),
        (libc::SYS_prctl, one_of(0, &PRCTLS)?),
        // Memory that is run comes from files that are mapped before.
        (libc::SYS_mmap, no_code()?),
        (libc::SYS_mprotect, no_code()?),
        (libc::SYS_openat, vec![all([without(3, SET_ID)?])?]),
        (libc::SYS_fchmod, vec![all([without(1, SET_ID_OR_WRITABLE)?])?]),
        (libc::SYS_fcntl, vec![all([is_not(1, owner)?, is_not(1, signal)?, is_not(1, owner_ex)?])?]),
        (libc::SYS_sendto, no_fast_open(3)?),
        (libc::SYS_sendmsg, no_fast_open(2)?),
        (libc::SYS_sendmmsg, no_fast_open(3)?),
        // Itself alone: limits of others could end them.
        (libc::SYS_prlimit64, one_of(0, &[0])?),
        // Of the thread that asks (`PRIO_PROCESS` of nobody else).
        (libc::SYS_setpriority, vec![all([is(0, 0)?, is(1, 0)?])?]),
        (libc::SYS_tgkill, one_of(0, &[u64::from(std::process::id())])?),
    ]);
    #[cfg(target_arch = "x86_64")]
    rules.insert(libc::SYS_open, vec![all([without(2, SET_ID)?])?]);
    if extras.attributes {
        rules.insert(libc::SYS_fsetxattr, Vec::new());
    }
    Ok(rules)
}

/// The journal and syslog, metrics, routes and sockets.
fn sockets(extras: Extras) -> Result<Vec<SeccompRule>, BackendError> {
    let mut rules = vec![
        all([family(libc::AF_NETLINK)?])?,
        // Who listens at a stream takes orders from root.
        all([family(libc::AF_UNIX)?, kind(libc::SOCK_DGRAM)?])?,
    ];
    if extras.streams {
        rules.push(all([family(libc::AF_UNIX)?, kind(libc::SOCK_STREAM)?])?);
    }
    // TCP, by its number or as the usual one. Others, such as multipath TCP, are not bounded by Landlock.
    for internet in [libc::AF_INET, libc::AF_INET6] {
        for protocol in [0, libc::IPPROTO_TCP] {
            rules.push(all([family(internet)?, kind(libc::SOCK_STREAM)?, is(2, number(protocol))?])?);
        }
    }
    rules.extend(datagrams()?);
    Ok(rules)
}

/// UDP: refused by a filter of its own.
pub(super) fn datagrams() -> Result<Vec<SeccompRule>, BackendError> {
    let of = |internet| all([family(internet)?, kind(libc::SOCK_DGRAM)?]);
    [libc::AF_INET, libc::AF_INET6].map(of).into_iter().collect()
}

fn family(family: c_int) -> Result<SeccompCondition, BackendError> {
    is(0, number(family))
}

fn kind(kind: c_int) -> Result<SeccompCondition, BackendError> {
    condition(1, SeccompCmpOp::MaskedEq(KIND), number(kind))
}

/// A number as the kernel finds it.
fn number(value: c_int) -> u64 {
    u64::from(value.cast_unsigned())
}

fn all<const N: usize>(conditions: [SeccompCondition; N]) -> Result<SeccompRule, BackendError> {
    SeccompRule::new(conditions.into())
}

fn is(argument: u8, value: u64) -> Result<SeccompCondition, BackendError> {
    condition(argument, SeccompCmpOp::Eq, value)
}

fn is_not(argument: u8, value: u64) -> Result<SeccompCondition, BackendError> {
    condition(argument, SeccompCmpOp::Ne, value)
}

/// None of these bits.
pub(super) fn without(argument: u8, bits: u64) -> Result<SeccompCondition, BackendError> {
    condition(argument, SeccompCmpOp::MaskedEq(bits), 0)
}

fn condition(argument: u8, op: SeccompCmpOp, value: u64) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, op, value)
}
