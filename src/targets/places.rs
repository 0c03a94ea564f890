//! The targets of a run on many machines: the lead opens them as any run does, and every node opens
//! the same directories again. A node creates nothing.
//!
//! A directory is the same if its inode number is. Device numbers differ between machines; the
//! lead's are used on all of them (`fs/devices.rs`).

use std::collections::HashMap;
use std::ffi::{CStr, OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::fs::{self, AtFlags, Dir, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::beside::Beside;
use super::mounts::Mounts;
use super::overlap::Overlap;
use super::resolve::{Resolved, SingleFile, quote_path};
use super::{Target, Targets};
use crate::config::FilterSettings;
use crate::filter::{Filter, Selection};
use crate::fs::devices;
use crate::fs::file_system::FileSystem;
use crate::fs::open::{DIRECTORY, open_dir};
use crate::fs::path::Name;
use crate::fs::proc::real_path;
use crate::fs::stat::FileId;
use crate::protocol::error::Reason;
use crate::protocol::nodes::{ListedPaths, Place, PlacesBeside, Root, SinglePlace};

/// How long a directory that the lead has just made may take to appear. A client of NFS can
/// remember for a while that a name did not exist.
const APPEAR_TIMEOUT: Duration = Duration::from_secs(5);
/// Entries of a root that are compared.
const SAMPLE: usize = 16;

impl Targets {
    /// Describes the targets to the nodes.
    ///
    /// # Errors
    /// If a source is a pipe, which only one process can read, or a directory cannot be examined.
    pub(crate) fn places(&self) -> Result<Vec<Place>> {
        self.list.iter().map(Target::place).collect()
    }

    /// Describes the directories beside the destination to the nodes.
    ///
    /// # Errors
    /// If a directory cannot be examined.
    pub(crate) fn places_beside(&self) -> Result<PlacesBeside> {
        let describe = |dir: &Arc<OwnedFd>| root_of(dir.as_fd(), &path_or_empty(dir.as_fd()));
        let backup = self.beside.backup.as_ref().map(describe);
        let snapshots = self.beside.snapshots.iter().map(describe);
        Ok(PlacesBeside {
            backup: backup.transpose()?,
            snapshots: snapshots.collect::<Result<_>>()?,
        })
    }

    /// Opens the same targets on a node of this rank, and renames the devices of this process.
    ///
    /// # Errors
    /// If a directory is missing, or is another one than the lead's.
    pub(crate) fn open_places<'a>(
        places: &'a [Place],
        beside: &'a PlacesBeside,
        filter: &FilterSettings,
        rank: u32,
    ) -> Result<Self> {
        let mut known: Vec<(u64, Option<u64>)> = Vec::new();
        let mut paths = Vec::new();
        // Each once: a `*` can name more files than a process can open.
        let mut dirs: HashMap<&Root, Arc<OwnedFd>> = HashMap::new();
        let mut open = |root: &'a Root, is_new: bool| -> Result<Arc<OwnedFd>> {
            if let Some(dir) = dirs.get(root) {
                return Ok(Arc::clone(dir));
            }
            let Opened {
                dir,
                dev,
                is_same_inode,
            } = open_root(root, is_new)
                .with_context(|| quote_path(Path::new(OsStr::from_bytes(&root.paths[0]))))?;
            paths.push(path_or_empty(dir.as_fd()));
            let is_stable = is_same_inode && has_same_inodes(dir.as_fd(), root);
            match known.iter_mut().find(|(own, _)| *own == dev) {
                // One root with other numbers is enough.
                Some((_, name)) => *name = name.filter(|_| is_stable),
                None => known.push((dev, is_stable.then_some(root.id.dev))),
            }
            let dir = Arc::new(dir);
            dirs.insert(root, Arc::clone(&dir));
            Ok(dir)
        };
        let mut opened = Vec::with_capacity(places.len());
        for place in places {
            let source = open(&place.source, false)?;
            let destination = match &place.destination {
                Some(root) => Some(open(root, place.created)?),
                None => None,
            };
            let above = match &place.above {
                Some(root) => Some(open(root, false)?),
                None => None,
            };
            opened.push((source, destination, above));
        }
        // The first file that this run keeps makes the directory of the backups.
        let backup = beside.backup.as_ref().map(|root| open(root, true));
        let snapshots = beside.snapshots.iter().map(|root| open(root, false));
        let snapshots: Vec<_> = snapshots.collect::<Result<_>>()?;
        let backup = backup.transpose()?;
        devices::rename(rank, paths, &known);
        let beside = Beside::of_opened(backup, snapshots)?;
        let mut filter = Filter::load(filter)?;
        let resolved: Result<Vec<_>> = places
            .iter()
            .zip(&opened)
            .map(|(place, (source, ..))| resolve(place, source))
            .collect();
        let resolved = resolved?;
        if let Some(filter) = &mut filter {
            for source in &resolved {
                let path = path_or_empty(source.source.as_fd());
                let is_dir = source.single.is_none();
                filter.add_target(is_dir.then_some(path.as_path()))?;
            }
        }
        let overlap = Overlap::new(&resolved, &Mounts::read());
        let mut targets = Self {
            list: Vec::with_capacity(places.len()),
            filter,
            overlap,
            beside,
            // The lead looks after these.
            mounts: Vec::new(),
        };
        for ((resolved, place), (_, destination, above)) in
            resolved.into_iter().zip(places).zip(opened)
        {
            targets.add_place(resolved, place, destination, above)?;
        }
        Ok(targets)
    }

    fn add_place(
        &mut self,
        source: Resolved,
        place: &Place,
        destination: Option<Arc<OwnedFd>>,
        above: Option<Arc<OwnedFd>>,
    ) -> Result<()> {
        if let Some(destination) = &destination {
            self.overlap
                .add_destination(destination.as_fd(), source.single.is_none())
                .map_err(Reason::from)?;
        }
        let previous = self.list.last();
        let is_first = previous.is_none_or(|it| it.destination_path != source.destination);
        self.list.push(Target {
            device: FileId::of(&source.stat).dev,
            source: source.source,
            source_path: source.source_path,
            destination,
            above,
            destination_path: source.destination,
            below_named: place.below_named.clone(),
            single: source.single,
            selection: source.selection,
            lands_in: source.lands_in,
            created: place.created,
            is_first,
            // syncfs(2) writes what this machine has, and not what others have.
            batch: None,
            sync_roots: Vec::new(),
        });
        Ok(())
    }
}

impl Target {
    fn place(&self) -> Result<Place> {
        let single = match &self.single {
            Some(single) if single.stream.is_some() => bail!(
                "{}: --mode mpi cannot copy from a pipe",
                quote_path(
                    &self
                        .source_path
                        .join(OsStr::from_bytes(single.from.to_bytes()))
                )
            ),
            Some(single) => Some(SinglePlace {
                kind: single.kind,
                from: Name::new(single.from.to_bytes()),
                named: Name::new(single.named.to_bytes()),
                to: Name::new(single.to.to_bytes()),
            }),
            None => None,
        };
        let destination = self.destination.as_ref();
        let destination = destination.map(|it| root_of(it.as_fd(), &self.destination_path));
        let above = self.above.as_ref();
        let above = above.map(|it| root_of(it.as_fd(), &path_or_empty(it.as_fd())));
        let selection = self.selection.as_ref().map(|selection| ListedPaths {
            list: selection.to_list(),
            is_recursive: selection.is_recursive(),
        });
        Ok(Place {
            source: root_of(self.source.as_fd(), &self.source_path)?,
            destination: destination.transpose()?,
            above: above.transpose()?,
            source_path: self.source_path.as_os_str().as_bytes().to_vec(),
            destination_path: self.destination_path.as_os_str().as_bytes().to_vec(),
            below_named: self.below_named.clone(),
            single,
            selection,
            lands_in: self.lands_in,
            created: self.created,
        })
    }
}

/// Describes a directory that is open on the lead.
fn root_of(dir: BorrowedFd<'_>, written: &Path) -> Result<Root> {
    let written = std::env::current_dir().unwrap_or_default().join(written);
    let stat = fs::fstat(dir).map_err(Reason::from)?;
    // The inode numbers of most file systems in user space mean something in one mount only.
    let is_sampled = FileSystem::of(dir) == Some(FileSystem::Fuse);
    Ok(Root {
        paths: [
            written.into_os_string().into_vec(),
            path_or_empty(dir).into_os_string().into_vec(),
        ],
        id: FileId::of(&stat),
        looks: looks_of(&stat),
        sample: is_sampled.then(|| sample(dir)),
    })
}

/// Returns the path of a directory; an empty one if it is unknown.
fn path_or_empty(dir: BorrowedFd<'_>) -> PathBuf {
    real_path(dir).unwrap_or_default()
}

fn sample(dir: BorrowedFd<'_>) -> Vec<(Name, u64)> {
    let entries = Dir::read_from(dir).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| {
        let name = entry.file_name();
        let is_entry = name != c"." && name != c"..";
        is_entry.then(|| name.to_owned())
    });
    let inode = |name: &CStr| fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map(|it| it.st_ino);
    names
        .take(SAMPLE)
        .filter_map(|name| Some((Name::new(name.to_bytes()), inode(&name).ok()?)))
        .collect()
}

/// Returns true if inode numbers mean the same as on the lead, as far as a few entries tell.
///
/// Many file systems in user space count the entries as they are looked up, so two mounts can agree
/// by chance. Asked for in another order, such numbers differ.
fn has_same_inodes(dir: BorrowedFd<'_>, root: &Root) -> bool {
    let Some(sample) = &root.sample else {
        return true;
    };
    let is_same = |(name, inode): &(Name, u64)| {
        fs::statat(dir, name.as_bytes(), AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|stat| stat.st_ino == *inode)
    };
    sample.len() > 1 && sample.iter().rev().all(is_same)
}

/// A directory of the lead on this machine.
struct Opened {
    dir: OwnedFd,
    dev: u64,
    /// False if it is only likely to be the lead's: inode numbers differ between mounts.
    is_same_inode: bool,
}

/// Opens a directory of the lead.
fn open_root(root: &Root, is_new: bool) -> Result<Opened> {
    let deadline = Instant::now() + APPEAR_TIMEOUT;
    let mut pause = Duration::from_millis(10);
    loop {
        match try_open(root) {
            Err(Reason::System(errno))
                if is_new
                    && errno == Errno::NOENT.raw_os_error()
                    && Instant::now() + pause < deadline =>
            {
                std::thread::sleep(pause);
                pause *= 2;
            }
            Err(Reason::Replaced) => bail!("not the directory that the lead has"),
            result => return Ok(result?),
        }
    }
}

/// Tries each path. [`Reason::Replaced`] stands for another directory.
fn try_open(root: &Root) -> Result<Opened, Reason> {
    let missing = Reason::from(Errno::NOENT);
    let mut reason = missing;
    for path in &root.paths {
        let flags = DIRECTORY.difference(OFlags::NOFOLLOW);
        let opened = fs::open(&path[..], flags, Mode::empty());
        match opened.and_then(|dir| fs::fstat(&dir).map(|stat| (dir, stat))) {
            Ok((dir, stat)) if is_same(root, &stat) => {
                return Ok(Opened {
                    dir,
                    dev: stat.st_dev,
                    is_same_inode: stat.st_ino == root.id.ino,
                });
            }
            Ok(_) => reason = Reason::Replaced,
            Err(errno) if reason == missing => reason = errno.into(),
            Err(_) => {}
        }
    }
    Err(reason)
}

/// Returns true if a directory is the lead's. Where inode numbers do not tell, its time does.
fn is_same(root: &Root, stat: &Stat) -> bool {
    stat.st_ino == root.id.ino || root.sample.is_some() && looks_of(stat) == root.looks
}

#[allow(clippy::unnecessary_cast)] // the fields' types differ between architectures
fn looks_of(stat: &Stat) -> (u32, i64, i64) {
    let mode = stat.st_mode as u32;
    (mode, stat.st_mtime as i64, stat.st_mtime_nsec as i64)
}

fn resolve(place: &Place, source: &Arc<OwnedFd>) -> Result<Resolved> {
    let path = |bytes: &[u8]| PathBuf::from(OsString::from_vec(bytes.to_vec()));
    let single = place.single.as_ref().map(|single| SingleFile {
        kind: single.kind,
        from: single.from.to_c_string(),
        named: single.named.to_c_string(),
        to: single.to.to_c_string(),
        stream: None,
    });
    let stat = match &single {
        Some(single) => fs::statat(source, &single.from, AtFlags::SYMLINK_NOFOLLOW),
        None => fs::fstat(source),
    };
    let source_path = path(&place.source_path);
    let stat = stat
        .map_err(Reason::from)
        .with_context(|| quote_path(&source_path))?;
    let selection = match &place.selection {
        None => None,
        Some(ListedPaths { list, is_recursive }) => {
            let selection = Selection::of_list(list, *is_recursive);
            Some(selection.map_err(|outside| anyhow::anyhow!("{outside}"))?)
        }
    };
    let whole_dirs = match &selection {
        Some(selection) if selection.is_recursive() && place.lands_in => {
            let dirs = selection.iter().map(|path| open_dir(source.as_fd(), &path));
            dirs.filter_map(Result::ok).map(Arc::new).collect()
        }
        Some(selection) if selection.is_recursive() => vec![Arc::clone(source)],
        _ => Vec::new(),
    };
    Ok(Resolved {
        source: Arc::clone(source),
        source_path,
        stat,
        destination: path(&place.destination_path),
        is_named: true,
        single,
        selection: selection.map(Arc::new),
        lands_in: place.lands_in,
        whole_dirs,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_directory_and_a_missing_one_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir(at("a")).unwrap();
        std::fs::create_dir(at("b")).unwrap();
        let opened = fs::open(at("a"), DIRECTORY, Mode::empty()).unwrap();
        let root = root_of(opened.as_fd(), &at("a")).unwrap();
        assert!(open_root(&root, false).is_ok());
        let moved = Root {
            paths: [b"/missing".to_vec(), root.paths[1].clone()],
            ..root.clone()
        };
        assert!(
            open_root(&moved, false).is_ok(),
            "the other path leads there"
        );
        let error = |paths: [&Path; 2]| {
            let paths = paths.map(|path| path.as_os_str().as_bytes().to_vec());
            let root = Root {
                paths,
                ..root.clone()
            };
            open_root(&root, false).err().unwrap().to_string()
        };
        let missing = Path::new("/missing");
        assert_eq!(error([missing, missing]), "No such file or directory");
        let other = "not the directory that the lead has";
        assert_eq!(error([&at("b"), missing]), other);
    }

    #[test]
    fn inode_numbers_are_compared_if_they_may_differ() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a"), "").unwrap();
        std::fs::write(dir.path().join("b"), "").unwrap();
        let opened = fs::open(dir.path(), DIRECTORY, Mode::empty()).unwrap();
        let mut root = root_of(opened.as_fd(), dir.path()).unwrap();
        root.sample = Some(sample(opened.as_fd()));
        assert!(has_same_inodes(opened.as_fd(), &root));
        root.sample = Some(vec![(Name::new(b"a"), 1)]);
        assert!(!has_same_inodes(opened.as_fd(), &root));
        root.sample = Some(Vec::new());
        assert!(
            !has_same_inodes(opened.as_fd(), &root),
            "nothing to compare"
        );
    }
}
