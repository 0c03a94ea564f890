//! Options of a run on many machines.

use clap::{Args, ValueEnum};

/// Options of `--mode mpi`.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct MpiOptions {
    /// With --mode mpi, run the workers of each host as threads or as processes [default: thread]
    #[arg(
        long,
        value_enum,
        hide_possible_values = true,
        value_name = "thread|process"
    )]
    pub mpi_workers: Option<MpiWorkers>,
}

/// How the workers of a host run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MpiWorkers {
    /// Threads of one process.
    Thread,
    /// Forked processes.
    Process,
}
