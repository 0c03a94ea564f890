//! The sources and destinations of a run.

mod mounts;
mod overlap;
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

use self::mounts::Mounts;
use self::overlap::Overlap;
pub(crate) use self::resolve::SingleFile;
use self::resolve::{Resolved, is_link, parent_of, quote_path, refuse_missing_parent, resolve};
use crate::config::{Config, Destination};
use crate::fs::names::{Offence, RefusedName, Refuser, may_be_refusal};
use crate::fs::open::{DIRECTORY, open_dir};
use crate::fs::path::RelPath;
use crate::fs::spelling::{Spellings, fold};
use crate::fs::stat::FileId;
use crate::fs::xattr::strip_acls;
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
    /// The path of `destination`, for messages.
    pub(crate) destination_path: PathBuf,
    /// Set if the source is not a directory.
    pub(crate) single: Option<SingleFile>,
    /// The device that the source is on.
    pub(crate) device: u64,
    /// This run created the destination as a copy of a source directory. False for single files.
    pub(crate) created: bool,
    /// The first of several targets in a row with the same destination directory.
    pub(crate) is_first: bool,
}

impl Target {
    /// Returns the name of a source entry at the destination. Only a single file can get a new one.
    pub(crate) fn name_at_destination<'a>(&'a self, name: &'a CStr) -> &'a CStr {
        self.single.as_ref().map_or(name, |single| &single.to)
    }
}

/// All targets of a run.
pub(crate) struct Targets {
    /// In the order of the command line.
    pub(crate) list: Vec<Target>,
    overlap: Overlap,
}

impl Targets {
    /// Opens all sources and destinations.
    ///
    /// Destinations are created only after everything else has been checked.
    pub(crate) fn open(config: &Config, umask: u32) -> Result<Self> {
        let sources = resolve(config)?;
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
        if !config.mkpath {
            refuse_missing_parent(&config.destination)?;
        }
        let mut targets = Self {
            list: Vec::with_capacity(sources.len()),
            overlap,
        };
        for source in sources {
            targets.add(source, config, umask)?;
        }
        Ok(targets)
    }

    /// Creates and opens the destination directory of one source.
    fn add(&mut self, source: Resolved, config: &Config, umask: u32) -> Result<()> {
        let path = source.destination;
        let is_copy = source.single.is_none();
        let cannot = || format!("cannot create the destination {}", quote_path(&path));
        let copy_of = is_copy.then_some(source.stat.st_mode);
        let created = !config.dry_run
            && create_destination(&path, copy_of, config, umask)
                .map_err(|reason| explain_name(&path, reason))
                .with_context(cannot)?
            && is_copy;
        if is_copy && !created {
            self.refuse_twin(&path)?;
        }
        let previous = self.list.last();
        let previous = previous.filter(|target| target.destination_path == path);
        let is_first = previous.is_none();
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
                .add_destination(destination.as_fd(), is_copy)
                .map_err(Reason::from)
                .with_context(cannot)?;
        }
        self.list.push(Target {
            source: source.source,
            source_path: source.source_path,
            destination,
            device: source.stat.st_dev,
            single: source.single,
            created,
            is_first,
            destination_path: path,
        });
        Ok(())
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

    /// Returns true if a source directory is also a destination, so that it must not be copied.
    pub(crate) fn is_destination(&self, dir: FileId) -> bool {
        self.overlap.is_destination(dir)
    }

    /// Returns true if a destination directory lies in a source, so that it must not be written to.
    pub(crate) fn is_in_source(&self, dir: BorrowedFd<'_>, id: FileId) -> bool {
        self.overlap.is_in_source(dir, id)
    }
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

/// Creates a destination directory and its missing parents. Returns true if it did not exist.
///
/// `copy_of` is the mode of the source directory, if this becomes a copy of one. Its final mode is
/// set at the end. Any other directory, and each parent, gets the usual mode, reduced by the umask
/// or a default ACL.
fn create_destination(
    path: &Path,
    copy_of: Option<u32>,
    config: &Config,
    umask: u32,
) -> Result<bool, Reason> {
    // The owner must be able to create the next directory, even if the umask denies that. mkdir -p
    // does the same.
    let usual = (Mode::from_raw_mode(0o777), umask & 0o300);
    let (mode, needed) = match copy_of {
        Some(source) => (config.new_dir_mode(source), umask & 0o700),
        None => usual,
    };
    let create = |path: &Path, (mode, needed)| -> rustix::io::Result<bool> {
        let is_new = create_dir(path, mode, config.fsync)?;
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
fn create_dir(path: &Path, mode: Mode, fsync: bool) -> rustix::io::Result<bool> {
    match fs::mkdir(path, mode) {
        Ok(()) if fsync => {
            fs::fsync(open_followed(&parent_of(path))?)?;
            Ok(true)
        }
        Ok(()) => Ok(true),
        Err(Errno::EXIST) => Ok(false),
        Err(errno) => Err(errno),
    }
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
        assert_eq!(create_dir(&path, Mode::RWXU, true), Ok(true));
        assert_eq!(create_dir(&path, Mode::RWXU, true), Ok(false));
    }
}
