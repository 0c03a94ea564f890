//! One entry: compare it with what the destination has, copy it, set its metadata, put it in
//! place. The one routine that the workers of both modes call.

mod chunked;
mod content;
pub(crate) mod dir;
mod granularity;
pub(crate) mod metadata;
mod special;

use std::borrow::Cow;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::config::{Overwrite, Reflink, Sparse};
use crate::context::Context;
use crate::fs::path::{Kind, Name};
use crate::fs::stat::FileStat;
use crate::fs::sys;
use crate::protocol::error::{At, CopyError, Reason, Step};
use crate::protocol::{Action, ChunkedFile, NotKept};
use crate::scoreboard::{Ending, WorkerSlot, WriteTarget};
use dir::DirPair;
use granularity::Granularity;

/// From this size a file is copied in pieces by several workers. Below it, one worker is done
/// before the pieces are dealt (`benches/README.md`).
pub(crate) const CHUNKED_FROM: u64 = 32 << 20;

/// What became of an entry.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// It is done.
    Done(Ending, Action),
    /// It has several hard links, so the parent decides whether it is copied or linked.
    HardLink(FileStat),
    /// It is prepared at the destination, to be copied in pieces.
    ChunkedFile(ChunkedFile),
}

/// What to do about an entry, seen from what the destination has.
enum Plan {
    /// Nothing is there.
    Create,
    /// What is there is to be replaced.
    Replace(Action),
    /// What is there stays.
    Leave(Ending, Action),
    /// Ask the parent.
    HardLink(FileStat),
}

/// Copies entries; belongs to one worker.
pub(crate) struct Copier {
    pub(crate) context: &'static Context,
    pub(crate) slot: &'static WorkerSlot,
    worker: usize,
    /// How many temporary names this worker has used.
    temporaries: u32,
    buffer: Vec<u8>,
    /// Pairs of devices between which copy_file_range(2) does not work.
    no_copy_range: Vec<(u64, u64)>,
    /// How exactly the destination's file systems keep times, by their devices.
    grains: Vec<(u64, Granularity)>,
    /// What could not be kept, since it was last asked.
    pub(crate) not_kept: NotKept,
}

impl Copier {
    /// A copier for the worker of this number.
    pub(crate) fn new(context: &'static Context, worker: usize) -> Self {
        Self {
            context,
            slot: context.scoreboard.slot(worker),
            worker,
            temporaries: 0,
            buffer: Vec::new(),
            no_copy_range: Vec::new(),
            grains: Vec::new(),
            not_kept: NotKept::default(),
        }
    }

    /// Copies the entry `from` of the source folder to the name `to` in the destination folder.
    /// With `first_link` an entry with several hard links is copied like any other.
    ///
    /// # Errors
    /// What was tried and why it did not work. Nothing incomplete is left then.
    pub(crate) fn entry(
        &mut self,
        folder: &mut DirPair,
        kind: Kind,
        from: &CStr,
        to: &CStr,
        first_link: bool,
    ) -> Result<Outcome, CopyError> {
        let mut attempt = || match kind {
            Kind::File => self.file(folder, from, to, first_link),
            Kind::Directory | Kind::Symlink | Kind::Special => {
                self.other(folder, from, to, first_link)
            }
        };
        match attempt() {
            // A source that changed while it was read is tried once more.
            Err(trouble) if trouble.reason == Reason::Changed => attempt(),
            result => result,
        }
    }

    fn file(
        &mut self,
        folder: &mut DirPair,
        from: &CStr,
        to: &CStr,
        first_link: bool,
    ) -> Result<Outcome, CopyError> {
        let action = match self.plan(folder, from, to, first_link)? {
            Plan::Create => Action::Copy,
            Plan::Replace(action) => action,
            Plan::Leave(ending, action) => return Ok(Outcome::Done(ending, action)),
            Plan::HardLink(stamp) => return Ok(Outcome::HardLink(stamp)),
        };
        if self.context.config.dry_run {
            self.slot.bytes(self.look(folder, from)?.size);
            return Ok(Outcome::Done(Ending::Copied, action));
        }
        let source = self.open_source(folder, from).at(Step::Open)?;
        let stamp = FileStat::of(&fs::fstat(&source).at(Step::Look)?);
        if FileType::from_raw_mode(stamp.mode) != FileType::RegularFile {
            drop(source);
            return self.other(folder, from, to, first_link);
        }
        if self.is_for_parent(&stamp, first_link) {
            return Ok(Outcome::HardLink(stamp));
        }
        self.slot.bytes_found(stamp.size);

        let attributes = metadata::list_attributes(source.as_fd(), &self.context.config)
            .at(Step::ReadAttributes)?;
        let is_large = self.is_large(&stamp);
        let mode = if is_large {
            // Opened again for each piece, and perhaps with other contents in the end.
            0o600
        } else {
            self.creation_mode(folder, &stamp, attributes.is_empty())
        };
        let (file, partial) = self.create(folder, to, action, mode)?;
        folder.learn(file.as_fd()).at(Step::LookAtDestination)?;

        let cloned = is_large && self.clone_whole(&source, &file)?;
        if is_large
            && !cloned
            && let Some(prepared) = self.prepare(&file, &stamp)?
        {
            let large = ChunkedFile {
                name: Name::new(from.to_bytes()),
                written_as: Name::new(partial.name.to_bytes()),
                prepared,
                stamp,
            };
            partial.keep();
            return Ok(Outcome::ChunkedFile(large));
        }
        if !cloned {
            self.copy_whole(&source, &file, &stamp, folder)?;
        }
        let has = metadata::InitialMeta {
            owner: folder.given(),
            mode: Some(mode).filter(|_| !folder.inherits()),
        };
        self.complete(
            folder,
            &source,
            (file, partial),
            &stamp,
            has,
            &attributes,
            to,
        )?;
        Ok(Outcome::Done(Ending::Copied, action))
    }

    /// Everything after the data: is the source still what it was, metadata, close, name.
    #[allow(clippy::too_many_arguments)] // what one file is made of
    fn complete(
        &mut self,
        folder: &DirPair,
        source: &OwnedFd,
        (file, partial): (OwnedFd, Partial<'_>),
        stamp: &FileStat,
        has: metadata::InitialMeta,
        attributes: &[CString],
        to: &CStr,
    ) -> Result<(), CopyError> {
        let now = FileStat::of(&fs::fstat(source).at(Step::Look)?);
        if !stamp.has_same_contents(&now) {
            return Err(CopyError::new(Step::Read, Reason::Changed));
        }
        self.dress_file(file.as_fd(), source.as_fd(), stamp, has, attributes)?;
        if self.context.config.fsync {
            fs::fsync(&file).at(Step::Sync)?;
        }
        sys::close(file).at(Step::Close)?;
        self.put_in_place(folder, partial, to)
    }

    /// Gives something complete its name.
    fn put_in_place(
        &self,
        folder: &DirPair,
        partial: Partial<'_>,
        to: &CStr,
    ) -> Result<(), CopyError> {
        if *partial.name != *to {
            let dir = folder.destination()?;
            fs::renameat(dir, &*partial.name, dir, to).at(Step::Rename)?;
        }
        partial.keep();
        Ok(())
    }

    /// What the destination has under the name, and so what to do.
    fn plan(
        &mut self,
        folder: &mut DirPair,
        from: &CStr,
        to: &CStr,
        first_link: bool,
    ) -> Result<Plan, CopyError> {
        let config = &self.context.config;
        let old = match folder.existing(to).at(Step::LookAtDestination)? {
            Some(old) => FileStat::of(&old),
            None if config.dry_run => {
                let new = self.look(folder, from)?;
                return Ok(if self.is_for_parent(&new, first_link) {
                    Plan::HardLink(new)
                } else {
                    Plan::Create
                });
            }
            None => return Ok(Plan::Create),
        };
        let new = self.look(folder, from)?;
        if self.is_for_parent(&new, first_link) {
            return Ok(Plan::HardLink(new));
        }
        if new.inode == old.inode {
            return Ok(Plan::Leave(Ending::Unchanged, Action::LeaveSame));
        }
        let (old_type, new_type) = (
            FileType::from_raw_mode(old.mode),
            FileType::from_raw_mode(new.mode),
        );
        if old_type == FileType::Directory {
            return Err(CopyError::new(Step::Create, Reason::DirectoryInTheWay));
        }
        if self.context.targets.is_source(old.inode) {
            return Err(CopyError::new(Step::Create, Reason::IsSource));
        }
        let difference = if old_type != new_type {
            Some(Action::ReplaceOtherKind)
        } else if new_type == FileType::Symlink {
            let there = folder.destination()?;
            if fs::readlinkat(folder.source(), from, Vec::new()).at(Step::ReadLink)?
                != fs::readlinkat(there, to, Vec::new()).at(Step::LookAtDestination)?
            {
                Some(Action::ReplaceTarget)
            } else {
                (!self.same_time(folder, &old, &new)).then_some(Action::ReplaceTime)
            }
        } else if old.size != new.size || old.rdev != new.rdev {
            Some(Action::ReplaceSize)
        } else {
            (!self.same_time(folder, &old, &new)).then_some(Action::ReplaceTime)
        };
        Ok(self.verdict(difference, &old, &new))
    }

    /// What `--overwrite` says of an entry that is there and differs, or does not.
    fn verdict(&self, difference: Option<Action>, old: &FileStat, new: &FileStat) -> Plan {
        let unchanged = Plan::Leave(Ending::Unchanged, Action::LeaveUnchanged);
        match self.context.config.overwrite {
            Overwrite::Changed => difference.map_or(unchanged, Plan::Replace),
            Overwrite::Always => Plan::Replace(Action::ReplaceAlways),
            Overwrite::Older if difference.is_none() => unchanged,
            Overwrite::Older if old.mtime < new.mtime => Plan::Replace(Action::ReplaceOlder),
            Overwrite::Older => Plan::Leave(Ending::Skipped, Action::SkipNewer),
            Overwrite::Never if difference.is_none() => unchanged,
            Overwrite::Never => Plan::Leave(Ending::Skipped, Action::SkipExisting),
        }
    }

    fn look(&self, folder: &DirPair, from: &CStr) -> Result<FileStat, CopyError> {
        let flags = if self.context.config.dereference {
            AtFlags::empty()
        } else {
            AtFlags::SYMLINK_NOFOLLOW
        };
        let stat = fs::statat(folder.source(), from, flags).at(Step::Look)?;
        Ok(FileStat::of(&stat))
    }

    /// True for one of several hard links, unless it is to be copied all the same.
    fn is_for_parent(&self, stamp: &FileStat, first_link: bool) -> bool {
        !first_link && stamp.links > 1 && self.context.config.preserve.links.is_wanted()
    }

    fn open_source(&self, folder: &DirPair, from: &CStr) -> rustix::io::Result<OwnedFd> {
        // NONBLOCK: should a FIFO have taken the file's place meanwhile, opening it must not wait.
        let mut flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        if !self.context.config.dereference {
            flags |= OFlags::NOFOLLOW;
        }
        let open = |flags| fs::openat(folder.source(), from, flags, Mode::empty());
        if self.context.identity.is_root {
            // The source's access times stay what they are. Owners may ask for that too, but who
            // is none would pay with a call that fails for each file.
            match open(flags | OFlags::NOATIME) {
                Err(Errno::PERM | Errno::AGAIN) => {}
                result => return result,
            }
        }
        match open(flags) {
            // Somebody has a lease on it, a file server say (fcntl(2)): opening it waits until he
            // has given it back. Where it is still a regular file it may.
            Err(Errno::AGAIN) => {
                let entry = open(flags | OFlags::PATH)?;
                let stat = fs::fstat(&entry)?;
                if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                    return Err(Errno::AGAIN);
                }
                let waiting = flags.difference(OFlags::NONBLOCK | OFlags::NOFOLLOW);
                fs::open(metadata::magic_link(&entry), waiting, Mode::empty())
            }
            result => result,
        }
    }

    /// The mode to create a file with: its last one where nothing needs to be done before others
    /// may see it, which saves a chmod(2); otherwise nothing for anybody else.
    fn creation_mode(&self, folder: &DirPair, stamp: &FileStat, plain: bool) -> u32 {
        let config = &self.context.config;
        if !config.preserve.mode.is_wanted() {
            return 0o666 & !self.context.identity.umask;
        }
        let owner_given = !config.preserve.ownership.is_wanted()
            || folder.given()
                == Some(metadata::attainable_owner(
                    self.context,
                    folder.given(),
                    stamp,
                ));
        // An inherited ACL gives to others what the group's bits allow.
        let is_final = plain && owner_given && stamp.mode & 0o7000 == 0 && !folder.inherits();
        if is_final && folder.given().is_some() {
            stamp.mode & 0o777
        } else {
            0o600
        }
    }

    /// Creates the file that will become `to`.
    fn create<'a>(
        &mut self,
        folder: &mut DirPair,
        to: &'a CStr,
        action: Action,
        mode: u32,
    ) -> Result<(OwnedFd, Partial<'a>), CopyError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let making = self.making(action);
        self.make(folder, to, making, |dir, name| {
            fs::openat(
                dir,
                name,
                flags | OFlags::NOFOLLOW,
                Mode::from_raw_mode(mode),
            )
            .at(Step::Create)
        })
    }

    /// Makes what will become `to`, under that name or the temporary one.
    fn make<'a, T>(
        &self,
        folder: &mut DirPair,
        to: &'a CStr,
        making: WriteTarget,
        make: impl Fn(BorrowedFd<'_>, &CStr) -> Result<T, CopyError>,
    ) -> Result<(T, Partial<'a>), CopyError> {
        let name = match making {
            WriteTarget::Temporary(number) => {
                folder.lock_for_temporaries();
                Cow::Owned(self.context.temporary_name(self.worker, number))
            }
            WriteTarget::Entry | WriteTarget::Nothing => Cow::Borrowed(to),
        };
        let directory = folder.share_destination()?;
        self.slot.making(making);
        let made = make(directory.as_fd(), &name)
            .inspect_err(|_| self.slot.making(WriteTarget::Nothing))?;
        let partial = Partial {
            directory,
            name,
            slot: self.slot,
            armed: true,
        };
        Ok((made, partial))
    }

    /// Under which name to make something, before it is complete.
    fn making(&mut self, action: Action) -> WriteTarget {
        // `older` and `never` trust whatever has the name, so nothing incomplete may have it
        // even for a moment: a kill would leave it there for good.
        let overwrite = self.context.config.overwrite;
        let trusting = matches!(overwrite, Overwrite::Older | Overwrite::Never);
        if action == Action::Copy && !trusting {
            WriteTarget::Entry
        } else {
            self.temporary()
        }
    }

    /// A temporary name that this worker has not used yet.
    fn temporary(&mut self) -> WriteTarget {
        self.temporaries += 1;
        WriteTarget::Temporary(self.temporaries)
    }

    fn is_large(&self, stamp: &FileStat) -> bool {
        let config = &self.context.config;
        stamp.size >= CHUNKED_FROM
            && stamp.allocated >= CHUNKED_FROM
            && config.jobs != Some(1)
            && config.sparse == Sparse::Auto
            && config.reflink != Reflink::Always
    }
}

/// Something at the destination that is not complete. It is removed when this is dropped.
struct Partial<'a> {
    directory: Rc<OwnedFd>,
    name: Cow<'a, CStr>,
    slot: &'static WorkerSlot,
    armed: bool,
}

impl Partial<'_> {
    /// It is complete, or somebody else's to complete.
    fn keep(mut self) {
        self.armed = false;
    }
}

impl Drop for Partial<'_> {
    fn drop(&mut self) {
        if self.armed {
            // Where even this fails there is nothing left to try: the error that led here is
            // reported, and the next run sees that the file is incomplete.
            let _ = fs::unlinkat(&self.directory, &*self.name, AtFlags::empty());
        }
        self.slot.making(WriteTarget::Nothing);
    }
}
