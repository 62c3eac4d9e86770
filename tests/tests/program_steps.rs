//! The programs that the one which judges goes on with: that the kernel takes those that it can. Needs root.

#![expect(clippy::unwrap_used, reason = "a step that fails, fails the test, in its helpers as well")]

use std::fs;
use std::path::PathBuf;

use aya::programs::{ProgramType, loaded_programs};
use aya::sys::{BpfHelper, is_helper_supported};
use dosguard::config::policy::Policy;
use dosguard::datapath::{Datapath, LoadOptions};
use dosguard::paths::Paths;
use dosguard_common::abi;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// A BPF file system of its own.
struct Bpffs(PathBuf);

impl Bpffs {
    fn mount() -> Self {
        let folder = std::env::temp_dir().join(format!("dosguard-steps-{}", std::process::id()));
        fs::create_dir_all(folder.join("bpf")).unwrap();
        mount(Some("bpf"), &folder.join("bpf"), Some("bpf"), MsFlags::empty(), None::<&str>).unwrap();
        Self(folder)
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        let _ = umount2(&self.0.join("bpf"), MntFlags::MNT_DETACH);
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn segments_are_looked_at_and_syns_are_answered_where_the_kernel_makes_cookies() {
    let bpffs = Bpffs::mount();
    let at = |name: &str| bpffs.0.join(name);
    let paths = Paths::new("steps", at("bpf"), at("run"), at("state")).unwrap();
    // By their ids: those of another test, which the kernel has yet to free, are still listed.
    let loaded = || -> Vec<(u32, String)> {
        let known = loaded_programs().filter_map(Result::ok);
        known.map(|program| (program.id(), program.name_as_str().unwrap_or_default().to_owned())).collect()
    };
    let before = loaded();
    let _datapath = Datapath::create(&paths, &Policy::default(), &LoadOptions::default()).unwrap();
    let mut steps: Vec<_> = loaded().into_iter().filter(|program| !before.contains(program)).collect();
    steps.retain(|(_, name)| [abi::ANSWER_PROGRAM, abi::REPLY_PROGRAM].contains(&name.as_str()));
    let mut names: Vec<_> = steps.iter().map(|(_, name)| name.as_str()).collect();
    names.sort_unstable();
    let makes_cookies =
        is_helper_supported(ProgramType::Xdp, BpfHelper::BPF_FUNC_tcp_raw_gen_syncookie_ipv4).unwrap();
    let replies = makes_cookies.then_some(abi::REPLY_PROGRAM);
    // Why a kernel has refused one is in the log of whoever loads it.
    assert_eq!(names, [Some(abi::ANSWER_PROGRAM), replies].into_iter().flatten().collect::<Vec<_>>());
    Datapath::remove(&paths).unwrap();
}
