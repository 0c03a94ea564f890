//! A worker's turn to copy contents ([`Gate`]). It is taken before the first request for a file,
//! and given back at the end, even after a panic. If too many workers copy, it is given back
//! between two requests.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use super::Copier;
use crate::protocol::error::{CopyError, Reason, Step};
use crate::scoreboard::WorkerSlot;
use crate::scoreboard::gate::Gate;

/// The turn of a worker, until it is dropped.
pub(super) struct Turn {
    gate: Gate,
    slot: WorkerSlot,
    worker: usize,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.slot.end_contents();
        self.gate.leave(self.worker, self.slot);
    }
}

/// When the first request for a file began, in time and in processor time.
#[derive(Clone, Copy, Debug)]
pub(super) struct FirstRequest {
    since: Instant,
    cpu: Duration,
}

impl Copier {
    /// Waits for this worker's turn to copy contents.
    pub(super) fn take_turn(&self) -> Turn {
        let scoreboard = self.context.scoreboard;
        let gate = scoreboard.gate;
        gate.enter(self.worker, self.slot, || scoreboard.is_stopping());
        self.first_request.set(gate.is_new().then(|| FirstRequest {
            since: Instant::now(),
            cpu: own_cpu_time(),
        }));
        Turn {
            gate,
            slot: self.slot,
            worker: self.worker,
        }
    }

    /// Waits until some of `wanted` bytes may be copied (`--bwlimit`), and returns how many.
    ///
    /// # Errors
    /// If the run stops meanwhile.
    pub(super) fn take_bandwidth(&self, wanted: u64) -> Result<u64, CopyError> {
        let Some(rate) = self.context.config.limits.bwlimit else {
            return Ok(wanted);
        };
        let scoreboard = self.context.scoreboard;
        let should_end = || scoreboard.is_stopping();
        let taken = scoreboard
            .bandwidth
            .take(rate, wanted, self.slot, should_end);
        taken.ok_or(CopyError::new(Step::Copy, Reason::Stopped))
    }

    /// Returns the bandwidth that a request has not used.
    pub(super) fn return_bandwidth(&self, bytes: u64) {
        if let Some(rate) = self.context.config.limits.bwlimit
            && bytes > 0
        {
            self.context.scoreboard.bandwidth.give_back(rate, bytes);
        }
    }

    /// Queues again between two requests, if more workers copy contents than are allowed.
    pub(super) fn keep_turn(&self) {
        let scoreboard = self.context.scoreboard;
        if let Some(first) = self.first_request.take() {
            // If the processor limits the copying, all workers may. In memory the parent's next
            // sample would be too late: the tree took 4 to 8 % longer.
            let cpu = own_cpu_time().saturating_sub(first.cpu);
            if 2 * cpu >= first.since.elapsed() {
                scoreboard.gate.open_new();
            }
        }
        let gate = scoreboard.gate;
        gate.check(self.worker, self.slot, || scoreboard.is_stopping());
    }
}

fn own_cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
