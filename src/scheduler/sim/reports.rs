//! What a simulated worker reports.

use super::env::Env;
use super::worker::{State, Worker};
use crate::fs::path::{Kind, Name};
use crate::protocol::error::{CopyError, Death, Reason, Step};
use crate::protocol::{EntryError, JobKind, JobProgress, Report};
use crate::scoreboard::WriteTarget;

impl Worker {
    pub(super) fn fail(&mut self, env: &Env, name: Option<&[u8]>, step: Step, errno: i32) {
        self.fail_with(env, name, CopyError::new(step, Reason::System(errno)));
    }

    pub(super) fn fail_with(&mut self, env: &Env, name: Option<&[u8]>, error: CopyError) {
        if error.is_full_destination() {
            env.context.scoreboard.stop();
        }
        self.current().may_be_retried |= error.may_pass() && env.context.config.limits.retries > 0;
        self.update.errors.push(EntryError {
            kind: name.map(|_| Kind::File),
            ..EntryError::new(name.map(Name::new), error)
        });
    }

    pub(super) fn end_job(&mut self, env: &mut Env) -> State {
        env.world.borrow_mut().release(self.number, None);
        self.update.is_done = true;
        if let JobKind::CommitSynced { .. } = self.current().job.kind {
            self.update.progress = JobProgress::Settled(self.current().settled);
        }
        let has_chunked = !self.update.chunked.is_empty();
        self.put_update();
        if env.rng.chance(0.3) || has_chunked {
            self.send(env);
        }
        if has_chunked && self.death.is_none() {
            // The commit of a comparison has prepared the file.
            self.slot.set_writing(WriteTarget::None);
        }
        State::Next
    }

    pub(super) fn send_update(&mut self, env: &mut Env) {
        self.update.progress = self.progress();
        self.put_update();
        self.send(env);
    }

    fn progress(&mut self) -> JobProgress {
        let current = self.current();
        match &current.job.kind {
            JobKind::Directory { resume, .. } => {
                let left = current.left;
                JobProgress::Listed {
                    entries: resume.reported.max(current.listed as u64),
                    own: current.names.clone().split_off(left),
                }
            }
            JobKind::EmptyDirectory => JobProgress::Unknown,
            _ => JobProgress::Settled(current.settled),
        }
    }

    /// Moves the update into the report, as `CurrentJob::take_update` does.
    fn put_update(&mut self) {
        let counts = self.slot.counts();
        let current = self.current.as_mut().expect("a job");
        self.update.counts = counts - current.counts;
        let Some(update) = self.update.take() else {
            return;
        };
        current.counts = counts;
        current.has_reported_children |= update.has_children();
        self.report.updates.push(update);
    }

    pub(super) fn send(&mut self, env: &mut Env) {
        let report = std::mem::take(&mut self.report);
        if report.updates.is_empty() && !report.is_batch_done {
            return;
        }
        if env.is_process && env.rng.chance(env.faults.send) {
            // It ends at once, and says nothing more.
            return self.die(env, Death::Exit(1));
        }
        let number = self.number;
        // Only what the parent must tell apart: a second batch's end would be an error of the
        // transport.
        if env.rng.chance(env.faults.double) {
            let again = Report {
                is_batch_done: false,
                ..report.clone()
            };
            env.sent.push_back((number, again));
        }
        env.sent.push_back((number, report));
    }
}
