//! `dosguard allow`.

use std::io::Write;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::{Answer, talk};
use crate::config::cidr::Cidr;
use crate::datapath::{self, Datapath};
use crate::lock::StateLock;
use crate::output::{SCHEMA, write_json};
use crate::paths::Paths;
use crate::system::require_capabilities;

#[derive(Debug, Subcommand)]
pub(super) enum AllowVerb {
    /// List the allowed networks.
    List(ListArgs),
    /// Allow networks, from the next packet on.
    Add(NetworkArgs),
    /// Stop allowing networks.
    Del(NetworkArgs),
}

#[derive(Debug, Args)]
pub(super) struct ListArgs {
    /// Print JSON, one object a line.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct NetworkArgs {
    /// An address or a network, such as `192.0.2.0/24` or `2001:db8::/32`.
    #[arg(value_name = "CIDR", required = true)]
    networks: Vec<String>,
}

#[derive(Serialize)]
struct AllowRecord {
    version: u32,
    network: String,
}

pub(super) fn allow(paths: &Paths, verb: &AllowVerb, out: &mut dyn Write) -> anyhow::Result<Answer> {
    match verb {
        AllowVerb::List(args) => {
            for (address, bits) in Datapath::require(paths)?.maps().allowed()? {
                let network = Cidr::from_prefix(address, bits).to_string();
                if args.json {
                    write_json(out, &AllowRecord { version: SCHEMA, network })?;
                } else {
                    writeln!(out, "{network}")?;
                }
            }
            Ok(Answer::Done)
        }
        AllowVerb::Add(args) => {
            let networks = parse(&args.networks)?;
            require_capabilities()?;
            let _lock = StateLock::acquire(paths)?;
            let mut datapath = Datapath::require(paths)?;
            datapath::allow(datapath.maps_mut(), networks.iter().map(Cidr::to_prefix))?;
            for network in networks {
                talk::say(&format!("allowed {network}"));
            }
            Ok(Answer::Done)
        }
        AllowVerb::Del(args) => {
            let networks = parse(&args.networks)?;
            require_capabilities()?;
            let _lock = StateLock::acquire(paths)?;
            let mut datapath = Datapath::require(paths)?;
            let mut answer = Answer::Done;
            for network in networks {
                let (address, bits) = network.to_prefix();
                if datapath::disallow(datapath.maps_mut(), address, bits)? {
                    talk::say(&format!("{network} is no longer allowed"));
                } else {
                    talk::say(&format!("{network} was not allowed"));
                    answer = Answer::No;
                }
            }
            Ok(answer)
        }
    }
}

/// All of them, or an error before anything changes.
fn parse(networks: &[String]) -> anyhow::Result<Vec<Cidr>> {
    Ok(networks.iter().map(|text| text.parse()).collect::<Result<_, _>>()?)
}
