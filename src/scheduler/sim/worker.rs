//! A simulated worker. It does the work of `worker::Worker` and `copy::Copier` in steps, and can
//! crash or stall between them.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use super::env::Env;
use super::tree::{Item, Sort};
use crate::context::Context;
use crate::fs::path::{Kind, Name, Names};
use crate::fs::stat::{DirIds, FileId, FileStat};
use crate::protocol::entry::{ChunkedFile, Decision};
use crate::protocol::error::{CopyError, Death, Reason, Step};
use crate::protocol::unsynced::Unsynced;
use crate::protocol::{
    Counts, EntryError, HardLinkEntry, Job, JobKind, JobUpdate, Line, Progress, Report,
};
use crate::scoreboard::{WorkerSlot, WriteTarget};

const EEXIST: i32 = 17;
const EIO: i32 = 5;
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
    counts: Counts,
    has_reported_children: bool,
    may_be_retried: bool,
    /// The listing fails after so many items.
    list_fails_at: Option<usize>,
    ids: Option<DirIds>,
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
    current: Option<Current>,
    state: State,
    report: Report,
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
            world.died_at(current.dir, entry.as_ref().map(Name::as_bytes));
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
        self.current = Some(Current {
            dir: env.world.borrow().tree.dir(job.path.as_bytes()),
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
                if world.existing(dir, file.temp_name()) == Some(file.id.ino) {
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
            | JobKind::RemoveDirectory { .. } => unreachable!("nothing is deleted here"),
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

    // Listing.

    fn list(&mut self, env: &mut Env) -> State {
        let few = env.rng.range(1, 8);
        let enough = env.batch;
        if self.list_some(env, enough, few) {
            return State::List;
        }
        let is_stopping = env.is_stopping();
        if !self.current().names.is_empty() && !is_stopping {
            let current = self.current();
            current.offset = 0;
            current.left = current.names.len();
            if !self.update.subdirs.is_empty() {
                self.send_update(env);
            }
            return State::Pick;
        }
        self.update.is_cut = is_stopping;
        if env.context.config.limits.retries > 0 {
            self.update.progress = Progress::Listed {
                entries: self.current().listed as u64,
                own: Names::default(),
            };
        }
        if self.current().list_fails_at.is_some() && !is_stopping {
            self.fail(env, None, Step::ListDirectory, ETIMEDOUT);
        }
        let has_unsynced = !self.current().unsynced.is_empty();
        let has_children = self.current().has_reported_children || self.update.has_children();
        let may_be_retried = self.current().may_be_retried;
        if has_children || has_unsynced || may_be_retried || is_stopping {
            let id = FileId {
                dev: 1,
                ino: self.dir() as u64 + 1,
            };
            self.update.unfinished = Some(Box::new(stat(id)));
            return State::EndJob;
        }
        self.slot.begin_dir();
        State::FinishDir
    }

    /// Lists up to `most` items, or until there are `enough` names. Returns false at that point,
    /// or at the end.
    pub(super) fn list_some(&mut self, env: &mut Env, enough: usize, most: usize) -> bool {
        self.slot.begin_dir();
        for _ in 0..most {
            if self.current().names.len() >= enough || env.is_stopping() || self.death.is_some() {
                return false;
            }
            let dir = self.dir();
            let world = Rc::clone(&env.world);
            let mut world = world.borrow_mut();
            let listed = self.current().listed;
            if self.current().list_fails_at.is_some_and(|at| listed >= at) {
                return false;
            }
            let Some(&item) = world.tree.dirs[dir].items.get(listed) else {
                return false;
            };
            self.current().listed += 1;
            let name = match item {
                Item::Dir(dir) => world.tree.dirs[dir].name.clone(),
                Item::Entry(entry) => world.tree.entries[entry].name.clone(),
            };
            let job = Arc::clone(&self.current().job);
            let JobKind::Directory { resume, .. } = &job.kind else {
                unreachable!("only a directory is listed");
            };
            if resume.skip.contains(&name[..]) {
                continue;
            }
            match item {
                Item::Entry(entry) if (listed as u64) < resume.reported => {
                    // Reported before, so it should be there. If not, it is copied, uncounted.
                    match world.tree.entries[entry].sort {
                        Sort::Linked(group) => {
                            let id = world.tree.source(entry);
                            let links = world.tree.groups[group].len();
                            if world.existing(dir, &name).is_none() {
                                self.add_hard_link(&name, id, links as u64);
                            }
                        }
                        _ => world.recheck(dir, &name, entry),
                    }
                }
                Item::Entry(_) => {
                    self.slot.add_found();
                    self.current().names.push(Kind::File, &name);
                    self.current().left += 1;
                }
                Item::Dir(sub) => {
                    self.slot.begin_entry(&name);
                    let subdirs = &mut self.update.subdirs;
                    let list = match (world.make_dir(sub), job.origin) {
                        (true, _) => Some(&mut subdirs.new),
                        (false, origin) if origin.known_empty => None,
                        (false, origin) if origin.created => Some(&mut subdirs.resumed),
                        (false, _) => Some(&mut subdirs.merged),
                    };
                    match list {
                        Some(list) => list.push(Kind::Directory, &name),
                        None => self.fail(env, Some(&name), Step::MakeDirectory, EEXIST),
                    }
                    if let Some(ids) = self.current().ids.take() {
                        self.update.dir_ids = Some(ids);
                    }
                    self.slot.begin_dir();
                }
            }
            drop(world);
            let has_subdirs = !self.update.subdirs.is_empty();
            if has_subdirs && env.context.scoreboard.take_wanted() || env.rng.chance(0.01) {
                self.send_update(env);
            }
        }
        true
    }

    pub(super) fn add_hard_link(&mut self, name: &[u8], ino: u64, links: u64) {
        self.update.hard_links.push(HardLinkEntry {
            name: Name::new(name),
            kind: Kind::File,
            id: FileId { dev: 1, ino },
            links,
        });
    }

    // Errors.

    fn fail(&mut self, env: &Env, name: Option<&[u8]>, step: Step, errno: i32) {
        self.fail_with(env, name, CopyError::new(step, Reason::System(errno)));
    }

    pub(super) fn fail_with(&mut self, env: &Env, name: Option<&[u8]>, error: CopyError) {
        if error.is_full_destination() {
            env.context.scoreboard.stop();
        }
        self.current().may_be_retried |= error.may_pass() && env.context.config.limits.retries > 0;
        self.update.errors.push(EntryError {
            kind: name.map(|_| Kind::File),
            ..EntryError::new(name.map(Name::new), error)
        });
    }

    fn end_job(&mut self, env: &mut Env) -> State {
        env.world.borrow_mut().release(self.number, None);
        self.update.is_done = true;
        if let JobKind::CommitSynced { .. } = self.current().job.kind {
            self.update.progress = Progress::Settled(self.current().settled);
        }
        self.put_update();
        if env.rng.chance(0.3) {
            self.send(env);
        }
        State::Next
    }

    // Reports.

    pub(super) fn send_update(&mut self, env: &mut Env) {
        let current = self.current();
        self.update.progress = match &current.job.kind {
            JobKind::Directory { resume, .. } => {
                let left = current.left;
                Progress::Listed {
                    entries: resume.reported.max(current.listed as u64),
                    own: current.names.clone().split_off(left),
                }
            }
            _ => Progress::Settled(current.settled),
        };
        self.put_update();
        self.send(env);
    }

    /// Moves the update into the report, as `CurrentJob::take_update` does.
    fn put_update(&mut self) {
        let counts = self.slot.counts();
        let current = self.current.as_mut().expect("a job");
        self.update.counts = counts - current.counts;
        let is_empty = !self.update.is_done
            && self.update.counts == Counts::default()
            && !self.update.has_children()
            && self.update.errors.is_empty()
            && self.update.unsynced.is_empty()
            && self.update.settled_unsynced == 0
            && self.update.sync_error.is_none()
            && self.update.lines.is_empty();
        if is_empty {
            return;
        }
        current.counts = counts;
        current.has_reported_children |= self.update.has_children();
        let next = JobUpdate {
            job: self.update.job,
            number: self.update.number + 1,
            ..JobUpdate::default()
        };
        let update = std::mem::replace(&mut self.update, next);
        self.report.updates.push(update);
    }

    fn send(&mut self, env: &mut Env) {
        let report = std::mem::take(&mut self.report);
        if report.updates.is_empty() && !report.is_batch_done {
            return;
        }
        if env.is_process && env.rng.chance(env.faults.send) {
            // It ends at once, and says nothing more.
            return self.die(env, Death::Exit(1));
        }
        let number = self.number;
        // Only what the parent must tell apart: a second batch's end would be an error of the
        // transport.
        if env.rng.chance(env.faults.double) {
            let again = Report {
                is_batch_done: false,
                ..report.clone()
            };
            env.sent.push_back((number, again));
        }
        env.sent.push_back((number, report));
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
