//! The parent's side of a run: deals jobs to the engine and takes reports back until every
//! folder is finished.

pub(crate) mod autoscale;
mod deal;
mod follow;
mod hard_links;
mod loss;
mod report;
mod stop;
#[cfg(test)]
mod tests;
mod tree;
mod watchdog;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::autoscale::{Ticks, WorkerLimit};
use crate::context::Context;
use crate::engine::{Engine, Event};
use crate::fs::path::{Name, Names, RelPath};
use crate::fs::stat::FileId;
use crate::protocol::entry::{Chunk, ChunkedFile, HardLinks};
use crate::protocol::{Again, Job, JobId, JobKind};
use crate::scheduler::hard_links::Links;
use crate::scheduler::tree::{FolderId, Tree};
use crate::scheduler::watchdog::Watchdog;
use crate::signals::Signals;
use crate::ui::paths::{Paths, Side};
use crate::ui::progress::Progress;
use crate::ui::summary::Summary;

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
    JobKind(Part),
    /// Subfolders, to be worked on from the last one.
    Folders {
        parent: FolderId,
        names: Names,
        fresh: bool,
    },
    /// Pieces of a large file, in reverse.
    Pieces {
        folder: FolderId,
        large: ChunkedFile,
        rest: Vec<Chunk>,
    },
}

/// Where a worker died: at an entry of a folder, or at the folder as such when so many entries
/// were done; and of a large file at the piece that begins here.
type Place = (FolderId, Option<Name>, u64);

/// One job's worth.
struct Part {
    folder: FolderId,
    task: JobKind,
    again: Option<Again>,
    /// Of hard links that are copied as the first of their groups: the file of each.
    firsts: Vec<(Name, FileId)>,
    /// How many of the folder's parts are back when this is done.
    weight: usize,
}

impl Part {
    fn new(folder: FolderId, task: JobKind, weight: usize) -> Self {
        Self {
            folder,
            task,
            again: None,
            firsts: Vec::new(),
            weight,
        }
    }
}

/// A job that has been dealt.
struct Dealt {
    job: Arc<Job>,
    /// The first job of its deal.
    deal: JobId,
    folder: FolderId,
    firsts: Vec<(Name, FileId)>,
    weight: usize,
    /// Entries that it gave away to other jobs.
    shared: usize,
    /// Names that others have now: they are left out should its worker die.
    told: Vec<Name>,
    failed: Vec<Name>,
    folder_failed: bool,
}

/// A file that is being copied in pieces.
struct LargeFile {
    large: ChunkedFile,
    pieces: usize,
    changed: bool,
    failed: bool,
    first: Option<FileId>,
}

/// A run in progress.
pub(crate) struct Scheduler {
    context: &'static Context,
    engine: Box<dyn Engine>,
    crew: WorkerLimit,
    signals: Signals,
    paths: Paths,
    progress: Progress,
    tally: Summary,
    tree: Tree,
    links: Links,
    todo: Vec<Todo>,
    /// Jobs' worth of work in `todo`, about.
    todo_size: usize,
    dealt: HashMap<JobId, Dealt>,
    large: HashMap<(FolderId, Name), LargeFile>,
    /// Folders whose own job was lost while parts of them were out.
    parked: HashMap<FolderId, Part>,
    /// What workers that died have left, once the run is stopped: root, folder and name.
    partials: Vec<(usize, RelPath, Name)>,
    /// Where a worker died already.
    deaths: HashSet<Place>,
    watch: Watchdog,
    last_job: JobId,
    head_start: bool,
    stopped: Option<Instant>,
}

impl Scheduler {
    /// A run over all roots.
    pub(crate) fn new(
        context: &'static Context,
        engine: Box<dyn Engine>,
        crew: WorkerLimit,
        signals: Signals,
    ) -> Self {
        let mut run = Self {
            context,
            engine,
            crew,
            signals,
            paths: Paths::new(context),
            progress: Progress::new(context.config.progress),
            tally: Summary::default(),
            tree: Tree::default(),
            links: Links::default(),
            todo: Vec::new(),
            todo_size: 0,
            dealt: HashMap::new(),
            large: HashMap::new(),
            parked: HashMap::new(),
            partials: Vec::new(),
            deaths: HashSet::new(),
            watch: Watchdog::new(context.config.stall_timeout),
            last_job: 0,
            head_start: true,
            stopped: None,
        };
        // The last one first: what is pushed last is dealt first.
        for (root, pair) in context.roots.list.iter().enumerate().rev() {
            let folder = run.tree.open_root(root as u32, pair.fresh);
            let task = match &pair.single {
                None => JobKind::Directory {
                    fresh: pair.fresh,
                    above: Vec::new(),
                    skip: HashSet::new(),
                },
                Some(single) => JobKind::Entries {
                    names: Names::one(single.kind, single.from.as_bytes()),
                    fresh: pair.fresh,
                    hard_links: HardLinks::Report,
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
                let patience = if self.tally.full && self.tally.signal.is_none() {
                    STOPPING * 100
                } else {
                    STOPPING
                };
                if self.engine.busy() == 0 || since.elapsed() > patience {
                    // What several workers said in one moment is told one by one.
                    while self.engine.busy() == 0
                        && let Some(event) = self.engine.next(Duration::ZERO)
                    {
                        self.handle(Some(event));
                    }
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
            Some(Event::NoWorkers { jobs }) => self.no_workers(jobs),
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

    fn patience(&self) -> Duration {
        let mut patience = self
            .progress
            .period()
            .unwrap_or(LOOK_AROUND)
            .min(LOOK_AROUND);
        if self.crew.can_grow() {
            patience = patience.min(autoscale::PERIOD);
        }
        if self.stopped.is_some() {
            patience = patience.min(autoscale::PERIOD);
        }
        if self.head_start {
            patience = patience.min(HEAD_START);
        }
        patience
    }

    fn look_around(&mut self) {
        if self.tally.signal.is_none()
            && let Some(signal) = self.signals.caught()
        {
            self.tally.signal = Some(signal);
            self.stop();
        }
        if self.stopped.is_none() && self.context.board.is_stopping() {
            // A worker has stopped all, since nothing more can be written. It may have died
            // before it could say so.
            self.tally.full = true;
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
                    let entry = slot.entry()?;
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
                    | Todo::JobKind(Part {
                        task: JobKind::Directory { .. },
                        ..
                    })
            )
        };
        let dealt = |dealt: &Dealt| matches!(dealt.job.task, JobKind::Directory { .. });
        self.todo.iter().any(todo) || self.dealt.values().any(dealt) || !self.parked.is_empty()
    }
}
