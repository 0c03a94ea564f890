//! Settings of a run on many machines.

use std::path::PathBuf;

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

use super::{Backup, BackupNaming, Changes, Config, Destination};
use crate::cli::{Cli, Mode, MpiWorkers};

/// Settings of `--mode mpi`.
#[derive(Clone, Copy, Debug)]
pub struct MpiSettings {
    /// How the workers of each host run.
    pub workers: Mode,
}

impl MpiSettings {
    /// Checks the options.
    ///
    /// # Errors
    /// If they contradict each other.
    pub(super) fn new(cli: &Cli) -> Result<Self> {
        let wanted = cli.mpi.mpi_workers;
        if cli.mode != Some(Mode::Mpi) && wanted.is_some() {
            bail!("--mpi-workers needs --mode mpi");
        }
        if cli.stall_timeout.is_some() && wanted == Some(MpiWorkers::Thread) {
            bail!("--stall-timeout needs --mpi-workers process: a single thread cannot be killed");
        }
        Ok(Self {
            workers: match wanted {
                Some(MpiWorkers::Process) => Mode::Process,
                None if cli.stall_timeout.is_some() => Mode::Process,
                Some(MpiWorkers::Thread) | None => Mode::Thread,
            },
        })
    }
}

/// Settings that the lead of a run on many machines decides for all: they depend on the clock, on
/// the environment, or on files and names of its machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decided {
    jobs: Option<u32>,
    changes: Changes,
    /// How backups are named, and their suffix.
    backup: Option<(BackupNaming, Vec<u8>)>,
    newer_than: Option<(i64, i64)>,
    older_than: Option<(i64, i64)>,
    rule_files: Vec<Vec<u8>>,
}

impl Config {
    /// Returns what this machine decides for all, if it leads.
    pub(crate) fn decided(&self) -> Decided {
        let limits = &self.filter.limits;
        let backup = self.backup.as_ref();
        Decided {
            jobs: self.jobs.map(|jobs| jobs as u32),
            changes: self.changes.clone(),
            backup: backup.map(|backup| (backup.naming, backup.suffix.clone())),
            newer_than: limits.newer_than.as_ref().map(|moment| moment.time),
            older_than: limits.older_than.as_ref().map(|moment| moment.time),
            rule_files: self.filter.rule_files.clone(),
        }
    }

    /// Takes over what the lead has decided.
    pub(crate) fn adopt(&mut self, decided: Decided) {
        self.jobs = decided.jobs.map(|jobs| jobs as usize);
        self.changes = decided.changes;
        let dir = self.backup.take().and_then(|backup| backup.dir);
        self.backup = decided.backup.map(|(naming, suffix)| Backup {
            naming,
            suffix,
            dir,
        });
        let limits = &mut self.filter.limits;
        for (own, lead) in [
            (&mut limits.newer_than, decided.newer_than),
            (&mut limits.older_than, decided.older_than),
        ] {
            if let (Some(moment), Some(time)) = (own, lead) {
                moment.time = time;
            }
        }
        self.filter.rule_files = decided.rule_files;
    }

    /// Returns the settings that must be the same on all machines.
    pub(crate) fn common(&self) -> Self {
        let mut common = Self {
            // The lead opens these, and describes them to the others.
            sources: Vec::new(),
            destination: Destination::Path(PathBuf::new()),
            // What it shows depends on the terminal.
            progress: false,
            ..self.clone()
        };
        // Only whether there are backups in a directory: the environment can ask for others.
        if common
            .backup
            .as_ref()
            .is_some_and(|backup| backup.dir.is_none())
        {
            common.backup = None;
        }
        let nothing = Decided {
            backup: common
                .backup
                .as_ref()
                .map(|_| (BackupNaming::Simple, Vec::new())),
            newer_than: Some((0, 0)),
            older_than: Some((0, 0)),
            ..Decided::default()
        };
        common.adopt(nothing);
        common
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn config(words: &[&str]) -> Config {
        let words = ["pcopy", "--mode=mpi", "a", "b"].iter().chain(words);
        Config::new(Cli::try_parse_from(words).unwrap()).unwrap()
    }

    #[test]
    fn a_node_takes_over_what_the_lead_decides() {
        let lead = config(&["--newer-than=1h", "--chmod=g+w", "-j3", "-S.old", "-b"]);
        let mut node = config(&["--newer-than=2h", "--chmod=o+w", "-j4", "-S.new", "-b"]);
        assert_ne!(node.decided(), lead.decided());
        node.adopt(lead.decided());
        assert_eq!(node.decided(), lead.decided());
        let common = |config: &Config| format!("{:?}", config.common());
        let other = config(&["--newer-than=1h", "--verify"]);
        assert_ne!(common(&other), common(&lead));
    }

    #[test]
    fn workers_of_a_host_are_threads_unless_they_must_be_killed() {
        let workers = |options: &[&str]| {
            let words = ["pcopy", "a", "b"].iter().chain(options);
            MpiSettings::new(&Cli::try_parse_from(words).unwrap()).map(|it| it.workers)
        };
        let mpi = "--mode=mpi";
        assert_eq!(workers(&[mpi]).unwrap(), Mode::Thread);
        assert_eq!(workers(&[mpi, "--stall-timeout=3"]).unwrap(), Mode::Process);
        assert_eq!(
            workers(&[mpi, "--mpi-workers=process"]).unwrap(),
            Mode::Process
        );
        assert!(workers(&["--mpi-workers=process"]).is_err());
        assert!(workers(&[mpi, "--mpi-workers=thread", "--stall-timeout=3"]).is_err());
    }
}
