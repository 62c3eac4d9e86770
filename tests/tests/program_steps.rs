//! The programs that the one which judges goes on with: that the kernel takes those that it can. Needs root.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::{Mutex, PoisonError};

use aya::programs::{ProgramType, loaded_programs};
use aya::sys::{BpfHelper, is_helper_supported};
use dosguard::config::policy::Policy;
use dosguard::datapath::{Datapath, LoadOptions, Peers};
use dosguard_common::abi;
use dosguard_common::address::Address;
use dosguard_common::mark::PeersMarked;
use dosguard_tests::bpffs::Bpffs;

/// Those that are loaded, by their ids: some of another test may still be listed that the kernel has yet to free.
fn steps() -> BTreeMap<u32, String> {
    let known = loaded_programs().filter_map(Result::ok);
    let named = known.map(|program| (program.id(), program.name_as_str().unwrap_or_default().to_owned()));
    named.filter(|(_, name)| [abi::ANSWER_PROGRAM, abi::REPLY_PROGRAM].contains(&name.as_str())).collect()
}

/// Shows what the loader says: why the kernel has refused a program.
struct Shown;

impl log::Log for Shown {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.target().starts_with("dosguard::datapath")
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            let text = record.args().to_string();
            // What the verifier says is long, and its end matters.
            let skipped = text.lines().count().saturating_sub(100);
            text.lines().skip(skipped).for_each(|line| println!("{line}"));
        }
    }

    fn flush(&self) {}
}

/// Of two at the same time, each would take the other's for its own.
static TURN: Mutex<()> = Mutex::new(());

#[test]
fn segments_are_looked_at_and_syns_are_answered_where_the_kernel_makes_cookies() {
    if log::set_logger(&Shown).is_ok() {
        log::set_max_level(log::LevelFilter::Debug);
    }
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let bpffs = Bpffs::mount().unwrap();
    let paths = bpffs.paths("steps").unwrap();
    let before = steps();
    let _datapath = Datapath::create(&paths, &Policy::default(), &LoadOptions::default()).unwrap();
    let makes_cookies =
        is_helper_supported(ProgramType::Xdp, BpfHelper::BPF_FUNC_tcp_raw_gen_syncookie_ipv4).unwrap();
    let after = steps();
    let is_new = |wanted: &str| after.iter().any(|(id, name)| name == wanted && !before.contains_key(id));
    assert_eq!((is_new(abi::ANSWER_PROGRAM), is_new(abi::REPLY_PROGRAM)), (true, makes_cookies));
    for info in loaded_programs().filter_map(Result::ok).filter(|info| after.contains_key(&info.id())) {
        // As of the one that judges: so that growth is seen.
        if let Some(instructions) = info.verified_instruction_count() {
            println!("{:?}: {instructions} looked at", info.name_as_str());
            assert!(instructions < 250_000, "{instructions} instructions were looked at");
        }
    }
    Datapath::remove(&paths).unwrap();
}

#[test]
fn who_has_a_connection_is_marked() {
    let bpffs = Bpffs::mount().unwrap();
    let paths = bpffs.paths("peers").unwrap();
    let datapath = Datapath::create(&paths, &Policy::default(), &LoadOptions::default()).unwrap();
    let mut peers = Peers::load(&paths).unwrap();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let connection = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let maps = datapath.maps();
    let is_marked = |last| maps.may_be_proven(&Address::from_ipv4([127, 0, 0, last])).unwrap();
    assert_eq!((is_marked(1), maps.peers_marked().unwrap()), (false, PeersMarked::NEVER));
    peers.mark(maps).unwrap();
    assert_eq!((is_marked(1), is_marked(2)), (true, false));
    assert_ne!(maps.peers_marked().unwrap(), PeersMarked::NEVER);
    drop(connection);
    let program = loaded_programs().filter_map(Result::ok);
    let mut program = program.filter(|info| info.name_as_str() == Some(abi::PEERS_PROGRAM));
    // Nobody tells before Linux 5.16.
    if let Some(instructions) = program.next().unwrap().verified_instruction_count() {
        assert!(instructions < 1_000, "{instructions} instructions were looked at");
    }
    Datapath::remove(&paths).unwrap();
}
