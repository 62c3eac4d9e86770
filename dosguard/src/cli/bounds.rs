//! What a daemon is left with, by what it is asked to do.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;

use super::run::RunArgs;
use crate::config::services::Services;
use crate::confine::{Extras, Folders, folder_of};
use crate::daemon::{notify, outlet};
use crate::paths::Paths;

/// What the warning of [`shared`] is about.
pub(super) const SHARED: &str = "folders that are written";

/// What the daemon reads and writes at work; it was configured by `files`. What a reload adds has to be in these, or waits for
/// the next start.
pub(super) fn folders(paths: &Paths, args: &RunArgs, services: &Services, files: &[PathBuf]) -> Folders {
    let mut folders = Folders::default();
    for folder in [paths.bpffs(), paths.run_dir(), paths.state_dir()] {
        folders.write(folder);
    }
    folders.read(paths.config_dir());
    // Of files that were not read it is known where they would be.
    for file in args.config.iter().chain(files) {
        folders.read_beside(file);
    }
    let exports = services.exports.iter().map(|export| &export.path);
    for file in services.log.file.iter().map(|file| &file.path).chain(exports) {
        folders.write_beside(file);
    }
    if args.detach_on_exit {
        folders.change_host_settings();
    }
    if notify::is_abstract() {
        folders.use_abstract_sockets();
    }
    folders
}

/// The system calls that only some daemons need.
pub(super) fn extras(args: &RunArgs, services: &Services) -> Extras {
    Extras {
        // Whoever waits to be confirmed is asked to give up, over a stream.
        streams: args.detach_on_exit || (services.log.syslog.is_some() && is_stream(outlet::SYSLOG)),
        // A file that is replaced keeps its own.
        attributes: !services.exports.is_empty(),
    }
}

/// Whether somebody takes streams there, and no datagrams.
fn is_stream(socket: &str) -> bool {
    let connected = UnixDatagram::unbound().and_then(|unbound| unbound.connect(socket));
    connected.err().as_ref().and_then(io::Error::raw_os_error) == Some(libc::EPROTOTYPE)
}

/// What to say of folders that are written and hold what root trusts: whoever takes over the daemon would have all of that.
pub(super) fn shared(folders: &Folders, paths: &Paths, files: &[PathBuf]) -> Option<String> {
    let mut of_others = vec![paths.config_dir()];
    of_others.extend(files.iter().map(|file| folder_of(file)));
    let found: Vec<_> =
        folders.shared(&of_others).into_iter().map(|folder| format!("`{}`", folder.display())).collect();
    (!found.is_empty()).then(|| {
        format!(
            "the daemon may write everything in {}, which holds more than its own files\nhint: give the log or the export a \
             folder of its own, and name that in the configuration; a link from where it was leads there (docs/bans.md)",
            found.join(" and ")
        )
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_syslog_of_streams_is_known() {
        let folder = tempfile::tempdir().unwrap();
        let [stream, datagram, none] =
            ["stream", "datagram", "none"].map(|name| folder.path().join(name).display().to_string());
        let _stream = UnixListener::bind(&stream).unwrap();
        let _datagram = UnixDatagram::bind(&datagram).unwrap();
        assert_eq!([stream, datagram, none].map(|path| is_stream(&path)), [true, false, false]);
    }

    #[test]
    fn an_export_beside_the_configuration_is_warned_of() {
        let folder = tempfile::tempdir().unwrap();
        let [run, config] = ["run", "config"].map(|name| folder.path().join(name));
        [&run, &config].into_iter().for_each(|folder| std::fs::create_dir(folder).unwrap());
        let paths = Paths::new("lab", run.clone(), run.clone(), run).unwrap().with_config_dir(config.clone());
        let mut folders = Folders::default();
        folders.write(paths.run_dir());
        assert_eq!(shared(&folders, &paths, &[]), None);
        folders.write_beside(&folder.path().join("hosts.deny"));
        let text = shared(&folders, &paths, &[config.join("c.toml")]).unwrap();
        assert!(text.contains(folder.path().to_str().unwrap()) && text.contains("\nhint: "), "{text}");
    }
}
