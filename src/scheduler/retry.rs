//! Workers that are lost: what they had claimed and not reported is done again, or given up.
//!
//! A retry needs no cleaning first, and no order. The new job names the entry that the worker was
//! at, and replaces it whatever it looks like. A job of its own removes a temporary file that the
//! worker left. That name is never used again, so the order does not matter.
//!
//! If no retry is going to replace an incomplete file, because its entry is given up or the run
//! stops, it is removed.

use std::collections::VecDeque;
use std::sync::Arc;

use super::dispatch::{NewJob, Running};
use super::tree::{CrashSite, Listed, Listing, NodeKey};
use super::{Phase, Scheduler};
use crate::copy::temp;
use crate::fs::path::{Name, Names};
use crate::fs::stat::FileId;
use crate::protocol::entry::HardLinks;
use crate::protocol::error::{CopyError, Death, Reason, Step};
use crate::protocol::{EntryError, JobId, JobKind, Retry};
use crate::scoreboard::WriteTarget;
use crate::scoreboard::claims::Claim;

/// The entry that a worker was at when it crashed.
struct Suspect {
    name: Name,
    /// It was being written under its own name, so what is there is incomplete.
    is_incomplete: bool,
}

/// What a retry leaves out, after the second crash at one place.
enum GivenUp {
    Nothing,
    Entry(Name),
    /// Everything that the job has not reported.
    Job,
}

impl Scheduler {
    pub(super) fn on_worker_lost(&mut self, worker: usize, death: Death) {
        self.summary.replaced += 1;
        *self.reported_by(worker) = None;
        let stalled = self.watchdog.forget(worker, self.engine.now());
        let reason = match stalled {
            Some(after) => Reason::Stalled(after.as_secs()),
            None => Reason::Crashed(death),
        };
        let current = self.context.scoreboard.slot(worker).job();
        self.resend_unclaimed(worker);
        let claims = self.context.scoreboard.claims;
        let is_claimed = |(&id, running): (&JobId, &Running)| {
            (claims.look(running.job.claim, id) == Claim::By(worker)).then_some(id)
        };
        let mut claimed: Vec<JobId> = self.running.iter().filter_map(is_claimed).collect();
        // What is queued last is sent first.
        claimed.sort_unstable_by_key(|&id| std::cmp::Reverse(id));
        for id in claimed {
            let Some(running) = self.end_job(id) else {
                continue;
            };
            if Some(id) == current {
                self.remove_temp_of(worker, running.node);
                self.on_crash(worker, running, reason);
            } else {
                // Done, but the report was lost; or never begun.
                let suspect = Suspect::of_retry(&running);
                self.retry(running, suspect, GivenUp::Nothing);
            }
        }
    }

    /// Queues the removal of the temporary file that a lost worker was writing.
    fn remove_temp_of(&mut self, worker: usize, node: NodeKey) {
        let (number, is_chunked) = match self.context.scoreboard.slot(worker).writing() {
            WriteTarget::Temp(number) => (number, false),
            WriteTarget::Chunked(number) => (number, true),
            WriteTarget::Final | WriteTarget::None => return,
        };
        let name = Name::new(temp::name(self.context, worker, number).to_bytes());
        // A file to copy in chunks that the worker has prepared and reported is in use.
        if self
            .tree
            .chunked_files()
            .any(|(_, chunked)| chunked.file.temp == name)
        {
            return;
        }
        if is_chunked {
            self.context.scoreboard.end_chunked();
        }
        self.push_removal(node, name);
    }

    /// Queues the removal of an incomplete file that nobody is going to replace.
    fn push_removal(&mut self, node: NodeKey, name: Name) {
        let dir = self.tree.dir_key(node);
        self.tree.add_pending(dir, 1);
        self.push(dir, JobKind::Remove { name });
    }

    /// Does the job again at which a worker crashed. After the second crash at an entry, leaves that
    /// entry out.
    fn on_crash(&mut self, worker: usize, running: Running, reason: Reason) {
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
        if self.tree.add_strike(running.node, site) {
            let is_incomplete = slot.writing() == WriteTarget::Final;
            let suspect = entry.map(|name| Suspect {
                name,
                is_incomplete,
            });
            return self.retry(running, suspect, GivenUp::Nothing);
        }
        let step = match (&entry, &running.job.kind) {
            (None, JobKind::Directory { .. }) => Step::ListDirectory,
            (None, _) => Step::OpenDirectory,
            (Some(_), _) => Step::Copy,
        };
        let is_known =
            matches!(running.job.kind, JobKind::Chunk { .. }) && !self.fail_chunked(running.node);
        if !is_known {
            let error = EntryError {
                name: entry.clone(),
                error: CopyError::new(step, reason),
            };
            self.report_error(&Arc::clone(&running.job), &error);
        }
        // The second worker may have been about to replace what the first one had left.
        let left_by_first = Suspect::of_retry(&running).filter(|it| it.is_incomplete);
        if let Some(entry) = entry.clone()
            && (slot.writing() == WriteTarget::Final
                || left_by_first.is_some_and(|left| left.name == entry))
        {
            let name = self.name_at_destination(running.job.target, entry);
            self.push_removal(running.node, name);
        }
        self.tree.dir_mut(running.node).hand_out(entry.clone());
        let given_up = entry.map_or(GivenUp::Job, GivenUp::Entry);
        self.retry(running, None, given_up);
    }

    /// Does the unreported part of a job again.
    fn retry(&mut self, running: Running, suspect: Option<Suspect>, given_up: GivenUp) {
        let node = running.node;
        self.tree.dir_mut(node).origin.known_empty = false;
        let is_given_up = !matches!(given_up, GivenUp::Nothing);
        match running.job.kind.clone() {
            JobKind::Directory { .. } => self.retry_listing(node, suspect, given_up),
            JobKind::Entries { names, hard_links } => {
                let names = running.remaining(names, &given_up);
                // A leader that is given up leaves it to the next one.
                let is_left = |(name, _): &(Name, FileId)| contains(&names, name);
                let (leads, lost): (VecDeque<_>, VecDeque<_>) =
                    running.leads.into_iter().partition(is_left);
                for (_, id) in lost {
                    self.on_leader_failed(id);
                }
                if names.is_empty() {
                    return self.complete_one(node);
                }
                let kind = JobKind::Entries { names, hard_links };
                self.push_job(NewJob {
                    leads,
                    ..NewJob::retry(node, kind, suspect)
                });
            }
            JobKind::HardLinks { names, leader } => {
                let names = running.remaining(names, &given_up);
                if names.is_empty() {
                    return self.complete_one(node);
                }
                let kind = JobKind::HardLinks { names, leader };
                self.push_job(NewJob::retry(node, kind, suspect));
            }
            JobKind::Commit { file, .. } if is_given_up => {
                self.push_job(NewJob::retry(node, JobKind::Discard { file }, suspect));
            }
            JobKind::Discard { .. } if is_given_up => {
                self.end_chunked(node, false);
                self.complete_one(node);
            }
            _ if is_given_up => self.complete_one(node),
            kind => self.push_job(NewJob::retry(node, kind, suspect)),
        }
        if self.phase != Phase::Running {
            self.drop_queue();
        }
    }

    /// Lists a directory again. A job of its own copies the entries that the lister had kept to
    /// itself.
    fn retry_listing(&mut self, node: NodeKey, suspect: Option<Suspect>, given_up: GivenUp) {
        let listing = &mut self.tree.dir_mut(node).listing;
        let (Listing::Running(mut listed) | Listing::Repeat(mut listed)) =
            std::mem::replace(listing, Listing::Done)
        else {
            return self.complete_one(node);
        };
        let mut own = std::mem::take(&mut listed.own);
        match given_up {
            GivenUp::Nothing => {}
            GivenUp::Entry(name) => own.remove_all(&[name].into()),
            GivenUp::Job => return self.complete_one(node),
        }
        // Only one of the two jobs replaces it.
        let (own_suspect, suspect) = match suspect {
            Some(suspect) if contains(&own, &suspect.name) => (Some(suspect), None),
            suspect => (None, suspect),
        };
        if !own.is_empty() {
            self.tree.add_pending(node, 1);
            let kind = JobKind::Entries {
                names: own,
                hard_links: HardLinks::Report,
            };
            self.push_job(NewJob::retry(node, kind, own_suspect));
        }
        let listed = Listed {
            is_suspect_incomplete: suspect.as_ref().is_some_and(|it| it.is_incomplete),
            suspect: suspect.map(|it| it.name),
            ..listed
        };
        let next = self.tree.repeat_listing(node, listed);
        self.follow(node, next);
    }
}

impl Suspect {
    /// Returns the suspect of a job that is a retry itself.
    fn of_retry(running: &Running) -> Option<Self> {
        let retry = running.job.retry.as_ref()?;
        Some(Self {
            name: retry.suspect.clone()?,
            is_incomplete: running.is_suspect_incomplete,
        })
    }
}

impl NewJob {
    fn retry(node: NodeKey, kind: JobKind, suspect: Option<Suspect>) -> Self {
        Self {
            is_suspect_incomplete: suspect.as_ref().is_some_and(|it| it.is_incomplete),
            retry: Some(Retry {
                suspect: suspect.map(|it| it.name),
            }),
            ..Self::new(node, kind)
        }
    }
}

impl Running {
    /// Returns the job that copies names which the worker of this one gave away. What it has to
    /// know of an earlier crash goes with them.
    pub(super) fn shared_job(&mut self, dir: NodeKey, names: Names) -> NewJob {
        let suspect = Suspect::of_retry(self).filter(|it| contains(&names, &it.name));
        if suspect.is_some() {
            self.is_suspect_incomplete = false;
        }
        let kind = JobKind::Entries {
            names,
            hard_links: HardLinks::Report,
        };
        match self.job.retry {
            Some(_) => NewJob::retry(dir, kind, suspect),
            None => NewJob::new(dir, kind),
        }
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

fn contains(names: &Names, name: &Name) -> bool {
    names.iter().any(|(_, it)| it.to_bytes() == name.as_bytes())
}
