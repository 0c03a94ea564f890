//! Two trees compared entry by entry, in every property.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::io::Read;
use std::path::Path;

use rustix::fs::FileType;

use crate::snapshot::{Entry, Snapshot, open_below, show};

/// A property in which an entry and its copy can differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Property {
    /// The permission bits with setuid, setgid and sticky.
    Mode,
    Owner,
    Size,
    Mtime,
    /// Compared for files only: the walk itself reads links and directories.
    Atime,
    /// The text of a symbolic link.
    Target,
    Content,
    /// The number of a device.
    Device,
    Xattrs,
    /// Which names belong to one file.
    HardLinks,
    /// That the copy does not occupy much more space than the source.
    Blocks,
}

/// A set of properties to compare. Presence and type are always compared.
#[derive(Clone, Copy)]
pub(crate) struct Properties(u16);

impl Properties {
    /// What a copy keeps. Access times change with every read, so their own tests compare them.
    pub(crate) const KEPT: Properties = Properties(u16::MAX).without(Property::Atime);
    /// What stays the same in a tree that was at most read.
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

/// Fails unless each file of the copy is a complete file of the source, and none is temporary.
///
/// Directories may be unfinished. Returns the number of entries that are not directories.
#[track_caller]
pub(crate) fn assert_only_whole_files(source: &Snapshot, copy: &Snapshot) -> usize {
    copy.assert_no_temporaries();
    let (mut expected, mut found) = (source.clone(), copy.clone());
    expected
        .entries
        .retain(|path, entry| entry.kind != FileType::Directory && copy.entries.contains_key(path));
    found
        .entries
        .retain(|_, entry| entry.kind != FileType::Directory);
    if !found.entries.is_empty() {
        assert_same(&expected, &found, Properties::KEPT);
    }
    found.entries.len()
}

/// Returns each difference as a line `path: property: source X, copy Y`.
///
/// A source without entries is a mistake in the test: nothing would be compared.
#[track_caller]
pub(crate) fn differences(
    source: &Snapshot,
    copy: &Snapshot,
    properties: Properties,
) -> Vec<String> {
    // An empty directory has one entry, its root.
    let root = source.entries.get(b"".as_slice());
    let is_empty = root.is_some_and(|root| root.kind == FileType::Directory);
    assert!(
        source.entries.len() > usize::from(is_empty),
        "nothing to compare: {} is empty",
        source.root.display()
    );
    let mut found = Vec::new();
    let (source_groups, copy_groups) = (source.link_groups(), copy.link_groups());
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
                // The other names of a group of one lie outside the tree.
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
    let is_dir = entry.kind == FileType::Directory;
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
    // Each file system has its own sizes of directories.
    if properties.has(Property::Size) && !is_dir && entry.size != copied.size {
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
    // File systems differ in block size and in where holes can begin, and some allocate a
    // little ahead. Only a lost hole counts.
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

fn kind_name(kind: FileType) -> &'static str {
    match kind {
        FileType::RegularFile => "file",
        FileType::Directory => "directory",
        FileType::Symlink => "link",
        FileType::Fifo => "FIFO",
        FileType::Socket => "socket",
        FileType::CharacterDevice => "character device",
        FileType::BlockDevice => "block device",
        FileType::Unknown => "unknown",
    }
}

/// Returns the offset of the first difference of two files, for a message.
fn first_difference(source: &Path, copy: &Path, path: &[u8]) -> String {
    let (Ok(mut source), Ok(mut copy)) = (open_below(source, path), open_below(copy, path)) else {
        return "but one of them cannot be opened any more".to_owned();
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

mod tests;
