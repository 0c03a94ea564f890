//! A source directory and its destination, both open.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::fs::{self, Access, AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::context::Context;
use crate::fs::devices;
use crate::fs::open::{DIRECTORY, ENTRY, open_dir, open_dir_following_links};
use crate::fs::path::RelPath;
use crate::fs::proc::magic_link;
use crate::fs::spelling::{Folding, Naming, Spellings};
use crate::fs::stat::{DirIds, FileId, FileStat};
use crate::fs::xattr;
use crate::protocol::entry::DirOrigin;
use crate::protocol::error::{At, CopyError, Reason, Step};

use super::handle::Handle;

/// How long a directory that another machine has made may take to appear.
const APPEAR_TIMEOUT: Duration = Duration::from_secs(5);

/// A source directory and its destination.
pub(crate) struct DirPair {
    /// The number of the target that it belongs to.
    pub(super) target: usize,
    /// Its path below the target. Kept only if an option needs it.
    path: Option<RelPath>,
    source: OwnedFd,
    /// The source is open for its metadata only.
    is_unreadable: bool,
    /// None in a dry run if there is no such directory.
    destination: Option<Rc<OwnedFd>>,
    /// The source directory's stat when it was opened.
    pub(crate) stat: FileStat,
    destination_id: Option<FileId>,
    /// The destination directory's stat when it was opened. Kept only to itemize changes.
    pub(super) destination_stat: Option<FileStat>,
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
    /// How the destination compares names, once a dry run had to know.
    pub(super) folding: Option<Folding>,
    /// The path below the target, if a dry run finds no destination directory.
    pub(super) missing: RelPath,
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
        let root = context.targets.list[target].source.as_fd();
        let source = if context.config.dereference {
            open_dir_following_links(root, path)
        } else {
            open_dir(root, path)
        };
        Self::with_source(context, target, path, origin, source)
    }

    /// Opens a directory without read permission at the source, for its metadata only.
    pub(crate) fn open_unreadable(
        context: &Context,
        target: usize,
        path: &RelPath,
        origin: DirOrigin,
    ) -> Result<Self, CopyError> {
        let root = context.targets.list[target].source.as_fd();
        let (parent, name) = path.split_last();
        let flags = ENTRY.union(OFlags::DIRECTORY);
        let source = if context.config.dereference {
            open_dir_following_links(root, &parent).and_then(|parent| {
                let flags = flags.difference(OFlags::NOFOLLOW);
                fs::openat(&parent, name, flags, Mode::empty())
            })
        } else {
            open_dir(root, &parent)
                .and_then(|parent| fs::openat(&parent, name, flags, Mode::empty()))
        };
        let mut dir = Self::with_source(context, target, path, origin, source)?;
        dir.is_unreadable = true;
        Ok(dir)
    }

    fn with_source(
        context: &Context,
        target: usize,
        path: &RelPath,
        origin: DirOrigin,
        source: rustix::io::Result<OwnedFd>,
    ) -> Result<Self, CopyError> {
        let number = target;
        let target = &context.targets.list[number];
        let config = &context.config;
        let source = source.at(Step::OpenDirectory)?;
        let stat = FileStat::of(&fs::fstat(&source).at(Step::OpenDirectory)?);
        // The mode of a destination directory before it was opened.
        let mut closed_mode = None;
        let stat = config.changes.apply(stat);
        let destination = match &target.destination {
            // The "created" directories of a dry run do not exist.
            Some(root) if !(config.dry_run && origin.created) => {
                let is_made = origin.created;
                open_made(
                    root.as_fd(),
                    path,
                    config.dry_run,
                    &mut closed_mode,
                    is_made,
                )?
            }
            _ => None,
        };
        let missing = match destination {
            None => path.clone(),
            Some(_) => RelPath::default(),
        };
        let mut dir = Self {
            target: number,
            path: config.needs_paths().then(|| path.clone()),
            source,
            is_unreadable: false,
            destination: destination.map(Rc::new),
            stat,
            destination_id: None,
            destination_stat: None,
            destination_mode: 0,
            origin,
            is_shared: false,
            default_owner: None,
            has_default_acl: None,
            naming: None,
            folding: None,
            missing,
            stored: None,
            source_names: None,
        };
        dir.examine_destination(context)?;
        dir.destination_mode = closed_mode.unwrap_or(dir.destination_mode);
        Ok(dir)
    }

    /// Returns a pair of the same source directory and another directory of the destination's file
    /// system. Nothing is written there.
    pub(super) fn beside(&self, other: OwnedFd) -> rustix::io::Result<Self> {
        let stat = fs::fstat(&other)?;
        Ok(Self {
            target: self.target,
            path: None,
            source: rustix::io::fcntl_dupfd_cloexec(&self.source, 3)?,
            is_unreadable: false,
            destination: Some(Rc::new(other)),
            stat: self.stat,
            destination_id: Some(FileId::of(&stat)),
            destination_stat: None,
            destination_mode: 0,
            origin: DirOrigin::default(),
            is_shared: false,
            default_owner: None,
            has_default_acl: None,
            naming: None,
            folding: None,
            missing: RelPath::default(),
            stored: None,
            source_names: None,
        })
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
        self.destination_stat = context.config.itemize.then(|| FileStat::of(&stat));
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

    /// Returns the handle to read the source directory's attributes.
    pub(super) fn source_handle(&self) -> Handle<'_> {
        if self.is_unreadable {
            Handle::path(&self.source, self.source.as_fd(), c"")
        } else {
            Handle::Open(self.source.as_fd())
        }
    }

    pub(super) fn is_unreadable(&self) -> bool {
        self.is_unreadable
    }

    /// Returns its path below the target, if an option needs it.
    pub(super) fn path(&self) -> Option<&RelPath> {
        self.path.as_ref()
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
    /// a name up before it creates an entry. Another run may copy to the same destination, or the
    /// destination may treat two source names as one.
    pub(super) fn expect_others(&mut self) {
        self.is_shared = true;
    }

    /// Returns the stat of an existing entry, if any. Makes no system call if the directory is
    /// known to be empty.
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
    closed_mode: &mut Option<u32>,
    is_made: bool,
) -> Result<Option<OwnedFd>, CopyError> {
    let deadline = Instant::now() + APPEAR_TIMEOUT;
    let mut pause = Duration::from_millis(10);
    loop {
        match open_destination(root, path, dry_run, closed_mode) {
            Err(error)
                if is_made
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
    closed_mode: &mut Option<u32>,
) -> Result<Option<OwnedFd>, CopyError> {
    let reason = match open_dir(root, path) {
        Ok(dir) => return Ok(Some(dir)),
        Err(Errno::NOENT) if dry_run => return Ok(None),
        Err(Errno::ACCESS) if !dry_run => match open_closed(root, path, closed_mode) {
            Ok(dir) => return Ok(Some(dir)),
            Err(_) => Errno::ACCESS.into(),
        },
        Err(Errno::LOOP) => Reason::LinkInTheWay,
        Err(Errno::NOTDIR) => obstacle(root, path),
        Err(errno) => errno.into(),
    };
    Err(CopyError::new(Step::OpenDestinationDirectory, reason))
}

/// Opens a directory whose mode keeps its owner out. The owner gets access until the final mode is
/// set, as with rsync. That is for normal users, and for root on a server that squashes root.
fn open_closed(
    root: BorrowedFd<'_>,
    path: &RelPath,
    closed_mode: &mut Option<u32>,
) -> rustix::io::Result<OwnedFd> {
    let (parent, name) = path.split_last();
    let parent = open_dir(root, &parent)?;
    let flags = ENTRY.union(OFlags::DIRECTORY);
    let entry = fs::openat(&parent, name, flags, Mode::empty())?;
    let mode = fs::fstat(&entry)?.st_mode & 0o7777;
    if mode & 0o700 == 0o700 {
        return Err(Errno::ACCESS);
    }
    fs::chmod(&*magic_link(&entry), Mode::from_raw_mode(mode | 0o700))?;
    *closed_mode = Some(mode);
    fs::openat(&entry, c".", DIRECTORY, Mode::empty())
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
