//! A node, as the lead knows it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use crate::protocol::frames::Numbers;
use crate::protocol::job_map::JobMap;
use crate::protocol::nodes::Room;
use crate::protocol::{Job, JobId};

/// However many nodes there are, each gets more jobs while it has fewer than so many for each worker.
/// A batch brings it more than one for each: while they run, the next one comes. With a thousand nodes
/// of 16 workers, they can only run out of jobs that take less than 40 ms. But with such jobs the lead
/// is at its limit of 400,000 a second.
const JOBS_OF_WORKER: usize = 1;

/// Whether a node takes part.
pub(super) enum State {
    Starting,
    /// It cannot start, for this reason.
    Refused(String),
    Ready,
    /// It was killed, and may still live.
    Ending {
        why: String,
        since: Instant,
    },
    /// It is dead.
    Lost,
}

/// Batches of all nodes. A lead with a thousand nodes cannot count them for each batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Figures {
    /// How many more they take.
    pub(super) free: usize,
    /// How many workers have none.
    pub(super) idle: usize,
    /// How many nodes take batches at all.
    pub(super) able: usize,
    /// How many are in flight.
    pub(super) busy: usize,
}

/// A job that is at a node.
pub(super) struct SentJob {
    pub(super) job: Arc<Job>,
    batch: u64,
}

pub(super) struct Node {
    pub(super) state: State,
    /// The name of its machine; empty until it has said that.
    pub(super) host: String,
    pub(super) room: Room,
    pub(super) jobs: JobMap<SentJob>,
    /// It gets more while it has fewer jobs than these, or than [`JOBS_OF_WORKER`].
    most_jobs: usize,
    /// It is in the lead's list of nodes that take batches.
    pub(super) is_roomy: bool,
    /// The batches in flight, and how many jobs of each have not ended.
    pub(super) batches: JobMap<usize>,
    /// The row of each worker that has shown itself.
    pub(super) rows: HashMap<u32, usize>,
    /// Whether each worker has work.
    pub(super) busy: Vec<bool>,
    pub(super) heard: Instant,
    pub(super) numbers: Numbers,
    /// It has ended well and left so many processes behind.
    pub(super) bye: Option<usize>,
}

impl Node {
    pub(super) fn new(now: Instant, most_jobs: usize) -> Self {
        Self {
            state: State::Starting,
            host: String::new(),
            room: Room::default(),
            jobs: JobMap::default(),
            most_jobs,
            is_roomy: false,
            batches: JobMap::default(),
            rows: HashMap::new(),
            busy: Vec::new(),
            heard: now,
            numbers: Numbers::default(),
            bye: None,
        }
    }

    /// Returns the node as messages name it.
    pub(super) fn name(&self, rank: usize) -> String {
        if self.host.is_empty() {
            format!("node {rank}")
        } else {
            format!("node {rank} on {}", self.host)
        }
    }

    pub(super) fn is_ready(&self) -> bool {
        matches!(self.state, State::Ready)
    }

    /// Returns true if it takes batches at all.
    pub(super) fn is_able(&self) -> bool {
        self.is_ready() && self.room.batches > 0
    }

    /// Returns true unless it is dead, or was given up.
    pub(super) fn can_hear(&self) -> bool {
        matches!(
            self.state,
            State::Starting | State::Ready | State::Refused(_)
        )
    }

    /// Returns how many more batches it takes.
    pub(super) fn free(&self) -> usize {
        let batches = self.room.batches as usize;
        let most = self
            .most_jobs
            .max(JOBS_OF_WORKER * self.room.workers as usize);
        if self.is_ready() && self.jobs.len() < most {
            batches.saturating_sub(self.batches.len())
        } else {
            0
        }
    }

    pub(super) fn idle(&self) -> usize {
        let workers = self.room.workers as usize;
        if self.is_ready() && self.room.batches > 0 {
            // It divides its jobs among them.
            workers.saturating_sub(self.jobs.len())
        } else {
            0
        }
    }

    /// Returns what it adds to the figures of all nodes.
    pub(super) fn figures(&self) -> Figures {
        Figures {
            free: self.free(),
            idle: self.idle(),
            able: usize::from(self.is_able()),
            busy: match self.state {
                // Its jobs must be done again.
                State::Ending { .. } => 1,
                _ => self.batches.len(),
            },
        }
    }

    /// Returns how busy it is for its size.
    pub(super) fn load(&self) -> usize {
        self.jobs.len() * 1024 / (self.room.workers as usize).max(1)
    }

    /// Notes that a job of a batch is there.
    pub(super) fn begin(&mut self, job: &Arc<Job>, batch: u64) {
        *self.batches.entry(batch).or_default() += 1;
        let job = Arc::clone(job);
        self.jobs.insert(job.id, SentJob { job, batch });
    }

    /// Returns a job that is there.
    pub(super) fn job(&self, id: JobId) -> Option<Arc<Job>> {
        Some(Arc::clone(&self.jobs.get(&id)?.job))
    }

    /// Notes that a job is no longer there, and returns it.
    pub(super) fn end(&mut self, id: JobId) -> Option<Arc<Job>> {
        let SentJob { job, batch } = self.jobs.remove(&id)?;
        if let Some(left) = self.batches.get_mut(&batch) {
            *left -= 1;
            if *left == 0 {
                self.batches.remove(&batch);
            }
        }
        Some(job)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_node_among_thousands_gets_jobs() {
        let mut node = Node::new(Instant::now(), 2);
        node.state = State::Ready;
        node.room = Room {
            workers: 1,
            batches: 6,
            can_kill: false,
        };
        assert_eq!((node.free(), node.idle()), (6, 1));
    }
}
