//! What follows when workers die, with an engine that only takes notes.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::ffi::OsString;
use std::rc::Rc;

use clap::Parser;

use super::*;
use crate::cli::Cli;
use crate::config::Config;
use crate::fs::path::Kind;
use crate::protocol::entry::{ChunkedFile, Outcome};
use crate::protocol::error::{CopyError, Death, Reason, Step};
use crate::protocol::{EntryError, HardLink, JobUpdate, Report};
use crate::scoreboard::{Scoreboard, WorkerSlot, WriteTarget};
use crate::targets::Targets;

/// Jobs that have been dealt and that no test has taken.
type Deals = Rc<RefCell<Vec<Arc<Job>>>>;

struct Notes {
    deals: Deals,
    busy: Rc<Cell<usize>>,
}

impl Engine for Notes {
    fn room(&self) -> usize {
        8_usize.saturating_sub(self.deals.borrow().len())
    }

    fn idle(&self) -> usize {
        0
    }

    fn busy(&self) -> usize {
        self.busy.get()
    }

    fn deal(&mut self, jobs: Vec<Arc<Job>>) {
        self.deals.borrow_mut().extend(jobs);
    }

    fn waiting(&self, _worker: usize) -> Vec<JobId> {
        Vec::new()
    }

    fn next(&mut self, _patience: Duration) -> Option<Event> {
        None
    }

    fn set_limit(&mut self, _workers: usize) {}

    fn slots(&self) -> usize {
        8
    }

    fn label(&self, worker: usize) -> String {
        worker.to_string()
    }

    fn kill(&mut self, _worker: usize) -> bool {
        true
    }

    fn abandon(&mut self, _worker: usize) {}

    fn shut_down(&mut self, _patience: Duration) -> bool {
        true
    }
}

/// A run that copies a folder, and its deals.
struct Stage {
    dir: tempfile::TempDir,
    run: Scheduler,
    deals: Deals,
    busy: Rc<Cell<usize>>,
}

impl Stage {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("src")).unwrap();
        let paths = ["src", "dst"].map(|name| dir.path().join(name).into_os_string());
        let args = [OsString::from("pcopy"), OsString::from("-q")];
        let cli = Cli::try_parse_from(args.into_iter().chain(paths)).unwrap();
        let config = Config::new(cli).unwrap();
        let targets = Targets::open(&config, 0o022).unwrap();
        let scoreboard = Scoreboard::new(8).unwrap();
        let context = Context {
            config,
            identity: crate::context::Identity::take_over(),
            targets,
            scoreboard,
        };
        let context: &'static Context = Box::leak(Box::new(context));
        let (deals, busy) = (Deals::default(), Rc::default());
        let engine = Box::new(Notes {
            deals: Rc::clone(&deals),
            busy: Rc::clone(&busy),
        });
        let signals = Signals::take_over().unwrap();
        let run = Scheduler::new(context, engine, WorkerLimit::new(Some(2)), signals);
        Self {
            dir,
            run,
            deals,
            busy,
        }
    }

    /// The next job that is dealt.
    fn job(&mut self) -> Arc<Job> {
        self.run.deal();
        self.deals.borrow_mut().remove(0)
    }

    /// A worker begins a job.
    fn begin(&self, worker: usize, job: &Job) -> &'static WorkerSlot {
        let slot = self.run.context.scoreboard.slot(worker);
        assert!(slot.begin_job(job.id));
        slot
    }

    fn tell(&mut self, news: JobUpdate) {
        let report = Report {
            news: vec![news],
            ..Report::default()
        };
        self.run.report(0, report);
    }

    fn ends(&mut self, job: &Job) {
        self.tell(JobUpdate {
            job: job.id,
            ended: true,
            ..JobUpdate::default()
        });
    }

    fn dies(&mut self, worker: usize, job: &Job) {
        self.run.lost(worker, &[job.id], Death::Signal(9));
    }
}

fn name(name: &str) -> Name {
    Name::new(name.as_bytes())
}

fn skipped(job: &Job) -> HashSet<Name> {
    match &job.task {
        JobKind::Directory { skip, .. } => skip.clone(),
        task => panic!("not a folder's job: {task:?}"),
    }
}

fn cleared(job: &Job) -> Vec<Name> {
    job.again.as_ref().unwrap().clear.clone()
}

fn hard_link(of: &str) -> HardLink {
    HardLink {
        names: Names::one(Kind::File, of.as_bytes()),
        inode: FileId { dev: 1, ino: 2 },
        count: 2,
    }
}

/// A worker is making `a`.
fn making_a() -> (Stage, Arc<Job>) {
    let mut stage = Stage::new();
    let job = stage.job();
    let slot = stage.begin(0, &job);
    slot.opened();
    slot.begin_entry(b"a");
    slot.set_writing(WriteTarget::Final);
    (stage, job)
}

/// A worker has died while it made `a`; the job that is to be done again.
fn with_partial() -> (Stage, Arc<Job>) {
    let (mut stage, job) = making_a();
    stage.dies(0, &job);
    let job = stage.job();
    assert_eq!(cleared(&job), [name("a")]);
    (stage, job)
}

/// The next worker makes `a`, hands it on, and dies at `b`.
#[test]
fn what_a_worker_has_made_anew_is_not_removed() {
    let (mut stage, job) = with_partial();
    let slot = stage.begin(1, &job);
    slot.opened();
    slot.begin_entry(b"a");
    stage.tell(JobUpdate {
        job: job.id,
        large: vec![ChunkedFile::sample("a", 1, 1)],
        ..JobUpdate::default()
    });
    slot.begin_entry(b"b");
    slot.set_writing(WriteTarget::Final);
    stage.dies(1, &job);

    let piece = stage.job();
    assert!(matches!(piece.task, JobKind::Chunk { .. }), "{piece:?}");
    stage.ends(&piece);
    let seal = stage.job();
    assert!(matches!(seal.task, JobKind::Commit { .. }), "{seal:?}");
    stage.ends(&seal);
    let job = stage.job();
    assert_eq!(cleared(&job), [name("b")]);
    assert_eq!(skipped(&job), [name("a")].into());
}

/// The same, where `a` is a small file that is nobody else's.
#[test]
fn a_small_file_that_a_worker_has_made_anew_is_not_removed() {
    let (mut stage, job) = with_partial();
    let slot = stage.begin(1, &job);
    slot.opened();
    slot.begin_entry(b"a");
    slot.end_entry(Outcome::Copied);
    slot.begin_entry(b"b");
    stage.dies(1, &job);
    assert!(cleared(&stage.job()).is_empty());
}

/// The worker had ended its deal and not yet told all of it.
#[test]
fn what_is_told_to_be_with_others_is_not_removed() {
    let (mut stage, job) = with_partial();
    let slot = stage.begin(1, &job);
    stage.tell(JobUpdate {
        job: job.id,
        links: vec![hard_link("a")],
        ..JobUpdate::default()
    });
    slot.idle();
    stage.dies(1, &job);
    let link = stage.job();
    stage.ends(&link);
    assert!(cleared(&stage.job()).is_empty());
}

#[test]
fn what_was_not_removed_yet_is_removed_by_the_next_worker() {
    let (mut stage, job) = with_partial();
    stage.begin(1, &job);
    stage.dies(1, &job);
    assert_eq!(cleared(&stage.job()), [name("a")]);
}

/// Of three workers that die while they list, the last two get equally far.
#[test]
fn a_folder_is_given_up_where_two_workers_get_no_further() {
    let mut stage = Stage::new();
    for (worker, done, given_up) in [(0, 10, 0), (1, 20, 0), (2, 20, 1)] {
        let job = stage.job();
        let slot = stage.begin(worker, &job);
        slot.opened();
        for _ in 0..done {
            slot.end_entry(Outcome::Copied);
        }
        slot.begin_folder();
        stage.dies(worker, &job);
        assert_eq!(stage.run.summary.failed, given_up);
    }
    assert!(stage.run.tree.is_empty());
}

#[test]
fn nothing_that_others_have_is_listed_again() {
    let mut stage = Stage::new();
    let folder = stage.job();
    stage.begin(0, &folder).opened();
    let mut shared = Names::one(Kind::File, b"a");
    shared.push(Kind::File, b"bad");
    stage.tell(JobUpdate {
        job: folder.id,
        made: Names::one(Kind::Directory, b"sub"),
        shared,
        ..JobUpdate::default()
    });
    let entries = stage.job();
    assert!(
        matches!(entries.task, JobKind::Entries { .. }),
        "{entries:?}"
    );
    stage.tell(JobUpdate {
        job: entries.id,
        ended: true,
        links: vec![hard_link("a")],
        failures: vec![EntryError {
            name: Some(name("bad")),
            error: CopyError::new(Step::Open, Reason::System(13)),
        }],
        ..JobUpdate::default()
    });
    // The subfolder, and the link as the first of its group.
    let others = [stage.job(), stage.job()];
    stage.dies(0, &folder);
    for job in others {
        stage.ends(&job);
    }
    let again = stage.job();
    assert_eq!(skipped(&again), ["a", "bad", "sub"].map(name).into());
    assert_eq!(stage.run.summary.failed, 1);
}

#[test]
fn a_large_file_fails_once_and_its_other_pieces_are_dropped() {
    let mut stage = Stage::new();
    let folder = stage.job();
    stage.tell(JobUpdate {
        job: folder.id,
        ended: true,
        large: vec![ChunkedFile::sample("a", 1 << 40, 1 << 40)],
        ..JobUpdate::default()
    });
    let pieces: Vec<_> = (0..3).map(|_| stage.job()).collect();
    for piece in &pieces {
        stage.tell(JobUpdate {
            job: piece.id,
            ended: true,
            failures: vec![EntryError {
                name: Some(name("a")),
                error: CopyError::new(Step::Read, Reason::System(5)),
            }],
            ..JobUpdate::default()
        });
    }
    assert_eq!(stage.run.summary.failed, 1);
    // Those that were dealt already are all that is left.
    let rest = std::mem::take(&mut *stage.deals.borrow_mut());
    assert!(rest.len() <= 8, "{}", rest.len());
    for piece in rest {
        stage.ends(&piece);
    }
    let job = stage.job();
    assert!(matches!(job.task, JobKind::Discard { .. }), "{job:?}");
}

#[test]
fn a_worker_that_stopped_all_need_not_live_to_tell() {
    let stage = Stage::new();
    stage.run.context.scoreboard.stop();
    assert_eq!(stage.run.run(), 1);
}

#[test]
fn what_a_dead_worker_left_is_removed_by_a_run_that_stops() {
    let (mut stage, job) = making_a();
    let partial = stage.dir.path().join("dst/a");
    std::fs::write(&partial, "half").unwrap();
    stage.dies(0, &job);
    stage.run.stop();
    stage.run.tidy_up();
    assert!(!partial.exists());
}

#[test]
fn what_could_not_be_dealt_is_dealt_later() {
    let mut stage = Stage::new();
    let job = stage.job();
    // A worker could be started after all.
    stage.busy.set(1);
    let event = Event::NoWorkers { jobs: vec![job.id] };
    stage.run.handle(Some(event));
    assert_eq!(stage.job().task, job.task);
}

#[test]
fn a_run_without_workers_ends() {
    let mut stage = Stage::new();
    let job = stage.job();
    let event = Event::NoWorkers { jobs: vec![job.id] };
    stage.run.handle(Some(event));
    assert_eq!(stage.run.summary.failed, 1);
    assert!(stage.run.stopped.is_some());
}
