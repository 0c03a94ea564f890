//! Tries again at the end of the run what failed for a reason that can pass (`--retries`).
//!
//! **What is deferred stays pending.** So its directory is not finished, and the run does not end,
//! before its last attempt. Until then it is neither counted nor printed: each entry is counted once
//! and failed once. A round begins when nothing else is queued or running. So no entry is worked on
//! twice at a time, and a new job for it needs no other order.
//!
//! A stopped run tries nothing again. What is deferred fails then.

use std::time::Instant;

use super::dispatch::{NewJob, Running};
use super::tree::{Listing, NodeKey};
use super::{Phase, Scheduler};
use crate::fs::path::{Kind, Name, Names};
use crate::protocol::entry::HardLinks;
use crate::protocol::metadata::Incomplete;
use crate::protocol::{EntryError, Job, JobKind};
use crate::ui::{About, Kind as MessageKind};

/// The most failures that are remembered. Each keeps its directory open, about 1 KiB.
const MOST: usize = 10_000;

/// What is to be tried again.
#[derive(Default)]
pub(super) struct Deferred {
    list: Vec<Attempt>,
    /// How often everything deferred was tried again so far.
    rounds: u32,
    /// When the next round begins, once nothing else is to be done.
    next_at: Option<Instant>,
    /// The user knows that no more are remembered.
    is_limit_said: bool,
}

/// Something that has failed and is pending in its node.
struct Attempt {
    node: NodeKey,
    /// The worker that saw it fail.
    worker: String,
    failure: Failure,
    work: Work,
}

/// What is reported if it is not tried again.
enum Failure {
    Error(EntryError),
    Incomplete(Incomplete),
}

/// What is done again.
enum Work {
    Job(JobKind),
    /// The listing of the directory.
    Listing,
}

impl Scheduler {
    /// Returns true if an error can be deferred.
    fn may_defer(&mut self, job: &Job, failure: &Failure) -> bool {
        let limits = &self.context.config.limits;
        if self.deferred.rounds >= limits.retries || self.phase != Phase::Running {
            return false;
        }
        let may_pass = match failure {
            Failure::Error(error) => error.error.may_pass(),
            Failure::Incomplete(incomplete) => {
                !incomplete.failures.is_empty()
                    && incomplete.failures.iter().all(|it| it.reason.may_pass())
            }
        };
        let target = &self.context.targets.list[job.target as usize];
        let is_stream = target.single.as_ref().is_some_and(|it| it.stream.is_some());
        // A pipe can be read only once. If a root is gone, so is everything below it.
        if !may_pass || is_stream {
            return false;
        }
        if let Failure::Error(error) = failure
            && self.is_root_gone(job, &error.error)
        {
            return false;
        }
        if self.deferred.list.len() < MOST {
            return true;
        }
        if !std::mem::replace(&mut self.deferred.is_limit_said, true) {
            let line =
                format!("more than {MOST} failures can pass; the others are not tried again");
            self.ui.say(MessageKind::Warning, &line, &About::default());
        }
        false
    }

    /// Defers the entry that failed, if that may help. Returns true if it does. It is pending in its
    /// directory then.
    pub(super) fn defer_entry(
        &mut self,
        worker: usize,
        node: NodeKey,
        job: &Job,
        error: &EntryError,
    ) -> bool {
        let mut error = error.clone();
        let kind = match &job.kind {
            // A part of a file cannot be tried again: the file has failed. So has it if its
            // directory cannot be opened.
            JobKind::Chunk { file, .. } | JobKind::Commit { file, .. } => {
                error.name = Some(file.name.clone());
                one(Kind::File, &file.name)
            }
            JobKind::HardLinks { leader, .. } => match (&error.kind, &error.name) {
                (Some(kind), Some(name)) => JobKind::HardLinks {
                    names: Names::one(*kind, name.as_bytes()),
                    leader: leader.clone(),
                },
                _ => return false,
            },
            JobKind::Directory { .. } | JobKind::Entries { .. } => {
                match (&error.kind, &error.name) {
                    (Some(kind), Some(name)) => one(*kind, name),
                    _ => return false,
                }
            }
            _ => return false,
        };
        let failure = Failure::Error(error);
        if !self.may_defer(job, &failure) {
            return false;
        }
        if let Some(file) = self.tree.chunked_mut(node) {
            file.is_deferred = true;
        }
        self.defer_in_directory(worker, node, failure, kind);
        true
    }

    /// Defers an entry that lacks metadata. Returns it if that is of no use.
    pub(super) fn defer_incomplete(
        &mut self,
        worker: usize,
        node: NodeKey,
        job: &Job,
        incomplete: Incomplete,
    ) -> Option<Incomplete> {
        let (Some(kind), Some(name)) = (incomplete.kind, incomplete.name.clone()) else {
            return Some(incomplete);
        };
        let failure = Failure::Incomplete(incomplete);
        if self.may_defer(job, &failure) {
            self.defer_in_directory(worker, node, failure, one(kind, &name));
            return None;
        }
        match failure {
            Failure::Incomplete(incomplete) => Some(incomplete),
            Failure::Error(_) => None,
        }
    }

    fn defer_in_directory(
        &mut self,
        worker: usize,
        node: NodeKey,
        failure: Failure,
        kind: JobKind,
    ) {
        let dir = self.tree.dir_key(node);
        self.tree.add_pending(dir, 1);
        self.remember(worker, dir, failure, Work::Job(kind));
    }

    /// Returns true if a whole job that failed with this error can be deferred.
    pub(super) fn may_defer_job(&mut self, job: &Job, error: &EntryError) -> bool {
        let is_whole = matches!(
            job.kind,
            JobKind::Directory { .. }
                | JobKind::Entries { .. }
                | JobKind::HardLinks { .. }
                | JobKind::FinishDirectory { .. }
        );
        is_whole && error.name.is_none() && self.may_defer(job, &Failure::Error(error.clone()))
    }

    /// Defers what is left of a job that has ended. It stays pending in its node.
    pub(super) fn defer_job(&mut self, worker: usize, running: &Running, error: EntryError) {
        let node = running.node;
        let work = match running.job.kind.clone() {
            JobKind::Directory { .. } => {
                let listing = &mut self.tree.dir_mut(node).listing;
                match std::mem::replace(listing, Listing::Done) {
                    Listing::Running(mut listed) | Listing::Repeat(mut listed) => {
                        listed.own = Names::default();
                        *listing = Listing::Deferred(listed);
                    }
                    other => *listing = other,
                }
                // The next attempt lists the destination again too.
                self.tree.dir_mut(node).deletion().forget_extraneous();
                Work::Listing
            }
            JobKind::Entries { names, .. } => {
                let names = running.unsettled(names);
                let hard_links = HardLinks::Report;
                Work::Job(JobKind::Entries { names, hard_links })
            }
            JobKind::HardLinks { names, leader } => {
                let names = running.unsettled(names);
                Work::Job(JobKind::HardLinks { names, leader })
            }
            kind => Work::Job(kind),
        };
        if let Work::Job(JobKind::Entries { names, .. } | JobKind::HardLinks { names, .. }) = &work
        {
            // If the directory is listed again, these are not examined again.
            let names = names.iter().map(|(_, name)| Name::new(name.to_bytes()));
            self.tree.dir_mut(node).hand_out(names);
        }
        self.remember(worker, node, Failure::Error(error), work);
    }

    fn remember(&mut self, worker: usize, node: NodeKey, failure: Failure, work: Work) {
        let worker = self.engine.label(worker);
        let directory = self.tree.dir_mut(node);
        directory.origin.known_empty = false;
        let (target, path) = (directory.target, directory.path.clone());
        self.ui.log_only(Some(&worker), || {
            let what = failure.describe();
            let path = self.ui.show_failed(target, &path, &what);
            format!("{path}; to be tried again")
        });
        self.deferred.list.push(Attempt {
            node,
            worker,
            failure,
            work,
        });
    }

    /// Begins the next round, if nothing else is to be done and the wait is over.
    pub(super) fn try_again(&mut self) {
        let is_busy = !self.queue.is_empty() || !self.running.is_empty();
        if self.deferred.list.is_empty() || is_busy || self.phase != Phase::Running {
            self.deferred.next_at = None;
            return;
        }
        // Listings that were lost wait until nothing of their directories is pending. What is
        // deferred does not disturb them, and they may find more.
        let lost = self.tree.repeats();
        if !lost.is_empty() {
            for node in lost {
                self.push_listing(node);
            }
            return;
        }
        let now = self.engine.now();
        let limits = &self.context.config.limits;
        let (wait, retries) = (limits.retry_wait, limits.retries);
        let next_at = match self.deferred.next_at {
            Some(at) => at,
            None => {
                let at = now + wait;
                self.deferred.next_at = Some(at);
                let failed = self.deferred.list.len();
                self.ui
                    .note_retry(failed, wait, self.deferred.rounds + 1, retries);
                at
            }
        };
        if now < next_at {
            return;
        }
        self.deferred.next_at = None;
        self.deferred.rounds += 1;
        // What is queued last is sent first.
        for attempt in std::mem::take(&mut self.deferred.list).into_iter().rev() {
            let node = attempt.node;
            match attempt.work {
                Work::Job(kind) => self.push_job(NewJob::new(node, kind)),
                // The directory's entries that are tried again are left out.
                Work::Listing => self.push_listing(node),
            }
        }
    }

    /// Reports everything deferred as failed: the run stops.
    pub(super) fn give_up_deferred(&mut self) {
        for attempt in std::mem::take(&mut self.deferred.list) {
            let directory = self.tree.dir(attempt.node);
            let (target, dir) = (directory.target, directory.path.clone());
            let worker = Some(attempt.worker.as_str());
            match attempt.failure {
                Failure::Error(error) => {
                    let is_of_entry = error.name.is_some();
                    let dir_node = self.tree.dir_mut(attempt.node);
                    if is_of_entry || dir_node.add_error(error.error) {
                        self.fail(worker, target, &dir, &error);
                    }
                }
                Failure::Incomplete(incomplete) => {
                    self.fail_incomplete(worker, target, &dir, incomplete);
                }
            }
            if let Work::Listing = attempt.work {
                self.tree.dir_mut(attempt.node).listing = Listing::Done;
                self.has_unlisted = true;
            }
            self.complete_one(attempt.node);
        }
    }
}

impl Failure {
    /// Returns the entry and what is wrong with it.
    fn describe(&self) -> (Option<Name>, String) {
        match self {
            Self::Error(error) => (error.name.clone(), error.message()),
            Self::Incomplete(incomplete) => {
                let errors = incomplete.failures.iter().map(ToString::to_string);
                (
                    incomplete.name.clone(),
                    errors.collect::<Vec<_>>().join("; "),
                )
            }
        }
    }
}

/// Returns the job that copies one entry. If it is a name of several, the parent finds that out anew.
fn one(kind: Kind, name: &Name) -> JobKind {
    JobKind::Entries {
        names: Names::one(kind, name.as_bytes()),
        hard_links: HardLinks::Report,
    }
}
