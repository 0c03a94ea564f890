//! Refuses sources and destinations that overlap.
//!
//! Directories are compared by device and inode number, so another name for one makes no
//! difference.

use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, bail};
use rustix::fs::{self, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::mounts::{Mounts, Place, mount_id};
use super::resolve::{Resolved, parent_of, quote_path};
use crate::fs::open::DIRECTORY;
use crate::fs::stat::FileId;
use crate::protocol::error::Reason;

/// Flags to open a directory with that is only identified. It needs no read permission.
const IDENTIFY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// The files and directories that a run must not write to, or not copy.
pub(super) struct Overlap {
    source_dirs: Vec<SourceDir>,
    /// Source directories of which only listed paths are copied. The destination may lie in one.
    listed_sources: HashSet<FileId>,
    /// Sources that are not directories. Empty if there is only one source.
    single_sources: HashSet<FileId>,
    /// Destination directories that become a copy of a source directory.
    destinations: HashSet<FileId>,
    /// The IDs of the mounts that destination directories are on.
    destination_mounts: HashSet<u64>,
}

impl Overlap {
    pub(super) fn new(sources: &[Resolved], mounts: &Mounts) -> Self {
        let (singles, dirs): (Vec<_>, Vec<_>) =
            sources.iter().partition(|source| source.single.is_some());
        let mut source_dirs = Vec::with_capacity(dirs.len());
        let mut listed_sources = HashSet::new();
        for source in dirs {
            if source.selection.is_some() {
                listed_sources.insert(FileId::of(&source.stat));
                for dir in &source.whole_dirs {
                    source_dirs.extend(SourceDir::new(dir, mounts));
                }
            } else {
                source_dirs.extend(SourceDir::new(&source.source, mounts));
            }
        }
        let mut single_sources = HashSet::new();
        // One file alone may be copied over another of its hard links.
        if sources.len() > 1 {
            single_sources.extend(singles.iter().map(|source| FileId::of(&source.stat)));
        }
        Self {
            source_dirs,
            listed_sources,
            single_sources,
            destinations: HashSet::new(),
            destination_mounts: HashSet::new(),
        }
    }

    /// Records a destination directory. `is_copy` says that it becomes a copy of a directory.
    pub(super) fn add_destination(
        &mut self,
        dir: BorrowedFd<'_>,
        is_copy: bool,
    ) -> rustix::io::Result<()> {
        let stat = fs::fstat(dir)?;
        if is_copy {
            self.destinations.insert(FileId::of(&stat));
        }
        self.destination_mounts.extend(mount_id(dir));
        Ok(())
    }

    /// Returns true if a file at the destination is a source too, so that it must not be replaced.
    pub(super) fn is_source(&self, file: FileId) -> bool {
        self.single_sources.contains(&file)
    }

    /// Returns true if this directory is a source.
    pub(super) fn is_source_dir(&self, dir: FileId) -> bool {
        self.source_dirs.iter().any(|source| source.id == dir)
    }

    /// Returns true if a source directory lies inside this destination.
    pub(super) fn is_in_destination(&self, destination: &Path) -> bool {
        let Ok(destination) = open_to_identify(destination).and_then(fs::fstat) else {
            return false;
        };
        let destination = FileId::of(&destination);
        self.source_dirs.iter().any(|source| {
            let mut above = fs::openat(&source.dir, c"..", IDENTIFY, Mode::empty());
            let mut last = source.id;
            while let Ok(dir) = above {
                let Ok(id) = fs::fstat(&dir).map(|stat| FileId::of(&stat)) else {
                    return false;
                };
                if id == destination {
                    return true;
                }
                if id == last {
                    return false;
                }
                last = id;
                above = fs::openat(&dir, c"..", IDENTIFY, Mode::empty());
            }
            false
        })
    }

    /// Returns true if a source directory is also a destination of this run.
    ///
    /// This run puts entries into it, so it must not be copied.
    pub(super) fn is_destination(&self, dir: FileId) -> bool {
        self.destinations.contains(&dir)
    }

    /// Returns true if a destination directory lies in a source, so that it must not be written to.
    pub(super) fn is_in_source(&self, dir: BorrowedFd<'_>, id: FileId) -> bool {
        if self.source_dirs.iter().any(|source| source.id == id)
            || self.listed_sources.contains(&id)
        {
            return true;
        }
        // `refuse_nesting` has checked the mounts that the destinations are on. Any other mount
        // below them may be a bind mount of a part of a source.
        if self.source_dirs.is_empty()
            || mount_id(dir).is_none_or(|mount| self.destination_mounts.contains(&mount))
        {
            return false;
        }
        match Mounts::read().place_of(dir) {
            Some(place) => self.find_source_of(&place, id).is_some(),
            None => false,
        }
    }

    /// Returns the source directory that contains the directory with this place and ID, or is it.
    fn find_source_of(&self, place: &Place, id: FileId) -> Option<&SourceDir> {
        let mut sources = self.source_dirs.iter();
        sources.find(|source| source.contains(place, id))
    }

    /// Fails if a destination is a source directory or would be created in one.
    ///
    /// Checks the destination and each of its parent directories. Bind mounts give a directory
    /// other parents, so its place in the file system is checked too.
    pub(super) fn refuse_nesting(
        &self,
        mounts: &Mounts,
        destination: &Path,
        one_file_system: bool,
    ) -> Result<()> {
        if self.source_dirs.is_empty() && self.listed_sources.is_empty() {
            return Ok(());
        }
        let Existing { mut dir, is_whole } = open_existing(destination)?;
        let mut id = identify(dir.as_fd())?;
        if is_whole && self.listed_sources.contains(&id) {
            return refuse(true);
        }
        if self.source_dirs.is_empty() {
            return Ok(());
        }
        // Opening the destination may have mounted it, so a newer table may know more.
        let place = mounts.place_of(dir.as_fd());
        if let Some(place) = place.or_else(|| Mounts::read().place_of(dir.as_fd()))
            && let Some(source) = self.find_source_of(&place, id)
        {
            return refuse(is_whole && source.id == id);
        }
        if one_file_system
            && self
                .source_dirs
                .iter()
                .all(|source| source.id.dev != id.dev)
        {
            // The destination is on a file system that is not copied.
            return Ok(());
        }
        let mut is_destination = is_whole;
        loop {
            if self.source_dirs.iter().any(|source| source.id == id) {
                return refuse(is_destination);
            }
            dir = fs::openat(&dir, c"..", IDENTIFY, Mode::empty()).map_err(Reason::from)?;
            let parent = identify(dir.as_fd())?;
            if parent == id {
                return Ok(());
            }
            id = parent;
            is_destination = false;
        }
    }
}

/// Returns the error for a destination that is a source directory, or lies in one.
fn refuse(is_same: bool) -> Result<()> {
    if is_same {
        bail!("source and destination are the same directory");
    }
    bail!("the destination lies inside the source")
}

/// The part of a destination path that exists.
struct Existing {
    dir: OwnedFd,
    /// The whole path exists.
    is_whole: bool,
}

/// Opens the destination directory, or if it does not exist, its nearest parent that does.
fn open_existing(destination: &Path) -> Result<Existing> {
    let mut path = destination.to_owned();
    loop {
        let errno = match open_to_identify(&path) {
            Ok(dir) => {
                let is_whole = path == destination;
                return Ok(Existing { dir, is_whole });
            }
            Err(errno) => errno,
        };
        // A dangling link gives ENOENT too, but nothing can be created under its name.
        let found = fs::lstat(&path).map(|stat| FileType::from_raw_mode(stat.st_mode));
        if errno == Errno::NOENT && found == Ok(FileType::Directory) {
            // Another run has made it at this moment.
            continue;
        }
        let is_missing = errno == Errno::NOENT && found.is_err();
        if is_missing && path.ends_with("..") {
            // Where `..` leads is unknown while the directories before it are missing.
            bail!(
                "{}: leads through a directory that does not exist",
                quote_path(destination)
            );
        }
        let parent = parent_of(&path);
        if !is_missing || parent == path {
            bail!("{}: {}", quote_path(&path), Reason::from(errno));
        }
        path = parent;
    }
}

/// Opens a directory, if possible without the right to read it.
///
/// O_PATH does not ask a server whether the directory is still there. If it was removed there, the
/// descriptor is stale, and only opening it for real notices that.
fn open_to_identify(path: &Path) -> rustix::io::Result<OwnedFd> {
    let opened = fs::open(path, IDENTIFY, Mode::empty());
    match opened.and_then(|dir| fs::fstat(&dir).map(|_| dir)) {
        Err(Errno::STALE) => fs::open(path, DIRECTORY.difference(OFlags::NOFOLLOW), Mode::empty()),
        result => result,
    }
}

fn identify(dir: BorrowedFd<'_>) -> Result<FileId, Reason> {
    Ok(FileId::of(&fs::fstat(dir)?))
}

struct SourceDir {
    id: FileId,
    dir: Arc<OwnedFd>,
    place: Option<Place>,
}

impl SourceDir {
    /// Identifies a directory. `None` if it is gone.
    fn new(dir: &Arc<OwnedFd>, mounts: &Mounts) -> Option<Self> {
        Some(Self {
            id: FileId::of(&fs::fstat(dir).ok()?),
            dir: Arc::clone(dir),
            place: mounts.place_of(dir.as_fd()),
        })
    }

    /// Returns true if the directory with this place and ID is this one, or lies in it.
    ///
    /// Places alone do not prove it. Every NFS mount claims to show the root of its file system,
    /// and another file system may be mounted on the way. So the directory is looked up from here
    /// and its ID is compared.
    fn contains(&self, place: &Place, id: FileId) -> bool {
        let Some(own) = self.place.as_ref().filter(|own| own.device == place.device) else {
            return false;
        };
        let Ok(below) = place.path.strip_prefix(&own.path) else {
            return false;
        };
        let below = Path::new(".").join(below);
        let found = fs::openat(&self.dir, below, IDENTIFY, Mode::empty());
        found
            .and_then(fs::fstat)
            .is_ok_and(|stat| FileId::of(&stat) == id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_contains_those_below_it_in_the_same_file_system() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
        std::fs::create_dir(dir.path().join("ab")).unwrap();
        let place = |device: &str, path: &str| Place {
            device: device.into(),
            path: path.into(),
        };
        let id = |path| FileId::of(&fs::stat(dir.path().join(path)).unwrap());
        let opened = fs::open(dir.path().join("a"), DIRECTORY, Mode::empty()).unwrap();
        let source = SourceDir {
            id: id("a"),
            dir: Arc::new(opened),
            place: Some(place("8:1", "/a")),
        };
        assert!(source.contains(&place("8:1", "/a/b"), id("a/b")));
        assert!(source.contains(&place("8:1", "/a"), id("a")));
        assert!(!source.contains(&place("8:1", "/ab"), id("ab")));
        assert!(!source.contains(&place("8:2", "/a/b"), id("a/b")));
        // Two NFS mounts have the same place and different IDs.
        assert!(!source.contains(&place("8:1", "/a"), id("ab")));
    }

    #[test]
    fn the_nearest_existing_directory_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        let id = FileId::of(&fs::stat(dir.path()).unwrap());
        let existing = open_existing(dir.path()).unwrap();
        assert!(existing.is_whole);
        let existing = open_existing(&dir.path().join("x/y")).unwrap();
        assert!(!existing.is_whole);
        assert_eq!(identify(existing.dir.as_fd()), Ok(id));
        assert!(open_existing(&dir.path().join("x/..")).is_err());
        std::os::unix::fs::symlink("nowhere", dir.path().join("link")).unwrap();
        assert!(open_existing(&dir.path().join("link")).is_err());
        std::fs::write(dir.path().join("file"), "").unwrap();
        assert!(open_existing(&dir.path().join("file")).is_err());
    }
}
