//! Engines run jobs on workers and return their reports: [`threads`] on a rayon pool, [`processes`]
//! on forked processes.

mod fork_server;
pub(crate) mod mpi;
pub(crate) mod processes;
pub(crate) mod threads;

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::fs::path::Name;
use crate::protocol::entry::CHUNK_SIZE;
use crate::protocol::error::Death;
use crate::protocol::{Job, JobId, Report};
pub(crate) use fork_server::become_child;

/// How long a killed worker may take to die before it is given up. Even on a busy machine, only a
/// worker that hangs in a call to a dead disk or server takes longer.
pub(crate) const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// Runs batches of jobs.
pub(crate) trait Engine {
    /// Returns how many batches can be sent now. That is one for each idle worker, started or not,
    /// and some more so that no worker waits for the parent.
    fn free_slots(&self) -> usize;

    /// Returns how many workers have nothing to do, including those that have not been started.
    fn idle(&self) -> usize;

    /// Returns how many nodes take batches. Each has workers of its own, and its jobs are claimed for
    /// it when they are sent. `None` if this engine sends to the workers themselves.
    fn nodes(&self) -> Option<usize> {
        None
    }

    /// Returns how many batches have been sent and not ended.
    fn busy(&self) -> usize;

    /// Sends a batch to a worker. Starts a worker if all are busy and the limit allows.
    fn send(&mut self, batch: Vec<Arc<Job>>) -> Sent;

    /// Returns the next event, or `None` after `timeout`.
    fn next(&mut self, timeout: Duration) -> Option<Event>;

    /// Sets the maximum number of workers.
    fn set_limit(&mut self, workers: usize);

    /// Marks a worker as stuck or not. A stuck one gets no batches in process mode.
    fn set_stuck(&mut self, worker: usize, is_stuck: bool);

    /// Returns true if a worker has unfinished jobs.
    fn has_work(&self, worker: usize) -> bool;

    /// Returns how many workers have been started so far: their slots on the scoreboard.
    fn started(&self) -> usize;

    /// Returns a worker as messages name it: `[thread 3]`, `[pid 4711]`.
    fn label(&self, worker: usize) -> String;

    /// Kills a worker. Returns false if that cannot be done.
    fn kill(&mut self, worker: usize) -> bool;

    /// Gives up a worker that was killed and does not die. Reports it as lost.
    fn abandon(&mut self, worker: usize);

    /// Returns how many bytes a chunk of a file has.
    fn chunk_size(&self) -> u64 {
        CHUNK_SIZE
    }

    /// Notes that a chunked file with this temporary name was committed or discarded.
    fn end_chunked(&mut self, _temp: &Name) {}

    /// Returns which hosts take part; `None` if it is this one.
    fn hosts(&self) -> Option<Hosts> {
        None
    }

    /// Ends all workers: waits for `timeout`, kills them, and waits for `kill_timeout`. Returns
    /// how many are still there.
    fn shut_down(&mut self, timeout: Duration, kill_timeout: Duration) -> usize;

    /// Returns the present time. A simulation has its own.
    fn now(&self) -> Instant {
        Instant::now()
    }
}

/// Which worker gets a batch.
pub(crate) enum Choice {
    /// The one at this index.
    Existing(usize),
    /// A new one; if none can be started, the one at this index.
    New(Option<usize>),
}

/// Chooses the worker for a batch: an idle one, else a new one up to `limit`, else the least busy.
/// `loads` says of each worker whether it is stuck, and how many batches it has.
pub(crate) fn choose(
    loads: impl ExactSizeIterator<Item = (bool, usize)>,
    limit: usize,
) -> Option<Choice> {
    let count = loads.len();
    let least = loads.enumerate().min_by_key(|&(_, load)| load);
    match least {
        Some((at, (_, 0))) => Some(Choice::Existing(at)),
        _ if count < limit => Some(Choice::New(least.map(|(at, _)| at))),
        _ => least.map(|(at, _)| Choice::Existing(at)),
    }
}

/// Where a batch went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    /// To this worker's own queue.
    To(usize),
    /// To the queue of all workers.
    ToAll,
    /// Nowhere: no worker is alive and none can be started.
    NoWorkers,
}

/// An event in an engine.
pub(crate) enum Event {
    Report {
        worker: usize,
        report: Report,
    },
    /// A worker has ended. Its number is not used again.
    Lost {
        worker: usize,
        death: Death,
        is_left_behind: bool,
    },
    /// Jobs that were sent and that no worker will claim. They can be claimed again.
    Returned {
        jobs: Vec<JobId>,
    },
    /// A host is lost with all its workers.
    NodeLost(LostNode),
}

/// The hosts of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hosts {
    pub(crate) all: usize,
    /// Workers on all of them.
    pub(crate) workers: usize,
    pub(crate) lost: usize,
}

/// A host that is lost. It is dead.
pub(crate) struct LostNode {
    /// The row of the node itself. It has claimed the jobs that none of its workers has begun, as
    /// far as that is known.
    pub(crate) node: usize,
    /// The rows of its workers.
    pub(crate) workers: Vec<usize>,
    /// Their numbers in temporary names.
    pub(crate) names: Range<u64>,
    /// Says which host it was, and why it is lost.
    pub(crate) why: String,
}
