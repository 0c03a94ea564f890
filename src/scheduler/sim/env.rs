//! State that a simulated run shares with its workers: the time, the world, and the faults.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::hosts::host_of;
use super::model::World;
use super::tree::Rng;
use crate::context::Context;
use crate::protocol::Report;
use crate::scoreboard::Scoreboard;

/// Workers that a run may use up.
pub(super) const SLOTS: usize = 128;

/// The faults of a run.
#[derive(Clone, Debug, Default)]
pub(super) struct Faults {
    /// Probability, in each step, that some process is killed.
    pub(super) crash: f64,
    /// Probability that a report cannot be sent, which ends its worker.
    pub(super) send: f64,
    /// Probability that a report arrives twice.
    pub(super) double: f64,
    /// Probability, in each step, that the worker stalls.
    pub(super) stall: f64,
    /// The longest time after which a stall ends by itself.
    pub(super) longest_stall: Duration,
    /// A stalled process may not even die when it is killed.
    pub(super) unkillable: bool,
    /// Steps until a signal is sent, and until the destination is full.
    pub(super) signal_at: Option<u64>,
    pub(super) full_at: Option<u64>,
    /// Probability that a sync fails.
    pub(super) sync: f64,
    /// Probability, after each turn of a worker, that a host is lost.
    pub(super) host_loss: f64,
    /// How many processes can be started.
    pub(super) starts: usize,
}

/// State that all workers of a run share.
pub(super) struct Env {
    pub(super) rng: Rng,
    /// For choices that were added later: each seed still stands for the same run.
    pub(super) later: Rng,
    pub(super) now: Instant,
    pub(super) steps: u64,
    pub(super) world: Rc<RefCell<World>>,
    pub(super) context: &'static Context,
    pub(super) faults: Faults,
    pub(super) is_process: bool,
    /// Entries that are listed at a time.
    pub(super) batch: usize,
    /// The scoreboard of each host, if there are several.
    pub(super) boards: Vec<Scoreboard>,
    /// Reports that were sent and not received, in order.
    pub(super) sent: VecDeque<(usize, Report)>,
}

impl Env {
    /// Returns the scoreboard that a worker has.
    pub(super) fn board(&self, worker: usize) -> Scoreboard {
        let host = host_of(worker, self.boards.len());
        let board = host.and_then(|host| self.boards.get(host));
        board.copied().unwrap_or(self.context.scoreboard)
    }

    /// Returns true if no more entries are to be begun.
    pub(super) fn is_stopping(&self) -> bool {
        self.context.scoreboard.is_finishing()
    }

    /// Returns true if files are synced in batches.
    pub(super) fn is_batched(&self) -> bool {
        self.context.targets.list[0].batch.is_some() && !self.context.scoreboard.must_sync_alone()
    }

    /// Syncs everything. Returns false if that fails.
    pub(super) fn sync(&mut self) -> bool {
        let mut world = self.world.borrow_mut();
        if self.rng.chance(self.faults.sync) {
            world.has_sync_failed = true;
            return false;
        }
        world.sync();
        true
    }

    /// Returns true if the destination has something of another type under this path.
    pub(super) fn is_obstructed(&self, path: &[u8]) -> bool {
        self.world.borrow().extras.get(path).is_some()
    }

    /// Returns true if an entry that only the destination has must stay.
    pub(super) fn is_protected(&self, path: &[u8]) -> bool {
        let extra = self.world.borrow().extras.get(path);
        extra.is_some_and(|extra| extra.is_protected)
    }

    pub(super) fn is_full(&self) -> bool {
        self.faults.full_at.is_some_and(|at| self.steps >= at)
    }
}
