//! The parent's side of a run: deals jobs to the engine and takes reports back until every
//! folder is finished.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::board::Making;
use crate::context::Context;
use crate::crew::{self, Crew, Ticks};
use crate::engine::{Death, Engine, Event};
use crate::job::{
    Again, Failure, HardLink, Inode, Job, JobId, Large, Line, News, NotKept, Reason, Report, Step,
    Task,
};
use crate::links::{Decision, Link, Links, Target};
use crate::names::{Name, Names};
use crate::paths::{Paths, Side};
use crate::progress::Progress;
use crate::signals::Signals;
use crate::tally::Tally;
use crate::tree::{FolderId, Tree};
use crate::watch::{Alarm, Watch};

/// Most jobs in one deal. With many small folders to go, dealing them one by one would wake the
/// parent for each.
const DEAL: usize = 16;
/// How long the loop waits for a report before it looks around.
const LOOK_AROUND: Duration = Duration::from_millis(100);
/// How long the first worker is left alone with a folder: ten small files are copied before a
/// second one would have been started.
const HEAD_START: Duration = Duration::from_millis(2);
/// How long a stopped run waits for its workers: they look whether they are to stop after each
/// piece of a file.
const STOPPING: Duration = Duration::from_millis(600);
/// And how long it tidies up then.
const TIDYING: Duration = Duration::from_millis(300);

/// Work that has not been dealt.
enum Todo {
    Task(Part),
    /// Subfolders, to be worked on from the last one.
    Folders {
        parent: FolderId,
        names: Names,
        fresh: bool,
    },
    /// Pieces of a large file, in reverse.
    Pieces {
        folder: FolderId,
        large: Large,
        rest: Vec<(u64, u64)>,
    },
}

/// Where a worker died: at an entry of a folder, or at the folder as such; and of a large file
/// at the piece that begins here.
type Place = (FolderId, Option<Name>, u64);

/// One job's worth.
struct Part {
    folder: FolderId,
    task: Task,
    again: Option<Again>,
    /// Of hard links that are copied as the first of their groups: the file of each.
    firsts: Vec<(Name, Inode)>,
    /// How many of the folder's parts are back when this is done.
    weight: usize,
}

/// A job that has been dealt.
struct Dealt {
    job: Arc<Job>,
    folder: FolderId,
    firsts: Vec<(Name, Inode)>,
    weight: usize,
    /// Entries that it gave away to other jobs.
    shared: usize,
    /// Names that need not be looked at again should its worker die: they failed, or others have
    /// them.
    told: Vec<Name>,
    failed: Vec<Name>,
    folder_failed: bool,
}

/// A file that is being copied in pieces.
struct LargeFile {
    large: Large,
    pieces: usize,
    changed: bool,
    failed: bool,
    first: Option<Inode>,
}

/// A run in progress.
pub(crate) struct Run {
    context: &'static Context,
    engine: Box<dyn Engine>,
    crew: Crew,
    signals: Signals,
    paths: Paths,
    progress: Progress,
    tally: Tally,
    tree: Tree,
    links: Links,
    todo: Vec<Todo>,
    /// Jobs' worth of work in `todo`, about.
    todo_size: usize,
    dealt: HashMap<JobId, Dealt>,
    large: HashMap<(FolderId, Name), LargeFile>,
    /// Folders whose own job was lost while parts of them were out.
    parked: HashMap<FolderId, Part>,
    /// Where a worker died already.
    deaths: HashSet<Place>,
    watch: Watch,
    last_job: JobId,
    head_start: bool,
    stopped: Option<Instant>,
}

impl Run {
    /// A run over all roots.
    pub(crate) fn new(
        context: &'static Context,
        engine: Box<dyn Engine>,
        crew: Crew,
        signals: Signals,
    ) -> Self {
        let mut run = Self {
            context,
            engine,
            crew,
            signals,
            paths: Paths::new(context),
            progress: Progress::new(context.config.progress),
            tally: Tally::default(),
            tree: Tree::default(),
            links: Links::default(),
            todo: Vec::new(),
            todo_size: 0,
            dealt: HashMap::new(),
            large: HashMap::new(),
            parked: HashMap::new(),
            deaths: HashSet::new(),
            watch: Watch::new(context.config.stall_timeout),
            last_job: 0,
            head_start: true,
            stopped: None,
        };
        // The last one first: what is pushed last is dealt first.
        for (root, pair) in context.roots.list.iter().enumerate().rev() {
            let folder = run.tree.open_root(root as u32, pair.fresh);
            let task = match &pair.single {
                None => Task::Folder {
                    fresh: pair.fresh,
                    above: Vec::new(),
                },
                Some(single) => Task::Entries {
                    names: Names::one(single.kind, single.from.as_bytes()),
                    fresh: pair.fresh,
                    first_link: false,
                },
            };
            if pair.single.is_some() {
                context.board.slot(0).found(1);
            }
            run.push(folder, task, 1);
        }
        run
    }

    /// Runs to the end and gives the exit status.
    pub(crate) fn run(mut self) -> i32 {
        while !self.tree.is_empty() {
            self.deal();
            let event = self.engine.next(self.patience());
            self.handle(event);
            self.look_around();
            if let Some(since) = self.stopped {
                let patience = if self.tally.full {
                    STOPPING * 100
                } else {
                    STOPPING
                };
                if self.engine.busy() == 0 || since.elapsed() > patience {
                    self.tidy_up();
                    break;
                }
            }
        }
        self.end()
    }

    fn handle(&mut self, event: Option<Event>) {
        match event {
            Some(Event::Report { worker, report }) => self.report(worker, report),
            Some(Event::Lost {
                worker,
                jobs,
                death,
            }) => self.lost(worker, &jobs, death),
            Some(Event::NoWorkers) => self.no_workers(),
            None => {}
        }
    }

    fn end(mut self) -> i32 {
        let patience = if self.stopped.is_some() {
            TIDYING
        } else {
            STOPPING
        };
        if !self.engine.shut_down(patience) && self.engine.slots() > 0 {
            self.tally.left_behind = self.tally.left_behind.max(1);
        }
        self.progress.end();
        if self.context.config.summary {
            let counts = self.context.board.counts(self.engine.slots());
            let took = self.progress.elapsed();
            let line = self
                .tally
                .summary(&counts, took, self.context.config.dry_run);
            self.progress.error(&line);
        }
        self.tally.exit_status()
    }

    // ---- dealing ----

    fn push(&mut self, folder: FolderId, task: Task, weight: usize) {
        self.push_part(Part {
            folder,
            task,
            again: None,
            firsts: Vec::new(),
            weight,
        });
    }

    fn push_part(&mut self, part: Part) {
        self.todo_size += 1;
        self.todo.push(Todo::Task(part));
    }

    /// A job that was dealt and not begun.
    fn push_again(&mut self, dealt: Dealt) {
        self.push_part(Part {
            folder: dealt.folder,
            task: dealt.job.task.clone(),
            again: dealt.job.again.clone(),
            firsts: dealt.firsts,
            weight: dealt.weight,
        });
    }

    fn deal(&mut self) {
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
        self.context.board.want(idle);
    }

    /// Takes one job, or several small ones.
    fn take(&mut self, most: usize) -> Vec<Arc<Job>> {
        let mut jobs = Vec::new();
        while jobs.len() < most {
            let small = match self.todo.last() {
                Some(Todo::Folders { .. }) => true,
                Some(Todo::Task(part)) => matches!(part.task, Task::Finish { .. }),
                _ => false,
            };
            if !jobs.is_empty() && !small {
                break;
            }
            let Some(part) = self.pop() else {
                break;
            };
            jobs.push(self.open(part));
            if !small {
                break;
            }
        }
        jobs
    }

    fn pop(&mut self) -> Option<Part> {
        self.todo_size = self.todo_size.saturating_sub(1);
        let part = match self.todo.last_mut()? {
            Todo::Task(_) => match self.todo.pop() {
                Some(Todo::Task(part)) => return Some(part),
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
                (
                    Part {
                        folder,
                        task: Task::Folder { fresh, above },
                        again: None,
                        firsts: Vec::new(),
                        weight: 1,
                    },
                    empty,
                )
            }
            Todo::Pieces {
                folder,
                large,
                rest,
            } => {
                let (offset, length) = rest.pop()?;
                let task = Task::Piece {
                    large: large.clone(),
                    offset,
                    length,
                };
                let part = Part {
                    folder: *folder,
                    task,
                    again: None,
                    firsts: Vec::new(),
                    weight: 0,
                };
                (part, rest.is_empty())
            }
        };
        if part.1 {
            self.todo.pop();
        }
        Some(part.0)
    }

    fn open(&mut self, part: Part) -> Arc<Job> {
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

    // ---- reports ----

    fn report(&mut self, worker: usize, report: Report) {
        self.tell_not_kept(report.not_kept);
        for id in report.returned {
            if let Some(dealt) = self.dealt.remove(&id) {
                self.push_again(dealt);
            }
        }
        for news in report.news {
            self.news(worker, news);
        }
    }

    fn news(&mut self, worker: usize, news: News) {
        let Some(dealt) = self.dealt.get_mut(&news.job) else {
            return;
        };
        let folder = dealt.folder;
        for (_, name) in news.made.iter().chain(news.merged.iter()) {
            dealt.told.push(Name::new(name.to_bytes()));
        }
        for (_, name) in news.links.iter().flat_map(|link| link.names.iter()) {
            dealt.told.push(Name::new(name.to_bytes()));
        }
        dealt
            .told
            .extend(news.large.iter().map(|large| large.name.clone()));
        dealt.shared += news.shared.len();

        for failure in news.failures {
            self.failure(news.job, failure);
        }
        self.lines(worker, news.job, &news.lines);
        if let Some(stamp) = news.unfinished {
            let open = self.tree.get_mut(folder);
            if self.context.config.dereference {
                open.above.push(stamp.inode);
            }
            open.unfinished = Some(stamp);
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
            let task = Task::Entries {
                names: news.shared,
                fresh: self.tree.get(folder).fresh,
                first_link: false,
            };
            let again = self.dealt.get(&news.job).and_then(|dealt| {
                let skip = dealt.job.again.as_ref()?.skip.clone();
                Some(Again {
                    skip,
                    ..Again::default()
                })
            });
            self.push_part(Part {
                folder,
                task,
                again,
                firsts: Vec::new(),
                weight: 1,
            });
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
            self.todo.clear();
        }
    }

    fn failure(&mut self, job: JobId, failure: Failure) {
        if failure.reason == Reason::Stopped {
            return;
        }
        let Some(dealt) = self.dealt.get_mut(&job) else {
            return;
        };
        if let Task::Piece { large, .. } = &dealt.job.task {
            let key = (dealt.folder, large.name.clone());
            if let Some(file) = self.large.get_mut(&key) {
                // Sealing looks at the source once more.
                if failure.reason == Reason::Changed {
                    file.changed = true;
                    return;
                }
                if std::mem::replace(&mut file.failed, true) {
                    return;
                }
            }
        }
        match &failure.name {
            Some(name) => {
                dealt.failed.push(name.clone());
                let folder = dealt.folder;
                self.tree.get_mut(folder).failed.push(name.clone());
            }
            None => dealt.folder_failed = true,
        }
        let job = Arc::clone(&self.dealt[&job].job);
        self.tell_failure(&job, &failure);
    }

    fn tell_failure(&mut self, job: &Job, failure: &Failure) {
        let side = if failure.step.at_destination() {
            Side::Destination
        } else {
            Side::Source
        };
        let path = self
            .paths
            .show(side, job.root, &job.path, failure.name.as_ref());
        self.tally.failed += 1;
        self.progress.error(&format!(
            "{path}: {}: {}",
            failure.step.text(),
            failure.reason
        ));
        if failure.is_full_destination() {
            self.tally.full = true;
            self.stop();
        }
    }

    fn lines(&mut self, worker: usize, job: JobId, lines: &[Line]) {
        let Some(job) = self.dealt.get(&job).map(|dealt| Arc::clone(&dealt.job)) else {
            return;
        };
        if lines.is_empty() {
            return;
        }
        let label = self.engine.label(worker);
        let mut text = String::new();
        for line in lines {
            let name = line.name.as_ref();
            let path = self.paths.show(Side::Source, job.root, &job.path, name);
            let slash = if name.is_none() { "/" } else { "" };
            let slash = if path.ends_with('/') { "" } else { slash };
            if self.context.config.dry_run {
                let (verb, reason) = line.action.plan();
                text.push_str(&format!("{verb} {path}{slash} ({reason})\n"));
            } else {
                text.push_str(&format!("{label} {path}{slash}\n"));
            }
        }
        if let Err(error) = self.progress.print(&text) {
            self.tally.failed += 1;
            let reason = error.raw_os_error().map_or(Reason::Bug, Reason::System);
            self.progress.error(&format!(
                "standard output: write: {reason}; going on without"
            ));
        }
    }

    fn tell_not_kept(&mut self, not_kept: NotKept) {
        let before = self.tally.not_kept;
        self.tally.not_kept = before.and(not_kept);
        for (is, was, what) in [
            (not_kept.ownership, before.ownership, "owners"),
            (not_kept.mode, before.mode, "modes"),
            (not_kept.xattr, before.xattr, "some extended attributes"),
            (not_kept.timestamps, before.timestamps, "times"),
        ] {
            if is && !was && self.context.config.summary {
                self.progress.error(&format!(
                    "{what} cannot be kept on the destination's file system; the rest is copied"
                ));
            }
        }
    }

    // ---- what follows from a report ----

    fn job_ended(&mut self, dealt: Dealt) {
        if !self.deaths.is_empty() {
            // A folder that could be worked on is not what its workers died of.
            self.deaths.remove(&(dealt.folder, None, 0));
        }
        for (name, inode) in &dealt.firsts {
            let key = (dealt.folder, name.clone());
            if let Some(file) = self.large.get_mut(&key) {
                file.first = Some(*inode);
            } else {
                let copied = !dealt.failed.contains(name);
                self.first_done(dealt.folder, name, *inode, copied);
            }
        }
        match &dealt.job.task {
            Task::Piece { large, .. } => {
                if dealt.folder_failed {
                    let key = (dealt.folder, large.name.clone());
                    if let Some(file) = self.large.get_mut(&key) {
                        file.failed = true;
                    }
                }
                self.piece_done(dealt.folder, large);
            }
            Task::Seal { large, .. } | Task::Abandon { large } => {
                let key = (dealt.folder, large.name.clone());
                let sealed = matches!(dealt.job.task, Task::Seal { .. });
                let copied = sealed && dealt.failed.is_empty() && !dealt.folder_failed;
                if let Some(inode) = self.large.remove(&key).and_then(|file| file.first) {
                    self.first_done(dealt.folder, &large.name, inode, copied);
                }
            }
            _ => {}
        }
        self.release(dealt.folder, dealt.weight);
    }

    /// Some parts of a folder are back.
    fn release(&mut self, folder: FolderId, parts: usize) {
        let mut next = Some((folder, parts));
        while let Some((folder, parts)) = next.take() {
            let mut last = false;
            for _ in 0..parts {
                last = self.tree.part_done(folder);
            }
            if self.tree.waits_for(folder, 1)
                && let Some(part) = self.parked.remove(&folder)
            {
                self.push_part(part);
            }
            if !last {
                return;
            }
            let open = self.tree.get_mut(folder);
            let fresh = open.fresh;
            if let Some(stamp) = open.unfinished.take() {
                self.tree.add_parts(folder, 1);
                let task = Task::Finish {
                    stamp: *stamp,
                    fresh,
                };
                self.push(folder, task, 1);
            } else {
                next = self.tree.close(folder).map(|above| (above, 1));
            }
        }
    }

    fn hard_links(&mut self, folder: FolderId, links: Vec<HardLink>) {
        let mut copies = Names::default();
        let mut firsts = Vec::new();
        let mut linked: Vec<(Target, Names)> = Vec::new();
        for hard_link in links {
            let Some((kind, name)) = hard_link.names.iter().next() else {
                continue;
            };
            self.tree.add_parts(folder, 1);
            let link = Link {
                folder,
                kind,
                name: Name::new(name.to_bytes()),
            };
            match self.links.found(hard_link.inode, hard_link.count, &link) {
                Decision::Copy => {
                    copies.push(kind, name.to_bytes());
                    firsts.push((link.name, hard_link.inode));
                }
                Decision::LinkTo(target) => linked.push((target, hard_link.names)),
                Decision::Wait => {}
            }
        }
        for (target, names) in linked {
            self.push_link(folder, target, names);
        }
        if !copies.is_empty() {
            self.push_firsts(folder, copies, firsts);
        }
    }

    fn push_firsts(&mut self, folder: FolderId, names: Names, firsts: Vec<(Name, Inode)>) {
        let weight = names.len();
        let task = Task::Entries {
            names,
            fresh: self.tree.get(folder).fresh,
            first_link: true,
        };
        self.push_part(Part {
            folder,
            task,
            again: None,
            firsts,
            weight,
        });
    }

    fn push_link(&mut self, folder: FolderId, target: Target, names: Names) {
        let weight = names.len();
        let task = Task::Link {
            names,
            fresh: self.tree.get(folder).fresh,
            to_root: target.root,
            to_folder: target.folder,
            to_name: target.name,
        };
        self.push(folder, task, weight);
    }

    /// The first one of a group of hard links has been copied, or could not be.
    fn first_done(&mut self, folder: FolderId, name: &Name, inode: Inode, copied: bool) {
        if !copied {
            if let Some(next) = self.links.failed(inode) {
                let names = Names::one(next.kind, next.name.as_bytes());
                self.push_firsts(next.folder, names, vec![(next.name, inode)]);
            }
            return;
        }
        let open = self.tree.get(folder);
        let target = Target {
            root: open.root,
            folder: open.path.clone(),
            name: name.clone(),
        };
        let mut waiting: HashMap<FolderId, Names> = HashMap::new();
        for link in self.links.copied(inode, target.clone()) {
            let names = waiting.entry(link.folder).or_default();
            names.push(link.kind, link.name.as_bytes());
        }
        for (folder, names) in waiting {
            self.push_link(folder, target.clone(), names);
        }
    }

    fn begin_large(&mut self, folder: FolderId, job: JobId, large: Large) {
        let mut rest = large.pieces();
        rest.reverse();
        self.tree.add_parts(folder, 1);
        let first = self.dealt.get(&job).and_then(|dealt| {
            let of = dealt.firsts.iter().find(|(name, _)| *name == large.name);
            of.map(|(_, inode)| *inode)
        });
        let file = LargeFile {
            large: large.clone(),
            pieces: rest.len(),
            changed: false,
            failed: false,
            first,
        };
        self.large.insert((folder, large.name.clone()), file);
        self.todo_size += rest.len();
        self.todo.push(Todo::Pieces {
            folder,
            large,
            rest,
        });
    }

    fn piece_done(&mut self, folder: FolderId, large: &Large) {
        let Some(file) = self.large.get_mut(&(folder, large.name.clone())) else {
            return;
        };
        file.pieces -= 1;
        if file.pieces > 0 {
            return;
        }
        let large = large.clone();
        let task = if file.failed {
            Task::Abandon { large }
        } else {
            Task::Seal {
                large,
                changed: file.changed,
            }
        };
        self.push(folder, task, 1);
    }

    // ---- workers that die ----

    fn lost(&mut self, worker: usize, jobs: &[JobId], death: Death) {
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
    fn partial_of(&self, worker: usize, job: &Job) -> Option<Name> {
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
        dealt: Dealt,
        counted: u64,
        clear: Option<Name>,
        given_up: Option<Option<Name>>,
    ) {
        let folder = dealt.folder;
        let mut again = dealt.job.again.clone().unwrap_or_default();
        let shared = dealt.shared as u64;
        again.clear.extend(clear);
        again.skip.extend(dealt.told.iter().cloned());
        again.skip.extend(dealt.failed.iter().cloned());
        self.tree.get_mut(folder).fresh = false;
        let mut task = dealt.job.task.clone();
        match (&mut task, given_up) {
            (
                Task::Folder { .. }
                | Task::Finish { .. }
                | Task::Entries { .. }
                | Task::Link { .. }
                | Task::Abandon { .. },
                Some(None),
            ) => {
                // Nothing in it can be had.
                let mut dealt = dealt;
                let firsts = dealt.firsts.iter().map(|(name, _)| name.clone());
                dealt.failed.extend(firsts);
                return self.job_ended(dealt);
            }
            (Task::Abandon { .. }, Some(_)) => return self.job_ended(dealt),
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
            (Task::Folder { fresh, .. }, given_up) => {
                *fresh = false;
                again.skip.extend(given_up.flatten());
                again
                    .skip
                    .extend(self.tree.get(folder).failed.iter().cloned());
                again.counted = again.counted.max(counted.saturating_add(shared));
            }
            (Task::Entries { fresh, names, .. }, given_up) => {
                *fresh = false;
                // What it gave away were the last ones.
                names.split_off(dealt.shared);
                self.mark_failed(folder, given_up.flatten(), &mut again);
                again.counted = again.counted.max(counted);
            }
            (Task::Link { fresh, .. }, given_up) => {
                *fresh = false;
                self.mark_failed(folder, given_up.flatten(), &mut again);
                again.counted = again.counted.max(counted);
            }
            (Task::Finish { fresh, .. }, _) => *fresh = false,
            (Task::Piece { .. } | Task::Seal { .. } | Task::Abandon { .. }, None) => {}
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

    fn mark_failed(&mut self, folder: FolderId, name: Option<Name>, again: &mut Again) {
        if let Some(name) = name {
            self.tree.get_mut(folder).failed.push(name.clone());
            again.skip.push(name);
        }
    }

    fn no_workers(&mut self) {
        if self.engine.busy() > 0 {
            return;
        }
        self.tally.failed += 1;
        self.progress
            .error("no worker is left and none can be started; a second run continues");
        self.stop();
    }

    // ---- looking around ----

    fn patience(&self) -> Duration {
        let mut patience = self
            .progress
            .period()
            .unwrap_or(LOOK_AROUND)
            .min(LOOK_AROUND);
        if self.crew.can_grow() {
            patience = patience.min(crew::PERIOD);
        }
        if self.stopped.is_some() {
            patience = patience.min(crew::PERIOD);
        }
        if self.head_start {
            patience = patience.min(HEAD_START);
        }
        patience
    }

    fn look_around(&mut self) {
        if self.stopped.is_none()
            && let Some(signal) = self.signals.caught()
        {
            self.tally.signal = Some(signal);
            self.stop();
        }
        let now = Instant::now();
        self.head_start = self.head_start && self.progress.elapsed() < HEAD_START;
        let board = self.context.board;
        if let Some(limit) = self.crew.look(now, self.engine.busy(), Ticks::now) {
            self.engine.set_limit(limit);
        }
        for alarm in self.watch.look(now, board, self.engine.slots()) {
            self.alarm(alarm);
        }
        if self.progress.period().is_some() {
            let slots = self.engine.slots();
            let counted = !self.is_counting();
            let (paths, dealt) = (&self.paths, &self.dealt);
            self.progress.update(counted, &board.counts(slots), || {
                let current = (0..slots).find_map(|worker| {
                    let slot = board.slot(worker);
                    let entry = Name::new(&slot.entry()?);
                    let dealt = dealt.get(&slot.job()?)?;
                    let job = &dealt.job;
                    Some(paths.show(Side::Source, job.root, &job.path, Some(&entry)))
                });
                current.unwrap_or_default()
            });
        }
    }

    /// True while some folder has not been listed.
    fn is_counting(&self) -> bool {
        let todo = |todo: &Todo| {
            matches!(
                todo,
                Todo::Folders { .. }
                    | Todo::Task(Part {
                        task: Task::Folder { .. },
                        ..
                    })
            )
        };
        let dealt = |dealt: &Dealt| matches!(dealt.job.task, Task::Folder { .. });
        self.todo.iter().any(todo) || self.dealt.values().any(dealt) || !self.parked.is_empty()
    }

    fn alarm(&mut self, alarm: Alarm) {
        let (worker, after) = match alarm {
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

    // ---- stopping ----

    fn stop(&mut self) {
        if self.stopped.is_none() {
            self.stopped = Some(Instant::now());
            self.context.board.stop();
            self.todo.clear();
            self.todo_size = 0;
        }
    }

    /// After a stop: removes what is incomplete and finishes the folders that were open.
    fn tidy_up(&mut self) {
        let stuck: Vec<usize> = (0..self.engine.slots())
            .filter(|&worker| self.context.board.slot(worker).job().is_some())
            .collect();
        let deadline = Instant::now() + TIDYING;
        if self.engine.busy() > 0 || !self.large.is_empty() {
            self.remove_partials(&stuck, deadline);
        }
        for folder in self.tree.open() {
            let open = self.tree.get_mut(folder);
            let fresh = open.fresh;
            if let Some(stamp) = open.unfinished.take() {
                let stamp = *stamp;
                self.push(folder, Task::Finish { stamp, fresh }, 0);
            }
        }
        // From the last pushed: the deepest folder is to be the first.
        self.todo.reverse();
        while Instant::now() < deadline && (!self.todo.is_empty() || self.engine.busy() > 0) {
            while self.engine.room() > 0
                && let Some(part) = self.pop()
            {
                let job = self.open(part);
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
                Some(Event::NoWorkers) => break,
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
        let mut partials = Vec::new();
        for &worker in stuck {
            let slot = context.board.slot(worker);
            let Some(dealt) = slot.job().and_then(|id| self.dealt.get(&id)) else {
                continue;
            };
            let Some(name) = self.partial_of(worker, &dealt.job) else {
                continue;
            };
            let name = name.as_bytes().to_vec();
            partials.push((dealt.job.root as usize, dealt.job.path.clone(), name));
        }
        for ((folder, _), file) in std::mem::take(&mut self.large) {
            let open = self.tree.get(folder);
            let name = file.large.written_as.as_bytes().to_vec();
            partials.push((open.root as usize, open.path.clone(), name));
        }
        let (done, wait) = crossbeam_channel::bounded::<()>(1);
        let thread = std::thread::Builder::new().spawn(move || {
            for (root, path, name) in partials {
                context.roots.remove(root, &path, &name);
            }
            drop(done);
        });
        if thread.is_ok() {
            let _ = wait.recv_deadline(deadline);
        }
    }
}
