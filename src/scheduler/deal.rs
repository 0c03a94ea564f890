//! What is to be done, cut into jobs, and dealt.

use std::collections::HashSet;
use std::sync::Arc;

use super::{Dealt, Part, Scheduler, Todo};
use crate::protocol::{Job, JobId, JobKind};
use crate::scheduler::tree::FolderId;

/// Most jobs in one deal. With many small folders to go, dealing them one by one would wake the
/// parent for each.
const DEAL: usize = 16;

impl Scheduler {
    pub(super) fn push(&mut self, folder: FolderId, task: JobKind, weight: usize) {
        self.push_part(Part::new(folder, task, weight));
    }

    pub(super) fn push_part(&mut self, part: Part) {
        self.todo_size += 1;
        self.todo.push(Todo::JobKind(part));
    }

    /// A job that comes back, dealt and not begun.
    pub(super) fn give_back(&mut self, job: JobId) {
        if let Some(dealt) = self.dealt.remove(&job) {
            self.push_again(dealt);
        }
    }

    /// A job that was dealt and not begun.
    pub(super) fn push_again(&mut self, dealt: Dealt) {
        self.push_part(Part {
            folder: dealt.folder,
            task: dealt.job.task.clone(),
            again: dealt.job.again.clone(),
            firsts: dealt.firsts,
            weight: dealt.weight,
        });
    }

    pub(super) fn deal(&mut self) {
        while self.stopped.is_none() && self.engine.room() > 0 {
            let share = self.todo_size / (4 * self.crew.limit());
            let jobs = self.take(share.clamp(1, DEAL));
            if jobs.is_empty() {
                break;
            }
            self.engine.deal(jobs);
        }
        let wanted = self.todo.is_empty() && !self.head_start;
        let idle = if wanted { self.engine.idle() } else { 0 };
        self.context.scoreboard.want(idle);
    }

    /// Takes one job, or several small ones.
    fn take(&mut self, most: usize) -> Vec<Arc<Job>> {
        let mut jobs = Vec::new();
        while jobs.len() < most {
            let small = match self.todo.last() {
                Some(Todo::Folders { .. }) => true,
                Some(Todo::JobKind(part)) => matches!(part.task, JobKind::FinishDirectory { .. }),
                _ => false,
            };
            if !jobs.is_empty() && !small {
                break;
            }
            let Some(part) = self.pop() else {
                break;
            };
            let deal = jobs.first().map(|job: &Arc<Job>| job.id);
            jobs.push(self.open(part, deal));
            if !small {
                break;
            }
        }
        jobs
    }

    pub(super) fn pop(&mut self) -> Option<Part> {
        self.todo_size = self.todo_size.saturating_sub(1);
        let (part, is_last) = match self.todo.last_mut()? {
            Todo::JobKind(_) => match self.todo.pop() {
                Some(Todo::JobKind(part)) => return Some(part),
                _ => return None,
            },
            Todo::Folders {
                parent,
                names,
                fresh,
            } => {
                let (parent, fresh) = (*parent, *fresh);
                let (_, name) = names.pop()?;
                let empty = names.is_empty();
                let folder = self.tree.open_below(parent, &name, fresh);
                let above = self.tree.get(folder).above.clone();
                let task = JobKind::Directory {
                    fresh,
                    above,
                    skip: HashSet::new(),
                };
                (Part::new(folder, task, 1), empty)
            }
            Todo::Pieces {
                folder,
                large,
                rest,
            } => {
                let chunk = rest.pop()?;
                let task = JobKind::Chunk {
                    large: large.clone(),
                    chunk,
                };
                (Part::new(*folder, task, 0), rest.is_empty())
            }
        };
        if is_last {
            self.todo.pop();
        }
        Some(part)
    }

    /// Makes a job, in the deal that this job begins or in one of its own.
    pub(super) fn open(&mut self, part: Part, deal: Option<JobId>) -> Arc<Job> {
        self.last_job += 1;
        let folder = self.tree.get(part.folder);
        let job = Arc::new(Job {
            id: self.last_job,
            root: folder.root,
            path: folder.path.clone(),
            task: part.task,
            again: part.again,
        });
        self.dealt.insert(
            job.id,
            Dealt {
                job: Arc::clone(&job),
                deal: deal.unwrap_or(job.id),
                folder: part.folder,
                firsts: part.firsts,
                weight: part.weight,
                shared: 0,
                told: Vec::new(),
                failed: Vec::new(),
                folder_failed: false,
            },
        );
        job
    }
}
