//! How a node starts: it must be like the lead, or what it copies would not be.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::fs::Mode;
use rustix::process::{getegid, geteuid, getgroups};

use crate::config::Config;
use crate::protocol::frames::{Link, Numbers, RELAY};
use crate::protocol::nodes::{Start, ToNode, User};
use crate::targets::Targets;

/// The version and the commit: an older pcopy might understand a job in another way.
pub(super) const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " ", env!("PCOPY_COMMIT"));

/// Returns the name of this machine.
pub(super) fn host() -> String {
    let system = rustix::system::uname();
    system.nodename().to_string_lossy().into_owned()
}

/// Returns true if mpirun has bound this process to one core although there are more. It does so if
/// there are one or two processes.
pub(super) fn is_bound() -> bool {
    let is_launched = std::env::var_os("OMPI_COMM_WORLD_SIZE").is_some();
    let usable = std::thread::available_parallelism().map_or(1, usize::from);
    // "0" is one core, and "0-7" or "0,2" are more.
    let online = std::fs::read_to_string("/sys/devices/system/cpu/online");
    is_launched && usable == 1 && online.is_ok_and(|cores| cores.contains(['-', ',']))
}

/// Returns who runs this process.
pub(super) fn user() -> Result<User> {
    let groups = getgroups().context("cannot read the groups")?;
    let mut groups: Vec<u32> = groups.into_iter().map(|group| group.as_raw()).collect();
    groups.sort_unstable();
    groups.dedup();
    Ok(User {
        uid: geteuid().as_raw(),
        gid: getegid().as_raw(),
        groups,
    })
}

/// Returns a hash of the settings that decide what a worker does.
pub(super) fn hash_of(config: &Config) -> u64 {
    let mut hasher = DefaultHasher::new();
    format!("{:?}", config.common()).hash(&mut hasher);
    hasher.finish()
}

/// Waits for the first message of the lead. `None` if the lead has ended.
///
/// # Errors
/// If something else arrives.
pub(super) fn wait_for_start(link: &mut Link, numbers: &mut Numbers) -> Result<Option<Start>> {
    loop {
        match link.receive() {
            Ok(Some((RELAY, _))) => {}
            Ok(Some((_, bytes))) => match numbers.read::<ToNode>(&bytes) {
                Ok(Some(ToNode::Start(start))) => return Ok(Some(*start)),
                Ok(Some(ToNode::Heartbeat) | None) => {}
                _ => bail!("the lead has sent something else than the start"),
            },
            Ok(None) => link.wait(Duration::from_secs(1)),
            Err(_) => return Ok(None),
        }
    }
}

/// Checks that this node is like the lead, and becomes like it where that is possible.
///
/// # Errors
/// What is different.
pub(super) fn check(start: &Start, config: &Config) -> Result<()> {
    if start.version != VERSION {
        bail!("this is pcopy {VERSION}, and the lead is {}", start.version);
    }
    if start.settings != hash_of(config) {
        bail!("other options than the lead has");
    }
    let own = user()?;
    let User { uid, gid, groups } = &start.user;
    if (own.uid, own.gid) != (*uid, *gid) {
        bail!(
            "runs as user {} and group {}, and the lead as {uid} and {gid}",
            own.uid,
            own.gid
        );
    }
    if own.groups != *groups && !crate::fs::sys::set_groups(groups) {
        bail!(
            "has other groups than the lead: {:?}, not {groups:?}",
            own.groups
        );
    }
    rustix::process::umask(Mode::from_raw_mode(start.umask));
    Ok(())
}

/// Opens the targets.
///
/// # Errors
/// If one of them is not what the lead has.
pub(super) fn open(start: &Start, config: &Config, rank: u32) -> Result<Targets> {
    Targets::open_places(&start.places, &start.beside, &config.filter, rank)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;
    use crate::protocol::nodes::PlacesBeside;
    use clap::Parser;

    fn config(options: &[&str]) -> Config {
        let words = ["pcopy", "--mode=mpi", "a", "b"].iter().chain(options);
        Config::new(Cli::try_parse_from(words).unwrap()).unwrap()
    }

    fn start() -> Start {
        Start {
            version: VERSION.to_owned(),
            settings: hash_of(&config(&[])),
            user: user().unwrap(),
            umask: 0o022,
            run: 1,
            decided: config(&[]).decided(),
            nodes: 2,
            claims: 1,
            timeout: 1,
            places: Vec::new(),
            beside: PlacesBeside::default(),
        }
    }

    #[test]
    fn a_node_that_is_like_the_lead_starts() {
        check(&start(), &config(&[])).unwrap();
        // What may differ.
        check(&start(), &config(&["-j3", "--progress=always"])).unwrap();
    }

    #[test]
    fn a_node_that_is_not_like_the_lead_says_what_differs() {
        let refused = |start: &Start, options: &[&str]| {
            check(start, &config(options)).unwrap_err().to_string()
        };
        assert!(refused(&start(), &["--fsync"]).starts_with("other options"));
        let older = Start {
            version: "0.1.0".to_owned(),
            ..start()
        };
        assert!(refused(&older, &[]).ends_with("the lead is 0.1.0"));
        let mut other = start();
        other.user.uid += 1;
        assert!(refused(&other, &[]).starts_with("runs as user"));
    }
}
