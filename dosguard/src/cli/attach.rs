//! `dosguard attach` and `dosguard detach`.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use dosguard_common::config::Mode;
use dosguard_common::event::Kind;

use super::changes::{Names, say_ended};
use super::confirm::{self, Confirmation, patience};
use super::upgrade::{put_in_order, say_interrupted, say_replaced};
use super::{Answer, challenge, configured, rule, survive, talk};
use crate::config::cidr::Cidr;
use crate::config::policy::Policy;
use crate::confirm::Waiter;
use crate::datapath::{self, AttachMode, Datapath, Request, Started};
use crate::guards::{self, Change, Guard, Start};
use crate::lock::{StateLock, running_daemon};
use crate::output::{BOLD, YELLOW, printable};
use crate::paths::{LinkName, Paths};
use crate::system::{self, Bpffs, ONE_SYS};

#[derive(Debug, Args)]
pub(super) struct AttachArgs {
    /// How to attach.
    #[arg(long, value_enum, default_value_t)]
    mode: AttachMode,
    /// The configuration file. Without one, live settings stay; an instance that is not loaded yet takes its own files, or
    /// the built-in settings.
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// If the file has other source prefixes than the live ones: end the bans and counters of those, instead of refusing.
    #[arg(long, requires = "config")]
    reset_counters: bool,
    /// Stay in the foreground and detach after this time, unless `dosguard confirm` is said before, or when this command
    /// ends for any reason.
    #[arg(long, value_name = "DURATION")]
    confirm: Option<String>,
    #[command(flatten)]
    guards: GuardArgs,
    /// Interfaces to guard, beside those of the file.
    #[arg(value_name = "IFACE")]
    interfaces: Vec<String>,
}

/// How not to be locked out.
#[derive(Clone, Copy, Debug, Args)]
pub(super) struct GuardArgs {
    /// Do not put the gateways, the name servers and the address of this ssh session on the allow-list when the instance
    /// is loaded.
    #[arg(long)]
    pub(super) no_guards: bool,
    /// Go on even if it cuts off the ssh session that this is said in.
    #[arg(long)]
    pub(super) force: bool,
    /// Set what challenges need of the host: net.ipv4.tcp_syncookies and net.ipv4.tcp_timestamps. When the instance is removed
    /// they are put back.
    #[arg(long)]
    pub(super) fix_sysctl: bool,
}

#[derive(Debug, Args)]
#[command(override_usage = "dosguard detach [OPTIONS] <IFACE>...\n       dosguard detach [OPTIONS] --all")]
pub(super) struct DetachArgs {
    /// Detach from every interface and remove the instance: its bans, counters and settings too.
    #[arg(long, conflicts_with = "interfaces")]
    all: bool,
    /// Interfaces to leave alone from now on. With the last one goes the instance, unless its daemon runs.
    #[arg(value_name = "IFACE", required_unless_present = "all")]
    interfaces: Vec<String>,
}

pub(super) fn attach(paths: &Paths, args: &AttachArgs, _out: &mut dyn Write) -> anyhow::Result<Answer> {
    let patience = args.confirm.as_deref().map(patience).transpose()?;
    system::require_capabilities()?;
    put_in_order(paths)?;
    let is_loaded = || Ok::<_, datapath::Error>(Datapath::open(paths)?.is_some());
    let configuration = match &args.config {
        None if is_loaded()? => None,
        named => configured::read(paths, named.as_deref())?,
    };
    let interfaces = configured::wanted_interfaces(configuration.as_ref(), &args.interfaces);
    let load = configured::load_options(configuration.as_ref());
    let saved = survive::saved(paths);
    let guards = args.guards.find();
    let prefixes: Vec<_> = guards.iter().map(Guard::prefix).collect();
    let mut request = Request {
        interfaces: &interfaces,
        mode: args.mode,
        policy: configured::policy(configuration.as_ref()),
        guards: &prefixes,
        reset: args.reset_counters,
        replace: patience.is_none(),
        hold: patience.is_some(),
        load: &load,
        saved: saved.as_ref(),
    };
    // What can be refused is refused before anything is made.
    datapath::check(paths, &request)?;
    anyhow::ensure!(
        !interfaces.is_empty() || (args.config.is_some() && is_loaded()?),
        "no interface to guard\nhint: name one, such as `{} attach eth0`, or set `interfaces` in the file",
        paths.command()
    );
    let lock = StateLock::acquire(paths)?;
    if args.config.is_none() && is_loaded()? {
        request.policy = None; // somebody else has loaded it in the meantime
    }
    args.guards.refuse_start(paths, &interfaces, request.policy, &guards)?;
    if patience.is_some() {
        refuse_change(paths, request.policy)?;
    }
    let confirmation = patience.map(|patience| Confirmation::prepare(paths, patience)).transpose()?;
    let names = Names::read_if_loaded(paths)?;
    let mut started = datapath::start(paths, &request)?;
    if let Some(names) = names {
        names.report(paths, Kind::Unban, &started.ended);
    }
    challenge::make_ready(paths, &mut started.datapath, args.guards.fix_sysctl);
    report_attached(paths, &started, &guards)?;
    if started.restored.is_some() {
        survive::save_restored(paths);
    }
    if let Some(configuration) = &configuration {
        configured::report(paths, configuration, &started);
    }
    drop(lock);
    match confirmation {
        Some(confirmation) => confirmation.wait(paths, started),
        None => Ok(Answer::Done),
    }
}

/// Refuses a file that would change a live instance: what a change ends, such as bans, would not come back if it is not
/// confirmed.
fn refuse_change(paths: &Paths, policy: Option<&Policy>) -> anyhow::Result<()> {
    let (Some(policy), Some(datapath)) = (policy, Datapath::open(paths)?) else { return Ok(()) };
    anyhow::ensure!(
        !datapath.differs_from(policy)?,
        "`--confirm` cannot take back what the file would change of instance `{}`, which is loaded\n\
         hint: apply the file first, without `--confirm`; then attach the interfaces with it",
        paths.instance()
    );
    Ok(())
}

pub(super) fn detach(paths: &Paths, args: &DetachArgs, _out: &mut dyn Write) -> anyhow::Result<Answer> {
    system::require_capabilities()?;
    if args.all {
        return detach_all(paths);
    }
    let waiter = Waiter::of(paths);
    let waits = waiting_among(&args.interfaces, &waiter)?;
    let interfaces: Vec<_> = args.interfaces.iter().filter(|name| !waits.contains(name)).collect();
    // Before anything is given up.
    if let Some(first) = interfaces.first() {
        let missing = match Datapath::require(paths) {
            Ok(datapath) => not_guarded(&datapath, &interfaces)?,
            // Nothing is attached to any.
            Err(datapath::Error::NotLoaded { .. }) => Some(*first),
            Err(error) => return Err(error.into()),
        };
        if let Some(name) = missing {
            say_not_attached(paths, name, &waiter);
            return Ok(Answer::No);
        }
    }
    let cancelled = !waits.is_empty() && confirm::cancel(paths)?;
    let _lock = StateLock::acquire(paths)?;
    let datapath = match Datapath::open(paths)? {
        Some(datapath) => datapath,
        // Whoever waited has taken it along.
        None if cancelled => return Ok(Answer::Done),
        None => Datapath::require(paths)?,
    };
    if let Some(name) = not_guarded(&datapath, &interfaces)? {
        say_not_attached(paths, name, &waiter);
        return Ok(Answer::No);
    }
    for name in &interfaces {
        datapath.detach(name)?;
        talk::say(&format!("detached from `{}`", printable(name)));
    }
    // Nobody would miss what is left: no packet comes by it, and nobody uses it.
    if confirm::is_unused(paths, &datapath)? {
        return remove(paths);
    }
    Ok(Answer::Done)
}

fn detach_all(paths: &Paths) -> anyhow::Result<Answer> {
    refuse_daemon(paths)?;
    let cancelled = confirm::cancel(paths)?;
    let _lock = StateLock::acquire(paths)?;
    if !Datapath::is_pinned(paths)? {
        if cancelled {
            // Whoever waited has taken it along.
            survive::forget(paths);
            return Ok(Answer::Done);
        }
        talk::say(&format!("instance `{}` is not loaded", paths.instance()));
        // Its bans from before are not to come back all the same.
        survive::forget(paths);
        return Ok(Answer::No);
    }
    // Somebody may have begun in the meantime.
    refuse_daemon(paths)?;
    anyhow::ensure!(
        Waiter::of(paths) == Waiter::Nobody,
        "a command waits for instance `{}` to be confirmed\nhint: `{} detach --all` again",
        paths.instance(),
        paths.command()
    );
    remove(paths)
}

fn refuse_daemon(paths: &Paths) -> anyhow::Result<()> {
    if let Some(daemon) = running_daemon(paths) {
        anyhow::bail!(
            "the daemon of instance `{}` runs ({daemon})\nhint: stop it first, or detach single interfaces",
            paths.instance()
        );
    }
    Ok(())
}

/// Those of the interfaces that wait to be confirmed. A name means something in this network namespace only.
fn waiting_among<'a>(names: &'a [String], waiter: &Waiter) -> anyhow::Result<Vec<&'a String>> {
    if waiter.interfaces().is_empty() {
        return Ok(Vec::new());
    }
    let namespace = system::network_namespace().context("cannot read the network namespace")?;
    let present = datapath::interfaces().context("cannot read the list of interfaces")?;
    let waits = |name: &&String| {
        present.iter().filter(|interface| interface.name == **name).any(|interface| {
            let link = LinkName { namespace, ifindex: interface.index };
            waiter.interfaces().iter().any(|pending| pending.link() == link)
        })
    };
    Ok(names.iter().filter(waits).collect())
}

/// The first of the interfaces that the instance is not attached to, if any.
fn not_guarded<'a>(datapath: &Datapath, names: &[&'a String]) -> anyhow::Result<Option<&'a String>> {
    let guarded = datapath.guarded()?;
    let is_guarded = |name: &String| guarded.iter().any(|guarded| guarded.name.as_ref() == Some(name));
    Ok(names.iter().copied().find(|name| !is_guarded(name)))
}

fn say_not_attached(paths: &Paths, name: &str, waiter: &Waiter) {
    talk::say(&format!("instance `{}` is not attached to `{}`", paths.instance(), printable(name)));
    if *waiter == Waiter::Silent {
        talk::say(
            "a command waits to be confirmed, and does not say with which interfaces; they detach when it ends",
        );
    }
}

/// The history is told that the bans end. An instance that is damaged is removed all the same.
fn tell_ends(paths: &Paths) {
    let told = || -> anyhow::Result<()> {
        let Some(datapath) = Datapath::open(paths)? else { return Ok(()) };
        let ended: Vec<_> =
            datapath.look()?.bans.into_iter().filter(|(_, ban)| !ban.is_monitored()).collect();
        Names::read(&datapath)?.report(paths, Kind::Unban, &ended);
        Ok(())
    };
    if let Err(error) = told() {
        log::warn!("the history is not told that the bans end: {error:#}");
    }
}

/// Removes the instance with its bans, which the history is told of, and which do not come back. The instance's lock must be
/// held, and no daemon serve any more.
pub(super) fn take_away(paths: &Paths) -> anyhow::Result<()> {
    tell_ends(paths);
    // First: whoever is killed in between has removed too little, and brings nothing back.
    survive::forget(paths);
    Datapath::remove(paths)?;
    challenge::put_back(paths);
    Ok(())
}

fn remove(paths: &Paths) -> anyhow::Result<Answer> {
    take_away(paths)?;
    talk::say(&format!(
        "instance `{}` is gone: detached, and {}",
        paths.instance(),
        survive::what_stays(paths)
    ));
    Ok(Answer::Done)
}

impl GuardArgs {
    /// Who must not be locked out, unless nobody is to be looked for.
    pub(super) fn find(&self) -> Vec<Guard> {
        if self.no_guards { Vec::new() } else { guards::find() }
    }

    /// Refuses a start that would cut off the ssh session: by a file, by what is put back, or because what is said already takes
    /// effect on these interfaces. The instance's lock must be held.
    pub(super) fn refuse_start(
        &self,
        paths: &Paths,
        interfaces: &[String],
        policy: Option<&Policy>,
        guards: &[Guard],
    ) -> anyhow::Result<()> {
        if let Some(policy) = policy {
            warn_of(&policy.deny);
        }
        if self.force {
            return Ok(());
        }
        let datapath = Datapath::open(paths)?;
        let start = match &datapath {
            Some(datapath) => {
                let attaches = not_guarded(datapath, &interfaces.iter().collect::<Vec<_>>())?.is_some();
                guards::refuse_cut(
                    paths,
                    Some(datapath),
                    Change::Start(Start { policy, attaches, ..Start::default() }),
                )
            }
            // Only a new instance gets the guards, and what is put back.
            None => {
                let saved = survive::saved(paths);
                let start = Start { policy, guards, attaches: true, saved: saved.as_ref() };
                guards::refuse_cut(paths, None, Change::Start(start))
            }
        };
        Ok(start?)
    }
}

/// Says what is worth a word about networks that are to be denied.
pub(super) fn warn_of(denied: &[Cidr]) {
    for warning in guards::warnings(denied) {
        log::warn!("{warning}");
    }
}

/// Says what is guarded now, how, and by which rules.
pub(super) fn report_attached(paths: &Paths, started: &Started, guards: &[Guard]) -> anyhow::Result<()> {
    if started.bpffs == Bpffs::Mounted {
        talk::say(&format!("mounted a BPF file system at `{}`", paths.bpffs().display()));
    }
    if system::is_own_bpffs(paths.bpffs()) {
        log::warn!(
            "`{}` is a BPF file system of this mount namespace alone: commands elsewhere do not see the instance, and the filter \
             ends with the namespace's last process\nhint: {ONE_SYS}",
            paths.bpffs().display()
        );
    }
    say_ended(&started.ended);
    started.restored.iter().for_each(survive::say_restored);
    if started.interrupted {
        say_interrupted();
    }
    if !started.created {
        let go_on = if started.ended.is_empty() { "its counters and bans go on" } else { "the rest goes on" };
        talk::say(&format!("instance `{}` was loaded: {go_on}", paths.instance()));
    }
    match &started.replaced {
        Some(Ok(replaced)) => say_replaced(&replaced.interfaces),
        Some(Err(error)) => {
            talk::warning("the program was not replaced, and the one from before goes on", error);
        }
        None => {}
    }
    if started.created && !guards.is_empty() {
        let allowed: Vec<_> = guards.iter().map(ToString::to_string).collect();
        talk::say(&format!(
            "allowed: {}; `{} allow del ADDR` takes one off",
            allowed.join(", "),
            paths.command()
        ));
    }
    for attached in &started.attached {
        if let Some(reason) = &attached.refused {
            talk::say(&format!(
                "{YELLOW}warning:{YELLOW:#} `{}` refused native mode ({reason}); generic mode is slower",
                printable(&attached.interface)
            ));
        }
    }
    let guarded = started.datapath.guarded()?;
    for guarded in &guarded {
        if let (Some(name), Some(mode)) = (&guarded.name, guarded.mode) {
            talk::say(&format!("guarding {BOLD}{}{BOLD:#} in {mode} mode", printable(name)));
        }
    }
    if !started.held.is_empty() {
        for attached in started.attached.iter().filter(|attached| !attached.already) {
            let (name, mode) = (printable(&attached.interface), attached.mode);
            talk::say(&format!("guarding {BOLD}{name}{BOLD:#} in {mode} mode, until it is confirmed or not"));
        }
    } else if guarded.is_empty() {
        talk::say(&format!("{YELLOW}warning:{YELLOW:#} no interface is guarded"));
    }
    let settings = started.datapath.settings()?;
    let can_challenge = started.datapath.maps().config()?.can_challenge();
    for rule in &settings.rules {
        talk::say(&rule::describe(rule, can_challenge));
    }
    if settings.mode == Mode::Monitor {
        talk::say(&format!(
            "{YELLOW}monitor mode:{YELLOW:#} everything is counted and reported, and nothing is dropped; \
             `{} sysctl core.mode=enforce` ends it",
            paths.command()
        ));
    }
    Ok(())
}
