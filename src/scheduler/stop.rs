//! A run that is stopped, and tidies up.

use std::time::Instant;

use super::{Scheduler, TIDYING, Todo};
use crate::engine::Event;
use crate::protocol::JobKind;

impl Scheduler {
    pub(super) fn stop(&mut self) {
        if self.stopped.is_none() {
            self.stopped = Some(Instant::now());
            self.context.scoreboard.stop();
            self.drop_todo();
        }
    }

    /// Forgets what has not been dealt, but for folders that only want to be finished.
    pub(super) fn drop_todo(&mut self) {
        let is_dropped = |todo: &mut Todo| match todo {
            Todo::JobKind(part) => !matches!(part.task, JobKind::FinishDirectory { .. }),
            Todo::Folders { .. } | Todo::Pieces { .. } => true,
        };
        let dropped: Vec<Todo> = self.todo.extract_if(.., is_dropped).collect();
        let parts = dropped.into_iter().filter_map(|todo| match todo {
            Todo::JobKind(part) => Some(part),
            Todo::Folders { .. } | Todo::Pieces { .. } => None,
        });
        for part in parts.chain(self.parked.drain().map(|(_, part)| part)) {
            // Its worker died, and nobody is going to do it again.
            let open = self.tree.get(part.folder);
            let names = part.again.into_iter().flat_map(|again| again.clear);
            let partial = |name| (open.root as usize, open.path.clone(), name);
            self.partials.extend(names.map(partial));
        }
        self.todo_size = self.todo.len();
    }

    /// After a stop: removes what is incomplete and finishes the folders that were open.
    pub(super) fn tidy_up(&mut self) {
        let stuck: Vec<usize> = (0..self.engine.slots())
            .filter(|&worker| self.context.scoreboard.slot(worker).job().is_some())
            .collect();
        let deadline = Instant::now() + TIDYING;
        self.drop_todo();
        if self.engine.busy() > 0 || !self.large.is_empty() || !self.partials.is_empty() {
            self.remove_partials(&stuck, deadline);
        }
        for folder in self.tree.open() {
            let open = self.tree.get_mut(folder);
            let fresh = open.fresh;
            if let Some(stamp) = open.unfinished.take() {
                let stamp = *stamp;
                self.push(folder, JobKind::FinishDirectory { stamp, fresh }, 0);
            }
        }
        // From the last pushed: the deepest folder is to be the first.
        self.todo.reverse();
        while Instant::now() < deadline && (!self.todo.is_empty() || self.engine.busy() > 0) {
            while self.engine.room() > 0
                && let Some(part) = self.pop()
            {
                let job = self.open(part, None);
                self.engine.deal(vec![job]);
            }
            match self
                .engine
                .next(deadline.saturating_duration_since(Instant::now()))
            {
                Some(Event::Report { report, .. }) => {
                    for id in report.news.iter().filter(|n| n.ended).map(|n| n.job) {
                        self.dealt.remove(&id);
                    }
                }
                Some(Event::NoWorkers { .. }) => break,
                Some(Event::Lost { .. }) | None => {}
            }
        }
    }

    /// Ends workers that do not stop, where that can be done. Removes what they were writing, and
    /// large files of which pieces are missing: in a thread of its own, for the file system may
    /// be what they hang in, and not by workers, of whom there may be none in time.
    fn remove_partials(&mut self, stuck: &[usize], deadline: Instant) {
        for &worker in stuck {
            self.engine.kill(worker);
        }
        let context = self.context;
        let mut partials = std::mem::take(&mut self.partials);
        for &worker in stuck {
            let slot = context.scoreboard.slot(worker);
            let Some(dealt) = slot.job().and_then(|id| self.dealt.get(&id)) else {
                continue;
            };
            let Some(name) = self.partial_of(worker, &dealt.job) else {
                continue;
            };
            partials.push((dealt.job.root as usize, dealt.job.path.clone(), name));
        }
        for ((folder, _), file) in std::mem::take(&mut self.large) {
            let open = self.tree.get(folder);
            let name = file.large.temp;
            partials.push((open.root as usize, open.path.clone(), name));
        }
        let (done, wait) = crossbeam_channel::bounded::<()>(1);
        let thread = std::thread::Builder::new().spawn(move || {
            for (root, path, name) in partials {
                context.targets.remove(root, &path, name.as_bytes());
            }
            drop(done);
        });
        if thread.is_ok() {
            let _ = wait.recv_deadline(deadline);
        }
    }
}
