//! A real mail server, with nothing of the machine's own configuration, and the one question that is asked of it.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpStream},
    os::unix::fs::chown,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::unistd::User;
use tempfile::TempDir;

use crate::{challenges::connect, daemon::Killed, lab::Lab, netns::Namespace, wait::wait_until};

/// How long it may take until it listens.
const PATIENCE: Duration = Duration::from_secs(10);
/// Whom its processes run as.
const USER: &str = "postfix";

/// A Postfix that listens in the guard's namespace and takes no mail; dropping it kills it.
#[derive(Debug)]
pub struct Postfix {
    // Dropped in this order: it ends before its files go. Its children see that it is gone, and end themselves.
    process: Killed,
    _directory: TempDir,
}

impl Postfix {
    /// Starts it on all of the guard's addresses of both families, and waits until it listens.
    pub fn start(lab: &Lab, port: u16) -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("postfix-")
            .tempdir_in(lab.directory().path())
            .context("cannot make Postfix's directory")?;
        let queue = prepare(directory.path(), port)?;
        let mut command = lab.guard().command(master()?);
        // It stays the process that was started.
        command.args(["-d", "-c"]).arg(directory.path()).current_dir(queue);
        command.stdin(std::process::Stdio::null());
        let process = command.spawn().map(Killed).context("cannot run Postfix")?;
        lab.directory().record_child(process.0.id())?;
        let mut postfix = Self { process, _directory: directory };
        let listening = format!("( sport = :{port} )");
        wait_until("Postfix listens", PATIENCE, || {
            if let Some(status) = postfix.process.0.try_wait().context("cannot wait for Postfix")? {
                bail!("Postfix ended at once ({status}); the machine's log says why");
            }
            // One line for each family.
            Ok(lab.guard().run("ss", ["-Hltn", &listening])?.lines().count() == 2)
        })?;
        Ok(postfix)
    }
}

/// The program that starts all others.
fn master() -> Result<PathBuf> {
    let mut command = std::process::Command::new("postconf");
    let directory = crate::netns::run(command.args(["-d", "-h", "daemon_directory"]))?;
    Ok(Path::new(directory.trim()).join("master"))
}

/// Writes the configuration and makes the directory that it works in.
fn prepare(directory: &Path, port: u16) -> Result<PathBuf> {
    let user = User::from_name(USER)?.with_context(|| format!("no user `{USER}`"))?;
    let queue = directory.join("queue");
    for name in ["", "pid", "private", "public", "data"] {
        fs::create_dir(queue.join(name)).with_context(|| format!("cannot make `queue/{name}`"))?;
    }
    for name in ["private", "public", "data"] {
        chown(queue.join(name), Some(user.uid.as_raw()), None).context("cannot give it to Postfix")?;
    }
    // Beneath the queue, where it works: the lab's directory is root's alone. It asks nobody for the names of clients.
    let main = format!(
        "compatibility_level = 3.6
queue_directory = {queue}
data_directory = data
meta_directory = {directory}
mail_owner = {USER}
syslog_name = dosguard-lab
myhostname = mail.example
mydestination =
mynetworks = 127.0.0.1
alias_maps =
local_recipient_maps =
inet_interfaces = all
inet_protocols = all
smtpd_peername_lookup = no
smtpd_client_connection_count_limit = 0
smtpd_banner = $myhostname ESMTP
",
        queue = queue.display(),
        directory = directory.display()
    );
    fs::write(directory.join("main.cf"), main).context("cannot write `main.cf`")?;
    fs::write(directory.join("master.cf"), format!("{port} inet n - n - - smtpd\n"))
        .context("cannot write `master.cf`")?;
    Ok(queue)
}

/// A connection to a mail server that was greeted.
#[derive(Debug)]
pub struct Session(BufReader<TcpStream>);

impl Session {
    /// Connects from inside a namespace and waits for the greeting. Each step may take as long as `patience`.
    pub fn open(namespace: &Namespace, server: impl Into<SocketAddr>, patience: Duration) -> Result<Self> {
        let connection = connect(namespace, server, patience).context("cannot connect")?;
        connection.set_read_timeout(Some(patience))?;
        let mut session = Self(BufReader::new(connection));
        session.expect("220")?;
        Ok(session)
    }

    /// Asks for nothing, which every server answers.
    pub fn noop(&mut self) -> Result<()> {
        self.0.get_mut().write_all(b"NOOP\r\n")?;
        self.expect("250")
    }

    /// Says goodbye.
    pub fn quit(mut self) -> Result<()> {
        self.0.get_mut().write_all(b"QUIT\r\n")?;
        self.expect("221")
    }

    fn expect(&mut self, code: &str) -> Result<()> {
        let mut line = String::new();
        self.0.read_line(&mut line).context("no answer")?;
        ensure!(line.starts_with(code), "`{}` instead of {code}", line.trim());
        Ok(())
    }
}
