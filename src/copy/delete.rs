//! Removes from the destination what the source does not have.
//!
//! An entry is removed only if the source was seen twice without it: when its directory was listed,
//! and at the moment of removing it. Only ENOENT counts as "without it", so a source that fails or
//! has lost its device keeps everything. Directories are emptied without following a link and
//! without entering a mount. An entry that is gone already counts as removed: another worker may
//! have crashed after it had removed it.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::Copier;
use super::backup;
use super::dir::DirPair;
use super::flags::{self, Unsealed};
use super::temp;
use crate::context::Context;
use crate::fs::list::{self, Listing};
use crate::fs::open::{DIRECTORY, ENTRY, open_dir};
use crate::fs::path::{Kind, RelPath};
use crate::fs::proc::magic_link;
use crate::fs::stat::FileId;
use crate::protocol::error::{At, CopyError, Reason, Step};

/// How often a directory is listed again if it is not empty after its entries were removed. Some
/// file systems skip entries of a listing while others are removed.
const LISTINGS: u32 = 3;

/// What became of an entry that was to be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Removed,
    /// It is a directory, and must be emptied first.
    Doomed,
    /// It stays, and that is no error.
    Kept,
    /// It stays because of `--max-delete`.
    OverLimit,
}

/// The place of an entry to remove.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    pub(crate) target: usize,
    /// Its directory below the target.
    pub(crate) path: &'a RelPath,
    /// The same directory, if the source has it too.
    pub(crate) source: Option<&'a DirPair>,
}

/// A directory that only the destination has.
pub(crate) struct DoomedDir {
    pub(crate) fd: OwnedFd,
}

/// Returns true if an entry that only the destination has must stay: a backup, or one that a rule
/// excludes. `dir` is its directory below the root of the target.
pub(crate) fn is_protected(context: &Context, dir: &RelPath, name: &CStr, kind: Kind) -> bool {
    let deletes_excluded = context.config.mirror.is_some_and(|mirror| mirror.excluded);
    backup::is_backup(context, name.to_bytes())
        || !deletes_excluded && is_excluded(context, dir, name, kind)
}

fn is_excluded(context: &Context, dir: &RelPath, name: &CStr, kind: Kind) -> bool {
    let filter = context.targets.filter.as_ref();
    let is_dir = kind == Kind::Directory;
    filter.is_some_and(|filter| filter.is_excluded(dir, name.to_bytes(), is_dir))
}

impl Copier {
    /// Returns true if the source has no such entry, under any spelling that the destination takes
    /// for this name.
    ///
    /// What a rule excludes is in the source all the same, and stays unless `--delete-excluded` is
    /// given.
    pub(crate) fn is_extraneous(
        &mut self,
        dir: &mut DirPair,
        path: &RelPath,
        kind: Kind,
        name: &CStr,
    ) -> Result<bool, CopyError> {
        let mirror = self.context.config.mirror;
        if mirror.is_some_and(|mirror| mirror.excluded)
            && is_excluded(self.context, path, name, kind)
        {
            return Ok(true);
        }
        match fs::statat(dir.source(), name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(self
                .is_listed_otherwise(dir, name)
                .at(Step::ListDirectory)?),
            // The last three: the source's file system can have no such name.
            Err(Errno::NOENT | Errno::NAMETOOLONG | Errno::INVAL | Errno::ILSEQ) => {
                Ok(!self.is_source_spelling(dir, name).at(Step::ListDirectory)?)
            }
            Err(errno) => Err(CopyError::new(Step::Look, errno)),
        }
    }

    /// Lists the destination's entries that the source does not have.
    pub(crate) fn list_extraneous(
        &mut self,
        dir: &mut DirPair,
        path: &RelPath,
        has_own_cwd: bool,
        mut found: impl FnMut(&mut Self, Kind, &CStr),
    ) -> Result<(), CopyError> {
        let destination = dir.share_destination()?;
        let is_crossed = self.context.config.one_file_system && {
            let target = &self.context.targets.list[dir.target];
            let root = target.destination.as_ref().map(fs::fstat);
            !matches!(root, Some(Ok(root)) if FileId::of(&root).dev == dir.devices().destination)
        };
        if is_crossed {
            return Ok(());
        }
        let mut listing = Listing::of(list::path_to(destination.as_fd(), has_own_cwd));
        while let Some((kind, name)) = listing.read() {
            self.slot.heartbeat();
            if self.context.scoreboard.is_stopping() {
                return Ok(());
            }
            if !temp::is_temporary(name)
                && self.is_extraneous(dir, path, kind, name)?
                && !is_protected(self.context, path, name, kind)
            {
                found(self, kind, name);
            }
        }
        listing.result().at(Step::OpenDestinationDirectory)
    }

    /// Removes an entry that the source did not have when its directory was listed.
    pub(crate) fn delete(
        &mut self,
        dir: &mut DirPair,
        path: &RelPath,
        kind: Kind,
        name: &CStr,
    ) -> Result<Fate, CopyError> {
        if !self.is_extraneous(dir, path, kind, name)? {
            return Ok(Fate::Kept);
        }
        let destination = dir.share_destination()?;
        let place = Place {
            target: dir.target,
            path,
            source: Some(dir),
        };
        self.remove_entry(place, destination.as_fd(), kind, name)
    }

    /// Removes an entry, unless it is a directory.
    pub(crate) fn remove_entry(
        &mut self,
        place: Place<'_>,
        dir: BorrowedFd<'_>,
        kind: Kind,
        name: &CStr,
    ) -> Result<Fate, CopyError> {
        // The listing may be wrong by now, so the kernel decides.
        if kind == Kind::Directory {
            let stat = fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW);
            match stat.map(|stat| FileType::from_raw_mode(stat.st_mode)) {
                Ok(FileType::Directory) => return Ok(Fate::Doomed),
                Ok(_) => {}
                Err(Errno::NOENT) => return Ok(Fate::Removed),
                Err(errno) => return Err(CopyError::new(Step::Delete, errno)),
            }
        }
        if let Some(run) = temp::run_of(name.to_bytes())
            && !temp::is_stale(run, dir, name)
        {
            return Err(CopyError::new(Step::Delete, Reason::InUse));
        }
        if !self.begin_deletion() {
            return Ok(Fate::OverLimit);
        }
        if self.context.config.dry_run {
            return Ok(Fate::Removed);
        }
        if let Some(backup) = &self.context.config.backup {
            let Place {
                target,
                path,
                source,
            } = place;
            let kept = self.move_to_backup(backup, target, path, dir, source, name);
            if kept.is_err() {
                self.undo_deletion();
            }
            return kept.map(|()| Fate::Removed);
        }
        let result = match fs::unlinkat(dir, name, AtFlags::empty()) {
            Err(Errno::PERM) if flags::keeps_flags(&self.context.config) => {
                // An earlier run may have made it immutable, as it was at the source.
                let unsealed = Unsealed::new(dir, name);
                let result = fs::unlinkat(dir, name, AtFlags::empty());
                if let (Some(unsealed), Ok(())) = (unsealed, result) {
                    unsealed.keep();
                }
                result
            }
            result => result,
        };
        match result {
            Ok(()) | Err(Errno::NOENT) => Ok(Fate::Removed),
            Err(errno) => {
                self.undo_deletion();
                match errno {
                    Errno::ISDIR => Ok(Fate::Doomed),
                    errno => Err(CopyError::new(Step::Delete, reason_of(errno))),
                }
            }
        }
    }

    /// Opens a directory that only the destination has. `None` if it is gone, or has to stay.
    pub(crate) fn open_doomed(
        &self,
        target: u32,
        path: &RelPath,
    ) -> Result<Result<DoomedDir, Fate>, CopyError> {
        let context = self.context;
        let (parent, name) = match self.open_parent(target, path)? {
            Ok(found) => found,
            Err(fate) => return Ok(Err(fate)),
        };
        let mut opened = open_on_same_mount(parent.as_fd(), &name);
        if matches!(opened, Err(Errno::ACCESS)) && !context.config.dry_run {
            make_accessible(parent.as_fd(), &name);
            opened = open_on_same_mount(parent.as_fd(), &name);
        }
        let fd = match opened {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(Err(Fate::Removed)),
            Err(errno) => return Err(CopyError::new(Step::Delete, reason_of(errno))),
        };
        let stat = fs::fstat(&fd).at(Step::Delete)?;
        if context.targets.is_precious(FileId::of(&stat)) {
            return Ok(Err(Fate::Kept));
        }
        if stat.st_mode & 0o300 != 0o300 && !context.identity.is_root && !context.config.dry_run {
            let _ = fs::fchmod(&fd, Mode::from_raw_mode(stat.st_mode & 0o7777 | 0o700));
        }
        Ok(Ok(DoomedDir { fd }))
    }

    /// Syncs a directory that stays although only the destination has it, with `--fsync`, and the
    /// backups of what was removed from it.
    pub(crate) fn sync_doomed(
        &self,
        target: u32,
        path: &RelPath,
        doomed: &DoomedDir,
        stays: bool,
    ) -> Result<(), CopyError> {
        let config = &self.context.config;
        let target = target as usize;
        if !config.fsync || config.dry_run {
            return Ok(());
        }
        // It is no mount point, so it is on the device of the target.
        if stays && self.context.targets.list[target].batch.is_none() {
            fs::fsync(&doomed.fd).at(Step::Sync)?;
        }
        self.sync_backups(target, path, true)
    }

    /// Removes a directory whose entries were removed.
    pub(crate) fn remove_emptied(
        &mut self,
        target: u32,
        path: &RelPath,
    ) -> Result<Fate, CopyError> {
        let (parent, name) = match self.open_parent(target, path)? {
            Ok(found) => found,
            Err(fate) => return Ok(fate),
        };
        if !self.begin_deletion() {
            return Ok(Fate::OverLimit);
        }
        if self.context.config.dry_run {
            return Ok(Fate::Removed);
        }
        let mut result = fs::unlinkat(&parent, &*name, AtFlags::REMOVEDIR);
        for _ in 1..LISTINGS {
            if !matches!(result, Err(Errno::NOTEMPTY | Errno::EXIST)) {
                break;
            }
            let place = Place {
                target: target as usize,
                path,
                source: None,
            };
            self.empty_again(place, parent.as_fd(), &name)?;
            result = fs::unlinkat(&parent, &*name, AtFlags::REMOVEDIR);
        }
        match result {
            Ok(()) | Err(Errno::NOENT) => Ok(Fate::Removed),
            Err(errno) => {
                self.undo_deletion();
                Err(CopyError::new(Step::Delete, reason_of(errno)))
            }
        }
    }

    /// Removes files that a listing has missed.
    fn empty_again(
        &mut self,
        place: Place<'_>,
        parent: BorrowedFd<'_>,
        name: &CStr,
    ) -> Result<(), CopyError> {
        let dir = open_on_same_mount(parent, name).at(Step::Delete)?;
        let mut listing = Listing::of(list::path_to(dir.as_fd(), false));
        let mut missed = Vec::new();
        while let Some((kind, name)) = listing.read() {
            missed.push((kind, name.to_owned()));
        }
        for (kind, name) in missed {
            if is_protected(self.context, place.path, &name, kind) {
                continue;
            }
            self.remove_entry(place, dir.as_fd(), kind, &name)?;
        }
        Ok(())
    }

    /// Opens the parent of a directory to remove.
    fn open_parent(
        &self,
        target: u32,
        path: &RelPath,
    ) -> Result<Result<(OwnedFd, CString), Fate>, CopyError> {
        let (parent, name) = path.split_last();
        let root = self.context.targets.list[target as usize]
            .destination
            .as_ref();
        let (Some(root), Ok(name), false) = (root, CString::new(name), name.is_empty()) else {
            return Ok(Err(Fate::Kept));
        };
        match open_dir(root.as_fd(), &parent) {
            Ok(parent) => Ok(Ok((parent, name))),
            Err(Errno::NOENT) => Ok(Err(Fate::Removed)),
            Err(errno) => Err(CopyError::new(Step::Delete, errno)),
        }
    }

    /// Returns false if `--max-delete` allows no more.
    fn begin_deletion(&self) -> bool {
        let limit = self.context.config.mirror.and_then(|mirror| mirror.limit);
        limit.is_none_or(|limit| self.context.scoreboard.begin_deletion(limit))
    }

    fn undo_deletion(&self) {
        if self
            .context
            .config
            .mirror
            .is_some_and(|mirror| mirror.limit.is_some())
        {
            self.context.scoreboard.undo_deletion();
        }
    }
}

/// Opens a directory, unless it is a link or a mount point (EXDEV).
fn open_on_same_mount(parent: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    loop {
        match fs::openat2(parent, name, DIRECTORY, Mode::empty(), resolve) {
            Err(Errno::AGAIN) => {}
            // Linux before 5.6, or a container that blocks the call.
            Err(Errno::NOSYS | Errno::PERM) => {
                let dir = fs::openat(parent, name, DIRECTORY, Mode::empty())?;
                let is_same = fs::fstat(&dir)?.st_dev == fs::fstat(parent)?.st_dev;
                return if is_same { Ok(dir) } else { Err(Errno::XDEV) };
            }
            result => return result,
        }
    }
}

/// Lets the owner list and change a directory, so that it can be emptied.
fn make_accessible(parent: BorrowedFd<'_>, name: &CStr) {
    let flags = ENTRY | OFlags::DIRECTORY;
    if let Ok(entry) = fs::openat(parent, name, flags, Mode::empty()) {
        let _ = fs::chmod(magic_link(&entry).as_c_str(), Mode::RWXU);
    }
}

/// Returns what an errno of a removal means.
fn reason_of(errno: Errno) -> Reason {
    match errno {
        Errno::XDEV | Errno::BUSY => Reason::IsMountPoint,
        errno => errno.into(),
    }
}
