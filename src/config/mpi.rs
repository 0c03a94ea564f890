//! Settings of a run on many machines.

use anyhow::{Result, bail};

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

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

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
