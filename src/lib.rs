//! pcopy copies folders in parallel on Linux: faithful, safe and fast by default.
//!
//! This is the program as a library, so that its parts can be tested and documented; [`run`] is
//! the story of a run. `CONTRIBUTING.md` says where a change goes.

pub mod cli;
pub mod config;
mod context;
mod copy;
mod engine;
mod fs;
mod protocol;
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
use scheduler::autoscale::WorkerLimit;
use scoreboard::Scoreboard;
use signals::Signals;
use targets::Targets;

/// Workers that can be replaced in a run. Each costs 1 KiB of address space until it lives.
const REPLACEMENTS: usize = 4096;

/// Copies what the configuration says and returns the exit status.
///
/// # Errors
/// When nothing could be started. What goes wrong later is told on stderr, entry by entry, and
/// in the exit status.
pub fn run(config: Config) -> Result<i32> {
    let crew = WorkerLimit::new(config.jobs);
    let identity = Identity::take_over();
    let targets = Targets::open(&config, identity.umask)?;
    let scoreboard = Scoreboard::new(crew.limit() + crew.most() + REPLACEMENTS)
        .context("cannot share memory")?;
    let context: &'static Context = Box::leak(Box::new(Context {
        config,
        identity,
        targets,
        scoreboard,
    }));
    let engine: Box<dyn Engine> = match context.config.mode {
        Mode::Thread => Box::new(Threads::new(context, crew.most(), crew.limit())?),
        // Before any thread exists: the fork_server is forked here.
        Mode::Process => Box::new(Processes::new(context, crew.limit())?),
    };
    let signals = Signals::take_over()?;
    Ok(scheduler::Scheduler::new(context, engine, crew, signals).run())
}

/// Prints the error that kept a run from starting, and returns the exit status.
pub fn report_fatal(error: &anyhow::Error) -> i32 {
    ui::output::print_fatal(error)
}
