//! Reports of workers: what they found, and what is to be told of it.

use std::sync::Arc;

use super::{Scheduler, Todo};
use crate::fs::path::Name;
use crate::protocol::entry::HardLinks;
use crate::protocol::error::Reason;
use crate::protocol::{EntryError, Job, JobId, JobKind, JobUpdate, Line, Report};

impl Scheduler {
    pub(super) fn report(&mut self, worker: usize, report: Report) {
        self.summary.not_kept = self.summary.not_kept.and(report.not_kept);
        self.ui.warn_not_kept(report.not_kept);
        for id in report.returned {
            self.give_back(id);
        }
        for news in report.news {
            self.news(worker, news);
        }
    }

    fn news(&mut self, worker: usize, news: JobUpdate) {
        let Some(dealt) = self.dealt.get_mut(&news.job) else {
            return;
        };
        let folder = dealt.folder;
        let of_links = news.links.iter().map(|link| &link.names);
        let lists = [&news.made, &news.merged].into_iter().chain(of_links);
        let names = lists.flat_map(|names| names.iter().map(|(_, name)| name.to_bytes()));
        let large = news.large.iter().map(|large| large.name.as_bytes());
        let told: Vec<Name> = names.chain(large).map(Name::new).collect();
        if !matches!(dealt.job.task, JobKind::Directory { .. }) {
            self.tree.leave_out(folder, told.iter().cloned());
        }
        dealt.told.extend(told);
        dealt.shared += news.shared.len();

        for failure in news.failures {
            self.failure(news.job, failure);
        }
        self.lines(worker, news.job, &news.lines);
        if let Some(stamp) = news.unfinished {
            let open = self.tree.get_mut(folder);
            open.unfinished = Some(stamp);
        }
        if let Some(pair) = news.pair {
            let above = &mut self.tree.get_mut(folder).above;
            // A worker before this one may have told it.
            if above.last() != Some(&pair) {
                above.push(pair);
            }
        }
        for (names, fresh) in [(news.made, true), (news.merged, false)] {
            if !names.is_empty() {
                self.tree.add_parts(folder, names.len());
                self.todo_size += names.len();
                self.todo.push(Todo::Folders {
                    parent: folder,
                    names,
                    fresh,
                });
            }
        }
        if !news.shared.is_empty() {
            self.tree.add_parts(folder, 1);
            let task = JobKind::Entries {
                names: news.shared,
                fresh: self.tree.get(folder).fresh,
                hard_links: HardLinks::Report,
            };
            self.push(folder, task, 1);
        }
        self.hard_links(folder, news.links);
        for large in news.large {
            self.begin_large(folder, news.job, large);
        }
        if news.ended
            && let Some(dealt) = self.dealt.remove(&news.job)
        {
            self.job_ended(dealt);
        }
        if self.stopped.is_some() {
            self.drop_todo();
        }
    }

    fn failure(&mut self, job: JobId, failure: EntryError) {
        if failure.error.reason == Reason::Stopped {
            return;
        }
        let Some(dealt) = self.dealt.get_mut(&job) else {
            return;
        };
        let (folder, job) = (dealt.folder, Arc::clone(&dealt.job));
        match &failure.name {
            Some(name) => dealt.failed.push(name.clone()),
            None => dealt.folder_failed = true,
        }
        self.tree.leave_out(folder, failure.name.clone());
        if let JobKind::Chunk { large, .. } = &job.task
            && let Some(file) = self.large.get_mut(&(folder, large.name.clone()))
        {
            // Sealing looks at the source once more.
            if failure.error.reason == Reason::Changed {
                file.changed = true;
                return;
            }
            if !self.large_failed(folder, large) {
                return;
            }
        }
        self.tell_failure(&job, &failure);
    }

    pub(super) fn tell_failure(&mut self, job: &Job, failure: &EntryError) {
        self.summary.failed += 1;
        self.ui
            .print_entry_error(job.root, &job.path, failure.name.as_ref(), &failure.error);
        if failure.error.is_full_destination() {
            self.summary.is_full = true;
            self.stop();
        }
    }

    fn lines(&mut self, worker: usize, job: JobId, lines: &[Line]) {
        let Some(job) = self.dealt.get(&job).map(|dealt| Arc::clone(&dealt.job)) else {
            return;
        };
        let label = self.engine.label(worker);
        let printed = self.ui.print_entries(&label, job.root, &job.path, lines);
        if let Err(error) = printed {
            self.summary.failed += 1;
            self.ui.warn_stdout_failed(&error);
        }
    }
}
