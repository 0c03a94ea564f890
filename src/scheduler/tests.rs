//! Tests crashes of workers, with an engine that only records jobs.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::ffi::OsString;
use std::rc::Rc;
use std::sync::Arc;

use clap::Parser;

use super::*;
use crate::cli::Cli;
use crate::config::Config;
use crate::context::Identity;
use crate::engine::{LostNode, Sent};
use crate::fs::path::Kind;
use crate::fs::stat::FileId;
use crate::protocol::entry::ChunkedFile;
use crate::protocol::error::{CopyError, Death, Reason, Step};
use crate::protocol::{EntryError, HardLinkEntry, JobProgress, JobUpdate, Report};
use crate::scoreboard::{Scoreboard, WorkerSlot, WriteTarget};
use crate::targets::Targets;
use crate::ui::Outputs;

/// Jobs that were sent and that no test has taken.
type SentJobs = Rc<RefCell<Vec<Arc<Job>>>>;

const WORKERS: usize = 8;

struct Notes {
    sent: SentJobs,
    busy: Rc<Cell<usize>>,
    has_workers: Rc<Cell<bool>>,
}

impl Engine for Notes {
    fn free_slots(&self) -> usize {
        8_usize.saturating_sub(self.sent.borrow().len())
    }

    fn idle(&self) -> usize {
        0
    }

    fn busy(&self) -> usize {
        self.busy.get()
    }

    fn send(&mut self, batch: Vec<Arc<Job>>) -> Sent {
        if !self.has_workers.get() {
            return Sent::NoWorkers;
        }
        self.sent.borrow_mut().extend(batch);
        Sent::ToAll
    }

    fn next(&mut self, _timeout: Duration) -> Option<Event> {
        None
    }

    fn set_limit(&mut self, _workers: usize) {}

    fn set_stuck(&mut self, _worker: usize, _is_stuck: bool) {}

    fn has_work(&self, _worker: usize) -> bool {
        false
    }

    fn started(&self) -> usize {
        WORKERS
    }

    fn label(&self, worker: usize) -> String {
        worker.to_string()
    }

    fn kill(&mut self, _worker: usize) -> bool {
        true
    }

    fn abandon(&mut self, _worker: usize) {}

    fn shut_down(&mut self, _timeout: Duration, _kill_timeout: Duration) -> usize {
        0
    }
}

/// A run that copies a directory, and what it sends.
struct Stage {
    dir: tempfile::TempDir,
    run: Scheduler,
    sent: SentJobs,
    busy: Rc<Cell<usize>>,
    has_workers: Rc<Cell<bool>>,
}

impl Stage {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("src")).unwrap();
        let paths = ["src", "dst"].map(|name| dir.path().join(name).into_os_string());
        let words = ["pcopy", "-q"].map(OsString::from).into_iter().chain(paths);
        let config = Config::new(Cli::try_parse_from(words).unwrap()).unwrap();
        let identity = Identity::read();
        let targets = Targets::open(&config, identity.umask).unwrap();
        let scoreboard = Scoreboard::new(WORKERS, 256, WORKERS).unwrap();
        let context: &'static Context = Box::leak(Box::new(Context {
            config,
            identity,
            targets,
            scoreboard,
        }));
        let (sent, busy) = (SentJobs::default(), Rc::default());
        let has_workers = Rc::new(Cell::new(true));
        let engine = Box::new(Notes {
            sent: Rc::clone(&sent),
            busy: Rc::clone(&busy),
            has_workers: Rc::clone(&has_workers),
        });
        let signals = Signals::take_over().unwrap();
        let run = Scheduler::new(
            context,
            engine,
            WorkerLimit::new(Some(2)),
            signals,
            Outputs::default(),
        );
        Self {
            dir,
            run,
            sent,
            busy,
            has_workers,
        }
    }

    /// Returns the next job that is sent.
    fn job(&mut self) -> Arc<Job> {
        self.run.dispatch();
        self.sent.borrow_mut().remove(0)
    }

    fn claim(&self, worker: usize, job: &Job) {
        let claims = self.run.context.scoreboard.claims;
        assert!(claims.claim(job.claim, job.id, worker));
    }

    /// Has a worker claim and begin a job.
    fn begin(&self, worker: usize, job: &Job) -> WorkerSlot {
        self.claim(worker, job);
        let slot = self.run.context.scoreboard.slot(worker);
        slot.begin_job(job.id);
        slot
    }

    fn report(&mut self, worker: usize, update: JobUpdate) {
        let report = Report {
            updates: vec![update],
            ..Report::default()
        };
        self.run.handle_report(worker, report);
    }

    fn end(&mut self, worker: usize, job: &Job) {
        self.report(worker, done(job));
    }

    fn run_job(&mut self, worker: usize, job: &Job) {
        self.begin(worker, job);
        self.end(worker, job);
    }

    fn crash(&mut self, worker: usize) {
        self.run.on_worker_lost(worker, Death::Signal(9));
    }
}

fn name(name: &str) -> Name {
    Name::new(name.as_bytes())
}

fn files<const N: usize>(of: [&str; N]) -> Names {
    let mut names = Names::default();
    for name in of {
        names.push(Kind::File, name.as_bytes());
    }
    names
}

fn update(job: &Job) -> JobUpdate {
    JobUpdate {
        job: job.id,
        ..JobUpdate::default()
    }
}

fn done(job: &Job) -> JobUpdate {
    JobUpdate {
        is_done: true,
        ..update(job)
    }
}

fn error(of: &str) -> EntryError {
    EntryError::new(
        Some(name(of)),
        CopyError::new(Step::Open, Reason::System(13)),
    )
}

fn hard_link(of: &str) -> HardLinkEntry {
    HardLinkEntry {
        name: name(of),
        kind: Kind::File,
        id: FileId { dev: 1, ino: 2 },
        links: 2,
    }
}

fn skipped(job: &Job) -> HashSet<Name> {
    match &job.kind {
        JobKind::Directory { resume, .. } => resume.skip.clone(),
        kind => panic!("not a listing: {kind:?}"),
    }
}

/// Worker 0 has reported that it copies `own` itself, and is writing `a`.
fn writing_a(own: Names) -> (Stage, Arc<Job>) {
    let mut stage = Stage::new();
    let job = stage.job();
    let slot = stage.begin(0, &job);
    let progress = JobProgress::Listed {
        entries: own.len() as u64,
        own,
    };
    stage.report(
        0,
        JobUpdate {
            progress,
            ..update(&job)
        },
    );
    slot.begin_entry(b"a");
    slot.set_writing(WriteTarget::Final);
    (stage, job)
}

/// Creates the file that worker 0 is writing.
fn create_a(stage: &Stage) -> std::path::PathBuf {
    let file = stage.dir.path().join("dst/a");
    std::fs::write(&file, "half").unwrap();
    file
}

#[test]
fn a_suspect_is_kept_until_a_worker_begins_its_job() {
    let (mut stage, _) = writing_a(Names::default());
    stage.crash(0);
    let listing = stage.job();
    assert_eq!(listing.suspects, [name("a")]);
    stage.claim(1, &listing);
    stage.crash(1);
    assert_eq!(stage.job().suspects, [name("a")]);
}

#[test]
fn a_listing_is_given_up_if_two_workers_get_no_further() {
    let mut stage = Stage::new();
    for (worker, done, failed) in [(0, 10, 0), (1, 20, 0), (2, 20, 1)] {
        let job = stage.job();
        let slot = stage.begin(worker, &job);
        for _ in 0..done {
            slot.end_entry();
        }
        slot.begin_dir();
        stage.crash(worker);
        assert_eq!(stage.run.summary.failed, failed);
    }
    assert!(stage.run.tree.is_empty());
}

#[test]
fn an_entry_that_is_given_up_leaves_nothing_incomplete() {
    let (mut stage, _) = writing_a(files(["a", "b"]));
    stage.crash(0);
    let entries = stage.job();
    let slot = stage.begin(1, &entries);
    slot.begin_entry(b"a");
    // It replaces what worker 0 has left under the entry's own name.
    slot.set_writing(WriteTarget::Temp(1));
    stage.crash(1);
    assert_eq!(stage.run.summary.failed, 1);
    let jobs = [stage.job(), stage.job(), stage.job()];
    let is_removal = |job: &Arc<Job>| job.kind == JobKind::Remove { name: name("a") };
    assert!(jobs.iter().any(is_removal), "{jobs:?}");
    for job in jobs {
        stage.run_job(2, &job);
    }
    let listing = stage.job();
    assert_eq!(skipped(&listing), [name("a")].into());
}

#[test]
fn nothing_that_other_jobs_have_is_listed_again() {
    let mut stage = Stage::new();
    let listing = stage.job();
    stage.begin(0, &listing);
    let mut shares = update(&listing);
    shares.shared = files(["a", "bad"]);
    shares.subdirs.new.push(Kind::Directory, b"sub");
    stage.report(0, shares);
    let entries = stage.job();
    assert!(matches!(entries.kind, JobKind::Entries { .. }));
    stage.begin(1, &entries);
    stage.report(
        1,
        JobUpdate {
            hard_links: vec![hard_link("a")],
            errors: vec![error("bad")],
            ..done(&entries)
        },
    );
    // The subdirectory, and the link as the first of its group.
    let others = [stage.job(), stage.job()];
    stage.crash(0);
    for job in others {
        stage.run_job(1, &job);
    }
    assert_eq!(skipped(&stage.job()), ["a", "bad", "sub"].map(name).into());
    assert_eq!(stage.run.summary.failed, 1);
}

#[test]
fn a_chunked_file_fails_once_and_its_other_chunks_are_dropped() {
    let mut stage = Stage::new();
    let listing = stage.job();
    stage.begin(0, &listing);
    stage.report(
        0,
        JobUpdate {
            chunked: vec![ChunkedFile::sample("a", 1 << 40, 1 << 40)],
            ..done(&listing)
        },
    );
    let chunks: Vec<_> = (0..3).map(|_| stage.job()).collect();
    for chunk in &chunks {
        stage.begin(0, chunk);
        let errors = vec![error("a")];
        stage.report(
            0,
            JobUpdate {
                errors,
                ..done(chunk)
            },
        );
    }
    assert_eq!(stage.run.summary.failed, 1);
    let rest = std::mem::take(&mut *stage.sent.borrow_mut());
    assert!(rest.len() <= 8, "{}", rest.len());
    for chunk in rest {
        stage.run_job(0, &chunk);
    }
    let discard = stage.job();
    assert!(matches!(discard.kind, JobKind::Discard { .. }));
    stage.run_job(0, &discard);
    assert!(stage.run.tree.is_empty());
}

#[test]
fn a_chunked_file_fails_once_whichever_of_its_jobs_crash() {
    let mut stage = Stage::new();
    let listing = stage.job();
    stage.begin(0, &listing);
    stage.report(
        0,
        JobUpdate {
            chunked: vec![ChunkedFile::sample("a", 1 << 20, 1 << 20)],
            ..done(&listing)
        },
    );
    let mut crashes = 0;
    while !stage.run.tree.is_empty() {
        let job = stage.job();
        if matches!(job.kind, JobKind::Commit { .. } | JobKind::Discard { .. }) {
            let slot = stage.begin(crashes, &job);
            slot.begin_entry(b"a");
            stage.crash(crashes);
            crashes += 1;
        } else {
            stage.run_job(crashes, &job);
        }
    }
    assert!(crashes >= 3, "{crashes}");
    assert_eq!(stage.run.summary.failed, 1);
}

#[test]
fn an_update_is_taken_once_and_only_from_the_worker_that_claimed_the_job() {
    let mut stage = Stage::new();
    let listing = stage.job();
    stage.begin(0, &listing);
    let mut counted = update(&listing);
    counted.counts.copied = 1;
    stage.report(1, counted.clone());
    stage.report(0, counted.clone());
    stage.report(0, counted);
    assert_eq!(stage.run.summary.counts.copied, 1);
}

#[test]
fn a_worker_that_stopped_the_run_need_not_live_to_report_it() {
    let stage = Stage::new();
    stage.run.context.scoreboard.stop();
    assert_eq!(stage.run.run(), 1);
}

#[test]
fn a_worker_that_crashes_before_it_reports_a_chunked_file_leaves_its_place_to_another() {
    let mut stage = Stage::new();
    let listing = stage.job();
    let scoreboard = stage.run.context.scoreboard;
    while scoreboard.begin_chunked() {}
    let slot = stage.begin(0, &listing);
    slot.begin_entry(b"a");
    slot.set_writing(WriteTarget::Chunked(1));
    stage.crash(0);
    assert!(matches!(stage.job().kind, JobKind::Remove { .. }));
    assert!(scoreboard.begin_chunked());
    assert!(!scoreboard.begin_chunked());
}

#[test]
fn a_stopped_run_removes_what_a_crashed_worker_left() {
    // The retry is queued, sent, or a listing that waits until another job has ended.
    for (own, is_sent, has_others) in [
        (files(["a", "b"]), false, false),
        (files(["a", "b"]), true, false),
        (Names::default(), false, true),
    ] {
        let (mut stage, listing) = writing_a(own);
        let incomplete = create_a(&stage);
        if has_others {
            let mut shares = update(&listing);
            shares.number = 1;
            shares.shared = files(["b", "c"]);
            stage.report(0, shares);
        }
        stage.crash(0);
        if is_sent {
            stage.job();
        }
        stage.run.stop();
        stage.run.tidy_up();
        assert!(!incomplete.exists());
    }
}

#[test]
fn a_file_that_a_retry_has_copied_survives_the_end_of_the_run() {
    let (mut stage, _) = writing_a(files(["a", "b"]));
    stage.crash(0);
    let complete = create_a(&stage);
    let entries = stage.job();
    stage.begin(1, &entries);
    let progress = JobProgress::Settled(1);
    stage.report(
        1,
        JobUpdate {
            progress,
            settled_suspects: vec![name("a")],
            ..update(&entries)
        },
    );
    stage.run.stop();
    stage.run.tidy_up();
    assert!(complete.exists());
}

#[test]
fn a_directory_that_a_stuck_worker_should_finish_is_finished_by_another() {
    let mut stage = Stage::new();
    let listing = stage.job();
    stage.begin(0, &listing);
    let mut shares = done(&listing);
    shares.shared = files(["a", "b"]);
    shares.stat_to_finish = Some(ChunkedFile::sample("a", 1, 1).stat);
    stage.report(0, shares);
    let entries = stage.job();
    stage.run_job(0, &entries);
    let finish = stage.job();
    assert!(matches!(finish.kind, JobKind::FinishDirectory { .. }));
    // It waits with a worker that hangs.
    stage.run.stop();
    stage.run.tidy_up();
    let sent = stage.sent.borrow();
    assert!(sent.iter().any(|job| job.id == finish.id));
}

#[test]
fn what_could_not_be_sent_is_sent_later() {
    let mut stage = Stage::new();
    stage.has_workers.set(false);
    stage.busy.set(1);
    stage.run.dispatch();
    assert!(stage.sent.borrow().is_empty());
    stage.has_workers.set(true);
    assert!(matches!(stage.job().kind, JobKind::Directory { .. }));
}

#[test]
fn a_run_without_workers_ends() {
    let mut stage = Stage::new();
    stage.has_workers.set(false);
    stage.run.dispatch();
    assert_eq!(stage.run.summary.exit_status(false), 1);
    assert_ne!(stage.run.phase, Phase::Running);
}

#[test]
fn a_lost_host_is_no_fault_of_an_entry_and_leaves_no_temporary_files() {
    let mut stage = Stage::new();
    let mut listing = stage.job();
    for _ in 0..3 {
        let slot = stage.begin(1, &listing);
        slot.begin_entry(b"a");
        slot.set_writing(WriteTarget::Temp(1));
        stage.run.on_node_lost(&LostNode {
            node: 0,
            workers: vec![1],
            names: 0..4096,
            why: "node 1 on host: lost".to_owned(),
        });
        let mut has_removed = false;
        listing = loop {
            let job = stage.job();
            match &job.kind {
                JobKind::Directory { .. } => break job,
                JobKind::RemoveTemps { workers, .. } => has_removed |= *workers == (0..4096),
                _ => {}
            }
            stage.run_job(2, &job);
        };
        assert!(has_removed, "nobody knows which there are");
        assert_eq!(listing.suspects, [name("a")]);
    }
    assert_eq!(
        (stage.run.summary.failed, stage.run.summary.replaced),
        (0, 0)
    );
}

#[test]
fn a_job_that_a_node_gives_back_is_sent_again() {
    let mut stage = Stage::new();
    let job = stage.job();
    stage.claim(0, &job);
    let claims = stage.run.context.scoreboard.claims;
    claims.publish(job.claim, job.id);
    stage.run.on_returned(&[job.id]);
    let again = stage.job();
    assert_eq!(again.id, job.id);
    stage.run_job(1, &again);
    assert!(stage.run.tree.is_empty());
}
