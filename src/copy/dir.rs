//! A source directory and its destination, both open.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::fs::{self, Access, AtFlags, FileType, Mode, Stat};
use rustix::io::Errno;

use crate::context::Context;
use crate::fs::devices;
use crate::fs::open::{DIRECTORY, open_dir, open_dir_following_links};
use crate::fs::path::RelPath;
use crate::fs::spelling::{Naming, Spellings};
use crate::fs::stat::{DirIds, FileId, FileStat};
use crate::fs::xattr;
use crate::protocol::entry::DirOrigin;
use crate::protocol::error::{At, CopyError, Reason, Step};

/// How long a directory that another machine has made may take to appear.
const APPEAR_TIMEOUT: Duration = Duration::from_secs(5);

/// A source directory and its destination.
pub(crate) struct DirPair {
    /// The number of the target that it belongs to.
    pub(super) target: usize,
    source: OwnedFd,
    /// None in a dry run if there is no such directory.
    destination: Option<Rc<OwnedFd>>,
    /// The source directory's stat when it was opened.
    pub(crate) stat: FileStat,
    destination_id: Option<FileId>,
    /// The destination directory's mode when it was opened.
    destination_mode: u32,
    origin: DirOrigin,
    /// Another run, or a twin of an entry, has created an entry here meanwhile.
    is_shared: bool,
    /// The owner that the kernel gives to new entries here, once observed. A set-group-id
    /// directory, a mount option or a server may decide it, so it cannot be computed.
    default_owner: Option<Owner>,
    /// Whether new entries here inherit an ACL, once observed.
    has_default_acl: Option<bool>,
    /// How the destination treats names, once observed.
    pub(super) naming: Option<Naming>,
    /// The names at the destination and the source. Listed only if the destination treats some
    /// names as equal.
    pub(super) stored: Option<Spellings>,
    pub(super) source_names: Option<Spellings>,
}

/// Who owns an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// The devices of a source directory and its destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Devices {
    pub(super) source: u64,
    pub(super) destination: u64,
}

/// How a subdirectory came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Made {
    /// It was made just now.
    New,
    /// This run had made it before, but the worker that did so crashed.
    Resumed,
    /// It existed already.
    Merged,
}

impl DirPair {
    /// Opens a directory of a target on both sides.
    pub(crate) fn open(
        context: &Context,
        target: usize,
        path: &RelPath,
        origin: DirOrigin,
    ) -> Result<Self, CopyError> {
        let number = target;
        let target = &context.targets.list[number];
        let config = &context.config;
        let source = if config.dereference {
            open_dir_following_links(target.source.as_fd(), path)
        } else {
            open_dir(target.source.as_fd(), path)
        };
        let source = source.at(Step::OpenDirectory)?;
        let stat = FileStat::of(&fs::fstat(&source).at(Step::OpenDirectory)?);
        let destination = match &target.destination {
            // The "created" directories of a dry run do not exist.
            Some(root) if !(config.dry_run && origin.created) => {
                open_made(root.as_fd(), path, config.dry_run, origin)?
            }
            _ => None,
        };
        let mut dir = Self {
            target: number,
            source,
            destination: destination.map(Rc::new),
            stat,
            destination_id: None,
            destination_mode: 0,
            origin,
            is_shared: false,
            default_owner: None,
            has_default_acl: None,
            naming: None,
            stored: None,
            source_names: None,
        };
        dir.examine_destination(context)?;
        Ok(dir)
    }

    /// Checks that writing to the destination does not change a source. Skips that for a new
    /// directory, and sets the defaults that a new directory is known to have.
    ///
    /// Both shortcuts need `known_empty`. `created` is not enough, because it stays true for a
    /// retry. By then a crashed worker may have set the final owner and default ACL, which new
    /// entries do not get. And a resumed directory is known only by EEXIST, which another process
    /// may have caused.
    fn examine_destination(&mut self, context: &Context) -> Result<(), CopyError> {
        let Some(destination) = &self.destination else {
            return Ok(());
        };
        let stat = fs::fstat(destination).at(Step::OpenDestinationDirectory)?;
        let id = FileId::of(&stat);
        self.destination_id = Some(id);
        self.destination_mode = stat.st_mode & 0o7777;
        if self.origin.known_empty {
            // Its ACLs were removed when it was made.
            self.has_default_acl = Some(false);
            // Entries will be created in the same way as the directory, so they get its owner. But
            // a foreign group may come from a set-group-id parent, and this directory may not hand
            // it down.
            if stat.st_gid == context.identity.group {
                self.default_owner = Some(Owner::of(&FileStat::of(&stat)));
            }
            return Ok(());
        }
        if context.targets.is_in_source(destination.as_fd(), id) {
            let step = Step::OpenDestinationDirectory;
            return Err(CopyError::new(step, Reason::LandsOnSource));
        }
        Ok(())
    }

    /// Returns the stat to finish the directory with. It is the source's. If modes are not kept, it
    /// has the destination's final mode. Call it before [`DirPair::make_writable`].
    pub(crate) fn stat_to_apply(&self, context: &Context) -> FileStat {
        let mut stat = self.stat;
        if !context.config.preserve.mode.is_wanted() {
            let mode = if self.origin.created {
                // The owner's extra access was only for filling the directory.
                let denied = !self.stat.mode | context.identity.umask;
                self.destination_mode & !(denied & 0o700)
            } else {
                self.destination_mode
            };
            stat.mode = stat.mode & !0o7777 | mode;
        }
        stat
    }

    /// Makes an existing read-only directory writable while pcopy copies into it. Its final mode
    /// is set at the end. If that is not allowed, creating entries fails and reports the reason.
    pub(crate) fn make_writable(&self, context: &Context) {
        let config = &context.config;
        if let Some(destination) = &self.destination
            // On a retry, a directory of this run may have its final mode already.
            && !(config.dry_run || self.origin.known_empty)
            && self.destination_mode & 0o300 != 0o300
            && !(context.identity.is_root && is_accessible(destination.as_fd()))
        {
            let mode = Mode::from_raw_mode(self.destination_mode | 0o700);
            let _ = fs::fchmod(destination, mode);
        }
    }

    pub(crate) fn source(&self) -> BorrowedFd<'_> {
        self.source.as_fd()
    }

    /// Returns the destination directory. Fails in a dry run if it does not exist.
    pub(crate) fn destination(&self) -> Result<BorrowedFd<'_>, CopyError> {
        match &self.destination {
            Some(destination) => Ok(destination.as_fd()),
            None => Err(CopyError::new(Step::OpenDestinationDirectory, Errno::NOENT)),
        }
    }

    /// Returns a shared handle of the destination directory.
    pub(super) fn share_destination(&self) -> Result<Rc<OwnedFd>, CopyError> {
        match &self.destination {
            Some(destination) => Ok(Rc::clone(destination)),
            None => Err(CopyError::new(Step::OpenDestinationDirectory, Errno::NOENT)),
        }
    }

    /// Returns true if this run has made the destination, or would make it, in a dry run.
    pub(crate) fn is_created(&self) -> bool {
        self.origin.created || self.destination.is_none()
    }

    /// Returns true if the destination directory cannot have an entry yet.
    pub(crate) fn is_known_empty(&self) -> bool {
        self.origin.known_empty && !self.is_shared || self.destination.is_none()
    }

    /// Notes that a name was taken in a directory believed to be empty. From now on this job looks
    /// before it creates. Another run may copy to the same destination, or the destination may
    /// treat two source names as one.
    pub(super) fn expect_others(&mut self) {
        self.is_shared = true;
    }

    /// Returns the stat of an existing entry, if any. Does not look if none can be there.
    pub(super) fn existing(&self, name: &CStr) -> rustix::io::Result<Option<Stat>> {
        if self.is_known_empty() {
            Ok(None)
        } else {
            self.stat_destination(name)
        }
    }

    /// Returns the stat of an entry at the destination, if any, even in a known empty directory.
    pub(super) fn stat_destination(&self, name: &CStr) -> rustix::io::Result<Option<Stat>> {
        let Some(destination) = &self.destination else {
            return Ok(None);
        };
        match fs::statat(destination, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    pub(super) fn devices(&self) -> Devices {
        Devices {
            source: self.stat.id.dev,
            destination: self.destination_id.map_or(0, |id| id.dev),
        }
    }

    /// Returns the IDs of both directories.
    pub(crate) fn ids(&self) -> DirIds {
        DirIds {
            source: self.stat.id,
            destination: self.destination_id,
        }
    }

    /// Returns the owner that the kernel gives to new entries here, once that is known.
    pub(super) fn default_owner(&self) -> Option<Owner> {
        self.default_owner
    }

    /// Returns true if new entries inherit an ACL here, or if that is not known yet.
    pub(super) fn has_default_acl(&self) -> bool {
        self.has_default_acl.unwrap_or(true)
    }

    /// Observes the defaults for new entries, by the first file made here.
    pub(super) fn observe_defaults(&mut self, file: BorrowedFd<'_>) -> rustix::io::Result<()> {
        if self.default_owner.is_none() {
            self.default_owner = Some(Owner::of(&FileStat::of(&fs::fstat(file)?)));
        }
        self.observe_default_acl();
        Ok(())
    }

    /// Observes whether new entries inherit an ACL here.
    pub(super) fn observe_default_acl(&mut self) {
        if let (None, Some(destination)) = (self.has_default_acl, &self.destination) {
            self.has_default_acl = Some(xattr::has_default_acl(destination.as_fd()));
        }
    }

    /// Makes a subdirectory at the destination, or finds out what a dry run would do.
    pub(crate) fn make_subdir(
        &mut self,
        name: &CStr,
        context: &Context,
    ) -> Result<Made, CopyError> {
        let config = &context.config;
        if config.dry_run {
            let old = self.existing(name).at(Step::LookAtDestination)?;
            return Ok(old.map_or(Made::New, |_| Made::Merged));
        }
        let destination = self.share_destination()?;
        let is_mode_kept = config.preserve.mode.is_wanted();
        let source_mode = if is_mode_kept {
            0
        } else {
            fs::statat(&self.source, name, AtFlags::empty())
                .at(Step::Look)?
                .st_mode
        };
        let mode = config.new_dir_mode(source_mode);
        let made = match fs::mkdirat(&destination, name, mode) {
            Ok(()) => Made::New,
            // Nothing had this name: another run has made it, or it is a twin.
            Err(Errno::EXIST) if self.origin.known_empty => {
                self.is_shared = true;
                return Ok(Made::Merged);
            }
            Err(Errno::EXIST) if self.origin.created => Made::Resumed,
            // Opening it, which follows no link, shows whether it is a directory.
            Err(Errno::EXIST) => return Ok(Made::Merged),
            Err(errno) => return Err(CopyError::new(Step::MakeDirectory, errno)),
        };
        self.observe_default_acl();
        if !is_mode_kept && context.identity.umask & 0o700 != 0 {
            // The owner must be able to fill the directory.
            if let Ok(stat) = fs::statat(&destination, name, AtFlags::SYMLINK_NOFOLLOW)
                && FileType::from_raw_mode(stat.st_mode) == FileType::Directory
            {
                let mode = Mode::from_raw_mode(stat.st_mode & 0o7777 | 0o700);
                let _ = fs::chmodat(&destination, name, mode, AtFlags::empty());
            }
        }
        // The worker that made a resumed directory may have crashed before this step.
        if is_mode_kept && self.has_default_acl() {
            let subdir =
                fs::openat(&destination, name, DIRECTORY, Mode::empty()).at(Step::MakeDirectory)?;
            // A set-group-id bit stays until the end: it hands the group down.
            let inherited = fs::fstat(&subdir).at(Step::MakeDirectory)?.st_mode & 0o2000;
            let mode = mode | Mode::from_raw_mode(inherited);
            xattr::strip_acls(subdir.as_fd(), mode).at(Step::SetAttributes)?;
        }
        Ok(made)
    }
}

impl Owner {
    pub(super) fn of(stat: &FileStat) -> Self {
        Self {
            uid: stat.uid,
            gid: stat.gid,
        }
    }
}

/// Returns true if entries can be created in a directory, whatever its mode. Root can do that, but
/// not on a server that squashes root, nor without CAP_DAC_OVERRIDE.
fn is_accessible(dir: BorrowedFd<'_>) -> bool {
    let access = Access::WRITE_OK | Access::EXEC_OK;
    fs::accessat(dir, c".", access, AtFlags::empty()) != Err(Errno::ACCESS)
}

/// Opens a destination directory as [`open_destination`] does. If another machine has made it, it
/// may take a while to appear here: a client of NFS remembers that a name did not exist.
fn open_made(
    root: BorrowedFd<'_>,
    path: &RelPath,
    dry_run: bool,
    origin: DirOrigin,
) -> Result<Option<OwnedFd>, CopyError> {
    let deadline = Instant::now() + APPEAR_TIMEOUT;
    let mut pause = Duration::from_millis(10);
    loop {
        match open_destination(root, path, dry_run) {
            Err(error)
                if origin.created
                    && devices::is_shared()
                    && error.reason == Errno::NOENT.into()
                    && Instant::now() + pause < deadline =>
            {
                std::thread::sleep(pause);
                pause *= 2;
            }
            result => return result,
        }
    }
}

/// Opens a destination directory. Returns `None` if it does not exist and this is a dry run.
fn open_destination(
    root: BorrowedFd<'_>,
    path: &RelPath,
    dry_run: bool,
) -> Result<Option<OwnedFd>, CopyError> {
    let reason = match open_dir(root, path) {
        Ok(dir) => return Ok(Some(dir)),
        Err(Errno::NOENT) if dry_run => return Ok(None),
        Err(Errno::LOOP) => Reason::LinkInTheWay,
        Err(Errno::NOTDIR) => obstacle(root, path),
        Err(errno) => errno.into(),
    };
    Err(CopyError::new(Step::OpenDestinationDirectory, reason))
}

/// Returns the reason behind ENOTDIR for a destination directory. The kernel returns it for a file,
/// and for a link that is the last name of the path.
fn obstacle(root: BorrowedFd<'_>, path: &RelPath) -> Reason {
    let (parent, name) = path.split_last();
    let stat = open_dir(root, &parent)
        .and_then(|parent| fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW));
    match stat.map(|stat| FileType::from_raw_mode(stat.st_mode)) {
        Ok(FileType::Symlink) => Reason::LinkInTheWay,
        _ => Reason::FileInTheWay,
    }
}
