//! A real web server, with nothing of the machine's own configuration.

use std::{fs, fs::File, net::Ipv4Addr, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, bail};
use tempfile::TempDir;

use crate::{daemon::Killed, lab::Lab, wait::wait_until};

/// How long it may take until it listens.
const PATIENCE: Duration = Duration::from_secs(10);

/// An nginx that listens in the guard's namespace and holds idle connections for an hour; dropping it kills it.
#[derive(Debug)]
pub struct Nginx {
    // Dropped in this order: it ends before its files go.
    process: Killed,
    directory: TempDir,
    port: u16,
}

impl Nginx {
    /// Starts it on all of the guard's addresses of both families, and waits until it listens.
    pub fn start(lab: &Lab, port: u16) -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("nginx-")
            .tempdir_in(lab.directory().path())
            .context("cannot make nginx's directory")?;
        let path = |name: &str| directory.path().join(name);
        fs::write(path("nginx.conf"), config(port)).context("cannot write nginx's configuration")?;
        let said = File::create(path("said")).context("cannot make nginx's log")?;
        let mut command = lab.guard().command("nginx");
        // The log of errors comes before the configuration is read, and would be the machine's.
        command.args(["-e", "stderr", "-c", "nginx.conf", "-p"]).arg(directory.path());
        command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null()).stderr(said);
        let process = command.spawn().map(Killed).context("cannot run nginx")?;
        lab.directory().record_child(process.0.id())?;
        let mut nginx = Self { process, directory, port };
        nginx.wait_until_it_listens(lab)?;
        Ok(nginx)
    }

    /// Serves that many zeros as `/large` from now on.
    pub fn offer(&self, bytes: u64) -> Result<()> {
        let file = File::create(self.directory.path().join("large")).context("cannot make a large file")?;
        file.set_len(bytes).context("cannot make a file large")
    }

    /// Its process number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.0.id()
    }

    fn wait_until_it_listens(&mut self, lab: &Lab) -> Result<()> {
        let listening = format!("( sport = :{} )", self.port);
        let waited = wait_until("nginx listens", PATIENCE, || {
            if let Some(status) = self.process.0.try_wait().context("cannot wait for nginx")? {
                bail!("nginx ended at once ({status})");
            }
            // One line for each family.
            Ok(lab.guard().run("ss", ["-Hltn", &listening])?.lines().count() == 2)
        });
        waited.with_context(|| format!("nginx does not serve: {}", self.said()))
    }

    fn said(&self) -> String {
        let said: PathBuf = self.directory.path().join("said");
        fs::read_to_string(said).map_or_else(|_| "it said nothing".to_owned(), |text| text.trim().to_owned())
    }
}

/// One process, which is the one that was started, and no file outside of its directory.
fn config(port: u16) -> String {
    let any = Ipv4Addr::UNSPECIFIED;
    format!(
        "daemon off;
master_process off;
pid nginx.pid;
error_log stderr;
worker_rlimit_nofile 8192;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    sendfile on;
    keepalive_timeout 1h;
    keepalive_requests 1000000;
    client_header_timeout 1h;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    scgi_temp_path scgi;
    uwsgi_temp_path uwsgi;
    server {{
        listen {any}:{port};
        listen [::]:{port} ipv6only=on;
        location / {{ return 204; }}
        location = /large {{ root .; }}
    }}
}}
"
    )
}
