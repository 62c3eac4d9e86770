//! Gives up what the daemon gives up, by the same code, and says what it can still do: one line for each attempt.
//!
//! `confined FOLDER ELSEWHERE` does so; `confined --free FOLDER ELSEWHERE` gives up nothing, which shows that each attempt
//! would succeed, or fail for another reason.

use std::fs::{self, File, Permissions};
use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::PathBuf;
use std::process::Command;
use std::thread;

use dosguard::confine::{self, Extras, Folders, Ruleset};

/// System calls that the daemon has no use for, by name.
const CALLS: [(&str, libc::c_long, [libc::c_long; 2]); 26] = [
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
    ("stream of Unix", libc::SYS_socket, [libc::AF_UNIX as libc::c_long, libc::SOCK_STREAM as libc::c_long]),
    (
        "packets of Unix",
        libc::SYS_socket,
        [libc::AF_UNIX as libc::c_long, libc::SOCK_SEQPACKET as libc::c_long],
    ),
    ("chmod", CHMOD, [1, 0o644]),
    ("fchmod to set-user-ID", libc::SYS_fchmod, [-1, 0o4755]),
    ("fchmod to others", libc::SYS_fchmod, [-1, 0o602]),
    ("limits of another", libc::SYS_prlimit64, [1, -1]),
    ("priority of another", libc::SYS_setpriority, [0, -1]),
    ("priority of a user", libc::SYS_setpriority, [2, -1]),
    ("a signal to another", libc::SYS_tgkill, [1, -1]),
    ("signals by files", libc::SYS_fcntl, [-1, libc::F_SETOWN as libc::c_long]),
    ("other signals by files", libc::SYS_fcntl, [-1, 10]),
    ("signals by files to threads", libc::SYS_fcntl, [-1, 15]),
    ("attributes", libc::SYS_fsetxattr, [-1, 1]),
];

/// By a path, where the processor has that.
#[cfg(target_arch = "x86_64")]
const CHMOD: libc::c_long = libc::SYS_chmod;
#[cfg(not(target_arch = "x86_64"))]
const CHMOD: libc::c_long = libc::SYS_fchmodat;

fn call(number: libc::c_long, [first, second]: [libc::c_long; 2]) -> io::Result<()> {
    call_with(number, [first, second, 0, 0])
}

fn call_with(number: libc::c_long, [first, second, third, fourth]: [libc::c_long; 4]) -> io::Result<()> {
    #[expect(unsafe_code, reason = "only what is asked of the kernel itself meets the filter")]
    // SAFETY: the arguments are numbers that are no addresses of this process, so the kernel changes nothing here.
    let answer = unsafe { libc::syscall(number, first, second, third, fourth, 0, 0) };
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
    let name = format!("dosguard-confined-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(name)?;
    // Whoever is told something by a process that is confined, and is none of its own.
    let _listener = UnixDatagram::bind_addr(&address)?;
    let (ask, asked) = std::sync::mpsc::channel::<()>();
    // One that begins before, as those of other namespaces do.
    let earlier = thread::spawn(move || asked.recv().is_ok());
    if !is_free {
        let mut folders = Folders::default();
        folders.write(&folder);
        let protection = confine::process(&Ruleset::new(&folders), Extras::default())?;
        println!("{}", serde_json::to_string(&protection)?);
    }
    for (name, number, arguments) in CALLS {
        say(name, call(number, arguments));
    }
    let [internet, stream] = [libc::AF_INET, libc::SOCK_STREAM].map(libc::c_long::from);
    say("multipath TCP", call_with(libc::SYS_socket, [internet, stream, libc::IPPROTO_MPTCP.into(), 0]));
    say("a fast open", call_with(libc::SYS_sendto, [-1, 1, 0, libc::MSG_FASTOPEN.into()]));
    let wide = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o4755)
        .open(folder.join("wide"));
    say("a file of set-user-ID", wide.map(drop));
    say("a program", Command::new("/bin/true").status().map(drop));
    say("a thread", thread::Builder::new().spawn(|| ()).map(|thread| drop(thread.join())));
    say("a file in the folder", fs::write(folder.join("file"), "x"));
    say("a file elsewhere", fs::write(elsewhere.join("file"), "x"));
    say("removing elsewhere", fs::remove_file(elsewhere.join("there")));
    say("reading elsewhere", File::open(elsewhere.join("there too")).map(drop));
    say("reading the kernel's settings", fs::read("/proc/sys/kernel/osrelease").map(drop));
    for device in ["/dev/null", "/dev/urandom", "/dev/zero"] {
        say(device, File::open(device).map(drop));
    }
    say(
        "host settings",
        fs::OpenOptions::new().write(true).open("/proc/sys/net/ipv4/tcp_syncookies").map(drop),
    );
    say(
        "a mode of its own file",
        File::open(folder.join("file")).and_then(|file| file.set_permissions(Permissions::from_mode(0o640))),
    );
    say("an abstract socket", UnixDatagram::unbound().and_then(|socket| socket.connect_addr(&address)));
    say("UDP", UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).map(drop));
    say("a listener", TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).map(drop));
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
