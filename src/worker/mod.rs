//! A worker: claims jobs, runs them and reports. The same code in a thread of the pool and in a
//! forked process.

mod current;
mod delete;
mod directory;
mod entries;
mod order;
mod unsynced;

use std::borrow::Borrow;
use std::ffi::CStr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use rustix::fs;

use crate::context::Context;
use crate::copy::dir::DirPair;
use crate::copy::temp;
use crate::copy::{Attempt, Copier, Entry, EntryResult, Issues, LinkTarget, Stream, Unlinkable};
use crate::filter::Memory;
use crate::fs::path::{Kind, Name, Names};
use crate::fs::stat::FileStat;
use crate::protocol::entry::{ChunkedFile, DirOrigin, HardLinks, Outcome};
use crate::protocol::error::{At, CopyError, Reason, Step};
use crate::protocol::metadata::{Incomplete, MetadataError, Refusal};
use crate::protocol::{
    EntryError, FileChecksum, HardLinkEntry, Job, JobKind, Leader, Line, Progress, Report,
};
use crate::scoreboard::{WorkerSlot, WriteTarget};
use current::{CurrentJob, Remaining};
use order::Order;

/// Entries that are listed before they are copied, and the maximum in one job. So many that opening
/// the directory again costs little, and so few that they fit in a message.
pub(crate) const BATCH: usize = 256;
/// A report is sent once it is this old; sooner if other workers wait for work.
const REPORT_AFTER: Duration = Duration::from_millis(20);
/// A report is sent once it holds so many bytes of names and errors.
const REPORT_SIZE: usize = 16 << 10;
/// How often a worker reads the clock, in entries. On machines where reading the clock is a
/// system call, one for each entry would cost as much as everything else but the data.
const CLOCK_EVERY: u32 = 16;

/// Delivers a worker's reports to the parent.
///
/// A worker whose report cannot be delivered must not go on: the parent gives its jobs to others.
/// In process mode `send` ends the process then and does not return.
pub(crate) trait ReportSink {
    fn send(&mut self, report: Report);
}

/// One worker.
pub(crate) struct Worker {
    context: &'static Context,
    number: usize,
    slot: WorkerSlot,
    copier: Copier,
    /// The thread or process has a current directory of its own.
    has_own_cwd: bool,
    report: Report,
    current: CurrentJob,
    order: Order,
    filters: Memory,
    /// About how many bytes of names and errors the report and the current update hold.
    size: usize,
    reported_at: Instant,
    ticks: u32,
}

impl Worker {
    /// Makes the worker of this number, in the thread or process that it is to run in.
    pub(crate) fn new(context: &'static Context, number: usize, has_own_cwd: bool) -> Self {
        let slot = context.scoreboard.slot(number);
        slot.set_thread(rustix::thread::gettid());
        Self {
            context,
            number,
            slot,
            copier: Copier::new(context, number),
            has_own_cwd,
            report: Report::default(),
            current: CurrentJob::default(),
            order: Order::default(),
            filters: Memory::default(),
            size: 0,
            reported_at: Instant::now(),
            ticks: 0,
        }
    }

    /// Runs the jobs of a batch one after another. Skips those that another worker has claimed.
    pub(crate) fn run_batch<J: Borrow<Job>>(&mut self, jobs: &[J], sink: &mut dyn ReportSink) {
        for job in jobs {
            let job = job.borrow();
            let claims = self.context.scoreboard.claims;
            if claims.claim(job.claim, job.id, self.number) {
                self.run_job(job, sink);
            }
        }
        self.report.is_batch_done = true;
        self.send_report(sink);
        // Only after the report is sent. If the worker dies before, its slot still names the last
        // job.
        self.slot.become_idle();
    }

    fn run_job(&mut self, job: &Job, sink: &mut dyn ReportSink) {
        self.slot.begin_job(job.id);
        self.current = CurrentJob::new(job, self.slot);
        // Names that follow may become links to what a job for links copies.
        self.copier.is_synced_alone = matches!(job.kind, JobKind::HardLinks { .. });
        let result = match &job.kind {
            JobKind::Directory { ancestors, resume } => {
                self.run_directory(job, ancestors, resume, sink)
            }
            JobKind::Entries { names, hard_links } => {
                self.run_entries(job, names, *hard_links, sink)
            }
            JobKind::HardLinks { names, leader } => self.run_hard_links(job, names, leader, sink),
            JobKind::Chunk { file, chunk } => self.at_chunked(job, file, |worker, dir, from| {
                worker.copier.copy_chunk(dir, from, file, *chunk)
            }),
            JobKind::Commit { file, changed } => self.run_commit(job, file, *changed),
            JobKind::Discard { file } => self
                .open(job)
                .and_then(|mut dir| self.copier.discard_chunked(&mut dir, file)),
            JobKind::Sync { root } => self.run_sync(job, *root),
            JobKind::CommitSynced { files } => self.run_commit_synced(job, files, sink),
            JobKind::DiscardUnsynced { files } => self.run_discard_unsynced(job, files),
            JobKind::Remove { name } => self
                .open(job)
                .and_then(|dir| self.copier.remove_temp(&dir, name)),
            JobKind::RemoveTemps { workers, keep } => self.open(job).map(|dir| {
                let (slot, own_cwd) = (self.slot, self.has_own_cwd);
                let heartbeat = || slot.heartbeat();
                temp::remove_of_workers(
                    self.context,
                    &dir,
                    own_cwd,
                    (workers, &keep[..]),
                    heartbeat,
                );
            }),
            JobKind::Delete { names, ids } => self.run_delete(job, names, *ids, sink),
            JobKind::MakeRoom { names } => self.run_make_room(job, names, sink),
            JobKind::EmptyDirectory => self.run_empty_directory(job, sink),
            JobKind::RemoveDirectory { is_in_the_way } => {
                self.run_remove_directory(job, *is_in_the_way)
            }
            JobKind::FinishDirectory { stat } => self
                .open(job)
                .and_then(|dir| self.finish_dir(job, &dir, stat)),
        };
        if let Err(error) = result {
            self.add_error(None, error);
        }
        self.current.update.is_done = true;
        let has_chunked = !self.current.update.chunked.is_empty();
        self.put_update();
        if has_chunked {
            // As after an entry: the commit of a comparison has prepared the file.
            self.send_report(sink);
            self.slot.set_writing(WriteTarget::None);
        }
        if is_report_full(self.size) || self.reported_at.elapsed() > REPORT_AFTER {
            self.send_report(sink);
        }
    }

    fn open(&mut self, job: &Job) -> Result<DirPair, CopyError> {
        let target = job.target as usize;
        self.copier.prepare_sync(target);
        let opened = DirPair::open(self.context, target, &job.path, job.origin);
        opened.map_err(|error| self.copier.explain_missing(target, &job.path, error))
    }

    /// Returns true if no more entries are to be begun.
    fn should_end(&self) -> bool {
        self.context.scoreboard.is_finishing()
    }

    /// Copies one entry and notes how it ended.
    fn copy_entry(
        &mut self,
        job: &Job,
        dir: &mut DirPair,
        kind: Kind,
        name: &CStr,
        hard_links: HardLinks,
    ) {
        self.slot.begin_entry(name.to_bytes());
        let target = &self.context.targets.list[job.target as usize];
        let stream = target.single.as_ref().and_then(|it| it.stream.as_ref());
        let stream = stream.map(|fd| Stream {
            fd,
            is_used: self.current.is_suspect(name),
        });
        let entry = Entry {
            kind,
            from: name,
            to: target.name_at_destination(name),
            hard_links,
            suspect: self.current.is_suspect(name),
            attempt: Attempt::First,
            stream,
        };
        let copied = catch_unwind(AssertUnwindSafe(|| self.copier.copy_entry(dir, entry)));
        let bug = || Err(CopyError::new(Step::Copy, Reason::Bug));
        let result = copied.unwrap_or_else(|_| bug());
        if let Err(error) = &result
            && error.reason == Reason::DirectoryInTheWay
            && hard_links == HardLinks::Report
            && self.context.config.makes_room()
        {
            // It is copied at the end of the run.
            self.current.settle_suspect(name);
            self.size += name.count_bytes();
            self.current.update.obstructed.push(kind, name.to_bytes());
            self.slot.end_entry();
            return;
        }
        self.conclude(kind, name, result);
    }

    /// Notes how an entry ended.
    fn conclude(&mut self, kind: Kind, name: &CStr, result: Result<EntryResult, CopyError>) {
        let size = self.copier.take_size();
        if result.is_ok() {
            self.current.settle_suspect(name);
        }
        self.note_repeated(name);
        let checksum = self.copier.checksum.take();
        match result {
            Ok(EntryResult::Done(decision)) => {
                let decision = self.current.as_counted(decision);
                let has_failed = self.note_incomplete(Some((kind, name)), Some(decision.outcome()));
                if !has_failed {
                    self.slot.add_outcome(decision.outcome());
                }
                if let Some(checksum) = checksum
                    && decision.outcome() != Outcome::Skipped
                {
                    self.size += name.count_bytes() + size_of::<FileChecksum>();
                    let name = Name::new(name.to_bytes());
                    let checksums = &mut self.current.update.checksums;
                    checksums.push(FileChecksum { name, checksum });
                }
                let config = &self.context.config;
                let items = self.copier.items.take();
                if config.prints(decision) && !has_failed {
                    self.size += name.count_bytes() + size_of::<Line>();
                    self.current.add_line(Some(name), decision, items, size);
                }
            }
            Ok(EntryResult::HardLink(stat)) => {
                self.size += name.count_bytes() + size_of::<HardLinkEntry>();
                self.current.update.hard_links.push(HardLinkEntry {
                    name: Name::new(name.to_bytes()),
                    kind,
                    id: stat.id,
                    links: stat.links,
                });
            }
            Ok(EntryResult::Unsynced(file)) => self.note_unsynced(file),
            Ok(EntryResult::Chunked(file)) => {
                self.size += name.count_bytes() + size_of::<ChunkedFile>();
                self.current.update.chunked.push(file);
            }
            Err(error) => self.add_error(Some((kind, name)), error),
        }
        self.slot.end_entry();
    }

    /// Notes a file that was copied again because its first copy was wrong.
    fn note_repeated(&mut self, name: &CStr) {
        if std::mem::take(&mut self.copier.was_repeated) {
            self.size += name.count_bytes();
            let name = Name::new(name.to_bytes());
            self.current.update.repeated.push(name);
        }
    }

    /// Notes metadata of an entry that could not be kept. Returns true if the entry has failed.
    fn note_incomplete(&mut self, entry: Option<(Kind, &CStr)>, outcome: Option<Outcome>) -> bool {
        let Issues { failures, refusals } = self.copier.take_issues();
        if failures.is_empty() && refusals.is_empty() {
            return false;
        }
        let has_failed = !failures.is_empty();
        let errors = failures.iter().chain(refusals.iter().map(|it| &it.error));
        let attributes = errors.filter_map(|error| error.attribute.as_ref());
        let names: usize = attributes.map(|attribute| attribute.name.len()).sum();
        if entry.is_some() {
            let may_pass = failures.iter().all(|error| error.reason.may_pass());
            self.note_retry(has_failed && may_pass);
        }
        self.size += entry.map_or(0, |(_, name)| name.count_bytes())
            + names
            + size_of::<Incomplete>()
            + size_of::<MetadataError>() * failures.len()
            + size_of::<Refusal>() * refusals.len();
        self.current.update.incomplete.push(Incomplete {
            name: entry.map(|(_, name)| Name::new(name.to_bytes())),
            kind: entry.map(|(kind, _)| kind),
            outcome: outcome.filter(|_| !has_failed),
            failures,
            refusals,
        });
        has_failed
    }

    fn finish_dir(&mut self, job: &Job, dir: &DirPair, stat: &FileStat) -> Result<(), CopyError> {
        if self.is_landing(job) {
            return self.sync_landing(dir);
        }
        self.copier.take_issues();
        let result = self.copier.finish_dir(dir, stat);
        self.note_incomplete(None, None);
        result
    }

    fn run_hard_links(
        &mut self,
        job: &Job,
        names: &Names,
        leader: &Leader,
        sink: &mut dyn ReportSink,
    ) -> Result<(), CopyError> {
        let mut dir = self.open(job)?;
        let targets = &self.context.targets.list;
        let mut leader_dir = DirPair::open(
            self.context,
            leader.target as usize,
            &leader.dir,
            DirOrigin::default(),
        )?;
        let leader_name = leader.name.to_c_string();
        let leader_name = targets[leader.target as usize].name_at_destination(&leader_name);
        let mut leader_name = leader_name.to_owned();
        let mut leader_checksum = leader.checksum;
        let mut remaining = Remaining::new(names.clone());
        while let Some((kind, name, next)) = remaining.first()
            && !self.should_end()
        {
            self.slot.begin_entry(name.to_bytes());
            let entry = Entry {
                kind,
                from: name,
                to: targets[job.target as usize].name_at_destination(name),
                hard_links: HardLinks::Copy,
                suspect: self.current.is_suspect(name),
                attempt: Attempt::First,
                stream: None,
            };
            let to = LinkTarget {
                dir: &leader_dir,
                name: &leader_name,
            };
            let result = self.copier.hard_link(&mut dir, to, entry);
            // A link has the contents of its leader, and what was copied instead has its own.
            self.copier.checksum = self.copier.checksum.or(leader_checksum);
            let unlinked = self.copier.unlinked.take().filter(|_| result.is_ok());
            if let Some(why) = unlinked {
                let name = Name::new(name.to_bytes());
                self.slot.add_unlinked();
                if why == Unlinkable::Full {
                    // The names after this one become links to it.
                    let origin = DirOrigin::default();
                    leader_dir =
                        DirPair::open(self.context, job.target as usize, &job.path, origin)?;
                    leader_name = entry.to.to_owned();
                    leader_checksum = self.copier.checksum;
                    self.current.update.next_leader = Some(name.clone());
                }
                self.current.update.unlinked.get_or_insert(name);
            }
            self.conclude(kind, name, result);
            remaining.settle(next);
            self.after_entry(|| remaining.progress(), sink);
        }
        self.current.update.is_cut = remaining.len() > 0;
        self.sync_single(job, &dir)
    }

    fn run_commit(
        &mut self,
        job: &Job,
        file: &ChunkedFile,
        changed: bool,
    ) -> Result<(), CopyError> {
        self.at_chunked(job, file, |worker, dir, from| {
            let to = worker.context.targets.list[job.target as usize].name_at_destination(from);
            let result = worker.copier.commit_chunked(dir, from, to, file, changed);
            let result = result.map_err(|error| worker.copier.explain_name(dir, to, error));
            worker.conclude(Kind::File, from, result);
            worker.sync_single(job, dir)
        })
    }

    /// Opens the directory of a chunked file and works on the file. Errors are reported for the
    /// file.
    fn at_chunked(
        &mut self,
        job: &Job,
        file: &ChunkedFile,
        work: impl FnOnce(&mut Self, &mut DirPair, &CStr) -> Result<(), CopyError>,
    ) -> Result<(), CopyError> {
        let mut dir = self.open(job)?;
        self.slot.begin_entry(file.name.as_bytes());
        let from = file.name.to_c_string();
        if let Err(error) = work(self, &mut dir, &from) {
            self.add_error(Some((Kind::File, &from)), error);
        }
        self.note_repeated(&from);
        Ok(())
    }

    /// Syncs the directory of a single file with `--fsync`: no job finishes that directory.
    fn sync_single(&self, job: &Job, dir: &DirPair) -> Result<(), CopyError> {
        let is_single = self.context.targets.list[job.target as usize]
            .single
            .is_some();
        if !is_single {
            return Ok(());
        }
        self.sync_landing(dir)
    }

    /// Syncs a directory that sources land in with `--fsync`.
    fn sync_landing(&self, dir: &DirPair) -> Result<(), CopyError> {
        let config = &self.context.config;
        if !config.fsync || config.dry_run || self.copier.is_batched(dir) {
            return Ok(());
        }
        fs::fsync(dir.destination()?).at(Step::Sync)?;
        self.copier.sync_backups_of(dir)
    }

    /// Notes that something may be tried again at the end of the run.
    fn note_retry(&mut self, may_pass: bool) {
        let has_retries = self.context.config.limits.retries > 0;
        self.current.may_be_retried |= may_pass && has_retries;
    }

    fn add_error(&mut self, entry: Option<(Kind, &CStr)>, error: CopyError) {
        self.size += size_of::<EntryError>() + entry.map_or(0, |(_, name)| name.count_bytes());
        self.note_retry(error.may_pass());
        if error.is_full_destination() {
            // Stops now, not when the parent reads the report: every further write would fail too.
            self.context.scoreboard.stop();
        }
        let twin = self.copier.twin.take();
        let twin = twin.filter(|_| error.reason == Reason::SameName);
        self.current.add_error(entry, error, twin);
    }

    /// Sends an update after an entry, if one is due.
    fn after_entry(&mut self, progress: impl FnOnce() -> Progress, sink: &mut dyn ReportSink) {
        if !self.current.update.chunked.is_empty() || self.has_unreported_temp() {
            // Sent at once, so that the parent knows the temporary name if this worker dies.
            self.send_update(progress(), sink);
            self.slot.set_writing(WriteTarget::None);
            return;
        }
        self.ticks = self.ticks.wrapping_add(1);
        let is_due =
            self.ticks.is_multiple_of(CLOCK_EVERY) && self.reported_at.elapsed() > REPORT_AFTER;
        if is_due || is_report_full(self.size) {
            self.send_update(progress(), sink);
        }
    }

    /// Sends the pending update of the job.
    fn send_update(&mut self, progress: Progress, sink: &mut dyn ReportSink) {
        self.current.update.progress = progress;
        self.put_update();
        self.send_report(sink);
    }

    fn put_update(&mut self) {
        self.report
            .updates
            .extend(self.current.take_update(self.slot));
    }

    fn send_report(&mut self, sink: &mut dyn ReportSink) {
        let mut report = std::mem::take(&mut self.report);
        self.size = 0;
        self.reported_at = Instant::now();
        if !report.updates.is_empty() || report.is_batch_done {
            report.granted = self.copier.take_grants();
            sink.send(report);
        }
    }
}

fn is_report_full(size: usize) -> bool {
    size > REPORT_SIZE
}
