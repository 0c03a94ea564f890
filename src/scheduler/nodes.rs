//! Handles hosts of a run on many machines: jobs that they give back, and hosts that are lost.
//!
//! A lost host is a loss of all its workers, except that no entry is to blame. What its workers
//! showed last is a tenth of a second old. So any job that it had may have been begun, and its
//! directory may hold temporary files that nobody knows of. A job of its own removes those.

use std::collections::BTreeSet;

use super::Scheduler;
use crate::engine::LostNode;
use crate::protocol::error::Death;
use crate::protocol::{JobId, JobKind};
use crate::scoreboard::claims::Claim;
use crate::ui::{About, Hosts, MessageKind};

impl Scheduler {
    /// Queues jobs again that a node has given back.
    pub(super) fn on_returned(&mut self, jobs: &[JobId]) {
        if !self.is_stopping() {
            // The queue is last in, first out.
            for &id in jobs.iter().rev() {
                self.queue.push_resend(id);
            }
        }
    }

    /// Warns of something that was noticed before the run.
    pub(crate) fn warn(&self, line: &str) {
        self.ui.say(MessageKind::Warning, line, &About::default());
    }

    /// Notes for the summary which hosts and workers took part.
    pub(super) fn note_workers(&mut self) {
        let hosts = self.engine.hosts();
        self.summary.workers = hosts.map_or(self.engine.started(), |hosts| hosts.workers);
        self.summary.hosts = self.engine.hosts().map(|hosts| Hosts {
            all: hosts.all as u64,
            workers: hosts.workers as u64,
            lost: hosts.lost as u64,
        });
    }

    pub(super) fn on_node_lost(&mut self, lost: &LostNode) {
        self.ui
            .say(MessageKind::Error, &lost.why, &About::default());
        let is_its = |id: JobId| match self.claim_of(id) {
            Some(Claim::By(by)) => by == lost.node || lost.workers.contains(&by),
            _ => false,
        };
        let jobs = self.running.iter().filter(|(id, _)| is_its(**id));
        let dirs: BTreeSet<_> = jobs.map(|(_, job)| self.tree.dir_key(job.node)).collect();
        // Before their jobs end: a directory without any would be closed.
        for dir in dirs {
            if self.tree.dir(dir).is_doomed() {
                continue;
            }
            let workers = lost.names.clone();
            let chunked = self.tree.chunked_files();
            let keep = chunked.filter_map(|(_, chunked)| chunked.file.temp.clone());
            let keep = keep.collect();
            self.tree.add_pending(dir, 1);
            self.push(dir, JobKind::RemoveTemps { workers, keep });
        }
        let workers = lost.workers.iter().chain([&lost.node]);
        for &worker in workers {
            self.on_worker_lost(worker, Death::Host);
        }
    }
}
