//! Workers that hang or die: what they were at is done again, or given up.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use super::{Dealt, Part, Run};
use crate::board::Making;
use crate::engine::Death;
use crate::job::{Failure, Job, JobId, Reason, Step, Task};
use crate::names::Name;
use crate::paths::Side;
use crate::watch::Alarm;

impl Run {
    pub(super) fn lost(&mut self, worker: usize, jobs: &[JobId], death: Death) {
        match death {
            Death::LeftBehind => self.tally.left_behind += 1,
            Death::Signal(_) => {}
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
                Some(at) if place < at => self.redo(dealt, u64::MAX, None, None),
                // Never begun.
                Some(_) => self.push_again(dealt),
                // It was between two deals, so probably never begun; but where reports were lost,
                // that cannot be told.
                None => self.redo(dealt, 0, None, None),
            }
        }
    }

    /// Has others do what was dealt to a worker that is stuck, or slow, and what it has not begun.
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
        let entry = slot.entry().map(|name| Name::new(&name));
        let clear = self.partial_of(worker, &dealt.job);
        let piece = match dealt.job.task {
            Task::Piece { offset, .. } => offset,
            _ => 0,
        };
        let place = (dealt.folder, entry.clone(), piece);
        let mut given_up = None;
        if !self.deaths.insert(place) {
            let reason = match (stalled, death) {
                (Some(after), _) => Reason::Stalled(after.as_secs()),
                (None, Death::Signal(signal)) => Reason::WorkersDied(signal),
                (None, Death::LeftBehind) => Reason::WorkersDied(0),
            };
            let step = match (&entry, &dealt.job.task) {
                (None, Task::Folder { .. }) => Step::ListFolder,
                (None, _) => Step::OpenFolder,
                (Some(_), _) => Step::Copy,
            };
            let failure = Failure {
                name: entry.clone(),
                step,
                reason,
            };
            self.tell_failure(&Arc::clone(&dealt.job), &failure);
            given_up = Some(entry);
        }
        self.redo(dealt, slot.done_in_job(), clear, given_up);
    }

    /// The name under which a worker is writing, or was when it died.
    pub(super) fn partial_of(&self, worker: usize, job: &Job) -> Option<Name> {
        let slot = self.context.board.slot(worker);
        match slot.is_making() {
            Making::Nothing => None,
            Making::Temporary(number) => {
                let name = self.context.temporary_name(worker, number);
                Some(Name::new(name.as_bytes()))
            }
            Making::Entry => match &self.context.roots.list[job.root as usize].single {
                Some(single) => Some(Name::new(single.to.as_bytes())),
                None => slot.entry().map(|name| Name::new(&name)),
            },
        }
    }

    /// Does a job again whose worker died, `counted` entries of which are done and counted.
    /// `given_up` is the entry to leave out, or the folder as such.
    fn redo(
        &mut self,
        mut dealt: Dealt,
        counted: u64,
        clear: Option<Name>,
        given_up: Option<Option<Name>>,
    ) {
        let folder = dealt.folder;
        let mut task = dealt.job.task.clone();
        match (&task, given_up) {
            (_, None) => {}
            (Task::Piece { large, .. }, Some(_)) => {
                if let Some(file) = self.large.get_mut(&(folder, large.name.clone())) {
                    file.failed = true;
                }
                return self.job_ended(dealt);
            }
            (Task::Seal { large, .. }, Some(_)) => {
                let large = large.clone();
                return self.push(folder, Task::Abandon { large }, dealt.weight);
            }
            (Task::Abandon { .. }, Some(_)) => return self.job_ended(dealt),
            (_, Some(None)) => {
                // Nothing in it can be had.
                dealt.folder_failed = true;
                return self.job_ended(dealt);
            }
            (_, Some(Some(name))) => {
                self.tree.get_mut(folder).failed.push(name.clone());
                dealt.failed.push(name);
            }
        }
        self.firsts_failed(&mut dealt);
        self.tree.get_mut(folder).fresh = false;
        let mut again = dealt.job.again.clone().unwrap_or_default();
        again.clear.extend(clear);
        let done_with: HashSet<Name> = dealt.told.into_iter().chain(dealt.failed).collect();
        match &mut task {
            Task::Folder { fresh, .. } => {
                *fresh = false;
                again.skip.extend(done_with);
                let failed = &self.tree.get(folder).failed;
                again.skip.extend(failed.iter().cloned());
                let shared = dealt.shared as u64;
                again.counted = again.counted.max(counted.saturating_add(shared));
            }
            Task::Entries { fresh, names, .. } => {
                *fresh = false;
                // What it gave away were the last ones.
                names.split_off(dealt.shared);
                names.remove_all(&done_with);
                again.counted = again.counted.max(counted);
            }
            Task::Link { fresh, names, .. } => {
                *fresh = false;
                names.remove_all(&done_with);
                again.counted = again.counted.max(counted);
            }
            Task::Finish { fresh, .. } => *fresh = false,
            Task::Piece { .. } | Task::Seal { .. } | Task::Abandon { .. } => {}
        }
        let is_folder = matches!(task, Task::Folder { .. });
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

    pub(super) fn no_workers(&mut self) {
        if self.engine.busy() > 0 {
            return;
        }
        self.tally.failed += 1;
        self.progress
            .error("no worker is left and none can be started; a second run continues");
        self.stop();
    }

    pub(super) fn alarm(&mut self, alarm: Alarm) {
        let (worker, after) = match alarm {
            Alarm::Quiet { worker } => {
                if self.stopped.is_none() {
                    self.take_back(worker);
                }
                return;
            }
            Alarm::Stalled { worker, after } => (worker, after),
            Alarm::TimedOut { worker } => {
                if !self.engine.kill(worker) {
                    self.engine.abandon(worker);
                }
                return;
            }
            Alarm::Unkillable { worker } => return self.engine.abandon(worker),
        };
        let slot = self.context.board.slot(worker);
        let dealt = slot.job().and_then(|id| self.dealt.get(&id));
        let path = dealt.map_or_else(String::new, |dealt| {
            let entry = slot.entry().map(|name| Name::new(&name));
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
