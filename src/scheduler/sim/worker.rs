//! A simulated worker. It does the work of `worker::Worker` and `copy::Copier` in steps, and can
//! crash or stall between them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use super::deletion::Removal;
use super::env::Env;
use super::extra::NOWHERE;
use super::tree::join;
use crate::context::Context;
use crate::fs::path::{Kind, Name, Names};
use crate::fs::stat::{DirIds, FileId, FileStat};
use crate::protocol::entry::{ChunkedFile, Decision};
use crate::protocol::error::{CopyError, Death, Reason, Step};
use crate::protocol::unsynced::Unsynced;
use crate::protocol::{Counts, Job, JobKind, JobUpdate, Line, Report};
use crate::scoreboard::{WorkerSlot, WriteTarget};

pub(super) const ENOENT: i32 = 2;
pub(super) const EIO: i32 = 5;
pub(super) const EACCES: i32 = 13;
pub(super) const EEXIST: i32 = 17;
pub(super) const ENOSPC: i32 = 28;
pub(super) const ENOTEMPTY: i32 = 39;
pub(super) const ETIMEDOUT: i32 = 110;

/// How an entry of a job ended.
pub(super) enum Outcome {
    Done(Decision),
    HardLink,
    Chunked(ChunkedFile),
    Unsynced(Unsynced),
    Chunk,
}

/// A file that is being written.
pub(super) struct Writing {
    pub(super) name: Vec<u8>,
    pub(super) inode: u64,
    pub(super) decision: Decision,
    pub(super) is_link: bool,
}

/// The next step of a worker.
pub(super) enum State {
    Free,
    Next,
    Claimed(Arc<Job>),
    Open,
    List,
    Pick,
    Begun,
    Written(Writing),
    Renamed(Decision),
    Concluded(Result<Outcome, CopyError>),
    Removing(Removal),
    FinishDir,
    EndJob,
    EndBatch,
}

/// The job that a worker runs.
pub(super) struct Current {
    pub(super) job: Arc<Job>,
    pub(super) dir: usize,
    pub(super) names: Names,
    pub(super) offset: usize,
    pub(super) left: usize,
    pub(super) settled: u64,
    /// How many items of the directory have been listed.
    pub(super) listed: usize,
    /// The entry that was begun.
    pub(super) name: Vec<u8>,
    pub(super) kind: Kind,
    /// What the slot had counted at the last update.
    pub(super) counts: Counts,
    pub(super) has_reported_children: bool,
    pub(super) may_be_retried: bool,
    /// The listing fails after so many items.
    pub(super) list_fails_at: Option<usize>,
    /// The directory is listed, and its metadata cannot be applied.
    finish_fails: bool,
    pub(super) ids: Option<DirIds>,
    /// Files that are neither synced nor committed.
    pub(super) unsynced: Vec<Unsynced>,
}

pub(super) struct Worker {
    pub(super) number: usize,
    pub(super) slot: WorkerSlot,
    // As the parent sees it.
    pub(super) in_flight: usize,
    pub(super) is_stuck: bool,
    pub(super) inbox: VecDeque<Vec<Arc<Job>>>,
    // As it is.
    pub(super) death: Option<Death>,
    pub(super) stalled_until: Option<Instant>,
    pub(super) is_unkillable: bool,
    is_killed: bool,
    batch: Vec<Arc<Job>>,
    next: usize,
    pub(super) current: Option<Current>,
    state: State,
    pub(super) report: Report,
    pub(super) update: JobUpdate,
    pub(super) temps: u32,
}

impl Worker {
    pub(super) fn new(number: usize, context: &'static Context) -> Self {
        Self::of_host(number, context.scoreboard.slot(number))
    }

    /// Makes a worker that shows its state in this slot.
    pub(super) fn of_host(number: usize, slot: WorkerSlot) -> Self {
        Self {
            number,
            slot,
            in_flight: 0,
            is_stuck: false,
            inbox: VecDeque::new(),
            death: None,
            stalled_until: None,
            is_unkillable: false,
            is_killed: false,
            batch: Vec::new(),
            next: 0,
            current: None,
            state: State::Free,
            report: Report::default(),
            update: JobUpdate::default(),
            temps: 0,
        }
    }

    fn is_free(&self) -> bool {
        matches!(self.state, State::Free)
    }

    fn is_awake(&self, now: Instant) -> bool {
        self.death.is_none() && self.stalled_until.is_none_or(|until| now >= until)
    }

    /// Returns true if the worker would take more work.
    pub(super) fn is_idle(&self, now: Instant) -> bool {
        self.is_free() && self.inbox.is_empty() && self.is_awake(now)
    }

    pub(super) fn is_runnable(&self, now: Instant) -> bool {
        let has_work = !self.is_free() || !self.inbox.is_empty();
        has_work && self.is_awake(now)
    }

    /// Dies at once, or when its stall ends.
    pub(super) fn kill(&mut self, env: &mut Env) {
        if self.is_unkillable && self.stalled_until.is_some_and(|until| env.now < until) {
            self.is_killed = true;
        } else if self.death.is_none() {
            self.die(env, Death::Signal(9));
        }
    }

    /// Dies with its host, which is not the fault of an entry.
    pub(super) fn vanish(&mut self, env: &mut Env) {
        self.death = Some(Death::Host);
        env.world.borrow_mut().lose(self.number);
    }

    pub(super) fn die(&mut self, env: &mut Env, death: Death) {
        self.death = Some(death);
        let mut world = env.world.borrow_mut();
        world.lose(self.number);
        // As the parent sees it: the job in the slot, and its entry.
        if let (Some(id), Some(current)) = (self.slot.job(), &self.current)
            && current.job.id == id
        {
            let entry = self.slot.entry();
            let name = entry.as_ref().map(Name::as_bytes);
            if current.dir == NOWHERE {
                let path = current.job.path.as_bytes();
                let path = name.map_or(path.to_vec(), |name| join(path, name));
                world.died_at(NOWHERE, Some(&path));
            } else {
                world.died_at(current.dir, name);
            }
        }
    }

    /// Does the next small thing.
    pub(super) fn step(&mut self, env: &mut Env) {
        if self.is_killed {
            return self.die(env, Death::Signal(9));
        }
        self.stalled_until = None;
        self.state = match std::mem::replace(&mut self.state, State::Free) {
            State::Free => match self.inbox.pop_front() {
                Some(batch) => {
                    self.next = 0;
                    self.batch = batch;
                    State::Next
                }
                None => State::Free,
            },
            State::Next => self.claim_next(env),
            State::Claimed(job) => self.begin(env, job),
            State::Open => self.open(env),
            State::List => self.list(env),
            State::Pick => self.pick(env),
            State::Begun => self.begun(env),
            State::Written(writing) => self.written(env, writing),
            State::Renamed(decision) => {
                self.slot.set_writing(WriteTarget::None);
                State::Concluded(Ok(Outcome::Done(decision)))
            }
            State::Concluded(outcome) => self.conclude(env, outcome),
            State::Removing(removal) => self.remove(env, removal),
            State::FinishDir if self.current().finish_fails => {
                self.fail(env, None, Step::SetTimes, ETIMEDOUT);
                State::EndJob
            }
            State::FinishDir => {
                env.world.borrow_mut().finish_dir(self.dir());
                State::EndJob
            }
            State::EndJob => self.end_job(env),
            State::EndBatch => {
                self.slot.become_idle();
                State::Free
            }
        };
    }

    pub(super) fn current(&mut self) -> &mut Current {
        self.current.as_mut().expect("a job")
    }

    pub(super) fn dir(&mut self) -> usize {
        self.current().dir
    }

    /// Returns true for the entry at which a worker crashed before.
    pub(super) fn is_suspect(&mut self, name: &[u8]) -> bool {
        let mut suspects = self.current().job.suspects.iter();
        suspects.any(|suspect| suspect.as_bytes() == name)
    }

    fn claim_next(&mut self, env: &mut Env) -> State {
        let Some(job) = self.batch.get(self.next).map(Arc::clone) else {
            self.report.is_batch_done = true;
            self.send(env);
            return State::EndBatch;
        };
        self.next += 1;
        let claims = env.board(self.number).claims;
        if claims.claim(job.claim, job.id, self.number) {
            State::Claimed(job)
        } else {
            State::Next
        }
    }

    fn begin(&mut self, env: &mut Env, job: Arc<Job>) -> State {
        self.slot.begin_job(job.id);
        self.update = JobUpdate {
            job: job.id,
            ..JobUpdate::default()
        };
        let is_doomed = matches!(
            job.kind,
            JobKind::EmptyDirectory | JobKind::RemoveDirectory { .. }
        );
        self.current = Some(Current {
            dir: if is_doomed {
                NOWHERE
            } else {
                env.world.borrow().tree.dir(job.path.as_bytes())
            },
            job,
            names: Names::default(),
            offset: 0,
            left: 0,
            settled: 0,
            listed: 0,
            name: Vec::new(),
            kind: Kind::File,
            counts: self.slot.counts(),
            has_reported_children: false,
            may_be_retried: false,
            list_fails_at: None,
            finish_fails: false,
            ids: None,
            unsynced: Vec::new(),
        });
        State::Open
    }

    fn open(&mut self, env: &mut Env) -> State {
        let number = self.number;
        let dir = self.dir();
        let job = Arc::clone(&self.current().job);
        let mut world = env.world.borrow_mut();
        match &job.kind {
            JobKind::Directory { resume, .. } => {
                self.current().may_be_retried |= resume.is_shared;
                world.claim(number, dir, None, None);
                if world.fails_for_now(dir, b"") {
                    drop(world);
                    if env.rng.chance(0.5) {
                        self.fail(env, None, Step::OpenDirectory, ETIMEDOUT);
                        return State::EndJob;
                    }
                    self.current().list_fails_at = Some(env.rng.below(10));
                    if env.later.chance(0.3) {
                        self.current().list_fails_at = None;
                        self.current().finish_fails = true;
                    }
                } else {
                    drop(world);
                }
                if env.is_obstructed(job.path.as_bytes()) {
                    let step = Step::OpenDestinationDirectory;
                    let error = CopyError::new(step, Reason::FileInTheWay);
                    self.fail_with(env, None, error);
                    return State::EndJob;
                }
                if job.origin.created && !resume.is_announced {
                    self.update.lines.push(Line {
                        name: None,
                        decision: Decision::MakeDirectory,
                        items: None,
                        size: None,
                    });
                }
                self.current().ids = Some(ids(dir));
                self.slot.begin_dir();
                State::List
            }
            JobKind::Entries { names, .. } | JobKind::HardLinks { names, .. } => {
                self.current().left = names.len();
                self.current().names = names.clone();
                State::Pick
            }
            JobKind::Chunk { file, chunk } => {
                self.slot.begin_entry(file.name.as_bytes());
                let offset = Some(chunk.offset);
                world.claim(number, dir, Some(file.name.as_bytes()), offset);
                self.current().name = file.name.as_bytes().to_vec();
                State::Begun
            }
            JobKind::Commit { file, .. } => {
                self.slot.begin_entry(file.name.as_bytes());
                world.claim(number, dir, Some(file.name.as_bytes()), None);
                self.current().name = file.name.as_bytes().to_vec();
                State::Begun
            }
            JobKind::Discard { file } => {
                if file.temp.is_some() && world.existing(dir, file.temp_name()) == Some(file.id.ino)
                {
                    world.remove(dir, file.temp_name());
                }
                State::EndJob
            }
            JobKind::RemoveTemps { workers, keep } => {
                world.remove_temps(dir, workers, keep);
                State::EndJob
            }
            JobKind::Remove { name } => {
                world.remove(dir, name.as_bytes());
                State::EndJob
            }
            JobKind::FinishDirectory { .. } => State::FinishDir,
            JobKind::Delete { .. }
            | JobKind::MakeRoom { .. }
            | JobKind::EmptyDirectory
            | JobKind::RemoveDirectory { .. } => {
                drop(world);
                self.open_removal(env, &job)
            }
            JobKind::Sync { .. } => {
                drop(world);
                if !env.sync() {
                    self.fail(env, None, Step::Sync, EIO);
                }
                State::EndJob
            }
            JobKind::CommitSynced { files } => {
                self.current().left = files.len();
                for file in files {
                    self.current().names.push(Kind::File, file.name.as_bytes());
                }
                State::Pick
            }
            JobKind::DiscardUnsynced { files } => {
                for file in files {
                    let name = file.temp.as_ref().unwrap_or(&file.name).as_bytes();
                    if world.existing(dir, name) == Some(file.id.ino) {
                        world.remove(dir, name);
                    }
                }
                State::EndJob
            }
        }
    }
}

fn ids(dir: usize) -> DirIds {
    let id = |dev| FileId {
        dev,
        ino: dir as u64 + 1,
    };
    DirIds {
        source: id(1),
        destination: Some(id(2)),
    }
}

pub(super) fn stat(id: FileId) -> FileStat {
    FileStat {
        id,
        mode: 0,
        uid: 0,
        gid: 0,
        size: 0,
        allocated: 0,
        links: 1,
        rdev: 0,
        atime: (0, 0),
        mtime: (0, 0),
        ctime: (0, 0),
    }
}
