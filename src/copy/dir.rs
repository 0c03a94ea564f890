//! A folder open on both sides, and what is known about it.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{self, AtFlags, FlockOperation, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::context::Context;
use crate::fs::path::RelPath;
use crate::fs::stat::{DirIds, FileId, FileStat};
use crate::fs::xattr::{DEFAULT_ACL, strip_acls};
use crate::protocol::ChunkedFile;
use crate::protocol::error::{At, CopyError, Reason, Step};

/// A source folder and its destination.
pub(crate) struct DirPair {
    source: OwnedFd,
    /// None in a dry run, where the destination has no such folder.
    destination: Option<Rc<OwnedFd>>,
    /// What the source folder was when it was opened.
    pub(crate) stamp: FileStat,
    /// Which folder the destination is.
    there: Option<FileId>,
    fresh: bool,
    /// The owner that the kernel gives to what is made here; learned, since a set-group-id
    /// folder, a mount option or a server may decide it.
    given: Option<(u32, u32)>,
    /// What is made here inherits an ACL.
    inherits: Option<bool>,
    locked: bool,
}

impl DirPair {
    /// Opens both sides. `fresh` says that this run has made the destination folder.
    ///
    /// # Errors
    /// Where one side cannot be opened, or must not be.
    pub(crate) fn open(
        context: &Context,
        root: usize,
        path: &RelPath,
        fresh: bool,
    ) -> Result<Self, CopyError> {
        let pair = &context.targets.list[root];
        let config = &context.config;
        let source = if config.dereference {
            crate::fs::open::open_dir_following_links(pair.source.as_fd(), path)
        } else {
            crate::fs::open::open_dir(pair.source.as_fd(), path)
        };
        let source = source.at(Step::OpenDirectory)?;
        let stamp = FileStat::of(&fs::fstat(&source).at(Step::OpenDirectory)?);
        let destination = match &pair.destination {
            Some(destination) if !(fresh && config.dry_run) => {
                match crate::fs::open::open_dir(destination.as_fd(), path) {
                    Ok(folder) => Some(Rc::new(folder)),
                    Err(Errno::NOENT) if config.dry_run => None,
                    Err(errno) => {
                        let reason = match errno {
                            Errno::LOOP => Reason::LinkInTheWay,
                            Errno::NOTDIR => in_the_way(destination.as_fd(), path),
                            errno => errno.into(),
                        };
                        return Err(CopyError::new(Step::OpenDestinationDirectory, reason));
                    }
                }
            }
            _ => None,
        };
        let mut folder = Self {
            source,
            destination,
            stamp,
            there: None,
            fresh,
            given: None,
            inherits: fresh.then_some(false),
            locked: false,
        };
        folder.look_at_destination(context)?;
        Ok(folder)
    }

    fn look_at_destination(&mut self, context: &Context) -> Result<(), CopyError> {
        let Some(destination) = &self.destination else {
            return Ok(());
        };
        let stat = fs::fstat(destination).at(Step::OpenDestinationDirectory)?;
        self.there = Some(FileId::of(&stat));
        if self.fresh {
            // This folder was just made here, so files will be given the same owner; but where
            // its group is not the process's, it may have it from a set-group-id folder above,
            // and not hand it on.
            let given = (stat.st_uid, stat.st_gid);
            self.given = Some(given).filter(|&(_, group)| group == context.identity.group);
            return Ok(());
        }
        if context
            .targets
            .is_in_source(destination.as_fd(), FileId::of(&stat))
        {
            let reason = Reason::LandsOnSource;
            return Err(CopyError::new(Step::OpenDestinationDirectory, reason));
        }
        Ok(())
    }

    /// Lets the owner write to a folder from an earlier run that does not allow it: its mode is
    /// set again when it is finished. Where the folder is somebody else's, what is tried in it
    /// fails and says so.
    pub(crate) fn make_writable(&self, context: &Context) {
        let config = &context.config;
        if let Some(destination) = &self.destination
            && !(context.identity.is_root || config.dry_run || self.fresh)
            && let Ok(stat) = fs::fstat(destination)
            && stat.st_mode & 0o300 != 0o300
        {
            let _ = fs::fchmod(destination, Mode::from_raw_mode(stat.st_mode | 0o700));
        }
    }

    /// The source side.
    pub(crate) fn source(&self) -> BorrowedFd<'_> {
        self.source.as_fd()
    }

    /// The destination side.
    ///
    /// # Errors
    /// In a dry run, where the folder does not exist; nothing asks then.
    pub(crate) fn destination(&self) -> Result<BorrowedFd<'_>, CopyError> {
        match &self.destination {
            Some(destination) => Ok(destination.as_fd()),
            None => Err(CopyError::new(Step::OpenDestinationDirectory, Errno::NOENT)),
        }
    }

    /// The destination side, shared.
    pub(super) fn share_destination(&self) -> Result<Rc<OwnedFd>, CopyError> {
        self.destination()?;
        self.destination
            .clone()
            .ok_or(CopyError::new(Step::Create, Errno::NOENT))
    }

    /// True when this run has made the destination folder.
    pub(crate) fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// True when nothing can be at the destination, so that no entry needs to be looked for.
    pub(crate) fn is_empty(&self) -> bool {
        self.fresh || self.destination.is_none()
    }

    /// What the destination has under a name.
    ///
    /// # Errors
    /// Whatever fstatat(2) says but ENOENT.
    pub(crate) fn existing(&self, name: &CStr) -> rustix::io::Result<Option<Stat>> {
        let Some(destination) = self.destination.as_ref().filter(|_| !self.fresh) else {
            return Ok(None);
        };
        match fs::statat(destination, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// The devices of both sides.
    pub(crate) fn devices(&self) -> (u64, u64) {
        (
            self.stamp.inode.dev,
            self.there.map_or(0, |there| there.dev),
        )
    }

    /// Which folder it is at both sides.
    pub(crate) fn pair(&self) -> DirIds {
        DirIds {
            source: self.stamp.inode,
            destination: self.there,
        }
    }

    /// The owner and group that the kernel gives to new entries here, once that is known.
    pub(crate) fn given(&self) -> Option<(u32, u32)> {
        self.given
    }

    /// Learns from the first file made here what the kernel gives to new entries.
    ///
    /// # Errors
    /// What fstat(2) says.
    pub(crate) fn learn(&mut self, file: BorrowedFd<'_>) -> rustix::io::Result<()> {
        if self.given.is_none() {
            let stat = fs::fstat(file)?;
            self.given = Some((stat.st_uid, stat.st_gid));
        }
        self.learn_inheritance();
        Ok(())
    }

    /// Learns whether what is made here inherits an ACL.
    pub(super) fn learn_inheritance(&mut self) {
        if self.inherits.is_none() {
            let acl = self
                .destination
                .as_ref()
                .map(|folder| fs::fgetxattr(folder, DEFAULT_ACL, &mut [0_u8; 1][..]));
            // It is longer than the buffer.
            self.inherits = Some(matches!(acl, Some(Ok(_) | Err(Errno::RANGE))));
        }
    }

    /// True when the folder has a default ACL, which everything made in it inherits.
    pub(crate) fn inherits(&self) -> bool {
        self.inherits.unwrap_or(true)
    }

    /// Tells other runs that temporary files are being written here, so that they are not taken
    /// for left-overs. Where locks are not to be had it is done without.
    pub(crate) fn lock_for_temporaries(&mut self) {
        if let (Some(folder), false) = (&self.destination, self.locked) {
            let _ = fs::flock(folder, FlockOperation::NonBlockingLockShared);
            self.locked = true;
        }
    }

    /// Makes a subfolder at the destination. True when it is new, false when there is one.
    ///
    /// # Errors
    /// What mkdirat(2) says, or that something else has the name.
    pub(crate) fn make_subfolder(
        &mut self,
        name: &CStr,
        context: &Context,
    ) -> Result<bool, CopyError> {
        let Some(destination) = self.destination.clone() else {
            return Ok(true);
        };
        match fs::mkdirat(
            &destination,
            name,
            context.config.new_dir_mode(context.identity.umask),
        ) {
            Ok(()) => {}
            // Whether it is a folder shows when it is opened, without following a link. In a
            // folder that this run has made it is what another name has become, where the file
            // system takes two names for one.
            Err(Errno::EXIST) if !self.fresh => return Ok(false),
            Err(errno) => return Err(CopyError::new(Step::MakeDirectory, errno)),
        }
        self.learn_inheritance();
        if self.inherits() {
            let folder = fs::openat(
                &destination,
                name,
                crate::fs::open::DIRECTORY,
                Mode::empty(),
            )
            .at(Step::MakeDirectory)?;
            strip_acls(
                folder.as_fd(),
                context.config.new_dir_mode(context.identity.umask),
            )
            .at(Step::SetAttributes)?;
        }
        Ok(true)
    }

    /// What [`DirPair::make_subfolder`] would say.
    ///
    /// # Errors
    /// What fstatat(2) says.
    pub(crate) fn would_make_subfolder(&self, name: &CStr) -> Result<bool, CopyError> {
        Ok(self.existing(name).at(Step::LookAtDestination)?.is_none())
    }
}

/// Why a destination folder could not be opened: a link and a file both give ENOTDIR, depending
/// on whether the name is the last one.
fn in_the_way(root: BorrowedFd<'_>, path: &RelPath) -> Reason {
    let (parent, name) = path.split_last();
    let stat = crate::fs::open::open_dir(root, &parent)
        .and_then(|parent| fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW));
    match stat.map(|stat| fs::FileType::from_raw_mode(stat.st_mode)) {
        Ok(fs::FileType::Symlink) => Reason::LinkInTheWay,
        _ => Reason::FileInTheWay,
    }
}

/// Opens a large file for writing that this run has prepared in a folder.
pub(super) fn open_prepared(
    folder: &DirPair,
    large: &ChunkedFile,
    flags: OFlags,
) -> Result<OwnedFd, CopyError> {
    let needed = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let name = large.written_as.as_bytes();
    let file = fs::openat(folder.destination()?, name, needed, Mode::empty()).at(Step::Write)?;
    // Who may write to the folder can give the name to another file, and would have that written.
    let there = FileId::of(&fs::fstat(&file).at(Step::LookAtDestination)?);
    if there != large.prepared {
        return Err(CopyError::new(Step::Write, Reason::Replaced));
    }
    if flags.contains(OFlags::TRUNC) {
        fs::ftruncate(&file, 0).at(Step::Write)?;
    }
    Ok(file)
}
