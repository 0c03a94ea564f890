//! Trees recorded with all their metadata.
//!
//! The walk goes from open directory to open directory: paths longer than PATH_MAX are no
//! obstacle, and names are bytes.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, SeekFrom, Stat};
use rustix::io::Errno;
use twox_hash::XxHash3_128;

use crate::compare::{Properties, differences};

/// Everything that can be observed of one entry.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) kind: FileType,
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    pub(crate) size: u64,
    pub(crate) mtime: (i64, i64),
    pub(crate) atime: (i64, i64),
    /// The bytes that it occupies on the medium.
    pub(crate) allocated: u64,
    /// Device and inode number: the identity of the file.
    pub(crate) inode: (u64, u64),
    /// The device that a device file stands for.
    pub(crate) device: u64,
    pub(crate) links: u64,
    pub(crate) target: Vec<u8>,
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// A digest of a file's content.
    pub(crate) content: u128,
}

/// A tree at one moment.
#[derive(Clone)]
pub(crate) struct Snapshot {
    pub(crate) root: PathBuf,
    /// By path below the root, which has the empty path.
    pub(crate) entries: BTreeMap<Vec<u8>, Entry>,
}

impl Snapshot {
    #[track_caller]
    pub(crate) fn take(root: &Path) -> Snapshot {
        Snapshot::try_take(root)
            .unwrap_or_else(|e| panic!("cannot examine {}: {e}", root.display()))
    }

    fn try_take(root: &Path) -> Result<Snapshot, String> {
        let mut entries = BTreeMap::new();
        // One for all entries: to clear a new one for each costs more than to read most files.
        let mut buffer = vec![0; 64 * BLOCK];
        let root_entry = Entry::read(CWD, root.as_os_str().as_bytes(), &mut buffer)?;
        let is_dir = root_entry.kind == FileType::Directory;
        entries.insert(Vec::new(), root_entry);
        if is_dir {
            let dir = open_dir(CWD, root.as_os_str().as_bytes()).map_err(|e| e.to_string())?;
            visit(dir.as_fd(), b"", &mut entries, &mut buffer)?;
        }
        Ok(Snapshot {
            root: root.to_owned(),
            entries,
        })
    }

    /// Returns the entry at this path, which must exist.
    #[track_caller]
    pub(crate) fn entry(&self, path: impl AsRef<Path>) -> &Entry {
        let path = path.as_ref();
        self.entries
            .get(path.as_os_str().as_bytes())
            .unwrap_or_else(|| panic!("{} has no {}", self.root.display(), path.display()))
    }

    /// Returns the number of entries that are not directories. The summary counts these.
    pub(crate) fn leaves(&self) -> u64 {
        self.entries
            .values()
            .filter(|entry| entry.kind != FileType::Directory)
            .count() as u64
    }

    /// Fails unless the tree is still as it was when the snapshot was taken.
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
                found.push(format!("{}: another file is there now", show(path)));
            }
        }
        assert!(
            found.is_empty(),
            "{} was changed (\"source\" is before, \"copy\" is now):\n{}",
            self.root.display(),
            found.join("\n")
        );
    }

    /// Fails if a temporary file of pcopy is in the tree.
    #[track_caller]
    pub(crate) fn assert_no_temporaries(&self) {
        let found: Vec<_> = self
            .entries
            .keys()
            .filter(|path| is_temporary(path))
            .map(|path| show(path))
            .collect();
        assert!(found.is_empty(), "temporary files are left: {found:?}");
    }

    /// Maps each entry with several names in the tree to the first of them.
    pub(crate) fn link_groups(&self) -> BTreeMap<&[u8], &[u8]> {
        let mut first = BTreeMap::new();
        self.entries
            .iter()
            .filter(|(_, entry)| entry.links > 1 && entry.kind != FileType::Directory)
            .map(|(path, entry)| {
                (
                    path.as_slice(),
                    *first.entry(entry.inode).or_insert(path.as_slice()),
                )
            })
            .collect()
    }
}

/// Returns true if pcopy gives such names to its temporary files.
fn is_temporary(path: &[u8]) -> bool {
    let name = path.rsplit(|&byte| byte == b'/').next().unwrap();
    name.starts_with(b".pcopy.") && name.ends_with(b".tmp")
}

/// Returns bytes for messages, shortened if they are many.
pub(crate) fn show(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "(root)".to_owned();
    }
    let text = bytes.escape_ascii().to_string();
    match text.len() {
        0..=200 => text,
        len => format!("{}... ({len} characters)", &text[..180]),
    }
}

/// Adds everything below an open directory to the entries.
fn visit(
    dir: BorrowedFd<'_>,
    path: &[u8],
    entries: &mut BTreeMap<Vec<u8>, Entry>,
    buffer: &mut [u8],
) -> Result<(), String> {
    for name in list(dir).map_err(|e| format!("{}: {e}", show(path)))? {
        let entry = Entry::read(dir, &name, buffer)?;
        let is_dir = entry.kind == FileType::Directory;
        let below = if path.is_empty() {
            name.clone()
        } else {
            [path, b"/", &name].concat()
        };
        entries.insert(below.clone(), entry);
        if is_dir {
            let inner = open_dir(dir, &name).map_err(|e| format!("{}: {e}", show(&below)))?;
            visit(inner.as_fd(), &below, entries, buffer)?;
        }
    }
    Ok(())
}

fn open_dir(parent: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

/// Opens a file for reading, if possible without a change of its access time.
fn open_file(dir: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(dir, name, flags | OFlags::NOATIME, Mode::empty()) {
        // Only the owner may do that.
        Err(Errno::PERM) => rustix::fs::openat(dir, name, flags, Mode::empty())?,
        other => other?,
    };
    Ok(file.into())
}

/// Opens a file below a root by a path of any length.
pub(crate) fn open_below(root: &Path, path: &[u8]) -> rustix::io::Result<File> {
    let mut names: Vec<&[u8]> = path.split(|&byte| byte == b'/').collect();
    let last = names.pop().unwrap();
    if last.is_empty() {
        return open_file(CWD, root.as_os_str().as_bytes());
    }
    let mut dir = open_dir(CWD, root.as_os_str().as_bytes())?;
    for name in names {
        dir = open_dir(dir.as_fd(), name)?;
    }
    open_file(dir.as_fd(), last)
}

fn list(dir: BorrowedFd<'_>) -> rustix::io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for found in Dir::read_from(dir)? {
        let name = found?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(name);
        }
    }
    Ok(names)
}

impl Entry {
    fn read(dir: BorrowedFd<'_>, name: &[u8], buffer: &mut [u8]) -> Result<Entry, String> {
        let failed = |step: &str, e: Errno| format!("{step} {}: {e}", show(name));
        let stat: Stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| failed("stat", e))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let target = match kind {
            FileType::Symlink => rustix::fs::readlinkat(dir, name, Vec::new())
                .map_err(|e| failed("readlink", e))?
                .into_bytes(),
            _ => Vec::new(),
        };
        let content = match kind {
            FileType::RegularFile => {
                let file = open_file(dir, name).map_err(|e| failed("open", e))?;
                digest(&file, buffer).map_err(|e| format!("read {}: {e}", show(name)))?
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
            links: stat.st_nlink,
            target,
            xattrs: read_xattrs(dir, name, buffer)
                .map_err(|e| failed("read the attributes of", e))?,
            content,
        })
    }
}

/// Returns all extended attributes, of a link its own.
fn read_xattrs(
    dir: BorrowedFd<'_>,
    name: &[u8],
    buffer: &mut [u8],
) -> rustix::io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    // The way through the open directory is short, whatever the length of the real path.
    let path = match dir.as_raw_fd() {
        fd if fd < 0 => name.to_vec(),
        fd => [format!("/proc/self/fd/{fd}/").as_bytes(), name].concat(),
    };
    let length = match rustix::fs::llistxattr(&path, &mut *buffer) {
        Ok(length) => length,
        // This file system has no attributes.
        Err(Errno::OPNOTSUPP) => 0,
        Err(e) => return Err(e),
    };
    let mut xattrs = BTreeMap::new();
    let names = buffer[..length].to_vec();
    for name in names
        .split(|&byte| byte == 0)
        .filter(|name| !name.is_empty())
    {
        // XFS shows its own form of an ACL in addition to the ACL.
        if name.starts_with(b"trusted.SGI_ACL_") {
            continue;
        }
        let length = rustix::fs::lgetxattr(&path, name, &mut *buffer)?;
        xattrs.insert(name.to_vec(), buffer[..length].to_vec());
    }
    Ok(xattrs)
}

/// The unit in which a digest looks for zeros.
const BLOCK: usize = 4096;

/// Returns a digest of the content, which is the same for stored zeros and for holes.
fn digest(file: &File, buffer: &mut [u8]) -> std::io::Result<u128> {
    let mut hasher = XxHash3_128::new();
    let zeros = [0; BLOCK];
    let mut offset = 0;
    loop {
        match rustix::fs::seek(file, SeekFrom::Data(offset)) {
            Ok(data) => offset = data - data % BLOCK as u64,
            Err(Errno::NXIO) => break,
            // A file system that does not know holes.
            Err(_) => {}
        }
        let count = read_fully_at(file, buffer, offset)?;
        for (block, start) in buffer[..count].chunks(BLOCK).zip((offset..).step_by(BLOCK)) {
            if block != &zeros[..block.len()] {
                hasher.write(&start.to_ne_bytes());
                hasher.write(block);
            }
        }
        if count < buffer.len() {
            break;
        }
        offset += count as u64;
    }
    Ok(hasher.finish_128())
}

/// Fills the buffer up to the end of the file.
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
