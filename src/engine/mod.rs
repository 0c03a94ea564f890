//! Engines run jobs on workers and answer with reports: [`threads`] on a rayon pool,
//! [`processes`] on forked processes. Whatever carries jobs elsewhere one day, over a network
//! say, is another one.

pub(crate) mod fork_server;
pub(crate) mod processes;
pub(crate) mod threads;

use std::sync::Arc;
use std::time::Duration;

use crate::protocol::error::Death;
use crate::protocol::{Job, JobId, Report};

/// Runs jobs.
pub(crate) trait Engine {
    /// How many deals can be taken now: one for each idle worker, the ones not started yet
    /// included, and some more for each, so that nobody waits for the parent.
    fn room(&self) -> usize;

    /// How many workers have nothing to do, the ones not started yet included.
    fn idle(&self) -> usize;

    /// How many deals have not ended.
    fn busy(&self) -> usize;

    /// Gives some jobs to a worker; starts one where all are busy and the limit allows.
    fn deal(&mut self, jobs: Vec<Arc<Job>>);

    /// Jobs that were dealt to this very worker and that it has not ended, whoever has them now.
    fn waiting(&self, worker: usize) -> Vec<JobId>;

    /// The next thing that a worker says, or none within `patience`.
    fn next(&mut self, patience: Duration) -> Option<Event>;

    /// At most so many workers from now on.
    fn set_limit(&mut self, workers: usize);

    /// How many slots of the board have been used: workers started so far.
    fn slots(&self) -> usize;

    /// A worker as it is shown: `[thread 3]`, `[pid 4711]`.
    fn label(&self, worker: usize) -> String;

    /// Ends a worker by force. False where that cannot be done.
    fn kill(&mut self, worker: usize) -> bool;

    /// Gives a worker up that could not even be killed: what it was at is reported as lost.
    fn abandon(&mut self, worker: usize);

    /// Ends all workers. False where some had to be left behind.
    fn shut_down(&mut self, patience: Duration) -> bool;
}

/// What an engine tells.
pub(crate) enum Event {
    /// A worker reports.
    Report {
        /// Its number.
        worker: usize,
        /// What it says.
        report: Report,
    },
    /// A worker is no more.
    Lost {
        /// Its number, not used again.
        worker: usize,
        /// The jobs that it had not ended.
        jobs: Vec<JobId>,
        /// What ended it.
        death: Death,
    },
    /// No worker is left and none can be started.
    NoWorkers {
        /// The jobs that were to be dealt.
        jobs: Vec<JobId>,
    },
}
