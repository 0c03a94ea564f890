//! Workers that hang or die: what they were at is done again, or given up.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use super::{Dealt, Part, Scheduler};
use crate::fs::path::Name;
use crate::protocol::error::{CopyError, Death, Reason, Step};
use crate::protocol::{EntryError, Job, JobId, JobKind};
use crate::scheduler::watchdog::Stall;
use crate::scoreboard::WriteTarget;
use crate::ui::paths::Side;

/// What a worker that died at a job has left.
#[derive(Default)]
struct Left {
    /// So many entries are done and counted, all of them where it is `u64::MAX`.
    counted: u64,
    /// It had opened the folder, and removed what another one had left there.
    was_open: bool,
    /// The name at the destination of what it was writing.
    partial: Option<Name>,
    /// The entry to leave out from now on, or the folder as such.
    given_up: Option<Option<Name>>,
}

impl Scheduler {
    pub(super) fn lost(&mut self, worker: usize, jobs: &[JobId], death: Death) {
        match death {
            Death::Unknown => self.tally.left_behind += 1,
            Death::Signal(_) | Death::Exit(_) => {}
        }
        self.tally.replaced += 1;
        let stalled = self.watch.forget(worker);
        let slot = self.context.board.slot(worker);
        let current = slot.job();
        let at = jobs.iter().position(|&id| Some(id) == current);
        for (place, &id) in jobs.iter().enumerate() {
            let Some(dealt) = self.dealt.remove(&id) else {
                continue;
            };
            match at {
                Some(at) if place == at => self.blame(worker, dealt, death, stalled),
                // Done, but the report died with the worker.
                Some(at) if place < at => self.redo(
                    dealt,
                    Left {
                        counted: u64::MAX,
                        was_open: true,
                        ..Left::default()
                    },
                ),
                // Never begun.
                Some(_) => self.push_again(dealt),
                // It was between two deals, so probably never begun; but where reports were lost,
                // that cannot be told.
                None => self.redo(dealt, Left::default()),
            }
        }
    }

    /// InitialMeta others do what was dealt to a worker that is stuck, or slow, and what it has not begun.
    fn take_back(&mut self, worker: usize) {
        let slot = self.context.board.slot(worker);
        let Some(current) = slot.job() else {
            return;
        };
        let Some(deal) = self.dealt.get(&current).map(|dealt| dealt.deal) else {
            return;
        };
        let is_in_deal = |id: &JobId| self.dealt.get(id).is_some_and(|dealt| dealt.deal == deal);
        let in_deal = (current + 1..).take_while(is_in_deal);
        let waiting = self.engine.waiting(worker).into_iter();
        let is_left = |id: &JobId| *id > current && self.dealt.contains_key(id);
        let jobs: BTreeSet<JobId> = in_deal.chain(waiting.filter(is_left)).collect();
        // Where there is none, too: the mark keeps further deals away from it.
        if !slot.take_back(current, jobs.last().copied().unwrap_or(current)) {
            return;
        }
        // The first one is to be the first again.
        for id in jobs.into_iter().rev() {
            self.give_back(id);
        }
    }

    /// The job that a worker died at: it is done again, without the entry that has now cost two
    /// workers.
    fn blame(&mut self, worker: usize, dealt: Dealt, death: Death, stalled: Option<Duration>) {
        let slot = self.context.board.slot(worker);
        let entry = slot.entry();
        let mut left = Left {
            counted: slot.done_in_job(),
            was_open: slot.is_open(),
            partial: self.partial_of(worker, &dealt.job),
            given_up: None,
        };
        let how_far = match (&dealt.job.task, &entry) {
            (JobKind::Chunk { chunk, .. }, _) => chunk.offset,
            // Two deaths in a folder of a million files need not have the same cause.
            (_, None) => left.counted,
            (_, Some(_)) => 0,
        };
        let place = (dealt.folder, entry.clone(), how_far);
        if !self.deaths.insert(place) {
            let reason = match (stalled, death) {
                (Some(after), _) => Reason::Stalled(after.as_secs()),
                (None, death) => Reason::Crashed(death),
            };
            let step = match (&entry, &dealt.job.task) {
                (None, JobKind::Directory { .. }) => Step::ListDirectory,
                (None, _) => Step::OpenDirectory,
                (Some(_), _) => Step::Copy,
            };
            let failure = EntryError {
                name: entry.clone(),
                error: CopyError { step, reason },
            };
            let is_known = match &dealt.job.task {
                JobKind::Chunk { large, .. } => !self.large_failed(dealt.folder, large),
                _ => false,
            };
            if !is_known {
                self.tell_failure(&Arc::clone(&dealt.job), &failure);
            }
            self.tree.leave_out(dealt.folder, entry.clone());
            left.given_up = Some(entry);
        }
        self.redo(dealt, left);
    }

    /// The name under which a worker is writing, or was when it died.
    pub(super) fn partial_of(&self, worker: usize, job: &Job) -> Option<Name> {
        let slot = self.context.board.slot(worker);
        match slot.writing() {
            WriteTarget::None => None,
            WriteTarget::Temp(number) => {
                let name = crate::copy::temp::name(self.context, worker, number);
                Some(Name::new(name.as_bytes()))
            }
            WriteTarget::Final => match &self.context.roots.list[job.root as usize].single {
                Some(single) => Some(Name::new(single.to.as_bytes())),
                None => slot.entry(),
            },
        }
    }

    /// Does a job again whose worker died.
    fn redo(&mut self, mut dealt: Dealt, left: Left) {
        let folder = dealt.folder;
        let mut task = dealt.job.task.clone();
        match (&task, left.given_up) {
            (_, None) => {}
            (JobKind::Commit { large, .. }, Some(_)) => {
                let large = large.clone();
                return self.push(folder, JobKind::Discard { large }, dealt.weight);
            }
            (JobKind::Chunk { .. } | JobKind::Discard { .. }, Some(_)) | (_, Some(None)) => {
                // Nothing of it can be had.
                dealt.folder_failed = true;
                return self.job_ended(dealt);
            }
            (_, Some(Some(name))) => dealt.failed.push(name),
        }
        self.tree.get_mut(folder).fresh = false;
        self.firsts_failed(&mut dealt);
        let done_with: HashSet<Name> = dealt.told.into_iter().chain(dealt.failed).collect();
        let mut again = dealt.job.again.clone().unwrap_or_default();
        if left.was_open {
            // Cleared already, and what stands there now may be complete.
            again.clear.clear();
        }
        again.clear.retain(|name| !done_with.contains(name));
        again.clear.extend(left.partial);
        match &mut task {
            JobKind::Directory { fresh, skip, .. } => {
                *fresh = false;
                skip.extend(done_with);
                skip.extend(self.tree.get(folder).left_out.iter().cloned());
                let shared = dealt.shared as u64;
                again.counted = again.counted.max(left.counted.saturating_add(shared));
            }
            JobKind::Entries { fresh, names, .. } => {
                *fresh = false;
                // What it gave away were the last ones.
                names.split_off(dealt.shared);
                names.remove_all(&done_with);
                again.counted = again.counted.max(left.counted);
            }
            JobKind::HardLinks { fresh, names, .. } => {
                *fresh = false;
                names.remove_all(&done_with);
                again.counted = again.counted.max(left.counted);
            }
            JobKind::FinishDirectory { fresh, .. } => *fresh = false,
            JobKind::Chunk { .. } | JobKind::Commit { .. } | JobKind::Discard { .. } => {}
        }
        let is_folder = matches!(task, JobKind::Directory { .. });
        let part = Part {
            folder,
            task,
            again: Some(again),
            firsts: dealt.firsts,
            weight: dealt.weight,
        };
        // A folder is listed again once all that was given away of it is back: no entry is ever
        // worked on by two at once.
        if is_folder && !self.tree.waits_for(folder, 1) {
            self.parked.insert(folder, part);
        } else {
            self.push_part(part);
        }
    }

    pub(super) fn no_workers(&mut self, jobs: Vec<JobId>) {
        for job in jobs {
            self.give_back(job);
        }
        if self.engine.busy() > 0 || self.stopped.is_some() {
            return;
        }
        self.tally.failed += 1;
        self.progress
            .error("no worker is left and none can be started; a second run continues");
        self.stop();
    }

    pub(super) fn alarm(&mut self, alarm: Stall) {
        let (worker, after) = match alarm {
            Stall::Quiet { worker } => {
                if self.stopped.is_none() {
                    self.take_back(worker);
                    if let Some(limit) = self.crew.one_more() {
                        self.engine.set_limit(limit);
                    }
                }
                return;
            }
            Stall::Stalled { worker, after } => (worker, after),
            Stall::TimedOut { worker } => {
                if !self.engine.kill(worker) {
                    self.engine.abandon(worker);
                }
                return;
            }
            Stall::Unkillable { worker } => return self.engine.abandon(worker),
        };
        let slot = self.context.board.slot(worker);
        let dealt = slot.job().and_then(|id| self.dealt.get(&id));
        let path = dealt.map_or_else(String::new, |dealt| {
            let entry = slot.entry();
            let job = &dealt.job;
            self.paths
                .show(Side::Source, job.root, &job.path, entry.as_ref())
        });
        let label = self.engine.label(worker);
        self.progress.error(&format!(
            "{path}: no progress for {} s by {label}; still waiting",
            after.as_secs()
        ));
    }
}
