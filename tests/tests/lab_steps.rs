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
    let instances = || -> Vec<u32> {
        let named = |name: &str| {
            let named = loaded_programs()
                .filter(|program| program.as_ref().is_ok_and(|program| program.name_as_str() == Some(name)));
            u32::try_from(named.count()).unwrap()
        };
        [abi::ANSWER_PROGRAM, abi::REPLY_PROGRAM].map(named).to_vec()
    };
    let before = instances();
    let _datapath = Datapath::create(&paths, &Policy::default(), &LoadOptions::default()).unwrap();
    let makes_cookies =
        is_helper_supported(ProgramType::Xdp, BpfHelper::BPF_FUNC_tcp_raw_gen_syncookie_ipv4).unwrap();
    // Why a kernel has refused one is in the log of whoever loads it.
    assert_eq!(instances(), [before[0] + 1, before[1] + u32::from(makes_cookies)]);
    Datapath::remove(&paths).unwrap();
}
