//! The sources and destinations of a run: what the command line's paths lead to, what is refused
//! before anything is written, and what would land on a source.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow, bail};
use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, Stat, StatxFlags};
use rustix::io::Errno;

use crate::config::{Config, Destination};
use crate::fs::path::{Kind, RelPath, show};
use crate::fs::stat::FileId;
use crate::fs::xattr::strip_acls;
use crate::protocol::error::{Reason, error_text};

/// A source and its destination.
pub(crate) struct Target {
    /// The source folder; of a single file the folder that it is in, shared with its
    /// neighbours: a `*` may name more files than a process may have open.
    pub(crate) source: Arc<OwnedFd>,
    /// The source as it is shown.
    pub(crate) source_path: PathBuf,
    /// The destination folder. None in a dry run where it does not exist.
    pub(crate) destination: Option<Arc<OwnedFd>>,
    /// The destination as it is shown.
    pub(crate) destination_path: PathBuf,
    /// Set where the source is a single entry and no folder.
    pub(crate) single: Option<SingleFile>,
    /// The device of the source folder.
    pub(crate) device: u64,
    /// This run has made the destination folder.
    pub(crate) fresh: bool,
    /// The source before this one has another destination folder.
    pub(crate) is_first: bool,
}

impl Target {
    /// What an entry of the source is called at the destination: a single one may have another
    /// name there.
    pub(crate) fn name_at_destination<'a>(&'a self, name: &'a CStr) -> &'a CStr {
        self.single.as_ref().map_or(name, |single| &single.to)
    }
}

/// A source that is no folder.
pub(crate) struct SingleFile {
    /// What it is.
    pub(crate) kind: Kind,
    /// Its name at the source.
    pub(crate) from: CString,
    /// Its name at the destination.
    pub(crate) to: CString,
}

/// All of them.
pub(crate) struct Targets {
    /// In the order of the command line.
    pub(crate) list: Vec<Target>,
    /// The source folders.
    sources: Vec<SourceFolder>,
    /// The sources that are no folders, where there are others beside.
    singles: HashSet<FileId>,
    /// The destination folders.
    destinations: Vec<FileId>,
    /// The mounts that the destinations are on.
    destination_mounts: Vec<u64>,
}

/// What a folder is opened with to see which one it is, and no more.
const PLACE: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

struct SourceFolder {
    inode: FileId,
    folder: Arc<OwnedFd>,
    place: Option<Place>,
}

impl SourceFolder {
    /// True when the folder of this place and inode is this one or lies in it. The place alone
    /// does not tell: every NFS mount says that it shows the root of its file system, and
    /// something else may be mounted on the way.
    fn holds(&self, place: &Place, inode: FileId) -> bool {
        let Some(own) = self.place.as_ref().filter(|own| own.device == place.device) else {
            return false;
        };
        let Ok(below) = place.path.strip_prefix(&own.path) else {
            return false;
        };
        let below = Path::new(".").join(below);
        let there = fs::openat(&self.folder, below, PLACE, Mode::empty());
        there
            .and_then(fs::fstat)
            .is_ok_and(|stat| FileId::of(&stat) == inode)
    }
}

impl Targets {
    /// Opens all sources, checks what can be checked, and only then makes the destinations.
    ///
    /// # Errors
    /// Where a source cannot be opened, a destination cannot be made, or the destination is the
    /// source or lies in it.
    pub(crate) fn open(config: &Config) -> Result<Self> {
        let plans = plan(config)?;
        let mounts = Mounts::read();
        let sources: Vec<SourceFolder> = plans
            .iter()
            .filter(|plan| plan.name.is_none())
            .map(|plan| SourceFolder {
                inode: FileId::of(&plan.stat),
                folder: Arc::clone(&plan.source),
                place: mounts.place_of(plan.source.as_fd()),
            })
            .collect();
        for plan in &plans {
            refuse_nesting(&mounts, &sources, &plan.folder, config).with_context(|| {
                format!(
                    "cannot copy {} to {}",
                    show_path(&plan.source_path),
                    show_path(&plan.folder)
                )
            })?;
        }
        let singles = plans
            .iter()
            .filter(|plan| plan.name.is_some() && plans.len() > 1);
        let singles = singles.map(|plan| FileId::of(&plan.stat)).collect();
        let mut roots = Self {
            list: Vec::with_capacity(plans.len()),
            sources,
            singles,
            destinations: Vec::new(),
            destination_mounts: Vec::new(),
        };
        for plan in plans {
            roots.make(plan, config)?;
        }
        Ok(roots)
    }

    fn make(&mut self, plan: Plan, config: &Config) -> Result<()> {
        let folder = plan.folder;
        let failed = || format!("cannot make the destination {}", show_path(&folder));
        let mut fresh = false;
        if !config.dry_run {
            // Whatever the umask, the next one has to fit in, as mkdir -p has it.
            let usual = Mode::from_raw_mode(0o777 & !config.umask | 0o300);
            // What becomes a copy gets its mode at the end; until then it is nobody else's. A
            // folder for files is one like any other.
            let is_copy = plan.name.is_none();
            let mode = if is_copy {
                config.new_dir_mode()
            } else {
                usual
            };
            fresh = make_folder(&folder, mode, usual, config).with_context(failed)? && is_copy;
        }
        // Through links: those named on the command line are followed.
        let mut flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        if plan.name.is_none() && matches!(config.destination, Destination::Directory(_)) {
            // Named is the folder that this one is in; a link in there might lead anywhere.
            flags |= OFlags::NOFOLLOW;
        }
        let before = self
            .list
            .last()
            .filter(|root| root.destination_path == folder);
        let is_first = before.is_none();
        let destination = match before.and_then(|root| root.destination.clone()) {
            Some(shared) => Ok(shared),
            None => fs::open(&folder, flags, Mode::empty()).map(Arc::new),
        };
        let destination = match destination {
            Ok(folder) => Some(folder),
            Err(Errno::NOENT) if config.dry_run => None,
            Err(_) if flags.contains(OFlags::NOFOLLOW) && is_link(&folder) => {
                let reason = Reason::LinkInTheWay;
                return Err(anyhow!("{reason}")).with_context(failed);
            }
            Err(errno) => return Err(system(errno)).with_context(failed),
        };
        if let Some(destination) = &destination {
            if fresh {
                let stripped =
                    strip_acls(destination.as_fd(), config.new_dir_mode()).map_err(system);
                stripped.with_context(failed)?;
            }
            let stat = fs::fstat(destination)
                .map_err(system)
                .with_context(failed)?;
            if plan.name.is_none() {
                self.destinations.push(FileId::of(&stat));
            }
            self.destination_mounts
                .extend(mount_of(destination.as_fd()));
        }
        let destination_path = folder;
        self.list.push(Target {
            device: plan.stat.st_dev,
            single: plan.name.map(|(from, to)| SingleFile {
                kind: Kind::of(FileType::from_raw_mode(plan.stat.st_mode)),
                from,
                to,
            }),
            source: plan.source,
            source_path: plan.source_path,
            destination,
            destination_path,
            fresh,
            is_first,
        });
        Ok(())
    }

    /// Removes an incomplete file from a destination folder, if it can be done.
    pub(crate) fn remove(&self, root: usize, path: &RelPath, name: &[u8]) {
        if let Some(destination) = &self.list[root].destination
            && let Ok(folder) = crate::fs::open::open_dir(destination.as_fd(), path)
        {
            let _ = fs::unlinkat(&folder, name, AtFlags::empty());
        }
    }

    /// True when an entry at the destination is itself to be copied, so that nothing may take its
    /// place.
    pub(crate) fn is_source(&self, there: FileId) -> bool {
        self.singles.contains(&there)
    }

    /// True when a name in a source folder was given on the command line.
    pub(crate) fn is_single(&self, name: &[u8]) -> bool {
        let mut singles = self.list.iter().filter_map(|root| root.single.as_ref());
        singles.any(|single| single.from.to_bytes() == name)
    }

    /// True when a source folder is one of the destinations: what is in it was put there by this
    /// run.
    pub(crate) fn is_destination(&self, folder: FileId) -> bool {
        self.destinations.contains(&folder)
    }

    /// True when an open destination folder belongs to a source, so that writing to it would
    /// change that.
    pub(crate) fn is_in_source(&self, folder: BorrowedFd<'_>, inode: FileId) -> bool {
        if self.sources.iter().any(|source| source.inode == inode) {
            return true;
        }
        // What lies on the mounts of the destinations was checked when those were opened; below
        // another mount a part of a source may be bound.
        if self.sources.is_empty()
            || mount_of(folder).is_none_or(|mount| self.destination_mounts.contains(&mount))
        {
            return false;
        }
        let place = Mounts::read().place_of(folder);
        place.is_some_and(|place| {
            self.sources
                .iter()
                .any(|source| source.holds(&place, inode))
        })
    }
}

/// A source, and where it goes.
struct Plan {
    source: Arc<OwnedFd>,
    stat: Stat,
    source_path: PathBuf,
    /// The destination folder, which may not exist yet.
    folder: PathBuf,
    /// Of a single entry its names at both sides.
    name: Option<(CString, CString)>,
}

fn plan(config: &Config) -> Result<Vec<Plan>> {
    let mut plans: Vec<Plan> = Vec::with_capacity(config.sources.len());
    let mut neighbours = HashMap::new();
    // Looked up, not searched: a `*` may stand for very many files.
    let mut targets = HashMap::with_capacity(config.sources.len());
    for path in &config.sources {
        let plan = plan_one(path, &config.destination, &mut neighbours)?;
        let target = match &plan.name {
            Some((_, to)) => plan.folder.join(OsStr::from_bytes(to.as_bytes())),
            None => plan.folder.clone(),
        };
        match targets.entry(target) {
            Entry::Vacant(free) => free.insert(path),
            Entry::Occupied(taken) => bail!(
                "{} and {} would both become {}",
                show_path(taken.get()),
                show_path(path),
                show_path(taken.key())
            ),
        };
        plans.push(plan);
    }
    Ok(plans)
}

fn plan_one(
    path: &Path,
    destination: &Destination,
    neighbours: &mut HashMap<PathBuf, Arc<OwnedFd>>,
) -> Result<Plan> {
    let cannot = || format!("cannot copy {}", show_path(path));
    // Links are followed, and a special file must not be opened.
    let stat = fs::stat(path).map_err(system).with_context(cannot)?;
    let is_folder = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    let own_name = || own_name(path).with_context(cannot);
    let into = |folder: &Path| -> Result<PathBuf> { Ok(folder.join(own_name()?)) };
    if is_folder {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let source = fs::open(path, flags, Mode::empty()).map_err(system);
        let source = source.with_context(cannot)?;
        return Ok(Plan {
            // Opening it may have mounted something, which stat(2) does not.
            stat: fs::fstat(&source).map_err(system).with_context(cannot)?,
            source: Arc::new(source),
            source_path: path.to_owned(),
            folder: match destination {
                Destination::Path(path) => path.clone(),
                Destination::Directory(folder) => into(folder)?,
            },
            name: None,
        });
    }
    // The entry itself, not a link to it: what it links to is what is copied.
    let real = path.canonicalize().with_context(cannot)?;
    let (Some(parent), Some(from)) = (real.parent(), real.file_name()) else {
        bail!("cannot copy {}: it has no name", show_path(path));
    };
    let source = match neighbours.get(parent) {
        Some(source) => Arc::clone(source),
        None => {
            let opened =
                fs::open(parent, crate::fs::open::DIRECTORY, Mode::empty()).map_err(system);
            let opened = Arc::new(opened.with_context(cannot)?);
            neighbours.insert(parent.to_owned(), Arc::clone(&opened));
            opened
        }
    };
    let (folder, to) = match destination {
        Destination::Directory(folder) => (folder.clone(), own_name()?),
        Destination::Path(target) if target.is_dir() || ends_in_slash(target) => {
            (target.clone(), own_name()?)
        }
        Destination::Path(target) => {
            // A link named on the command line is followed, so the file it leads to is replaced.
            let target = match target.canonicalize() {
                Ok(real) => real,
                Err(_) if is_link(target) => bail!(
                    "{} is a link that leads to no file; remove it first, if a file is to take \
                     its place",
                    show_path(target)
                ),
                Err(_) => target.clone(),
            };
            refuse_special(&target, &stat).with_context(cannot)?;
            let name = target.file_name().map(ToOwned::to_owned);
            let name = name.ok_or_else(|| anyhow!("{} has no name", show_path(&target)))?;
            (parent_of(&target), name)
        }
    };
    Ok(Plan {
        source,
        stat,
        source_path: path.parent().unwrap_or(Path::new("")).to_owned(),
        folder,
        name: Some((c_string(from), c_string(&to))),
    })
}

fn is_link(path: &Path) -> bool {
    fs::lstat(path).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Symlink)
}

/// Who names a device as DST expects it to be written to, and not that a file takes its place.
fn refuse_special(target: &Path, source: &Stat) -> Result<()> {
    let source = FileType::from_raw_mode(source.st_mode);
    let there = fs::lstat(target).map(|stat| FileType::from_raw_mode(stat.st_mode));
    match there {
        Ok(kind) if kind == source => Ok(()),
        Ok(
            FileType::BlockDevice | FileType::CharacterDevice | FileType::Fifo | FileType::Socket,
        ) => bail!(
            "{} is a device, FIFO or socket; remove it first, if a file is to take its place",
            show_path(target)
        ),
        _ => Ok(()),
    }
}

fn parent_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

fn ends_in_slash(path: &Path) -> bool {
    path.as_os_str().as_bytes().ends_with(b"/")
}

fn c_string(name: &OsStr) -> CString {
    CString::new(name.as_bytes()).unwrap_or_default()
}

/// The name that a source has in a folder of several: the last one of its path, or of the real
/// path where that is `.` or `..`.
fn own_name(path: &Path) -> Result<std::ffi::OsString> {
    let name = match path.file_name() {
        Some(name) if !path.as_os_str().as_bytes().ends_with(b"/.") => Some(name.to_owned()),
        _ => path.canonicalize()?.file_name().map(ToOwned::to_owned),
    };
    name.ok_or_else(|| anyhow!("it has no name of its own; give the destination without -t"))
}

/// Makes a destination folder, and the missing ones above it with the usual mode. True when it
/// is new.
fn make_folder(path: &Path, mode: Mode, usual: Mode, config: &Config) -> Result<bool> {
    let make = |folder: &Path, mode| match fs::mkdir(folder, mode) {
        Ok(()) if config.fsync => sync_folder(&parent_of(folder)).map(|()| true),
        Ok(()) => Ok(true),
        Err(Errno::EXIST) => Ok(false),
        Err(errno) => Err(errno),
    };
    match make(path, mode) {
        Err(Errno::NOENT) => {
            let mut missing = Vec::new();
            let mut above = parent_of(path);
            while !above.exists() {
                let next = parent_of(&above);
                if next == above {
                    break;
                }
                missing.push(std::mem::replace(&mut above, next));
            }
            for folder in missing.iter().rev() {
                make(folder, usual).map_err(system)?;
            }
            make(path, mode).map_err(system)
        }
        made => made.map_err(system),
    }
}

/// InitialMeta the names in a folder on disk.
fn sync_folder(path: &Path) -> rustix::io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    fs::fsync(fs::open(path, flags, Mode::empty())?)
}

/// Refuses a destination that is a source folder or lies in one. Judged by device and inode of
/// the destination and of every folder above it, and where mounts alias each other by the place
/// in the file system, so that no other name of a folder gets past.
fn refuse_nesting(
    mounts: &Mounts,
    sources: &[SourceFolder],
    destination: &Path,
    config: &Config,
) -> Result<()> {
    if sources.is_empty() {
        return Ok(());
    }
    let mut existing = destination.to_owned();
    let mut is_itself = true;
    let mut folder = loop {
        match fs::open(&existing, PLACE, Mode::empty()) {
            Ok(folder) => break folder,
            Err(Errno::NOENT) if fs::lstat(&existing).is_err() => {
                if existing.ends_with("..") {
                    // Where it leads is not known until what is missing is made.
                    bail!(
                        "{}: leads through a folder that does not exist",
                        show_path(destination)
                    );
                }
                let above = parent_of(&existing);
                if above == existing {
                    bail!(
                        "{}: {}",
                        show_path(&existing),
                        error_text(Errno::NOENT.raw_os_error())
                    );
                }
                existing = above;
                is_itself = false;
            }
            Err(errno) => bail!(
                "{}: {}",
                show_path(&existing),
                error_text(errno.raw_os_error())
            ),
        }
    };
    let same = |itself: bool| {
        if itself {
            anyhow!("they are the same folder")
        } else {
            anyhow!("the destination lies inside the source")
        }
    };
    let mut inode = FileId::of(&fs::fstat(&folder).map_err(system)?);
    // Opening it may have mounted something.
    let place = mounts.place_of(folder.as_fd());
    if let Some(place) = place.or_else(|| Mounts::read().place_of(folder.as_fd()))
        && let Some(source) = sources.iter().find(|source| source.holds(&place, inode))
    {
        return Err(same(is_itself && source.inode == inode));
    }
    let device = inode.dev;
    if config.one_file_system && sources.iter().all(|source| source.inode.dev != device) {
        // It lies on a file system that is left out.
        return Ok(());
    }
    loop {
        if sources.iter().any(|source| source.inode == inode) {
            return Err(same(is_itself));
        }
        folder = fs::openat(&folder, c"..", PLACE, Mode::empty()).map_err(system)?;
        let above = FileId::of(&fs::fstat(&folder).map_err(system)?);
        if above == inode {
            return Ok(());
        }
        inode = above;
        is_itself = false;
    }
}

/// Where a folder is in its file system, whatever it is mounted as: bind mounts give one folder
/// several paths, and `..` of each leads elsewhere.
#[derive(Debug)]
struct Place {
    /// Major and minor number of the file system.
    device: String,
    /// Path from the root of that file system.
    path: PathBuf,
}

/// The mounts as they are at one moment.
struct Mounts {
    /// proc_pid_mountinfo(5); nothing where the system does not tell.
    table: Vec<u8>,
}

impl Mounts {
    fn read() -> Self {
        // Most tables fit: each read(2) beyond would cost as much as a small file.
        let mut table = Vec::with_capacity(16 << 10);
        let read = File::open("/proc/thread-self/mountinfo")
            .and_then(|mut file| file.read_to_end(&mut table));
        if read.is_err() {
            table.clear();
        }
        Self { table }
    }

    /// None where the system does not tell.
    fn place_of(&self, folder: BorrowedFd<'_>) -> Option<Place> {
        let mount = mount_of(folder)?.to_string();
        let link = format!("/proc/thread-self/fd/{}", folder.as_raw_fd());
        let path = std::fs::read_link(link).ok()?;
        // ID, parent's ID, device, root in the file system, mount point.
        let line = self.table.split(|&b| b == b'\n').find_map(|line| {
            let fields: Vec<&[u8]> = line.splitn(6, |&b| b == b' ').collect();
            (fields.len() == 6 && fields[0] == mount.as_bytes()).then_some(fields)
        })?;
        let below = path.strip_prefix(unescape(line[4])).ok()?;
        Some(Place {
            device: String::from_utf8_lossy(line[2]).into_owned(),
            path: unescape(line[3]).join(below),
        })
    }
}

/// Blanks, newlines and backslashes are octal there.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = rest
            .get(1..4)
            .filter(|_| first == b'\\')
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match octal {
            Some(byte) => {
                bytes.push(byte);
                rest = &rest[4..];
            }
            None => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

/// The number of the mount that an open folder was reached through; Linux 5.8 and later tell.
fn mount_of(folder: BorrowedFd<'_>) -> Option<u64> {
    let wanted = StatxFlags::MNT_ID;
    let statx = fs::statx(folder, c"", AtFlags::EMPTY_PATH, wanted).ok()?;
    (statx.stx_mask & wanted.bits() != 0).then_some(statx.stx_mnt_id)
}

fn system(errno: Errno) -> anyhow::Error {
    anyhow!("{}", error_text(errno.raw_os_error()))
}

fn show_path(path: &Path) -> String {
    show(path.as_os_str().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octal_in_mount_tables_is_read() {
        assert_eq!(unescape(b"/a\\040b\\134"), PathBuf::from("/a b\\"));
        assert_eq!(unescape(b"/a\\9"), PathBuf::from("/a\\9"));
    }

    #[test]
    fn a_folder_holds_what_is_below_it_in_the_same_file_system() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
        std::fs::create_dir(dir.path().join("ab")).unwrap();
        let place = |device: &str, path: &str| Place {
            device: device.into(),
            path: path.into(),
        };
        let inode = |path| FileId::of(&fs::stat(dir.path().join(path)).unwrap());
        let folder = fs::open(
            dir.path().join("a"),
            crate::fs::open::DIRECTORY,
            Mode::empty(),
        )
        .unwrap();
        let source = SourceFolder {
            inode: inode("a"),
            folder: Arc::new(folder),
            place: Some(place("8:1", "/a")),
        };
        assert!(source.holds(&place("8:1", "/a/b"), inode("a/b")));
        assert!(source.holds(&place("8:1", "/a"), inode("a")));
        assert!(!source.holds(&place("8:1", "/ab"), inode("ab")));
        assert!(!source.holds(&place("8:2", "/a/b"), inode("a/b")));
        // As two NFS mounts look like.
        assert!(!source.holds(&place("8:1", "/a"), inode("ab")));
    }
}
