//! pcopy copies folders in parallel on Linux: faithful, safe and fast by default.
//!
//! This is the program as a library, so that its parts can be tested and documented; [`run`] is
//! the story of a run. `CONTRIBUTING.md` says where a change goes.

pub mod beneath;
pub mod board;
pub mod cli;
pub mod config;
pub mod context;
pub mod copy;
pub mod crew;
pub mod engine;
pub mod job;
pub mod links;
pub mod names;
pub mod paths;
pub mod progress;
pub mod roots;
mod run;
pub mod signals;
mod sys;
pub mod tally;
pub mod tree;
pub mod walk;
pub mod watch;
pub mod worker;

use anyhow::{Context as _, Result};

use board::Board;
use config::{Config, Mode};
use context::Context;
use crew::Crew;
use engine::Engine;
use engine::processes::Processes;
use engine::threads::Threads;
use roots::Roots;
use signals::Signals;

/// Workers that can be replaced in a run. Each costs 1 KiB of address space until it lives.
const REPLACEMENTS: usize = 4096;

/// Copies what the configuration says and gives the exit status ([`tally`]).
///
/// # Errors
/// When nothing could be started. What goes wrong later is told on stderr, entry by entry, and
/// in the exit status.
pub fn run(config: Config) -> Result<i32> {
    let crew = Crew::new(config.jobs);
    let roots = Roots::open(&config)?;
    let board =
        Board::new(crew.limit() + crew.most() + REPLACEMENTS).context("cannot share memory")?;
    let context: &'static Context = Box::leak(Box::new(Context {
        config,
        roots,
        board,
    }));
    let engine: Box<dyn Engine> = match context.config.mode {
        Mode::Thread => Box::new(Threads::new(context, crew.most(), crew.limit())?),
        // Before any thread exists: the spawner is forked here.
        Mode::Process => Box::new(Processes::new(context, crew.limit())?),
    };
    let signals = Signals::take_over()?;
    Ok(run::Run::new(context, engine, crew, signals).run())
}
