//! The jobs that remove what only the destination has.

use std::ffi::CStr;
use std::os::fd::AsFd;

use rustix::fs::{self, AtFlags, FileType};
use rustix::io::Errno;

use super::current::Remaining;
use super::{BATCH, ReportSink, Worker};
use crate::copy::dir::DirPair;
use crate::copy::{Fate, delete};
use crate::fs::devices;
use crate::fs::list::{self, Listing};
use crate::fs::path::{Kind, Names};
use crate::fs::stat::{DirIds, FileId, FileStat};
use crate::protocol::entry::{Decision, Outcome};
use crate::protocol::error::{At, CopyError, Reason, Step};
use crate::protocol::{Job, Progress};

impl Worker {
    /// Reports what only the destination has in a directory whose listing has ended well.
    pub(super) fn report_extraneous(
        &mut self,
        job: &Job,
        dir: &mut DirPair,
        listed: u64,
        sink: &mut dyn ReportSink,
    ) -> Result<(), CopyError> {
        let Some(mirror) = self.context.config.mirror else {
            return Ok(());
        };
        if dir.is_known_empty() || dir.destination().is_err() || self.should_end() {
            return Ok(());
        }
        self.slot.begin_dir();
        let mut extraneous = Names::default();
        let has_own_cwd = self.has_own_cwd;
        let result = self
            .copier
            .list_extraneous(dir, &job.path, has_own_cwd, |_, kind, name| {
                extraneous.push(kind, name.to_bytes());
            });
        result?;
        if extraneous.is_empty() {
            return Ok(());
        }
        if listed == 0 && job.path.as_bytes().is_empty() && !mirror.force {
            self.current.update.is_source_empty = true;
            return Ok(());
        }
        if let Some(ids) = self.current.dir_ids.take() {
            self.current.update.dir_ids = Some(ids);
        }
        while extraneous.len() > BATCH {
            self.current.update.extraneous = extraneous.take_last(BATCH);
            let progress = Progress::Listed {
                entries: listed,
                own: Names::default(),
            };
            self.send_update(progress, sink);
        }
        self.size += extraneous
            .iter()
            .map(|(_, name)| name.count_bytes())
            .sum::<usize>();
        self.current.update.extraneous = extraneous;
        Ok(())
    }

    /// Removes entries that the source does not have.
    pub(super) fn run_delete(
        &mut self,
        job: &Job,
        names: &Names,
        ids: DirIds,
        sink: &mut dyn ReportSink,
    ) -> Result<(), CopyError> {
        let mut dir = self.open_again(job)?;
        let now = dir.ids();
        // Not the inode numbers: those of many network file systems do not last. And a device
        // whose inode numbers differ between machines has another number on each.
        let device = |id: FileId| Some(id.dev).filter(|&dev| !devices::is_private(dev));
        let devices = |ids: DirIds| (device(ids.source), ids.destination.and_then(device));
        if devices(now) != devices(ids) {
            return Err(CopyError::new(Step::Delete, Reason::OtherDirectory));
        }
        self.for_each_name(names, sink, |worker, kind, name| {
            let fate = worker.copier.delete(&mut dir, &job.path, kind, name);
            worker.note_fate(Some(name), fate);
        });
        Ok(())
    }

    /// Removes entries that are in the way of those of the source.
    pub(super) fn run_make_room(
        &mut self,
        job: &Job,
        names: &Names,
        sink: &mut dyn ReportSink,
    ) -> Result<(), CopyError> {
        let mut dir = self.open_again(job)?;
        self.for_each_name(names, sink, |worker, kind, name| {
            if let Err(error) = worker.make_room_for(job, &mut dir, name) {
                worker.add_error(Some((kind, name)), error);
            }
        });
        Ok(())
    }

    fn make_room_for(
        &mut self,
        job: &Job,
        dir: &mut DirPair,
        name: &CStr,
    ) -> Result<(), CopyError> {
        let is_dir = |stat: &fs::Stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        let follow = if self.context.config.dereference {
            AtFlags::empty()
        } else {
            AtFlags::SYMLINK_NOFOLLOW
        };
        let source = fs::statat(dir.source(), name, follow).at(Step::Look)?;
        let new = is_dir(&source);
        let destination = dir.destination()?;
        let old = match fs::statat(destination, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => None,
            result => Some(is_dir(&result.at(Step::LookAtDestination)?)),
        };
        let dry_run = self.context.config.dry_run;
        match (new, old) {
            (false, Some(true)) => {
                self.note_fate(Some(name), Ok(Fate::Doomed));
                if dry_run {
                    let kind = Kind::of(FileType::from_raw_mode(source.st_mode));
                    self.slot.begin_entry(name.to_bytes());
                    self.copier.itemize_new(&FileStat::of(&source));
                    let done = crate::copy::EntryResult::Done(Decision::ReplaceOtherKind);
                    self.conclude(kind, name, Ok(done));
                }
            }
            (true, old) => {
                if old == Some(false) {
                    let place = delete::Place {
                        target: job.target as usize,
                        path: &job.path,
                        source: Some(dir),
                    };
                    let fate = self
                        .copier
                        .remove_entry(place, destination, Kind::File, name)?;
                    self.note_fate(Some(name), Ok(fate));
                    if fate == Fate::Removed {
                        self.hide_line();
                    } else {
                        let step = Step::OpenDestinationDirectory;
                        return Err(CopyError::new(step, Reason::FileInTheWay));
                    }
                }
                if dry_run {
                    self.current
                        .update
                        .subdirs
                        .new
                        .push(Kind::Directory, name.to_bytes());
                } else {
                    self.make_subdir(dir, name);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Removes the entries of a directory that only the destination has.
    pub(super) fn run_empty_directory(
        &mut self,
        job: &Job,
        sink: &mut dyn ReportSink,
    ) -> Result<(), CopyError> {
        self.slot.begin_dir();
        let doomed = match self.copier.open_doomed(job.target, &job.path)? {
            Ok(doomed) => doomed,
            Err(fate) => {
                self.current.update.has_kept |= fate == Fate::Kept;
                return Ok(());
            }
        };
        let dir = doomed.fd.as_fd();
        let place = delete::Place {
            target: job.target as usize,
            path: &job.path,
            source: None,
        };
        // A backup beside the entry keeps the directory.
        let backup = self.context.config.backup.as_ref();
        let keeps_backups = backup.is_some_and(|backup| backup.dir.is_none());
        let mut stays = false;
        let mut listing = Listing::of(list::path_to(dir, self.has_own_cwd));
        while let Some((kind, name)) = listing.read() {
            if self.should_end() {
                self.current.update.is_cut = true;
                self.current.update.has_kept = true;
                break;
            }
            self.slot.begin_entry(name.to_bytes());
            let fate = if delete::is_protected(self.context, &job.path, name, kind) {
                Ok(Fate::Kept)
            } else {
                self.copier.remove_entry(place, dir, kind, name)
            };
            self.current.update.has_kept |= keeps_backups && fate == Ok(Fate::Removed);
            self.note_fate(Some(name), fate);
            stays |= self.current.update.has_kept;
            self.slot.end_entry();
            self.after_entry(|| Progress::Unknown, sink);
        }
        listing.result().at(Step::Delete)?;
        self.copier
            .sync_doomed(job.target, &job.path, &doomed, stays)
    }

    /// Removes a directory whose entries were removed.
    pub(super) fn run_remove_directory(
        &mut self,
        job: &Job,
        is_in_the_way: bool,
    ) -> Result<(), CopyError> {
        let fate = self.copier.remove_emptied(job.target, &job.path);
        let is_removed = fate == Ok(Fate::Removed);
        self.note_fate(None, fate);
        if is_in_the_way && is_removed {
            self.hide_line();
        }
        Ok(())
    }

    /// Takes back the last line of something that is replaced. As with rsync, its name has one line
    /// only in the list of changes.
    fn hide_line(&mut self) {
        let lines = &mut self.current.update.lines;
        if self.context.config.itemize
            && lines
                .last()
                .is_some_and(|line| line.decision == Decision::Delete)
        {
            lines.pop();
        }
    }

    /// Opens a directory that was finished. It is finished once more after this job.
    fn open_again(&mut self, job: &Job) -> Result<DirPair, CopyError> {
        let dir = self.open(job)?;
        self.current.update.unfinished = Some(Box::new(dir.stat_to_apply(self.context)));
        dir.make_writable(self.context);
        Ok(dir)
    }

    fn for_each_name(
        &mut self,
        names: &Names,
        sink: &mut dyn ReportSink,
        mut work: impl FnMut(&mut Self, Kind, &CStr),
    ) {
        let mut remaining = Remaining::new(names.clone());
        while let Some((kind, name, next)) = remaining.first()
            && !self.should_end()
        {
            self.slot.begin_entry(name.to_bytes());
            work(self, kind, name);
            self.slot.end_entry();
            remaining.settle(next);
            self.after_entry(|| remaining.progress(), sink);
        }
        self.current.update.is_cut |= remaining.len() > 0;
    }

    /// Notes what became of an entry, or of the job's directory.
    fn note_fate(&mut self, name: Option<&CStr>, fate: Result<Fate, CopyError>) {
        match fate {
            Ok(Fate::Removed) => {
                self.slot.add_outcome(Outcome::Deleted);
                if self.context.config.prints(Decision::Delete) {
                    self.size += name.map_or(0, CStr::count_bytes) + 16;
                    self.current.add_line(name, Decision::Delete, None, None);
                }
            }
            Ok(Fate::Doomed) => {
                let name = name.unwrap_or_default().to_bytes();
                self.size += name.len();
                self.current.update.doomed.push(Kind::Directory, name);
            }
            Ok(Fate::Kept) => self.current.update.has_kept = true,
            Ok(Fate::OverLimit) => {
                self.current.update.over_limit += 1;
                self.current.update.has_kept = true;
            }
            // The kind matters only for copies that are tried again.
            Err(error) => self.add_error(name.map(|name| (Kind::File, name)), error),
        }
    }
}
