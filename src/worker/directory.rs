//! Listing a directory and copying its entries, alone or shared with other workers.

use std::ffi::CStr;

use rustix::fs;
use rustix::io::Errno;

use super::current::Remaining;
use super::entries::{Candidate, Listed};
use super::{BATCH, ReportSink, Worker, is_report_full};
use crate::copy::dir::{DirPair, Made};
use crate::copy::temp;
use crate::fs::list::{self, Listing};
use crate::fs::path::{Kind, Names};
use crate::fs::stat::DirIds;
use crate::protocol::entry::{Decision, HardLinks};
use crate::protocol::error::{At, CopyError, Reason, Step};
use crate::protocol::{Job, Progress, Resume};

impl Worker {
    /// Lists a directory, makes its subdirectories and copies its entries. Finishes it if no
    /// other job has a part of it.
    pub(super) fn run_directory(
        &mut self,
        job: &Job,
        ancestors: &[DirIds],
        resume: &Resume,
        sink: &mut dyn ReportSink,
    ) -> Result<(), CopyError> {
        self.current.is_shared = resume.is_shared;
        let mut dir = match self.open(job) {
            Err(error) if error.step == Step::OpenDirectory => {
                self.finish_unreadable(job);
                return Err(error);
            }
            result => result?,
        };
        let stat = dir.stat_to_apply(self.context);
        let is_landing = self.is_landing(job);
        let is_elsewhere = self.check_place(job, &dir, ancestors)?;
        let config = &self.context.config;
        let decision = if dir.is_created() {
            Decision::MakeDirectory
        } else {
            Decision::MergeDirectory
        };
        let items = self.copier.itemize_dir(&mut dir);
        if !resume.is_announced && !is_landing && (config.prints(decision) || items.is_some()) {
            self.current.add_line(None, decision, items, None);
        }
        if !is_landing {
            self.copier.unseal_dir(&dir);
            dir.make_writable(self.context);
        }
        self.current.dir_ids = Some(dir.ids());
        if !is_elsewhere {
            if !dir.is_known_empty() {
                let slot = self.slot;
                temp::remove_leftovers(self.context, &dir, self.has_own_cwd, || slot.heartbeat());
            }
            if let Err(error) = self.list(job, &mut dir, resume, sink) {
                // The listed entries were copied, so the directory is still finished.
                self.add_error(None, error);
            }
        }
        let is_unfinished = self.current.has_children() || !self.current.unsynced.is_empty();
        if is_unfinished || self.should_end() {
            self.current.update.unfinished = Some(Box::new(stat));
            return Ok(());
        }
        self.slot.begin_dir();
        self.finish_dir(job, &dir, &stat)
    }

    /// Returns true for a directory that sources land in: it is not a copy, and is left as it is.
    pub(super) fn is_landing(&self, job: &Job) -> bool {
        let target = &self.context.targets.list[job.target as usize];
        target.lands_in && job.path.as_bytes().is_empty()
    }

    /// Applies the metadata of a directory that must not be read. Its failure is named already.
    fn finish_unreadable(&mut self, job: &Job) {
        let target = job.target as usize;
        let dir = DirPair::open_unreadable(self.context, target, &job.path, job.origin);
        if let Ok(dir) = dir {
            let stat = dir.stat_to_apply(self.context);
            let _ = self.copier.finish_dir(&dir, &stat);
            self.copier.take_issues();
        }
    }

    /// Refuses directories that would be copied into themselves for ever. Returns true for one
    /// on another file system that is to be left out: it is made, and stays empty.
    fn check_place(
        &self,
        job: &Job,
        dir: &DirPair,
        ancestors: &[DirIds],
    ) -> Result<bool, CopyError> {
        let config = &self.context.config;
        let targets = &self.context.targets;
        let here = dir.stat.id;
        let device = targets.list[job.target as usize].device;
        let is_elsewhere = config.one_file_system && here.dev != device;
        let is_copied_to = ancestors
            .iter()
            .any(|above| above.destination == Some(here));
        if !is_elsewhere && (is_copied_to || targets.is_destination(here)) {
            return Err(CopyError::new(Step::OpenDirectory, Reason::IsDestination));
        }
        // Without following links, a directory can be below itself only if it is mounted there,
        // and a mount point is not entered a second time.
        if config.dereference && ancestors.iter().any(|above| above.source == here) {
            return Err(CopyError::new(Step::OpenDirectory, Reason::Loop));
        }
        Ok(is_elsewhere)
    }

    fn list(
        &mut self,
        job: &Job,
        dir: &mut DirPair,
        resume: &Resume,
        sink: &mut dyn ReportSink,
    ) -> Result<(), CopyError> {
        let skip = &resume.skip;
        let filter = self.filter_for(job, dir, skip);
        let selection = self.selection_in(job);
        if selection.is_none() {
            self.check_chosen(job, dir, skip);
        }
        let listing = Listing::of(list::path_to(dir.source(), self.has_own_cwd));
        let list = &self.context.targets.list[job.target as usize].selection;
        let listed = Listed::new(listing, selection, skip, filter);
        let mut listed = listed.with_list(list.as_deref(), &job.path);
        self.recheck_reported(job, dir, &mut listed, resume.reported, sink);
        let mut remaining = Remaining::default();
        loop {
            self.list_more(dir, &mut listed, &mut remaining, sink);
            if remaining.len() == 0 || self.should_end() {
                self.current.update.is_cut = self.should_end();
                if self.context.config.limits.retries > 0 {
                    // If the directory fails, it is listed again from here.
                    self.current.update.progress = listed_progress(listed.entries);
                }
                let entries = listed.entries;
                match listed.result() {
                    // A directory that was removed has no links.
                    Err(Errno::NOENT)
                        if fs::fstat(dir.source()).is_ok_and(|it| it.st_nlink > 0) =>
                    {
                        return Err(CopyError::new(Step::ListDirectory, Reason::NoProc));
                    }
                    result => result.at(Step::ListDirectory)?,
                }
                return self.report_extraneous(job, dir, entries, sink);
            }
            if self.current.has_unreported_subdirs() {
                // Report the subdirectories first, so that others can list them if an entry hangs.
                self.send_update(remaining.progress_of_listing(listed.entries), sink);
            }
            self.copy_entries(
                job,
                dir,
                &mut remaining,
                Some(&mut listed),
                HardLinks::Report,
                sink,
            );
            remaining.clear();
        }
    }

    /// Examines again the entries that were reported before the last worker crashed. They are
    /// complete, so they are not suspect, and neither counted nor printed.
    fn recheck_reported(
        &mut self,
        job: &Job,
        dir: &mut DirPair,
        listed: &mut Listed<'_>,
        reported: u64,
        sink: &mut dyn ReportSink,
    ) {
        let suspects = self.current.take_suspects();
        self.copier.is_synced_alone = true;
        while listed.entries < reported && !self.should_end() {
            if !listed.advance() {
                break;
            }
            let (name, kind) = (listed.name().to_owned(), listed.kind());
            let excluded = self.current.update.excluded.len();
            let candidate = self.choose(dir, listed);
            self.current.update.excluded.truncate(excluded);
            match candidate.map(|candidate| candidate.map(|it| it.kind)) {
                Ok(None) => {}
                Ok(Some(Kind::Directory)) => self.make_subdir(dir, &name),
                Ok(Some(kind)) => {
                    let counts = self.slot.counts();
                    let lines = self.current.update.lines.len();
                    let incomplete = self.current.update.incomplete.len();
                    let checksums = self.current.update.checksums.len();
                    self.copy_entry(job, dir, kind, &name, HardLinks::Report);
                    self.slot.reset_counts(counts);
                    self.current.update.lines.truncate(lines);
                    self.current.update.incomplete.truncate(incomplete);
                    self.current.update.checksums.truncate(checksums);
                    self.after_entry(|| listed_progress(reported), sink);
                }
                Err(error) => self.add_error(Some((kind, &name)), error),
            }
        }
        self.copier.is_synced_alone = false;
        self.current.set_suspects(suspects);
    }

    /// Lists up to [`BATCH`] more entries to copy, and makes the subdirectories among them.
    fn list_more(
        &mut self,
        dir: &mut DirPair,
        listed: &mut Listed<'_>,
        remaining: &mut Remaining,
        sink: &mut dyn ReportSink,
    ) {
        self.order.begin(dir);
        self.read_more(dir, listed, remaining, sink);
        remaining.sort_last(self.order.inodes());
    }

    fn read_more(
        &mut self,
        dir: &mut DirPair,
        listed: &mut Listed<'_>,
        remaining: &mut Remaining,
        sink: &mut dyn ReportSink,
    ) {
        let enough = remaining.len() + BATCH;
        self.slot.begin_dir();
        while remaining.len() < enough && !self.should_end() {
            if !listed.advance() {
                self.slot.end_listing();
                return;
            }
            let candidate = self.choose(dir, listed);
            let (name, kind) = (listed.name(), listed.kind());
            match candidate {
                Ok(None) => {}
                Ok(Some(Candidate {
                    kind: Kind::Directory,
                    ..
                })) => {
                    self.make_subdir(dir, name);
                }
                Ok(Some(Candidate { kind, inode })) => {
                    self.slot.add_found();
                    remaining.extend(|names| names.push(kind, name.to_bytes()));
                    self.order.add(inode);
                }
                Err(error) => self.add_error(Some((kind, name)), error),
            }
            let is_wanted = || self.context.scoreboard.take_wanted();
            if is_report_full(self.size) || self.current.has_unreported_subdirs() && is_wanted() {
                self.send_update(remaining.progress_of_listing(listed.entries), sink);
            }
        }
    }

    pub(super) fn make_subdir(&mut self, dir: &mut DirPair, name: &CStr) {
        self.slot.begin_entry(name.to_bytes());
        match self.copier.is_left_out(dir, name) {
            Ok(false) => {}
            Ok(true) => {
                if self.context.config.prints(Decision::SkipMissing) {
                    self.current
                        .add_line(Some(name), Decision::SkipMissing, None, None);
                }
                return self.slot.begin_dir();
            }
            Err(error) => {
                self.add_error(Some((Kind::Directory, name)), error);
                return self.slot.begin_dir();
            }
        }
        let subdirs = &mut self.current.update.subdirs;
        match self.copier.make_subdir(dir, name) {
            Ok(made) => {
                let list = match made {
                    Made::New => &mut subdirs.new,
                    Made::Resumed => &mut subdirs.resumed,
                    Made::Merged => &mut subdirs.merged,
                };
                list.push(Kind::Directory, name.to_bytes());
                self.size += name.count_bytes();
            }
            Err(error) => self.add_error(Some((Kind::Directory, name)), error),
        }
        if let Some(ids) = self.current.dir_ids.take() {
            self.current.update.dir_ids = Some(ids);
        }
        self.slot.begin_dir();
    }

    /// Copies entries. While other workers are idle, it first lists more and then hands over the
    /// second half. Without listing more, the halves would become ever smaller, and each costs
    /// opening the directory.
    fn copy_entries(
        &mut self,
        job: &Job,
        dir: &mut DirPair,
        remaining: &mut Remaining,
        mut listed: Option<&mut Listed<'_>>,
        hard_links: HardLinks,
        sink: &mut dyn ReportSink,
    ) {
        while remaining.len() > 0 && !self.should_end() {
            let may_share = remaining.len() >= 2 && hard_links == HardLinks::Report;
            if may_share && self.context.scoreboard.take_wanted() {
                if let Some(listed) = &mut listed {
                    self.list_more(dir, listed, remaining, sink);
                }
                self.current.update.shared = remaining.split_half();
                self.send_update(progress(remaining, listed.as_deref()), sink);
            }
            let Some((kind, name, next)) = remaining.first() else {
                break;
            };
            match self.kind_to_copy(dir, kind, name) {
                // Only if it is tried again: a lister makes its subdirectories itself.
                Ok(Kind::Directory) => self.make_subdir(dir, name),
                Ok(kind) => self.copy_entry(job, dir, kind, name, hard_links),
                Err(error) => self.add_error(Some((kind, name)), error),
            }
            remaining.settle(next);
            self.after_entry(|| progress(remaining, listed.as_deref()), sink);
            self.settle_if_many(dir, job);
        }
    }

    /// Copies the entries of a list.
    pub(super) fn run_entries(
        &mut self,
        job: &Job,
        names: &Names,
        hard_links: HardLinks,
        sink: &mut dyn ReportSink,
    ) -> Result<(), CopyError> {
        let mut dir = self.open(job)?;
        let target = &self.context.targets.list[job.target as usize];
        if target.single.is_some() && target.is_first && !dir.is_known_empty() {
            let slot = self.slot;
            temp::remove_leftovers(self.context, &dir, self.has_own_cwd, || slot.heartbeat());
        }
        self.current.dir_ids = Some(dir.ids());
        let mut remaining = Remaining::new(names.clone());
        self.copy_entries(job, &mut dir, &mut remaining, None, hard_links, sink);
        self.current.update.is_cut = remaining.len() > 0;
        self.sync_single(job, &dir)
    }
}

fn progress(remaining: &Remaining, listed: Option<&Listed<'_>>) -> Progress {
    match listed {
        Some(listed) => remaining.progress_of_listing(listed.entries),
        None => remaining.progress(),
    }
}

/// Returns the progress of a listing that has not passed the reported entries.
fn listed_progress(entries: u64) -> Progress {
    Progress::Listed {
        entries,
        own: Names::default(),
    }
}
