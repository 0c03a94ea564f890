//! pcopy copies directories in parallel on Linux: faithful, safe and fast by default.
//!
//! This is the program as a library. [`run`] is the story of a run; `ARCHITECTURE.md` says how its
//! parts work together, and `CONTRIBUTING.md` where a change goes.

pub mod cli;
pub mod config;
mod context;
mod copy;
mod engine;
mod environment;
mod foreign;
mod fs;
pub mod manual;
mod protocol;
mod quote;
mod run_number;
mod scheduler;
mod scoreboard;
mod signals;
mod targets;
mod ui;
mod worker;

use anyhow::{Context as _, Result};

use config::{Config, Mode};
use context::{Context, Identity};
use engine::Engine;
use engine::processes::Processes;
use engine::threads::Threads;
use scheduler::Scheduler;
use scheduler::autoscale::WorkerLimit;
use scoreboard::Scoreboard;
use signals::Signals;
use targets::Targets;

/// Workers that can be replaced in a run. Each costs 1 KiB of address space until it lives.
const REPLACEMENTS: usize = 4096;

/// Copies what the configuration says and returns the exit status.
///
/// # Errors
/// If nothing could be started. What goes wrong later is printed entry by entry, and shows in the
/// exit status.
pub fn run(config: Config) -> Result<i32> {
    let limit = WorkerLimit::new(config.jobs);
    let identity = Identity::take_over();
    let targets = Targets::open(&config, identity.umask)?;
    Identity::clear_umask(&config);
    let workers = limit.limit() + limit.max() + REPLACEMENTS;
    let scoreboard = Scoreboard::new(workers, limit.max() * scheduler::JOBS_PER_WORKER)
        .context("cannot share memory")?;
    let context: &'static Context = Box::leak(Box::new(Context {
        config,
        identity,
        targets,
        scoreboard,
    }));
    let engine: Box<dyn Engine> = match context.config.mode {
        Mode::Thread => Box::new(Threads::new(context, limit.max(), limit.limit())?),
        // Before any thread exists: the fork server is forked here.
        Mode::Process => Box::new(Processes::new(context, limit.limit())?),
    };
    let signals = Signals::take_over()?;
    Ok(Scheduler::new(context, engine, limit, signals).run())
}

/// Prints the error that kept a run from starting, and returns the exit status.
pub fn report_fatal(error: &anyhow::Error) -> i32 {
    ui::output::print_fatal(error)
}
