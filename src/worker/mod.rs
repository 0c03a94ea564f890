//! A worker: runs the jobs that it is dealt and reports. The same code in a thread of the pool
//! and in a forked process.

use std::borrow::Borrow;
use std::ffi::CStr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use rustix::fs::{self, AtFlags, FileType};

use crate::context::Context;
use crate::copy::dir::{DirPair, Made};
use crate::copy::{Copier, Entry, EntryResult, LinkTarget, temp};
use crate::fs::list::{self, Listing};
use crate::fs::path::{Kind, Name, Names};
use crate::fs::stat::DirIds;
use crate::protocol::entry::{Chunk, ChunkedFile, Decision, DirOrigin, HardLinks, Outcome};
use crate::protocol::error::{At, CopyError, Reason, Step};
use crate::protocol::{Again, EntryError, HardLink, Job, JobKind, JobUpdate, Line, Report};
use crate::scoreboard::{WorkerSlot, WriteTarget};

/// Entries that are listed before they are copied, and the most in one job: enough that opening
/// a folder again for a job costs nothing, little enough for a message.
pub(crate) const BATCH: usize = 256;
/// A report is sent once it is this old; sooner where others wait for work.
const REPORT_AFTER: Duration = Duration::from_millis(20);
/// Or this large, in names and failures.
const REPORT_SIZE: usize = 16 << 10;
/// How often a worker looks at the clock, in entries. On machines where reading the clock is a
/// system call, one for each entry would cost as much as everything else but the data.
const CLOCK_EVERY: u32 = 16;

/// Where a worker's reports go.
pub(crate) trait Port {
    /// Sends a report. False when nobody listens any more.
    fn send(&mut self, report: Report) -> bool;
}

/// One worker.
pub(crate) struct Worker {
    context: &'static Context,
    slot: &'static WorkerSlot,
    copier: Copier,
    own_current_folder: bool,
    report: Report,
    news: JobUpdate,
    size: usize,
    reported: Instant,
    ticks: u32,
    /// Entries of this job that a worker before this one has counted.
    counted: u64,
    /// What was told of this job so far names work for others.
    told_of_children: bool,
    /// The folder of this job, until that is told.
    pair: Option<DirIds>,
    gone: bool,
}

impl Worker {
    /// The worker of this number. It is made in the thread or process that it is to run in.
    pub(crate) fn new(context: &'static Context, number: usize, own_current_folder: bool) -> Self {
        Self {
            context,
            slot: context.board.slot(number),
            copier: Copier::new(context, number),
            own_current_folder,
            report: Report::default(),
            news: JobUpdate::default(),
            size: 0,
            reported: Instant::now(),
            ticks: 0,
            counted: 0,
            told_of_children: false,
            pair: None,
            gone: false,
        }
    }

    /// Runs jobs one after another and reports. False when nobody listens any more.
    pub(crate) fn run<J: Borrow<Job>>(&mut self, jobs: &[J], port: &mut dyn Port) -> bool {
        let mut end = jobs.len();
        let mut next = 0;
        while next < end && !self.gone {
            let left = end - next;
            if left >= 2 && self.context.board.take_wanted() {
                let back = &jobs[end - left / 2..end];
                let ids = back.iter().map(|job| job.borrow().id);
                self.report.returned.extend(ids);
                end -= left / 2;
                self.send(port);
            }
            self.job(jobs[next].borrow(), port);
            next += 1;
        }
        self.report.deal_ended = true;
        self.send(port);
        // Not before: whoever dies with a report unsent has begun its jobs.
        self.slot.idle();
        !self.gone
    }

    fn job(&mut self, job: &Job, port: &mut dyn Port) {
        if !self.slot.begin_job(job.id) {
            return;
        }
        self.news.job = job.id;
        let again = job.again.clone().unwrap_or_default();
        self.counted = again.counted;
        self.told_of_children = false;
        self.pair = None;
        let result = match &job.task {
            JobKind::Directory { fresh, above, .. } => {
                self.folder(job, *fresh, above, &again, port)
            }
            JobKind::Entries {
                names,
                fresh,
                hard_links,
            } => self.open(job, *fresh, &again).and_then(|mut folder| {
                let root = &self.context.roots.list[job.root as usize];
                if root.single.is_some() && root.is_first && !folder.is_known_empty() {
                    self.remove_left_overs(&folder);
                }
                let mut names = names.clone();
                self.copy(job, &mut folder, (&mut names, None), *hard_links, port);
                self.sync_name(job, &folder)
            }),
            JobKind::HardLinks { .. } => self.links(job, &again, port),
            JobKind::Chunk { large, chunk } => self.piece(job, large, *chunk, &again),
            JobKind::Commit { large, changed } => self.seal(job, large, *changed, &again),
            JobKind::Discard { large } => self
                .open(job, false, &again)
                .and_then(|mut folder| self.copier.discard_chunked(&mut folder, large)),
            JobKind::FinishDirectory { stamp, fresh } => self
                .open(job, *fresh, &again)
                .and_then(|folder| self.copier.finish_dir(&folder, stamp)),
        };
        if let Err(trouble) = result {
            self.fail(None, trouble);
        }
        self.news.ended = true;
        self.put_news();
        if self.size > REPORT_SIZE || self.reported.elapsed() > REPORT_AFTER {
            self.send(port);
        }
    }

    fn open(&mut self, job: &Job, fresh: bool, again: &Again) -> Result<DirPair, CopyError> {
        let folder = DirPair::open(self.context, job.root as usize, &job.path, origin(fresh))?;
        for name in &again.clear {
            self.copier.remove_temp(&folder, name)?;
        }
        self.slot.opened();
        Ok(folder)
    }

    fn folder(
        &mut self,
        job: &Job,
        fresh: bool,
        above: &[DirIds],
        again: &Again,
        port: &mut dyn Port,
    ) -> Result<(), CopyError> {
        let root = &self.context.roots.list[job.root as usize];
        let mut folder = self.open(job, fresh, again)?;
        folder.make_writable(self.context);
        let stamp = folder.stat;
        // Other file systems are left out, but the folder that one is mounted on is there.
        let config = &self.context.config;
        let elsewhere = config.one_file_system && stamp.inode.dev != root.device;
        let here = Some(stamp.inode);
        let is_above = above.iter().any(|above| above.destination == here);
        if !elsewhere && (is_above || self.context.roots.is_destination(stamp.inode)) {
            return Err(CopyError::new(Step::OpenDirectory, Reason::IsDestination));
        }
        // Without links a folder can be met below itself only where it is mounted there, and
        // what is mounted there a second time is not.
        if config.dereference && above.iter().any(|above| Some(above.source) == here) {
            return Err(CopyError::new(Step::OpenDirectory, Reason::Loop));
        }
        if self.context.config.verbose && fresh || self.context.config.dry_run {
            let new = folder.is_created();
            self.news.lines.push(Line {
                name: None,
                action: if new {
                    Decision::MakeDirectory
                } else {
                    Decision::MergeDirectory
                },
            });
        }
        self.pair = Some(folder.ids());
        if !elsewhere {
            if !folder.is_known_empty() {
                self.remove_left_overs(&folder);
            }
            self.list(job, &mut folder, port)?;
        }
        if self.has_children() || self.context.board.is_stopping() {
            self.news.unfinished = Some(Box::new(stamp));
            return Ok(());
        }
        self.slot.begin_folder();
        self.copier.finish_dir(&folder, &stamp)
    }

    /// True when something in the folder is left to be done by other jobs.
    fn has_children(&self) -> bool {
        self.told_of_children || self.news.has_children()
    }

    fn list(
        &mut self,
        job: &Job,
        folder: &mut DirPair,
        port: &mut dyn Port,
    ) -> Result<(), CopyError> {
        let path = list::path_to(folder.source(), self.own_current_folder);
        let mut listing = Listing::of(path);
        let mut names = Names::default();
        loop {
            self.list_more(job, folder, &mut listing, &mut names, port);
            if names.is_empty() || self.is_to_end() {
                return listing.result().at(Step::ListDirectory);
            }
            if self.has_subfolders() {
                // First: should an entry hang, others go on with the subfolders.
                self.send_news(port);
            }
            let rest = Some(&mut listing);
            self.copy(job, folder, (&mut names, rest), HardLinks::Report, port);
            names.clear();
        }
    }

    /// Lists up to [`BATCH`] more entries that are to be copied, and the subfolders among them.
    fn list_more(
        &mut self,
        job: &Job,
        folder: &mut DirPair,
        listing: &mut Listing,
        names: &mut Names,
        port: &mut dyn Port,
    ) {
        let skip = match &job.task {
            JobKind::Directory { skip, .. } => Some(skip).filter(|skip| !skip.is_empty()),
            _ => None,
        };
        let enough = names.len() + BATCH;
        self.slot.begin_folder();
        while names.len() < enough && !self.is_to_end() {
            let Some((kind, name)) = listing.read() else {
                return;
            };
            if skip.is_some_and(|skip| skip.contains(name.to_bytes())) {
                continue;
            }
            match self.kind_to_copy(folder, kind, name) {
                Ok(Kind::Directory) => self.subfolder(folder, name),
                Ok(kind) => {
                    self.slot.found(1);
                    names.push(kind, name.to_bytes());
                }
                Err(trouble) => self.fail(Some(name), trouble),
            }
            let is_wanted = self.has_subfolders() && self.context.board.take_wanted();
            if self.size > REPORT_SIZE || is_wanted {
                self.send_news(port);
            }
        }
    }

    /// True when there are subfolders that the parent has not been told of.
    fn has_subfolders(&self) -> bool {
        !self.news.made.is_empty() || !self.news.merged.is_empty()
    }

    /// True when nobody listens any more, or the run is to stop.
    fn is_to_end(&self) -> bool {
        self.gone || self.context.board.is_stopping()
    }

    /// Following links, a link is what it leads to.
    fn kind_to_copy(&self, folder: &DirPair, kind: Kind, name: &CStr) -> Result<Kind, CopyError> {
        if kind != Kind::Symlink || !self.context.config.dereference {
            return Ok(kind);
        }
        let stat = fs::statat(folder.source(), name, AtFlags::empty()).at(Step::Look)?;
        Ok(Kind::of(FileType::from_raw_mode(stat.st_mode)))
    }

    fn subfolder(&mut self, folder: &mut DirPair, name: &CStr) {
        self.slot.begin_entry(name.to_bytes());
        match folder.make_subdir(name, self.context) {
            Ok(Made::New | Made::Resumed) => self.news.made.push(Kind::Directory, name.to_bytes()),
            Ok(Made::Merged) => self.news.merged.push(Kind::Directory, name.to_bytes()),
            Err(trouble) => self.fail(Some(name), trouble),
        }
        self.size += name.count_bytes();
        if let Some(pair) = self.pair.take() {
            self.news.pair = Some(pair);
        }
        self.slot.begin_folder();
    }

    /// Copies entries; gives the later half away while others are idle, of what is left and
    /// what is listed then: ever smaller halves of one batch would all have to be opened again.
    fn copy(
        &mut self,
        job: &Job,
        folder: &mut DirPair,
        (names, mut listing): (&mut Names, Option<&mut Listing>),
        hard_links: HardLinks,
        port: &mut dyn Port,
    ) {
        let root = &self.context.roots.list[job.root as usize];
        let mut left = names.len();
        let mut offset = 0;
        while left > 0 && !self.is_to_end() {
            // Entries that an earlier worker has counted are passed quickly, and only here.
            let may_share = left >= 2 && hard_links == HardLinks::Report && self.counted == 0;
            if may_share && self.context.board.take_wanted() {
                if let Some(listing) = &mut listing {
                    let before = names.len();
                    self.list_more(job, folder, listing, names, port);
                    left += names.len() - before;
                }
                self.news.shared = names.split_off(left / 2);
                left -= left / 2;
                self.send_news(port);
            }
            let Some((kind, name, next)) = names.at(offset) else {
                break;
            };
            offset = next;
            left -= 1;
            self.slot.begin_entry(name.to_bytes());
            let to = root.name_at_destination(name);
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                let entry = Entry {
                    kind,
                    from: name,
                    to,
                    hard_links,
                    suspect: false,
                };
                self.copier.copy_entry(folder, entry)
            }));
            self.conclude(kind, name, outcome.unwrap_or_else(|_| bug()));
            if !self.news.large.is_empty() {
                // At once: should this worker die, nobody else would know what it has prepared.
                self.send_news(port);
                self.slot.set_writing(WriteTarget::None);
            }
            self.tick(port);
        }
    }

    fn conclude(&mut self, kind: Kind, name: &CStr, outcome: Result<EntryResult, CopyError>) {
        match outcome {
            Ok(EntryResult::Done(action)) => {
                let ending = action.outcome();
                if ending == Outcome::Unchanged && self.counted > 0 {
                    self.counted -= 1;
                    self.slot.end_counted_entry();
                } else {
                    self.slot.end_entry(ending);
                }
                let config = &self.context.config;
                if config.dry_run || config.verbose && action.changes() {
                    self.line(name, action);
                }
            }
            Ok(EntryResult::HardLink(stamp)) => {
                self.size += name.count_bytes() + size_of::<HardLink>();
                self.news.links.push(HardLink {
                    names: Names::one(kind, name.to_bytes()),
                    inode: stamp.inode,
                    count: stamp.links,
                });
            }
            Ok(EntryResult::Chunked(large)) => {
                self.size += name.count_bytes() + size_of::<ChunkedFile>();
                self.news.large.push(large);
            }
            Err(trouble) => self.fail(Some(name), trouble),
        }
    }

    fn links(&mut self, job: &Job, again: &Again, port: &mut dyn Port) -> Result<(), CopyError> {
        let JobKind::HardLinks {
            names,
            fresh,
            to_root,
            to_folder,
            to_name,
        } = &job.task
        else {
            return Ok(());
        };
        let mut folder = self.open(job, *fresh, again)?;
        let target = DirPair::open(self.context, *to_root as usize, to_folder, origin(false))?;
        let roots = &self.context.roots.list;
        let (root, to_root) = (&roots[job.root as usize], &roots[*to_root as usize]);
        let to_name = to_name.to_c_string();
        let to_name = to_root.name_at_destination(&to_name);
        for (kind, name) in names.iter() {
            if self.is_to_end() {
                break;
            }
            self.slot.begin_entry(name.to_bytes());
            let to = root.name_at_destination(name);
            let target = LinkTarget {
                dir: &target,
                name: to_name,
            };
            let entry = Entry {
                kind,
                from: name,
                to,
                hard_links: HardLinks::Report,
                suspect: false,
            };
            let outcome = self.copier.hard_link(&mut folder, target, entry);
            self.conclude(kind, name, outcome);
            self.tick(port);
        }
        self.sync_name(job, &folder)
    }

    fn piece(
        &mut self,
        job: &Job,
        large: &ChunkedFile,
        chunk: Chunk,
        again: &Again,
    ) -> Result<(), CopyError> {
        let mut folder = self.open(job, false, again)?;
        self.slot.begin_entry(large.name.as_bytes());
        let from = large.name.to_c_string();
        if let Err(trouble) = self.copier.copy_chunk(&mut folder, &from, large, chunk) {
            self.fail(Some(&from), trouble);
        }
        Ok(())
    }

    fn seal(
        &mut self,
        job: &Job,
        large: &ChunkedFile,
        changed: bool,
        again: &Again,
    ) -> Result<(), CopyError> {
        let mut folder = self.open(job, false, again)?;
        self.slot.begin_entry(large.name.as_bytes());
        let from = large.name.to_c_string();
        let to = self.context.roots.list[job.root as usize].name_at_destination(&from);
        let outcome = self
            .copier
            .commit_chunked(&mut folder, &from, to, large, changed);
        self.conclude(Kind::File, &from, outcome);
        self.sync_name(job, &folder)
    }

    /// With `--fsync`: a single file's name is in a folder that nobody finishes.
    fn sync_name(&self, job: &Job, folder: &DirPair) -> Result<(), CopyError> {
        let config = &self.context.config;
        let single = self.context.roots.list[job.root as usize].single.is_some();
        if !single || !config.fsync || config.dry_run {
            return Ok(());
        }
        fs::fsync(folder.destination()?).at(Step::Sync)
    }

    fn remove_left_overs(&mut self, folder: &DirPair) {
        let slot = self.slot;
        temp::remove_leftovers(self.context, folder, self.own_current_folder, || {
            slot.heartbeat();
        });
    }

    fn fail(&mut self, name: Option<&CStr>, trouble: CopyError) {
        let name = name.map(|name| Name::new(name.to_bytes()));
        self.size +=
            size_of::<EntryError>() + name.as_ref().map_or(0, |name| name.as_bytes().len());
        let failure = EntryError {
            name,
            error: trouble,
        };
        if failure.error.is_full_destination() {
            // At once, not when the parent has heard of it: whatever is begun now fails too.
            self.context.board.stop();
        }
        self.news.failures.push(failure);
    }

    fn line(&mut self, name: &CStr, action: Decision) {
        self.size += name.count_bytes() + size_of::<Line>();
        self.news.lines.push(Line {
            name: Some(Name::new(name.to_bytes())),
            action,
        });
    }

    /// After each entry: what has become due?
    fn tick(&mut self, port: &mut dyn Port) {
        self.ticks = self.ticks.wrapping_add(1);
        let due = self.ticks.is_multiple_of(CLOCK_EVERY)
            && !self.news.is_empty()
            && self.reported.elapsed() > REPORT_AFTER;
        if due || self.size > REPORT_SIZE {
            self.send_news(port);
        }
    }

    /// Tells what is known of the job so far.
    fn send_news(&mut self, port: &mut dyn Port) {
        self.put_news();
        self.send(port);
    }

    fn put_news(&mut self) {
        let job = self.news.job;
        let news = std::mem::take(&mut self.news);
        self.told_of_children |= news.has_children();
        if !news.is_empty() {
            self.report.news.push(news);
        }
        self.news.job = job;
    }

    fn send(&mut self, port: &mut dyn Port) {
        let mut report = std::mem::take(&mut self.report);
        report.not_kept = std::mem::take(&mut self.copier.not_kept);
        self.size = 0;
        self.reported = Instant::now();
        if !report.is_empty() && !port.send(report) {
            self.gone = true;
        }
    }
}

fn origin(fresh: bool) -> DirOrigin {
    DirOrigin {
        created: fresh,
        known_empty: fresh,
    }
}

fn bug() -> Result<EntryResult, CopyError> {
    Err(CopyError::new(Step::Copy, Reason::Bug))
}
