//! Gives up what the daemon gives up, by the same code, and says what it can still do: one line for each attempt.
//!
//! `confined FOLDER ELSEWHERE` does so; `confined --free FOLDER ELSEWHERE` gives up nothing, which shows that each attempt
//! would succeed, or fail for another reason.

use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::Command;
use std::thread;

use dosguard::confine::{self, Folders, Ruleset};

/// System calls that the daemon has no use for, by name.
const CALLS: [(&str, libc::c_long, [libc::c_long; 2]); 13] = [
    ("ptrace", libc::SYS_ptrace, [3, 0]),
    ("mount", libc::SYS_mount, [1, 1]),
    ("init_module", libc::SYS_init_module, [1, 1]),
    ("unshare", libc::SYS_unshare, [0, 0]),
    ("setns", libc::SYS_setns, [-1, 0]),
    ("keyctl", libc::SYS_keyctl, [-1, 0]),
    ("io_uring_setup", libc::SYS_io_uring_setup, [1, 1]),
    ("perf_event_open", libc::SYS_perf_event_open, [1, 0]),
    ("memfd_create", libc::SYS_memfd_create, [1, 0]),
    ("userfaultfd", libc::SYS_userfaultfd, [-1, 0]),
    ("execve", libc::SYS_execve, [1, 0]),
    ("kill", libc::SYS_kill, [0, -1]),
    ("socket of packets", libc::SYS_socket, [libc::AF_PACKET as libc::c_long, -1]),
];

fn call(number: libc::c_long, [first, second]: [libc::c_long; 2]) -> io::Result<()> {
    #[expect(unsafe_code, reason = "only what is asked of the kernel itself meets the filter")]
    // SAFETY: the arguments are numbers that are no addresses of this process, so the kernel changes nothing here.
    let answer = unsafe { libc::syscall(number, first, second, 0, 0, 0) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn say(what: &str, result: io::Result<()>) {
    let refused: u32 = confine::refusals().iter().map(|(_, count)| count).sum();
    let text = result.map_or_else(
        |error| format!("{:?}", error.raw_os_error().map(nix::errno::Errno::from_raw)),
        |()| "done".to_owned(),
    );
    println!("{what}: {text}, {refused} refused");
}

fn main() -> anyhow::Result<()> {
    let mut arguments: Vec<_> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let is_free = arguments[0].as_os_str() == "--free";
    if is_free {
        arguments.remove(0);
    }
    let (folder, elsewhere) = (arguments.remove(0), arguments.remove(0));
    let (ask, asked) = std::sync::mpsc::channel::<()>();
    // One that begins before, as those of other namespaces do.
    let earlier = thread::spawn(move || asked.recv().is_ok());
    if !is_free {
        let mut folders = Folders::default();
        folders.write(&folder);
        let protection = confine::process(&Ruleset::new(&folders))?;
        println!("{}", serde_json::to_string(&protection)?);
    }
    for (name, number, arguments) in CALLS {
        say(name, call(number, arguments));
    }
    say("a program", Command::new("/bin/true").status().map(drop));
    say("a thread", thread::Builder::new().spawn(|| ()).map(|thread| drop(thread.join())));
    say("a file in the folder", fs::write(folder.join("file"), "x"));
    say("a file elsewhere", fs::write(elsewhere.join("file"), "x"));
    say("removing elsewhere", fs::remove_file(elsewhere.join("there")));
    say("reading elsewhere", File::open(elsewhere.join("there too")).map(drop));
    say("reading the kernel's settings", fs::read("/proc/sys/kernel/osrelease").map(drop));
    say("a socket", UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).map(drop));
    say("a connection", TcpStream::connect((Ipv4Addr::LOCALHOST, 9)).map(drop));
    for task in fs::read_dir("/proc/self/task")? {
        let status = fs::read_to_string(task?.path().join("status"))?;
        let wanted = |line: &&str| line.starts_with("Seccomp:") || line.starts_with("NoNewPrivs:");
        println!("{}", status.lines().filter(wanted).collect::<Vec<_>>().join(" "));
    }
    drop(ask);
    drop(earlier.join());
    Ok(())
}
