//! pcopy copies directories in parallel on Linux: faithful, safe and fast by default.
//!
//! [`run`] shows the steps of a run in order. `ARCHITECTURE.md` explains how the parts work
//! together. `CONTRIBUTING.md` lists the file for each kind of change.

pub mod cli;
pub mod config;
mod context;
mod copy;
mod engine;
mod environment;
mod filter;
mod foreign;
mod fs;
mod killed;
mod lock;
pub mod manual;
mod mpi;
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
use killed::Presence;
use lock::Lock;
use mpi::Ended;
use scheduler::Scheduler;
use scheduler::autoscale::WorkerLimit;
use scoreboard::Scoreboard;
use signals::Signals;
use targets::Targets;
use ui::{Manifest, Outputs};

/// Slots for replacement workers in one run. An unused slot costs 1 KiB of address space and no
/// memory.
const REPLACEMENTS: usize = 4096;

/// Runs a whole copy and returns the exit status.
///
/// # Errors
/// If the run cannot start. Later errors are printed entry by entry and decide the exit status.
pub fn run(config: Config) -> Result<i32> {
    match config.mode {
        Mode::Thread | Mode::Process => run_here(config),
        Mode::Mpi => match mpi::run(config)? {
            Ended::Alone(config) => run_here(*config),
            Ended::Status(status) => Ok(status),
        },
    }
}

/// Runs a copy on this machine alone.
fn run_here(config: Config) -> Result<i32> {
    let mut outputs = Outputs::open(&config.report)?;
    let Prepared {
        presence: _presence,
        lock,
        engine,
        context,
        limit,
        manifest,
    } = prepare(config, &outputs).inspect_err(|error| outputs.log_fatal(error))?;
    let signals = Signals::take_over()?;
    let scheduler = Scheduler::new(context, engine, limit, signals, outputs);
    let status = scheduler.with_manifest(manifest).run();
    if let Some(lock) = lock {
        lock.release();
    }
    Ok(status)
}

/// What a run needs before it begins.
struct Prepared {
    presence: Option<Presence>,
    lock: Option<Lock>,
    engine: Box<dyn Engine>,
    context: &'static Context,
    limit: WorkerLimit,
    manifest: Option<Manifest>,
}

/// Takes the lock, opens sources and destinations, and starts the engine.
fn prepare(config: Config, outputs: &Outputs) -> Result<Prepared> {
    let lock = config.limits.lock.as_deref().map(Lock::take).transpose()?;
    let limit = WorkerLimit::new(config.jobs);
    let list = config.contents.manifest.clone();
    let identity = Identity::read();
    let targets = Targets::open(&config, identity.umask)?;
    let presence = Presence::begin(&targets, &config);
    Identity::clear_umask(&config);
    let workers = limit.limit() + limit.max() + REPLACEMENTS;
    let scoreboard = Scoreboard::new(
        workers,
        limit.max() * scheduler::JOBS_PER_WORKER,
        limit.max(),
    )
    .context("cannot share memory")?;
    if limit.is_automatic() {
        scoreboard.gate.begin();
    }
    let context: &'static Context = Box::leak(Box::new(Context {
        config,
        identity,
        targets,
        scoreboard,
    }));
    let manifest = list
        .map(|list| Manifest::begin(context, &list))
        .transpose()?;
    let engine: Box<dyn Engine> = match context.config.mode {
        Mode::Thread | Mode::Mpi => Box::new(Threads::new(context, limit.max(), limit.limit())?),
        // This forks the fork server, so no thread may exist yet.
        Mode::Process => {
            let limit = limit.limit();
            Box::new(Processes::new(context, limit, &outputs.descriptors())?)
        }
    };
    Ok(Prepared {
        presence,
        lock,
        engine,
        context,
        limit,
        manifest,
    })
}

/// Prints the error that kept a run from starting, and returns the exit status.
pub fn report_fatal(error: &anyhow::Error) -> i32 {
    ui::output::print_fatal(error)
}
