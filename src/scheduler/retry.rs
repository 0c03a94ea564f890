//! Handles lost workers: their claimed and unreported work is done again, or given up.
//!
//! A retry needs no cleaning first, and no order. The entry that the worker was at is suspect from
//! then on, and the retry replaces it whatever it looks like. A job of its own removes a temporary
//! file that the worker left. That name is never used again, so the order does not matter.

use std::collections::VecDeque;

use super::dispatch::{NewJob, Running, Written};
use super::tree::{CrashSite, Listing, NodeKey, Suspect};
use super::{Phase, Scheduler};
use crate::copy::temp;
use crate::fs::path::{Kind, Name, Names};
use crate::fs::stat::FileId;
use crate::protocol::entry::HardLinks;
use crate::protocol::error::{CopyError, Death, Reason, Step};
use crate::protocol::unsynced::Unsynced;
use crate::protocol::{EntryError, JobId, JobKind};
use crate::scoreboard::WriteTarget;
use crate::scoreboard::claims::Claim;
use crate::ui::Side;

/// The part that a retry leaves out after a second crash at one site.
enum GivenUp {
    Nothing,
    Entry(Name),
    /// Everything that the job has not reported.
    Job,
}

impl Scheduler {
    pub(super) fn on_worker_lost(&mut self, worker: usize, death: Death) {
        self.summary.replaced += u64::from(death != Death::Host);
        self.context.scoreboard.gate.revoke(worker);
        *self.reported_by(worker) = None;
        let stalled = self.watchdog.forget(worker, self.engine.now());
        let reason = match stalled {
            Some(after) => Reason::Stalled(after.as_secs()),
            None => Reason::Crashed(death),
        };
        let current = self.context.scoreboard.slot(worker).job();
        self.resend_unclaimed(worker);
        let mut claimed: Vec<JobId> = self.running.keys().copied().collect();
        claimed.retain(|&id| self.claim_of(id) == Some(Claim::By(worker)));
        // What is queued last is sent first.
        claimed.sort_unstable_by_key(|&id| std::cmp::Reverse(id));
        for id in claimed {
            let Some(running) = self.end_job(id) else {
                continue;
            };
            if Some(id) == current {
                self.remove_temp_of(worker, &running);
                self.on_crash(worker, running, reason);
            } else {
                // Done, but the report was lost; or never begun.
                self.retry(running, GivenUp::Nothing);
            }
        }
    }

    /// Queues the removal of the temporary file that a lost worker was writing.
    fn remove_temp_of(&mut self, worker: usize, running: &Running) {
        let target = self.context.scoreboard.slot(worker).writing();
        let (WriteTarget::Temp(number) | WriteTarget::Chunked(number)) = target else {
            return;
        };
        let name = temp::name(self.context, worker, number);
        let name = Name::new(name.to_bytes());
        // A file to copy in chunks that the worker has prepared and reported is in use.
        if self
            .tree
            .chunked_files()
            .any(|(_, chunked)| chunked.file.temp.as_ref() == Some(&name))
        {
            return;
        }
        // So is an unsynced file that it has reported.
        let is_written = |written: &Written| written.file.temp.as_ref() == Some(&name);
        if running.written.iter().any(is_written) || self.is_unsynced_temp(&name) {
            return;
        }
        if matches!(target, WriteTarget::Chunked(_)) {
            self.context.scoreboard.end_chunked();
            self.engine.end_chunked(&name);
        }
        self.push_removal(running.node, name);
    }

    /// Removes the incomplete copy that a crashed worker left of an entry that failed.
    pub(super) fn give_up_suspect(&mut self, node: NodeKey, name: &Name) {
        let directory = self.tree.dir_mut(node);
        let target = directory.target;
        if directory
            .take_suspect(name)
            .is_some_and(|suspect| suspect.is_incomplete)
        {
            let name = self.name_at_destination(target, name);
            self.push_removal(node, name);
        }
    }

    fn push_removal(&mut self, node: NodeKey, name: Name) {
        let dir = self.tree.dir_key(node);
        self.tree.add_pending(dir, 1);
        self.push(dir, JobKind::Remove { name });
    }

    /// Returns the name that an entry of a target has at the destination.
    pub(super) fn name_at_destination(&self, target: u32, name: &Name) -> Name {
        match &self.context.targets.list[target as usize].single {
            Some(single) => Name::new(single.to.to_bytes()),
            None => name.clone(),
        }
    }

    /// Does the job again at which a worker crashed. After the second crash at an entry, leaves that
    /// entry out.
    fn on_crash(&mut self, worker: usize, mut running: Running, reason: Reason) {
        let slot = self.context.scoreboard.slot(worker);
        let entry = slot.entry();
        let position = match (&running.job.kind, &entry) {
            (JobKind::Chunk { chunk, .. }, _) => chunk.offset,
            // Two crashes in a directory of a million files need not have the same cause.
            (_, None) => slot.entries_done(),
            (_, Some(_)) => 0,
        };
        let site = CrashSite {
            entry: entry.clone(),
            position,
        };
        let directory = self.tree.dir_mut(running.node);
        if let Some(name) = entry.clone() {
            let is_incomplete = slot.writing() == WriteTarget::Final;
            directory.add_suspect(Suspect {
                name,
                is_incomplete,
            });
        }
        // The fault of the host. There are fewer hosts each time, so this ends.
        let is_innocent = reason == Reason::Crashed(Death::Host);
        if is_innocent || self.tree.add_strike(running.node, site) {
            return self.retry(running, GivenUp::Nothing);
        }
        if let JobKind::Sync { .. } = running.job.kind {
            let job = std::sync::Arc::clone(&running.job);
            self.end_sync(&job, Some(CopyError::new(Step::Sync, reason)));
            return self.complete_one(running.node);
        }
        if let Some(name) = &entry {
            self.give_up_unsynced(&mut running, name);
        }
        let hung = self.hung.get(&worker);
        let step = match (&entry, &running.job.kind) {
            (
                _,
                JobKind::Delete { .. }
                | JobKind::MakeRoom { .. }
                | JobKind::EmptyDirectory
                | JobKind::RemoveDirectory { .. },
            ) => Step::Delete,
            (Some(_), _) if hung == Some(&Side::Destination) => Step::Write,
            (None, _) if hung == Some(&Side::Destination) => Step::OpenDestinationDirectory,
            (None, JobKind::Directory { .. }) => Step::ListDirectory,
            (None, _) => Step::OpenDirectory,
            (Some(_), _) => Step::Copy,
        };
        // A chunked file fails once, whichever of its jobs crash: its chunks, its commit, its discard.
        let is_chunked = self.tree.chunked_mut(running.node).is_some();
        let is_discarded = matches!(running.job.kind, JobKind::DiscardUnsynced { .. });
        let is_known = is_discarded || is_chunked && !self.fail_chunked(running.node);
        if !is_known {
            let error = CopyError::new(step, reason);
            self.report_given_up(worker, &running, entry.clone(), error);
        }
        let directory = self.tree.dir_mut(running.node);
        directory.hand_out(entry.clone());
        if directory.is_doomed() {
            directory.deletion().keep();
        }
        if let Some(name) = &entry {
            self.give_up_suspect(running.node, name);
        }
        let given_up = entry.map_or(GivenUp::Job, GivenUp::Entry);
        self.retry(running, given_up);
    }

    /// Reports everything that is given up with a job. That is one entry, or all remaining entries
    /// and the directory.
    fn report_given_up(
        &mut self,
        worker: usize,
        running: &Running,
        entry: Option<Name>,
        error: CopyError,
    ) {
        let is_of_directory = entry.is_none();
        let mut names: Vec<Name> = entry.into_iter().collect();
        let mut is_directory_named = false;
        if is_of_directory {
            let missing = match &running.job.kind {
                JobKind::Entries { names, .. } | JobKind::HardLinks { names, .. } => {
                    running.remaining(names.clone(), &GivenUp::Nothing)
                }
                JobKind::CommitSynced { files } => {
                    let files = &files[running.settled.min(files.len())..];
                    let mut names = Names::default();
                    for file in files {
                        names.push(Kind::File, file.name.as_bytes());
                    }
                    names
                }
                JobKind::Directory { .. } => {
                    is_directory_named = true;
                    self.tree.dir(running.node).own_entries()
                }
                _ => {
                    is_directory_named = true;
                    Names::default()
                }
            };
            names.extend(missing.iter().map(|(_, name)| Name::new(name.to_bytes())));
        }
        if is_directory_named && self.tree.dir_mut(running.node).add_error(error) {
            self.report_error(worker, &running.job, &EntryError::new(None, error));
        }
        // If the directory is listed again, these are not examined again.
        self.tree
            .dir_mut(running.node)
            .hand_out(names.iter().cloned());
        for name in names {
            self.give_up_suspect(running.node, &name);
            let name = Some(name);
            self.report_error(worker, &running.job, &EntryError::new(name, error));
        }
    }

    /// Does the unreported part of a job again.
    fn retry(&mut self, mut running: Running, given_up: GivenUp) {
        let node = running.node;
        self.take_unsynced(&mut running);
        self.tree.dir_mut(node).origin.known_empty = false;
        let is_given_up = !matches!(given_up, GivenUp::Nothing);
        match running.job.kind.clone() {
            JobKind::Directory { .. } => self.retry_listing(node, given_up),
            JobKind::Entries { names, hard_links } => {
                let names = running.remaining(names, &given_up);
                // A leader that is given up leaves it to the next one.
                let is_left = |(name, _): &(Name, FileId)| names.contains(name);
                let (leads, lost): (VecDeque<_>, VecDeque<_>) =
                    running.leads.into_iter().partition(is_left);
                for (_, id) in lost {
                    self.on_leader_failed(id, false);
                }
                if names.is_empty() {
                    return self.complete_one(node);
                }
                let kind = JobKind::Entries { names, hard_links };
                self.push_job(NewJob { node, kind, leads });
            }
            JobKind::HardLinks { names, leader } => {
                let names = running.remaining(names, &given_up);
                if names.is_empty() {
                    return self.complete_one(node);
                }
                self.push(node, JobKind::HardLinks { names, leader });
            }
            JobKind::Delete { names, ids } => {
                let names = running.remaining(names, &given_up);
                if names.is_empty() {
                    return self.complete_one(node);
                }
                self.push(node, JobKind::Delete { names, ids });
            }
            JobKind::MakeRoom { names } => {
                let names = running.remaining(names, &given_up);
                if names.is_empty() {
                    return self.complete_one(node);
                }
                self.push(node, JobKind::MakeRoom { names });
            }
            JobKind::CommitSynced { files } => {
                self.retry_commits(running, files, given_up);
            }
            JobKind::Sync { .. } => self.retry_sync(&running.job, node),
            JobKind::Commit { file, .. } if is_given_up => {
                self.push(node, JobKind::Discard { file });
            }
            JobKind::Discard { file } if is_given_up => {
                // Its commit may have cost the workers already. Removing the file is all that is left.
                if let Some(temp) = file.temp {
                    self.push_removal(node, temp);
                }
                self.end_chunked(node, false, &[]);
                self.complete_one(node);
            }
            _ if is_given_up => self.complete_one(node),
            kind @ JobKind::DiscardUnsynced { .. } => self.push_urgent(NewJob::new(node, kind)),
            kind => self.push(node, kind),
        }
        if self.phase != Phase::Running {
            self.drop_queue();
        }
    }

    /// Commits the files again that no report has named, and removes those that are given up.
    fn retry_commits(&mut self, running: Running, mut files: Vec<Unsynced>, given_up: GivenUp) {
        let node = running.node;
        files.drain(..running.settled.min(files.len()));
        let is_given_up = |file: &Unsynced| match &given_up {
            GivenUp::Nothing => false,
            GivenUp::Entry(name) => file.name == *name,
            GivenUp::Job => true,
        };
        let (lost, files): (Vec<_>, Vec<_>) = files.into_iter().partition(is_given_up);
        let is_lost = |(name, _): &(Name, FileId)| lost.iter().any(|file| file.name == *name);
        let (lost_leads, leads): (VecDeque<_>, VecDeque<_>) =
            running.leads.into_iter().partition(is_lost);
        for (_, id) in lost_leads {
            self.on_leader_failed(id, false);
        }
        for (files, leads, is_lost) in [(files, leads, false), (lost, VecDeque::new(), true)] {
            if files.is_empty() {
                continue;
            }
            let kind = if is_lost {
                JobKind::DiscardUnsynced { files }
            } else {
                JobKind::CommitSynced { files }
            };
            self.tree.add_pending(node, 1);
            self.push_urgent(NewJob::leading(node, kind, leads));
        }
        self.complete_one(node);
    }

    /// Lists a directory again. A separate job copies the entries that the lister had kept.
    fn retry_listing(&mut self, node: NodeKey, given_up: GivenUp) {
        let listing = &mut self.tree.dir_mut(node).listing;
        let (Listing::Running(mut listed) | Listing::Repeat(mut listed)) =
            std::mem::replace(listing, Listing::Done)
        else {
            return self.complete_one(node);
        };
        let mut own = std::mem::take(&mut listed.own);
        match given_up {
            GivenUp::Nothing => {}
            GivenUp::Entry(name) => {
                if !own.contains(&name) {
                    // The entry was listed, but its worker died before it reported that.
                    self.summary.counts.found += 1;
                }
                own.remove_all(&[name].into());
            }
            GivenUp::Job => return self.complete_one(node),
        }
        if !own.is_empty() {
            self.tree.add_pending(node, 1);
            let hard_links = HardLinks::Report;
            let kind = JobKind::Entries {
                names: own,
                hard_links,
            };
            self.push(node, kind);
        }
        let next = self.tree.repeat_listing(node, listed);
        self.follow(node, next);
    }
}

impl Running {
    /// Returns the names of the job that are neither settled nor given away.
    pub(super) fn unsettled(&self, names: Names) -> Names {
        self.remaining(names, &GivenUp::Nothing)
    }

    /// Returns the names of the job that are neither settled, given away nor given up.
    fn remaining(&self, mut names: Names, given_up: &GivenUp) -> Names {
        names.split_off(self.shared);
        names.drop_front(self.settled);
        match given_up {
            GivenUp::Nothing => {}
            GivenUp::Entry(name) => names.remove_all(&[name.clone()].into()),
            GivenUp::Job => names.clear(),
        }
        names
    }
}
