//! The real `dosguard`, run in the guard's namespace with the lab's own directories.

use std::{
    ffi::{OsStr, OsString},
    fs,
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::{
    directory::{LabDirectory, walk},
    follow::Follower,
    lab::{INSTANCE, Lab},
    netns::Namespace,
};

/// The environment variable that says which binary to run.
pub const BINARY_VARIABLE: &str = "DOSGUARD_BIN";

/// What the daemon says of system calls that it made and may not.
const REFUSED: &str = "system calls that the daemon does not need were refused";
/// How long the daemon may take until it is attached, and until it has ended.
const PATIENCE: Duration = Duration::from_secs(15);

/// One instance of dosguard in a lab: its binary and its global options.
#[derive(Clone, Debug)]
pub struct Dosguard<'a> {
    namespace: &'a Namespace,
    directory: &'a LabDirectory,
    binary: PathBuf,
    instance: String,
    guards: bool,
    patience: Duration,
    launcher: Vec<OsString>,
}

impl<'a> Dosguard<'a> {
    /// The binary that `DOSGUARD_BIN` names, or the one built beside this program, with the instance `lab`.
    pub fn new(lab: &'a Lab) -> Result<Self> {
        Ok(Self {
            namespace: lab.guard(),
            directory: lab.directory(),
            binary: find_binary()?,
            instance: INSTANCE.to_owned(),
            guards: false,
            patience: PATIENCE,
            launcher: Vec::new(),
        })
    }

    /// The same with another instance.
    #[must_use]
    pub fn with_instance(&self, name: &str) -> Self {
        Self { instance: name.to_owned(), ..self.clone() }
    }

    /// The same, with the guards against being locked out. Without this the allow-list of a new instance is empty, whatever
    /// machine the lab runs on.
    #[must_use]
    pub fn with_guards(&self) -> Self {
        Self { guards: true, ..self.clone() }
    }

    /// The same, whose daemon may take so long until it is attached.
    #[must_use]
    pub fn with_patience(&self, patience: Duration) -> Self {
        Self { patience, ..self.clone() }
    }

    /// The same, run by a program that becomes it, such as `env` with variables.
    #[must_use]
    pub fn with_launcher(&self, launcher: Vec<OsString>) -> Self {
        Self { launcher, ..self.clone() }
    }

    /// The same instance, from within another namespace of the lab.
    #[must_use]
    pub fn in_namespace(&self, namespace: &'a Namespace) -> Self {
        Self { namespace, ..self.clone() }
    }

    /// The binary.
    #[must_use]
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// The options that keep it to the lab's own directories.
    #[must_use]
    pub fn global_arguments(&self) -> [OsString; 10] {
        let Self { instance, directory, .. } = self;
        [
            "--instance".into(),
            instance.into(),
            "--bpffs".into(),
            directory.bpffs().into(),
            "--run-dir".into(),
            directory.run_dir().into(),
            "--state-dir".into(),
            directory.state_dir().into(),
            "--config-dir".into(),
            directory.config_dir().into(),
        ]
    }

    /// A command that runs `dosguard` with the global options and these arguments in the guard's namespace.
    pub fn command<I, S>(&self, arguments: I) -> Command
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        let binary = self.binary.clone().into_os_string();
        let mut words = self.launcher.iter().cloned().chain([binary]);
        let mut command = self.namespace.command(words.next().unwrap_or_default());
        command
            .args(words)
            .args(self.global_arguments())
            .args(self.arguments(arguments))
            // There is no ssh session: who runs the lab from where must not change what it may do.
            .env("SSH_CONNECTION", "")
            .stdin(Stdio::null());
        command
    }

    /// The arguments of a verb, with what keeps its guards out.
    fn arguments<I, S>(&self, arguments: I) -> Vec<OsString>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        let mut arguments: Vec<_> = arguments.into_iter().map(|text| text.as_ref().to_owned()).collect();
        if !self.guards && arguments.first().is_some_and(|verb| verb == "run" || verb == "attach") {
            arguments.insert(1, "--no-guards".into());
        }
        arguments
    }

    /// Runs a command to its end, whatever its exit status.
    pub fn cli<I, S>(&self, arguments: I) -> Result<Output>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        let mut command = self.command(arguments);
        command.output().with_context(|| format!("cannot run {command:?}"))
    }

    /// Runs a command that must succeed, and reads its standard output as JSON documents, one or one a line.
    pub fn json<I, S>(&self, arguments: I) -> Result<Vec<Value>>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        let mut command = self.command(arguments);
        let text = crate::netns::run(&mut command)?;
        serde_json::Deserializer::from_str(&text)
            .into_iter()
            .collect::<Result<_, _>>()
            .with_context(|| format!("{command:?} did not answer in JSON: {text}"))
    }

    /// What `status --json` says.
    pub fn status(&self) -> Result<Value> {
        self.json(["status", "--json"])?.into_iter().next().context("`dosguard status` said nothing")
    }

    /// Writes a configuration file into the lab's directory.
    pub fn write_config(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.directory.path().join(name);
        fs::write(&path, text).with_context(|| format!("cannot write `{}`", path.display()))?;
        Ok(path)
    }

    /// Starts a daemon with arguments such as `["run", "up0"]`, and waits until it runs with an interface attached.
    pub fn start<I, S>(&self, arguments: I) -> Result<Daemon<'a>>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        self.start_with(arguments, None)
    }

    /// The same with its standard output going somewhere else than into a file.
    pub fn start_into<I, S>(&self, stdout: impl Into<Stdio>, arguments: I) -> Result<Daemon<'a>>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        self.start_with(arguments, Some(stdout.into()))
    }

    fn start_with<I, S>(&self, arguments: I, elsewhere: Option<Stdio>) -> Result<Daemon<'a>>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        static STARTED: AtomicU32 = AtomicU32::new(0);

        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let log = |stream: &str| self.directory.log_dir().join(format!("dosguard-{number}.{stream}"));
        let (stdout, stderr) = (log("stdout"), log("stderr"));
        let create =
            |path: &Path| File::create(path).with_context(|| format!("cannot create `{}`", path.display()));
        let mut command = self.command(arguments);
        let file = create(&stdout)?;
        command.stdout(elsewhere.unwrap_or_else(|| file.into())).stderr(create(&stderr)?);
        let child = command.spawn().with_context(|| format!("cannot run {command:?}"))?;
        let mut daemon = Daemon { dosguard: self.clone(), child, stdout, stderr };
        self.directory.record_child(daemon.child.id())?;
        daemon.wait_until_ready()?;
        Ok(daemon)
    }
}

/// A daemon that runs; dropping it kills it.
#[derive(Debug)]
pub struct Daemon<'a> {
    dosguard: Dosguard<'a>,
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Daemon<'_> {
    /// Its process number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written to its standard output so far.
    pub fn stdout(&self) -> Result<String> {
        read(&self.stdout)
    }

    /// What it has written to its standard error so far.
    pub fn stderr(&self) -> Result<String> {
        read(&self.stderr)
    }

    /// Hands each line it writes, to either stream, to `sink` as it comes.
    pub fn follow(&self, sink: impl FnMut(&str) + Send + 'static) -> Result<Follower> {
        Follower::start(&[&self.stdout, &self.stderr], sink)
    }

    /// Kills it with SIGKILL and waits until it is gone.
    pub fn kill9(mut self) -> Result<()> {
        self.child.kill().context("cannot kill dosguard")?;
        self.child.wait().context("cannot wait for dosguard")?;
        self.refuse_refusals()
    }

    /// Sends it a signal that it lives through.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.child.id())?);
        kill(pid, signal).with_context(|| format!("cannot send {signal} to dosguard"))
    }

    /// Asks it to end with SIGTERM and waits until it has.
    pub fn terminate(self) -> Result<ExitStatus> {
        self.end_by(Signal::SIGTERM)
    }

    /// Sends it a signal and waits until it has ended.
    pub fn end_by(mut self, signal: Signal) -> Result<ExitStatus> {
        self.signal(signal)?;
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            if let Some(status) = self.child.try_wait().context("cannot wait for dosguard")? {
                self.refuse_refusals()?;
                return Ok(status);
            }
            thread::sleep(Duration::from_millis(10));
        }
        bail!("dosguard did not end within {PATIENCE:?} of {signal}\n{}", self.said())
    }

    /// What it needs and is refused shows here.
    fn refuse_refusals(&self) -> Result<()> {
        let said = self.stderr()?;
        ensure!(!said.contains(REFUSED), "dosguard was refused what it needs\n{said}");
        Ok(())
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let patience = self.dosguard.patience;
        let end = Instant::now() + patience;
        loop {
            if let Some(status) = self.child.try_wait().context("cannot wait for dosguard")? {
                bail!("dosguard ended at once ({status})\n{}", self.said());
            }
            // Until something is attached, `status` answers no.
            let output = self.dosguard.cli(["status", "--json"])?;
            if serde_json::from_slice(&output.stdout).is_ok_and(|status| is_ready(&status)) {
                return Ok(());
            }
            let status = String::from_utf8_lossy(&output.stderr);
            ensure!(
                Instant::now() < end,
                "dosguard was not attached within {patience:?}\n{}\n{}",
                status.trim(),
                self.said()
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn said(&self) -> String {
        let text = [self.stdout(), self.stderr()].map(Result::unwrap_or_default).concat();
        if text.trim().is_empty() { "it said nothing".to_owned() } else { text.trim().to_owned() }
    }
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        // An error means that it has ended already.
        drop(self.child.kill());
        drop(self.child.wait());
        if !thread::panicking()
            && let Err(error) = self.refuse_refusals()
        {
            panic!("{error:#}");
        }
    }
}

/// A process that does not outlive the test, however that ends.
#[derive(Debug)]
pub struct Killed(pub Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // An error means that it has ended already.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn is_ready(status: &Value) -> bool {
    let attached = status["interfaces"].as_array().is_some_and(|interfaces| !interfaces.is_empty());
    // It serves once it has said what it does.
    attached && status["daemon"]["started"].is_string()
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read `{}`", path.display()))
}

fn find_binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(BINARY_VARIABLE) {
        let path = PathBuf::from(path);
        ensure!(path.is_file(), "`{BINARY_VARIABLE}` names `{}`, which is no file", path.display());
        // A child of a command in another directory needs it, too.
        return path.canonicalize().context("cannot resolve the path of dosguard");
    }
    let own = std::env::current_exe().context("cannot find this program")?;
    // From `target/release/demo` as well as from `target/debug/deps/lab_smoke-…`.
    let found = own
        .ancestors()
        .skip(1)
        .take(3)
        .flat_map(|folder| [folder.join("dosguard"), folder.join("release/dosguard")])
        .find(|candidate| candidate.is_file())
        .with_context(|| {
            format!(
                "no `dosguard` near `{}`\nhint: `cargo build --release -p dosguard`, or set `{BINARY_VARIABLE}`",
                own.display()
            )
        })?;
    refuse_older_than_sources(&found)?;
    Ok(found)
}

/// Whoever names no binary means the one of these sources.
fn refuse_older_than_sources(binary: &Path) -> Result<()> {
    let built = modified(binary)?;
    for crate_name in ["dosguard", "dosguard-common", "dosguard-ebpf"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name(crate_name);
        for source in walk(&folder)?.iter().filter(|path| path.is_file()) {
            ensure!(
                modified(source)? <= built,
                "`{}` is older than `{}`\n\
                 hint: `cargo xtask test` builds it first; or say with `{BINARY_VARIABLE}` that this is the one to test",
                binary.display(),
                source.display()
            );
        }
    }
    Ok(())
}

fn modified(path: &Path) -> Result<SystemTime> {
    let metadata = path.metadata().with_context(|| format!("cannot look at `{}`", path.display()))?;
    metadata.modified().context("the system keeps no times of files")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ready_means_serving_and_attached() {
        let interface = json!([{"name": "up0", "ifindex": 2, "mode": "native"}]);
        let serving = json!({"running": true, "pid": 1, "started": "2026-01-01T12:00:00Z"});
        assert!(is_ready(&json!({"daemon": serving, "interfaces": interface})));
        assert!(!is_ready(&json!({"daemon": serving, "interfaces": []})));
        assert!(!is_ready(&json!({"daemon": {"running": true, "pid": 1}, "interfaces": interface})));
        assert!(!is_ready(&json!({"daemon": {"running": false, "pid": null}, "interfaces": interface})));
        assert!(!is_ready(&json!({})));
    }

    #[test]
    fn a_binary_of_other_sources_is_refused() {
        let binary = tempfile::NamedTempFile::new().unwrap();
        assert!(refuse_older_than_sources(binary.path()).is_ok());
        binary.as_file().set_modified(SystemTime::UNIX_EPOCH).unwrap();
        let error = refuse_older_than_sources(binary.path()).unwrap_err().to_string();
        assert!(error.contains("is older than `") && error.contains("\nhint: "), "{error}");
    }
}
