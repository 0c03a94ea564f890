//! Hard links: which entries are names of one file, and which of them has been copied.

use std::collections::HashMap;

use crate::fs::path::{Kind, Name};
use crate::fs::stat::FileId;
use crate::scheduler::tree::FolderId;

/// One of several names of a file, in a folder that waits for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    /// The folder.
    pub(crate) folder: FolderId,
    /// What it is.
    pub(crate) kind: Kind,
    /// Its name.
    pub(crate) name: Name,
}

/// Where the copied one of a group is: root, folder's path and name are looked up by whoever
/// links to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// Which root it is below.
    pub(crate) root: u32,
    /// Its folder.
    pub(crate) folder: crate::fs::path::RelPath,
    /// Its name.
    pub(crate) name: Name,
}

#[derive(Debug)]
struct Group {
    target: Option<Target>,
    waiting: Vec<Link>,
    /// Names of the file that have not been seen.
    unseen: u64,
}

/// What to do with a link.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// It is the first of its group: copy it.
    Copy,
    /// Link it to this one.
    LinkTo(Target),
    /// The first one is being copied; it is given back when that is done.
    Wait,
}

/// All groups of which some name may still come.
#[derive(Debug, Default)]
pub(crate) struct Links {
    groups: HashMap<FileId, Group>,
}

impl Links {
    /// A name of a file with `count` names was found.
    pub(crate) fn found(&mut self, inode: FileId, count: u64, link: &Link) -> Decision {
        let mut first = false;
        let group = self.groups.entry(inode).or_insert_with(|| {
            first = true;
            Group {
                target: None,
                waiting: Vec::new(),
                unseen: count,
            }
        });
        group.unseen = group.unseen.saturating_sub(1);
        if first {
            return Decision::Copy;
        }
        let Some(target) = &group.target else {
            group.waiting.push(link.clone());
            return Decision::Wait;
        };
        let decision = Decision::LinkTo(target.clone());
        if group.unseen == 0 {
            self.groups.remove(&inode);
        }
        decision
    }

    /// The first one has been copied: here are those that waited.
    pub(crate) fn copied(&mut self, inode: FileId, target: Target) -> Vec<Link> {
        let Some(group) = self.groups.get_mut(&inode) else {
            return Vec::new();
        };
        let waiting = std::mem::take(&mut group.waiting);
        group.target = Some(target);
        if group.unseen == 0 {
            self.groups.remove(&inode);
        }
        waiting
    }

    /// The first one could not be copied: the next one that waits takes its place, if any.
    pub(crate) fn failed(&mut self, inode: FileId) -> Option<Link> {
        let group = self.groups.get_mut(&inode)?;
        if group.waiting.is_empty() {
            self.groups.remove(&inode);
            return None;
        }
        Some(group.waiting.remove(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::path::RelPath;

    fn link(name: &str) -> Link {
        Link {
            folder: 1,
            kind: Kind::File,
            name: Name::new(name.as_bytes()),
        }
    }

    const FILE: FileId = FileId { dev: 1, ino: 2 };

    fn target() -> Target {
        Target {
            root: 0,
            folder: RelPath::default(),
            name: Name::new(b"a"),
        }
    }

    #[test]
    fn the_first_is_copied_and_the_others_are_linked() {
        let mut links = Links::default();
        assert_eq!(links.found(FILE, 3, &link("a")), Decision::Copy);
        assert_eq!(links.found(FILE, 3, &link("b")), Decision::Wait);
        assert_eq!(links.copied(FILE, target()), [link("b")]);
        assert_eq!(links.found(FILE, 3, &link("c")), Decision::LinkTo(target()));
        assert!(links.groups.is_empty());
    }

    #[test]
    fn when_the_first_fails_the_next_is_tried() {
        let mut links = Links::default();
        assert_eq!(links.found(FILE, 2, &link("a")), Decision::Copy);
        assert_eq!(links.found(FILE, 2, &link("b")), Decision::Wait);
        assert_eq!(links.failed(FILE), Some(link("b")));
        assert_eq!(links.failed(FILE), None);
        assert!(links.groups.is_empty());
    }
}
