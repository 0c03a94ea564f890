//! The sources and destinations of a run.

mod batch;
mod beside;
mod mounts;
mod overlap;
mod parents;
mod places;
mod resolve;
mod stream;

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use rustix::fs::{self, AtFlags, Mode, OFlags};
use rustix::io::Errno;

pub(crate) use self::batch::BatchedDevice;
use self::batch::{is_synced_at_once, open_roots};
use self::beside::Beside;
pub(crate) use self::mounts::mount_options;
use self::mounts::{MountBelow, Mounts};
use self::overlap::Overlap;
pub(crate) use self::resolve::SingleFile;
use self::resolve::{
    Resolved, is_link, parent_of, quote_path, refuse_below_file, refuse_missing_parent, resolve,
};
use crate::config::{Config, Destination};
use crate::filter::{Filter, Selection, load_selection};
use crate::fs::names::{Offence, RefusedName, Refuser, may_be_refusal};
use crate::fs::open::{DIRECTORY, open_dir};
use crate::fs::path::{Name, RelPath};
use crate::fs::spelling::{Spellings, fold};
use crate::fs::stat::FileId;
use crate::fs::xattr::strip_acls;
use crate::protocol::Excluded;
use crate::protocol::error::Reason;

/// A source and its destination, both open.
pub(crate) struct Target {
    /// The source directory. For a single file, the directory that contains it.
    ///
    /// Shared by all files of one directory: a `*` can name more files than a process can open.
    pub(crate) source: Arc<OwnedFd>,
    /// The path of `source`, for messages.
    pub(crate) source_path: PathBuf,
    /// The destination directory. `None` in a dry run if it does not exist.
    pub(crate) destination: Option<Arc<OwnedFd>>,
    /// If there is no destination: the nearest directory above it.
    pub(crate) above: Option<Arc<OwnedFd>>,
    /// The path of `destination`, for messages.
    pub(crate) destination_path: PathBuf,
    /// Its path below the directory that the command line names as DST.
    pub(crate) below_named: RelPath,
    /// Set if the source is not a directory.
    pub(crate) single: Option<SingleFile>,
    /// Only these paths below the source are copied.
    pub(crate) selection: Option<Arc<Selection>>,
    /// The sources land in the destination directory, which is no copy itself.
    pub(crate) lands_in: bool,
    /// The device that the source is on.
    pub(crate) device: u64,
    /// This run created the destination as a copy of a source directory. False for single files.
    pub(crate) created: bool,
    /// The first of several targets in a row with the same destination directory.
    pub(crate) is_first: bool,
    /// Set with `--fsync` if files at the destination are synced in batches.
    pub(crate) batch: Option<BatchedDevice>,
    /// Descriptors to sync that device by, if this target is the first one on it.
    pub(crate) sync_roots: Vec<OwnedFd>,
}

impl Target {
    /// Returns the source directory.
    pub(crate) fn source_fd(&self) -> BorrowedFd<'_> {
        self.source.as_fd()
    }

    /// Returns the name of a source entry at the destination. Only a single file can get a new one.
    pub(crate) fn name_at_destination<'a>(&'a self, name: &'a CStr) -> &'a CStr {
        self.single.as_ref().map_or(name, |single| &single.to)
    }

    /// The same for a name that was checked.
    pub(crate) fn to_destination<'a>(&'a self, name: &'a Name) -> &'a [u8] {
        let single = self.single.as_ref();
        single.map_or(name.as_bytes(), |single| single.to.to_bytes())
    }
}

/// All targets of a run.
pub(crate) struct Targets {
    /// In the order of the command line.
    pub(crate) list: Vec<Target>,
    /// Which entries of them are copied. `None`: all.
    pub(crate) filter: Option<Filter>,
    overlap: Overlap,
    beside: Beside,
    /// With `--delete`, the mounts below the source when the run began.
    mounts: Vec<MountBelow>,
}

impl Targets {
    /// Opens all sources and destinations.
    ///
    /// Destinations are created only after everything else has been checked.
    pub(crate) fn open(config: &Config, umask: u32) -> Result<Self> {
        let mut filter = Filter::load(&config.filter)?;
        let sources = if config.filter.parents {
            parents::resolve(config)?
        } else {
            resolve(config, load_selection(&config.filter)?)?
        };
        if let Some(filter) = &mut filter {
            for source in &sources {
                let dir = source
                    .single
                    .is_none()
                    .then_some(source.source_path.as_path());
                filter.add_target(dir)?;
            }
        }
        refuse_below_file(&config.destination)?;
        let mounts = Mounts::read();
        let overlap = Overlap::new(&sources, &mounts);
        for source in &sources {
            overlap
                .refuse_nesting(&mounts, &source.destination, config.one_file_system)
                .with_context(|| {
                    format!(
                        "cannot copy {} to {}",
                        quote_path(&source.source_path),
                        quote_path(&source.destination)
                    )
                })?;
        }
        if config.mirror.is_some() {
            for source in &sources {
                refuse_mirror(source, &overlap)?;
            }
        }
        if !config.mkpath {
            refuse_missing_parent(&config.destination)?;
        }
        let mut targets = Self {
            list: Vec::with_capacity(sources.len()),
            filter,
            overlap,
            beside: Beside::default(),
            mounts: Vec::new(),
        };
        if config.mirror.is_some() && !config.one_file_system {
            // There is one.
            let source = sources.first();
            targets.mounts = source.map_or_else(Vec::new, |it| mounts.below(it.source.as_fd()));
        }
        let named = beside::named_directory(config, &sources);
        for source in sources {
            targets.add(source, &named, config, umask, &mounts)?;
        }
        let root = targets.list.first().and_then(|it| it.destination.clone());
        targets.beside = Beside::open(config, &named, root, &targets.overlap, &mounts)?;
        Ok(targets)
    }

    /// Returns the path below the source of a mount that has gone since the run began. If that was
    /// before its directory was opened, the empty directory below it was taken for the source.
    pub(crate) fn lost_mount(&self) -> Option<RelPath> {
        if self.mounts.is_empty() {
            return None;
        }
        let present = Mounts::read().below(self.list.first()?.source_fd());
        let lost = self.mounts.iter().find(|mount| !present.contains(mount))?;
        let names = lost.path.iter().map(OsStrExt::as_bytes);
        Some(names.fold(RelPath::default(), |path, name| path.join(name)))
    }

    /// Creates and opens the destination directory of one source.
    fn add(
        &mut self,
        source: Resolved,
        named: &Path,
        config: &Config,
        umask: u32,
        mounts: &Mounts,
    ) -> Result<()> {
        let path = source.destination;
        let is_dir = source.single.is_none();
        let is_copy = is_dir && !source.lands_in;
        let cannot = || format!("cannot create the destination {}", quote_path(&path));
        let copy_of = is_copy.then_some(source.stat.st_mode);
        let mut made = Vec::new();
        let created = !config.dry_run
            && create_destination(&path, copy_of, config, umask, &mut made)
                .map_err(|reason| explain_name(&path, reason))
                .with_context(cannot)?
            && is_copy;
        if is_copy && !created {
            self.refuse_twin(&path)?;
        }
        let previous = self.list.last();
        let previous = previous.filter(|target| target.destination_path == path);
        let is_first = previous.is_none();
        let above = previous.and_then(|target| target.above.clone());
        let destination = match previous.and_then(|target| target.destination.clone()) {
            Some(shared) => Some(shared),
            None => open_destination(&path, source.is_named, config).with_context(cannot)?,
        };
        if let Some(destination) = &destination {
            if created && config.preserve.mode.is_wanted() {
                strip_acls(destination.as_fd(), config.new_dir_mode(0))
                    .map_err(Reason::from)
                    .with_context(cannot)?;
            }
            self.overlap
                .add_destination(destination.as_fd(), is_dir)
                .map_err(Reason::from)
                .with_context(cannot)?;
        }
        let above = match (&destination, above) {
            (None, None) => open_above(&path).map(Arc::new),
            (_, above) => above,
        };
        let (batch, sync_roots) = match &destination {
            Some(destination) if config.fsync && !config.dry_run && config.can_batch() => {
                self.find_batch(destination.as_fd(), mounts).unzip()
            }
            _ => (None, None),
        };
        if config.fsync && batch.is_none() {
            for path in made {
                sync_parent(&path)
                    .map_err(Reason::from)
                    .with_context(cannot)?;
            }
        }
        self.list.push(Target {
            batch,
            sync_roots: sync_roots.unwrap_or_default(),
            source: source.source,
            source_path: source.source_path,
            destination,
            above,
            device: source.stat.st_dev,
            single: source.single,
            selection: source.selection,
            lands_in: source.lands_in,
            created,
            is_first,
            below_named: beside::path_below(named, &path),
            destination_path: path,
        });
        Ok(())
    }

    /// Returns how the next target is synced, if it can be synced in batches.
    fn find_batch(
        &self,
        destination: BorrowedFd<'_>,
        mounts: &Mounts,
    ) -> Option<(BatchedDevice, Vec<OwnedFd>)> {
        let device = fs::fstat(destination).ok()?.st_dev;
        let mut known = self.list.iter().filter_map(|target| target.batch);
        if let Some(batch) = known.find(|batch| batch.device == device) {
            return Some((batch, Vec::new()));
        }
        if !is_synced_at_once(destination, device, mounts) {
            return None;
        }
        let leader = self.list.len() as u32;
        Some((
            BatchedDevice { leader, device },
            open_roots(destination).ok()?,
        ))
    }

    /// Refuses a directory whose name the destination treats as that of another source.
    fn refuse_twin(&self, path: &Path) -> Result<()> {
        let name = |path: &Path| path.file_name().map(|name| name.as_bytes().to_owned());
        let (Some(this), parent) = (name(path), parent_of(path)) else {
            return Ok(());
        };
        let twins = self.list.iter().filter(|other| {
            let other_name = name(&other.destination_path).unwrap_or_default();
            other.single.is_none()
                && other_name != this
                && fold(&other_name) == fold(&this)
                && parent_of(&other.destination_path) == parent
        });
        for other in twins {
            let parent = open_followed(&parent);
            let stored = parent.and_then(|parent| Spellings::list(parent.as_fd()));
            let stored = stored.map_err(Reason::from)?;
            // If both spellings are stored, they are two directories.
            let other_name = name(&other.destination_path).unwrap_or_default();
            if stored.like(&this).next().is_some()
                && !(stored.has(&this) && stored.has(&other_name))
            {
                bail!(
                    "{} and {} have the same name at the destination",
                    quote_path(&other.destination_path),
                    quote_path(path)
                );
            }
        }
        Ok(())
    }

    /// Tries to remove an unfinished file from a directory of a target's destination. Keeps it if
    /// it is complete: another run has put it there.
    pub(crate) fn remove(&self, target: usize, path: &RelPath, name: &[u8]) {
        let target = &self.list[target];
        if let Some(destination) = &target.destination
            && let Ok(dir) = open_dir(destination.as_fd(), path)
            && !is_complete(target, dir.as_fd(), path, name)
        {
            let _ = fs::unlinkat(&dir, name, AtFlags::empty());
        }
    }

    /// Removes the directories that were just made, if nothing could be started.
    pub(crate) fn remove_created(&self) {
        for target in self.list.iter().filter(|target| target.created) {
            let _ = fs::rmdir(&target.destination_path);
        }
    }

    /// Returns true if a file at the destination is a source too, so that it must not be replaced.
    pub(crate) fn is_source(&self, file: FileId) -> bool {
        self.overlap.is_source(file)
    }

    /// Returns true if a directory must not be removed from the destination: it is a source, or
    /// keeps backups.
    pub(crate) fn is_precious(&self, dir: FileId) -> bool {
        self.overlap.is_source_dir(dir) || self.beside.has(dir)
    }

    /// Returns the directories of `--link-dest` that exist.
    pub(crate) fn snapshots(&self) -> &[Arc<OwnedFd>] {
        &self.beside.snapshots
    }

    /// Returns the directories of `--link-dest` that do not exist.
    pub(crate) fn missing_snapshots(&self) -> &[PathBuf] {
        &self.beside.missing
    }

    /// Returns the directory of `--backup-dir`. `None` in a dry run if it does not exist.
    pub(crate) fn backup_dir(&self) -> Option<BorrowedFd<'_>> {
        self.beside.backup.as_ref().map(AsFd::as_fd)
    }

    /// Returns true if the command line names a file of this name as a source.
    pub(crate) fn is_single(&self, name: &[u8]) -> bool {
        let mut singles = self.list.iter().filter_map(|target| target.single.as_ref());
        singles.any(|single| single.from.to_bytes() == name)
    }

    /// Returns the destination names of all single files in this target's directory. `None` if the
    /// target is a directory.
    pub(crate) fn names_beside(&self, target: usize) -> Option<impl Iterator<Item = &[u8]>> {
        let target = &self.list[target];
        target.single.as_ref()?;
        let is_beside = |other: &&Target| other.destination_path == target.destination_path;
        let beside = self.list.iter().filter(is_beside);
        let singles = beside.filter_map(|target| target.single.as_ref());
        Some(singles.map(|single| single.to.to_bytes()))
    }

    /// Returns why a file that the command line names is left out.
    pub(crate) fn exclusion_of(&self, target: &Target) -> Option<Excluded> {
        let (filter, single) = (self.filter.as_ref()?, target.single.as_ref()?);
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        let stat = match single.stream {
            None => fs::statat(&target.source, &*single.from, flags).ok(),
            Some(_) => None,
        };
        let exclusion = filter.find_named(single.named.as_bytes(), stat.as_ref())?;
        Some(Excluded {
            name: Name::new(single.from.to_bytes()),
            is_dir: false,
            by: exclusion.to_string(),
        })
    }

    /// Returns true if a source directory is also a destination, so that it must not be copied.
    pub(crate) fn is_destination(&self, dir: FileId) -> bool {
        self.overlap.is_destination(dir)
    }

    /// Returns true if a destination directory lies in a source, so that it must not be written to.
    pub(crate) fn is_in_source(&self, dir: BorrowedFd<'_>, id: FileId) -> bool {
        self.overlap.is_in_source(dir, id)
    }
}

/// Refuses a source that is no directory, or that would be deleted as a part of the destination.
fn refuse_mirror(source: &Resolved, overlap: &Overlap) -> Result<()> {
    if source.single.is_some() {
        bail!("--delete needs a directory as SRC: the rest of DST would not be in it");
    }
    if overlap.is_in_destination(&source.destination) {
        let path = quote_path(&source.source_path);
        let destination = quote_path(&source.destination);
        bail!("--delete: {path} lies inside {destination}, and would be deleted there");
    }
    Ok(())
}

/// Returns true if a destination's entry has the size and the time of the source's entry. Times
/// are set last.
fn is_complete(target: &Target, dir: BorrowedFd<'_>, path: &RelPath, name: &[u8]) -> bool {
    let from = match &target.single {
        Some(single) if single.to.as_bytes() == name => single.from.as_bytes(),
        _ => name,
    };
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    let source = open_dir(target.source.as_fd(), path);
    let source = source.and_then(|source| fs::statat(source, from, flags));
    let copy = fs::statat(dir, name, flags);
    let essence = |stat: fs::Stat| (stat.st_size, stat.st_mtime, stat.st_mtime_nsec);
    source.is_ok_and(|source| copy.is_ok_and(|copy| essence(source) == essence(copy)))
}

/// Creates a destination directory and its missing parents, and adds them to `made`. Returns true
/// if it did not exist.
///
/// `copy_of` is the mode of the source directory, if this becomes a copy of one. Its final mode is
/// set at the end. Any other directory, and each parent, gets the usual mode, reduced by the umask
/// or a default ACL.
fn create_destination(
    path: &Path,
    copy_of: Option<u32>,
    config: &Config,
    umask: u32,
    made: &mut Vec<PathBuf>,
) -> Result<bool, Reason> {
    // The owner must be able to create the next directory, even if the umask denies that. mkdir -p
    // does the same.
    let usual = (Mode::from_raw_mode(0o777), umask & 0o300);
    let (mode, needed) = match copy_of {
        Some(source) => (config.new_dir_mode(source), umask & 0o700),
        None => usual,
    };
    let mut create = |path: &Path, (mode, needed)| -> rustix::io::Result<bool> {
        let is_new = create_dir(path, mode)?;
        if is_new {
            made.push(path.to_owned());
        }
        if is_new && needed != 0 {
            let mode = fs::stat(path)?.st_mode & 0o7777 | needed;
            fs::chmod(path, Mode::from_raw_mode(mode))?;
        }
        Ok(is_new)
    };
    match create(path, (mode, needed)) {
        Err(Errno::NOENT) => {
            match &config.destination {
                _ if config.mkpath => {
                    for parent in missing_parents(path).iter().rev() {
                        create(parent, usual)?;
                    }
                }
                Destination::Directory(dir) if dir != path => {
                    create(dir, usual)?;
                }
                _ => return Err(Errno::NOENT.into()),
            }
            Ok(create(path, (mode, needed))?)
        }
        result => Ok(result?),
    }
}

/// Replaces the reason why a directory cannot be created by its name, if that can be why: all
/// directories above it are there.
fn explain_name(path: &Path, reason: Reason) -> Reason {
    let Reason::System(errno) = reason else {
        return reason;
    };
    let offence = path
        .file_name()
        .and_then(|name| Offence::find(name.as_bytes()));
    if let Some(offence) = offence
        && may_be_refusal(Errno::from_raw_os_error(errno))
        && errno != Errno::PERM.raw_os_error()
        && let Ok(parent) = open_followed(&parent_of(path))
    {
        let by = Refuser::of(&parent);
        return Reason::Name(RefusedName { by, offence });
    }
    reason
}

/// Opens a directory that the command line names: a link is followed.
fn open_followed(path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = DIRECTORY.difference(OFlags::NOFOLLOW);
    fs::open(path, flags, Mode::empty())
}

/// Opens the nearest directory above a path.
fn open_above(path: &Path) -> Option<OwnedFd> {
    path.ancestors()
        .map(parent_of)
        .find_map(|above| open_followed(&above).ok())
}

/// Returns the parents of a path that do not exist, the innermost first.
fn missing_parents(path: &Path) -> Vec<PathBuf> {
    let mut missing = Vec::new();
    let mut parent = parent_of(path);
    while !parent.exists() {
        let next = parent_of(&parent);
        if next == parent {
            break;
        }
        missing.push(std::mem::replace(&mut parent, next));
    }
    missing
}

/// Creates a directory. Returns false if it exists.
fn create_dir(path: &Path, mode: Mode) -> rustix::io::Result<bool> {
    match fs::mkdir(path, mode) {
        Ok(()) => Ok(true),
        Err(Errno::EXIST) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Syncs the directory in which another one was made.
fn sync_parent(path: &Path) -> rustix::io::Result<()> {
    fs::fsync(open_followed(&parent_of(path))?)
}

/// Opens a destination directory. Returns `None` in a dry run if it does not exist.
fn open_destination(
    path: &Path,
    is_named: bool,
    config: &Config,
) -> Result<Option<Arc<OwnedFd>>, Reason> {
    // A symbolic link is followed if the command line names it. But DIR/NAME was not named: a link
    // of that name might lead anywhere.
    let flags = if is_named {
        DIRECTORY.difference(OFlags::NOFOLLOW)
    } else {
        DIRECTORY
    };
    match fs::open(path, flags, Mode::empty()) {
        Ok(dir) => Ok(Some(Arc::new(dir))),
        Err(Errno::NOENT) if config.dry_run => Ok(None),
        Err(_) if !is_named && is_link(path) => Err(Reason::LinkInTheWay),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use clap::Parser;

    use super::*;
    use crate::cli::Cli;

    /// Opens the targets of a run in `dir`, or returns the message.
    fn open(dir: &Path, options: &[&str], paths: &[&str]) -> Result<Targets, String> {
        let paths = paths.iter().map(|path| dir.join(path).into_os_string());
        let words = ["pcopy"].iter().chain(options).map(|word| word.into());
        let config = Config::new(Cli::try_parse_from(words.chain(paths)).unwrap()).unwrap();
        Targets::open(&config, 0o022).map_err(|error| format!("{error:#}"))
    }

    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("src/below")).unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        dir
    }

    #[test]
    fn a_destination_is_created_once() {
        let dir = tree();
        assert!(open(dir.path(), &[], &["src", "new/dst"]).is_err());
        let first = open(dir.path(), &["--mkpath"], &["src", "new/dst"]).unwrap();
        assert!(first.list[0].created);
        let second = open(dir.path(), &[], &["src", "new/dst"]).unwrap();
        assert!(!second.list[0].created);
        let stat = fs::stat(dir.path().join("new/dst")).unwrap();
        assert!(second.is_destination(FileId::of(&stat)));
    }

    #[test]
    fn a_dry_run_creates_nothing() {
        let dir = tree();
        let targets = open(dir.path(), &["-n"], &["src", "new"]).unwrap();
        assert!(targets.list[0].destination.is_none());
        assert!(!dir.path().join("new").exists());
    }

    #[test]
    fn files_share_their_directories() {
        let dir = tree();
        std::fs::write(dir.path().join("other"), "").unwrap();
        let targets = open(dir.path(), &[], &["file", "other", "dst"]).unwrap();
        let [first, second] = &targets.list[..] else {
            panic!("not two targets");
        };
        assert!(Arc::ptr_eq(&first.source, &second.source));
        assert_eq!((first.is_first, second.is_first), (true, false));
        assert!(targets.is_single(b"file"));
        assert!(!targets.is_single(b"src"));
    }

    #[test]
    fn overlaps_are_refused() {
        let dir = tree();
        symlink("src", dir.path().join("link")).unwrap();
        let refused = |paths: &[&str]| open(dir.path(), &[], paths).err().unwrap_or_default();
        let same = "source and destination are the same directory";
        let inside = "the destination lies inside the source";
        for (paths, reason) in [
            (["src", "src"], same),
            (["src", "link"], same),
            (["src", "src/below"], inside),
            (["src", "link/new/dir"], inside),
        ] {
            let message = refused(&paths);
            assert!(message.ends_with(reason), "{paths:?}: {message}");
        }
        assert!(refused(&["file", "file", "dst"]).contains("would both become"));
        assert!(!dir.path().join("dst").exists());
    }

    #[test]
    fn a_link_is_followed_only_if_it_is_named() {
        let dir = tree();
        std::fs::create_dir_all(dir.path().join("elsewhere")).unwrap();
        std::fs::create_dir_all(dir.path().join("dst")).unwrap();
        symlink("../elsewhere", dir.path().join("dst/src")).unwrap();
        assert!(open(dir.path(), &[], &["src", "dst/src"]).is_ok());
        let message = open(dir.path(), &[], &["src", "file", "dst"])
            .err()
            .unwrap();
        assert!(message.contains("symbolic link is in the way"), "{message}");
    }

    #[test]
    fn missing_parents_are_created_from_the_outside_in() {
        let dir = tempfile::tempdir().unwrap();
        let missing = missing_parents(&dir.path().join("a/b/c"));
        assert_eq!(missing, [dir.path().join("a/b"), dir.path().join("a")]);
        assert!(missing_parents(&dir.path().join("a")).is_empty());
    }

    #[test]
    fn an_existing_directory_is_not_created() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        assert_eq!(create_dir(&path, Mode::RWXU), Ok(true));
        assert_eq!(create_dir(&path, Mode::RWXU), Ok(false));
    }
}
