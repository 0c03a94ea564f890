//! Two trees compared entry by entry, in every property.
//!
//! A [`Snapshot`] holds what a tree was at one moment, so that it can be compared with a copy
//! as well as with itself after a run. The walk goes from open folder to open folder: paths
//! longer than PATH_MAX are no obstacle, and names are bytes.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::fs::File;
use std::hash::{DefaultHasher, Hasher};
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, SeekFrom, Stat};
use rustix::io::Errno;

/// What can differ between an entry and its copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Property {
    /// The permission bits with setuid, setgid and sticky.
    Mode,
    Owner,
    Size,
    Mtime,
    /// Of files only: links and folders are read on the way.
    Atime,
    /// What a symbolic link points to.
    Target,
    Content,
    /// The number of a device.
    Device,
    Xattrs,
    /// Which names are one file.
    HardLinks,
    /// That the copy takes not much more room than the source.
    Blocks,
}

/// A set of properties to be compared. Presence and type of the entries always are.
#[derive(Clone, Copy)]
pub(crate) struct Properties(u16);

impl Properties {
    /// What a copy keeps; times of access are left to the tests that watch them.
    pub(crate) const KEPT: Properties = Properties(u16::MAX).without(Property::Atime);
    /// What a tree has that nobody touched. It may have been read.
    pub(crate) const UNTOUCHED: Properties = Properties::KEPT;

    pub(crate) const fn with(self, property: Property) -> Properties {
        Properties(self.0 | 1 << property as u16)
    }

    pub(crate) const fn without(self, property: Property) -> Properties {
        Properties(self.0 & !(1 << property as u16))
    }

    fn has(self, property: Property) -> bool {
        self.0 & (1 << property as u16) != 0
    }
}

/// All that is to be known of one entry.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) kind: FileType,
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    pub(crate) size: u64,
    pub(crate) mtime: (i64, i64),
    pub(crate) atime: (i64, i64),
    /// The bytes that it takes on the medium.
    pub(crate) allocated: u64,
    /// The file system and the number there: what makes it one file.
    pub(crate) inode: (u64, u64),
    device: u64,
    names: u64,
    target: Vec<u8>,
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// A digest of the content of a file.
    content: u64,
}

/// A tree at one moment.
#[derive(Clone)]
pub(crate) struct Snapshot {
    root: PathBuf,
    /// By path below the root; the root itself is the empty path.
    pub(crate) entries: BTreeMap<Vec<u8>, Entry>,
}

impl Snapshot {
    #[track_caller]
    pub(crate) fn take(root: &Path) -> Snapshot {
        Snapshot::try_take(root)
            .unwrap_or_else(|e| panic!("cannot look at {}: {e}", root.display()))
    }

    fn try_take(root: &Path) -> Result<Snapshot, String> {
        let mut entries = BTreeMap::new();
        let root_entry = Entry::read(CWD, root.as_os_str().as_bytes())?;
        let is_folder = root_entry.kind == FileType::Directory;
        entries.insert(Vec::new(), root_entry);
        if is_folder {
            let folder =
                open_folder(CWD, root.as_os_str().as_bytes()).map_err(|e| e.to_string())?;
            visit(folder.as_fd(), b"", &mut entries)?;
        }
        Ok(Snapshot {
            root: root.to_owned(),
            entries,
        })
    }

    /// The entry at this path, which must be there.
    #[track_caller]
    pub(crate) fn entry(&self, path: impl AsRef<Path>) -> &Entry {
        let path = path.as_ref();
        self.entries
            .get(path.as_os_str().as_bytes())
            .unwrap_or_else(|| panic!("{} has no {}", self.root.display(), path.display()))
    }

    /// The number of entries that are not folders, which is how pcopy counts.
    pub(crate) fn leaves(&self) -> u64 {
        self.entries
            .values()
            .filter(|entry| entry.kind != FileType::Directory)
            .count() as u64
    }

    /// Fails unless the tree is now what it was when the snapshot was taken.
    #[track_caller]
    pub(crate) fn assert_untouched(&self) {
        let now = Snapshot::take(&self.root);
        let mut found = differences(self, &now, Properties::UNTOUCHED);
        for (path, before) in &self.entries {
            if now
                .entries
                .get(path)
                .is_some_and(|after| after.inode != before.inode)
            {
                found.push(format!("{}: it is another file now", show(path)));
            }
        }
        assert!(
            found.is_empty(),
            "{} was changed (\"source\" is before, \"copy\" is now):\n{}",
            self.root.display(),
            found.join("\n")
        );
    }

    /// Fails when a temporary file of pcopy is in the tree.
    #[track_caller]
    pub(crate) fn assert_no_temporaries(&self) {
        let left: Vec<_> = self
            .entries
            .keys()
            .filter(|path| is_temporary(path))
            .map(|path| show(path))
            .collect();
        assert!(left.is_empty(), "temporary files are left: {left:?}");
    }

    /// For each entry with several names, the first of them; that names the group.
    fn groups(&self) -> BTreeMap<&[u8], &[u8]> {
        let mut first = BTreeMap::new();
        self.entries
            .iter()
            .filter(|(_, entry)| entry.names > 1 && entry.kind != FileType::Directory)
            .map(|(path, entry)| {
                (
                    path.as_slice(),
                    *first.entry(entry.inode).or_insert(path.as_slice()),
                )
            })
            .collect()
    }
}

/// Whether the last name of a path is one that pcopy gives to its temporary files.
fn is_temporary(path: &[u8]) -> bool {
    let name = path.rsplit(|&byte| byte == b'/').next().unwrap();
    name.starts_with(b".pcopy.") && name.ends_with(b".tmp")
}

/// Fails, with all differences, unless these properties of the copy are those of the source.
#[track_caller]
pub(crate) fn assert_same(source: &Snapshot, copy: &Snapshot, properties: Properties) {
    let found = differences(source, copy, properties);
    assert!(
        found.is_empty(),
        "{} differences between {} and {}:\n{}",
        found.len(),
        source.root.display(),
        copy.root.display(),
        found[..found.len().min(40)].join("\n")
    );
}

/// Each difference as a line `path: property: source X, copy Y`.
///
/// Nothing was compared where the source has no entries: that is a mistake in the test.
#[track_caller]
pub(crate) fn differences(
    source: &Snapshot,
    copy: &Snapshot,
    properties: Properties,
) -> Vec<String> {
    // Of a folder without entries there is only the root.
    let root = source.entries.get(b"".as_slice());
    let is_empty = root.is_some_and(|root| root.kind == FileType::Directory);
    assert!(
        source.entries.len() > usize::from(is_empty),
        "nothing to compare: {} is empty",
        source.root.display()
    );
    let mut found = Vec::new();
    let (source_groups, copy_groups) = (source.groups(), copy.groups());
    for (path, entry) in &source.entries {
        let Some(copied) = copy.entries.get(path) else {
            found.push(format!(
                "{}: entry: source {}, copy missing",
                show(path),
                kind_name(entry.kind)
            ));
            continue;
        };
        let mut note = |property: &str, source: &dyn Display, copy: &dyn Display| {
            found.push(format!(
                "{}: {property}: source {source}, copy {copy}",
                show(path)
            ));
        };
        if entry.kind != copied.kind {
            note("type", &kind_name(entry.kind), &kind_name(copied.kind));
            continue;
        }
        compare_stat(entry, copied, properties, &mut note);
        if properties.has(Property::Xattrs) {
            compare_xattrs(entry, copied, &mut note);
        }
        if properties.has(Property::HardLinks) {
            let group = |groups: &BTreeMap<&[u8], &[u8]>| {
                // A group of one is no group: its other names lie outside the tree.
                match groups.get(path.as_slice()) {
                    Some(first) if groups.values().filter(|other| *other == first).count() > 1 => {
                        show(first)
                    }
                    _ => "no other name".to_owned(),
                }
            };
            let (expected, actual) = (group(&source_groups), group(&copy_groups));
            if expected != actual {
                note("hard links", &expected, &actual);
            }
        }
        if properties.has(Property::Content)
            && entry.size == copied.size
            && entry.content != copied.content
        {
            let offset = first_difference(&source.root, &copy.root, path);
            note("content", &"one thing", &format_args!("another, {offset}"));
        }
    }
    for (path, entry) in &copy.entries {
        if !source.entries.contains_key(path) {
            found.push(format!(
                "{}: entry: source missing, copy {}",
                show(path),
                kind_name(entry.kind)
            ));
        }
    }
    found
}

fn compare_stat(
    entry: &Entry,
    copied: &Entry,
    properties: Properties,
    note: &mut dyn FnMut(&str, &dyn Display, &dyn Display),
) {
    let is_folder = entry.kind == FileType::Directory;
    let is_link = entry.kind == FileType::Symlink;
    let is_file = entry.kind == FileType::RegularFile;
    if properties.has(Property::Mode) && entry.mode != copied.mode {
        note(
            "mode",
            &format_args!("{:04o}", entry.mode),
            &format_args!("{:04o}", copied.mode),
        );
    }
    if properties.has(Property::Owner) && entry.owner != copied.owner {
        note("owner", &Pair(entry.owner), &Pair(copied.owner));
    }
    // The size of a folder is the file system's affair.
    if properties.has(Property::Size) && !is_folder && entry.size != copied.size {
        note("size", &entry.size, &copied.size);
    }
    if properties.has(Property::Mtime) && entry.mtime != copied.mtime {
        note("mtime", &Time(entry.mtime), &Time(copied.mtime));
    }
    if properties.has(Property::Atime) && is_file && entry.atime != copied.atime {
        note("atime", &Time(entry.atime), &Time(copied.atime));
    }
    if properties.has(Property::Target) && is_link && entry.target != copied.target {
        note("target", &show(&entry.target), &show(&copied.target));
    }
    if properties.has(Property::Device) && entry.device != copied.device {
        note(
            "device",
            &format_args!("{:#x}", entry.device),
            &format_args!("{:#x}", copied.device),
        );
    }
    // Block sizes and the places where holes may begin are different from one file system to the
    // next, and some take a little ahead: a lost hole is what counts.
    let allowance = entry.allocated + entry.allocated / 8 + 256 * 1024;
    if properties.has(Property::Blocks) && is_file && copied.allocated > allowance {
        note("allocated bytes", &entry.allocated, &copied.allocated);
    }
}

fn compare_xattrs(
    entry: &Entry,
    copied: &Entry,
    note: &mut dyn FnMut(&str, &dyn Display, &dyn Display),
) {
    let names = entry.xattrs.keys().chain(
        copied
            .xattrs
            .keys()
            .filter(|name| !entry.xattrs.contains_key(*name)),
    );
    for name in names {
        let (expected, actual) = (entry.xattrs.get(name), copied.xattrs.get(name));
        if expected != actual {
            let value =
                |value: Option<&Vec<u8>>| value.map_or("missing".to_owned(), |bytes| show(bytes));
            note(
                &format!("xattr {}", show(name)),
                &value(expected),
                &value(actual),
            );
        }
    }
}

struct Pair((u32, u32));

impl Display for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.0.0, self.0.1)
    }
}

struct Time((i64, i64));

impl Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:09}", self.0.0, self.0.1)
    }
}

/// Bytes for people; long ones are cut.
fn show(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "(root)".to_owned();
    }
    let text = bytes.escape_ascii().to_string();
    match text.len() {
        0..=200 => text,
        len => format!("{}... ({len} characters)", &text[..180]),
    }
}

fn kind_name(kind: FileType) -> &'static str {
    match kind {
        FileType::RegularFile => "file",
        FileType::Directory => "folder",
        FileType::Symlink => "link",
        FileType::Fifo => "FIFO",
        FileType::Socket => "socket",
        FileType::CharacterDevice => "character device",
        FileType::BlockDevice => "block device",
        FileType::Unknown => "unknown",
    }
}

/// Adds everything in an open folder, and below, to the entries.
fn visit(
    folder: BorrowedFd<'_>,
    path: &[u8],
    entries: &mut BTreeMap<Vec<u8>, Entry>,
) -> Result<(), String> {
    for name in list(folder).map_err(|e| format!("{}: {e}", show(path)))? {
        let entry = Entry::read(folder, &name)?;
        let is_folder = entry.kind == FileType::Directory;
        let below = if path.is_empty() {
            name.clone()
        } else {
            [path, b"/", &name].concat()
        };
        entries.insert(below.clone(), entry);
        if is_folder {
            let inner = open_folder(folder, &name).map_err(|e| format!("{}: {e}", show(&below)))?;
            visit(inner.as_fd(), &below, entries)?;
        }
    }
    Ok(())
}

fn open_folder(parent: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

/// Opens a file to read it, if possible without changing the time of its last access.
fn open_file(folder: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(folder, name, flags | OFlags::NOATIME, Mode::empty()) {
        // That is for the owner only.
        Err(Errno::PERM) => rustix::fs::openat(folder, name, flags, Mode::empty())?,
        other => other?,
    };
    Ok(file.into())
}

fn list(folder: BorrowedFd<'_>) -> rustix::io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for found in Dir::read_from(folder)? {
        let name = found?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(name);
        }
    }
    Ok(names)
}

impl Entry {
    fn read(folder: BorrowedFd<'_>, name: &[u8]) -> Result<Entry, String> {
        let failed = |what: &str, e: Errno| format!("{what} {}: {e}", show(name));
        let stat: Stat = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| failed("stat", e))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let target = match kind {
            FileType::Symlink => rustix::fs::readlinkat(folder, name, Vec::new())
                .map_err(|e| failed("readlink", e))?
                .into_bytes(),
            _ => Vec::new(),
        };
        let content = match kind {
            FileType::RegularFile => {
                let file = open_file(folder, name).map_err(|e| failed("open", e))?;
                digest(&file).map_err(|e| format!("read {}: {e}", show(name)))?
            }
            _ => 0,
        };
        let is_device = matches!(kind, FileType::CharacterDevice | FileType::BlockDevice);
        Ok(Entry {
            kind,
            mode: stat.st_mode & 0o7777,
            owner: (stat.st_uid, stat.st_gid),
            size: stat.st_size.cast_unsigned(),
            mtime: (stat.st_mtime, stat.st_mtime_nsec.cast_signed()),
            atime: (stat.st_atime, stat.st_atime_nsec.cast_signed()),
            allocated: stat.st_blocks.cast_unsigned() * 512,
            inode: (stat.st_dev, stat.st_ino),
            device: if is_device { stat.st_rdev } else { 0 },
            names: stat.st_nlink,
            target,
            xattrs: read_xattrs(folder, name).map_err(|e| failed("read the attributes of", e))?,
            content,
        })
    }
}

/// All extended attributes, of a link those of the link itself.
fn read_xattrs(
    folder: BorrowedFd<'_>,
    name: &[u8],
) -> rustix::io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    // The way through the open folder keeps the path short, whatever its real length.
    let path = match folder.as_raw_fd() {
        fd if fd < 0 => name.to_vec(),
        fd => [format!("/proc/self/fd/{fd}/").as_bytes(), name].concat(),
    };
    let mut names = vec![0; 64 * 1024];
    let length = match rustix::fs::llistxattr(&path, &mut names) {
        Ok(length) => length,
        // This file system has none.
        Err(Errno::OPNOTSUPP) => 0,
        Err(e) => return Err(e),
    };
    let mut xattrs = BTreeMap::new();
    for name in names[..length]
        .split(|&byte| byte == 0)
        .filter(|name| !name.is_empty())
    {
        // XFS shows its own form of an ACL beside the ACL.
        if name.starts_with(b"trusted.SGI_ACL_") {
            continue;
        }
        let mut value = vec![0; 64 * 1024];
        let length = rustix::fs::lgetxattr(&path, name, &mut value)?;
        value.truncate(length);
        xattrs.insert(name.to_vec(), value);
    }
    Ok(xattrs)
}

/// A number that stands for the content, the same whether zeros are stored or are holes.
fn digest(file: &File) -> std::io::Result<u64> {
    const BLOCK: u64 = 4096;
    let mut hasher = DefaultHasher::new();
    let mut buffer = vec![0; 64 * BLOCK as usize];
    let zeros = [0; BLOCK as usize];
    let mut offset = 0;
    loop {
        match rustix::fs::seek(file, SeekFrom::Data(offset)) {
            Ok(data) => offset = data - data % BLOCK,
            Err(Errno::NXIO) => break,
            // A file system that knows nothing of holes.
            Err(_) => {}
        }
        let count = read_fully_at(file, &mut buffer, offset)?;
        for (block, start) in buffer[..count]
            .chunks(BLOCK as usize)
            .zip((offset..).step_by(BLOCK as usize))
        {
            if block != &zeros[..block.len()] {
                hasher.write_u64(start);
                hasher.write(block);
            }
        }
        if count < buffer.len() {
            break;
        }
        offset += count as u64;
    }
    Ok(hasher.finish())
}

/// Fills the buffer as far as the file goes.
fn read_fully_at(file: &File, buffer: &mut [u8], offset: u64) -> std::io::Result<usize> {
    let mut count = 0;
    while count < buffer.len() {
        match file.read_at(&mut buffer[count..], offset + count as u64)? {
            0 => break,
            more => count += more,
        }
    }
    Ok(count)
}

/// Where two files that are known to differ begin to do so.
fn first_difference(source: &Path, copy: &Path, path: &[u8]) -> String {
    let (Ok(mut source), Ok(mut copy)) = (open_beneath(source, path), open_beneath(copy, path))
    else {
        return "and one of them cannot be opened any more".to_owned();
    };
    let mut offset = 0;
    let (mut ours, mut theirs) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    loop {
        let count = source.read(&mut ours).unwrap_or(0);
        let same = copy.read_exact(&mut theirs[..count]).is_ok();
        if let Some(index) = ours[..count]
            .iter()
            .zip(&theirs[..count])
            .position(|(a, b)| a != b)
        {
            return format!("from offset {}", offset + index);
        }
        if count == 0 || !same {
            return format!("but now they are equal up to offset {offset}");
        }
        offset += count;
    }
}

/// Opens a file by a path of any length.
fn open_beneath(root: &Path, path: &[u8]) -> rustix::io::Result<File> {
    let mut names: Vec<&[u8]> = path.split(|&byte| byte == b'/').collect();
    let last = names.pop().unwrap();
    if last.is_empty() {
        return open_file(CWD, root.as_os_str().as_bytes());
    }
    let mut folder = open_folder(CWD, root.as_os_str().as_bytes())?;
    for name in names {
        folder = open_folder(folder.as_fd(), name)?;
    }
    open_file(folder.as_fd(), last)
}

mod tests {
    //! The comparer is trusted by every other test, so that it has to earn it.

    use super::*;
    use crate::env::{self, Env};

    /// A small tree and a copy of it by another program.
    fn two_trees() -> Env {
        let env = Env::new(env::Mode::Thread);
        env.file("a/file", env::pattern(100_000, 1)).mode(0o640);
        env.file("a/below/other", "other");
        env.hard_link("a/twin", "a/file");
        env.symlink("a/link", "file");
        env.fifo("a/fifo");
        env.sparse("a/sparse", 8 << 20, &[(4 << 20, b"data")]);
        env.sh("cp -aT a b");
        env
    }

    /// Does something to the copy and gives the differences there are then.
    fn after(change: impl FnOnce(&Env)) -> Vec<String> {
        let env = two_trees();
        let folder_time = env.snapshot("b").entry("").mtime;
        change(&env);
        env.at("b").mtime(folder_time.0, folder_time.1);
        differences(&env.snapshot("a"), &env.snapshot("b"), Properties::KEPT)
    }

    #[test]
    fn equal_trees_have_no_differences() {
        assert_eq!(after(|_| {}), [""; 0]);
    }

    #[test]
    fn missing_and_further_entries_are_seen() {
        let found = after(|env| {
            std::fs::remove_file(env.path("b/fifo")).unwrap();
            env.file("b/more", "");
        });
        assert_eq!(
            found,
            [
                "fifo: entry: source FIFO, copy missing",
                "more: entry: source missing, copy file"
            ]
        );
    }

    #[test]
    fn another_type_is_seen() {
        let found = after(|env| {
            std::fs::remove_file(env.path("b/fifo")).unwrap();
            env.socket("b/fifo");
        });
        assert_eq!(found, ["fifo: type: source FIFO, copy socket"]);
    }

    #[test]
    fn one_other_byte_is_seen() {
        let found = after(|env| {
            let time = env.snapshot("b").entry("file").mtime;
            let file = File::options()
                .write(true)
                .open(env.path("b/file"))
                .unwrap();
            file.write_at(&[env.read("b/file")[70_001] ^ 1], 70_001)
                .unwrap();
            env.at("b/file").mtime(time.0, time.1);
        });
        // It is seen under both of its names.
        assert_eq!(
            found,
            [
                "file: content: source one thing, copy another, from offset 70001",
                "twin: content: source one thing, copy another, from offset 70001"
            ]
        );
    }

    #[test]
    fn another_mode_and_time_are_seen() {
        let found = after(|env| {
            env.at("b/below/other").mode(0o4600).mtime(1, 2);
        });
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(
            found[0].starts_with("below/other: mode: source 0644, copy 4600"),
            "{found:?}"
        );
        assert!(found[1].ends_with("copy 1.000000002"), "{found:?}");
    }

    #[test]
    fn the_roots_own_properties_are_seen() {
        let found = after(|env| {
            env.at("b").mode(0o700);
        });
        assert_eq!(found, ["(root): mode: source 0755, copy 0700"]);
    }

    #[test]
    fn an_attribute_more_is_seen() {
        let found = after(|env| {
            if !env.at("b/below/other").try_xattr("user.more", "x") {
                env::skip("no extended attributes here");
            }
        });
        assert!(
            found.is_empty() || found == ["below/other: xattr user.more: source missing, copy x"],
            "{found:?}"
        );
    }

    #[test]
    fn a_link_that_points_elsewhere_is_seen() {
        let found = after(|env| {
            let time = env.snapshot("b").entry("link").mtime;
            std::fs::remove_file(env.path("b/link")).unwrap();
            env.symlink("b/link", "twin").mtime(time.0, time.1);
        });
        assert_eq!(found, ["link: target: source file, copy twin"]);
    }

    #[test]
    fn broken_hard_links_are_seen() {
        let found = after(|env| {
            env.sh("cp -p b/twin t; mv t b/twin");
        });
        assert_eq!(
            found,
            [
                "file: hard links: source file, copy no other name",
                "twin: hard links: source file, copy no other name"
            ]
        );
    }

    #[test]
    fn a_lost_hole_is_seen() {
        let found = after(|env| {
            env.sh("cp -p --sparse=never b/sparse t; mv t b/sparse");
        });
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(
            found[0].starts_with("sparse: allocated bytes: "),
            "{found:?}"
        );
    }

    #[test]
    #[should_panic(expected = "nothing to compare")]
    fn an_empty_source_proves_nothing() {
        let env = Env::new(env::Mode::Thread);
        env.folder("a");
        env.folder("b");
        env.assert_same("a", "b");
    }
}
