//! `--itemize-changes`: what has changed of an entry.

use rustix::fs::{self, FileType};

use super::dir::DirPair;
use super::{Copier, Entry, file_type};
use crate::fs::path::Kind;
use crate::fs::stat::FileStat;
use crate::fs::xattr::ACL_PREFIX;
use crate::protocol::entry::HardLinks;
use crate::protocol::items::{ChangeKind, Differences, Items};

impl Copier {
    /// Notes what changes of an entry. `old` is what the destination has.
    pub(super) fn itemize(
        &mut self,
        dir: &mut DirPair,
        entry: Entry<'_>,
        old: Option<&FileStat>,
        new: &FileStat,
        update: Option<ChangeKind>,
    ) {
        if !self.context.config.itemize {
            return;
        }
        let update = update.unwrap_or(match file_type(new) {
            FileType::RegularFile => ChangeKind::Copy,
            _ => ChangeKind::Local,
        });
        // An entry that replaces one of another type is new, as with rsync.
        let old = old.filter(|old| file_type(old) == file_type(new));
        self.items = Some(match old {
            None => Items::new_entry(update, new),
            Some(old) => {
                let differences = self.differences(dir, entry, old, new);
                Items::changed(update, new, differences)
            }
        });
    }

    /// Notes that an entry will be new, once there is room for it.
    pub(crate) fn itemize_new(&mut self, new: &FileStat) {
        let update = match file_type(new) {
            FileType::RegularFile => ChangeKind::Copy,
            _ => ChangeKind::Local,
        };
        self.items = Some(Items::new_entry(update, new));
    }

    /// Returns what changes of a directory, if anything does.
    pub(crate) fn itemize_dir(&mut self, dir: &mut DirPair) -> Option<Items> {
        if !self.context.config.itemize {
            return None;
        }
        let new = dir.stat;
        let Some(old) = dir.destination_stat.filter(|_| !dir.is_created()) else {
            return Some(Items::new_entry(ChangeKind::Local, &new));
        };
        let itself = Entry {
            kind: Kind::Directory,
            from: c".",
            to: c".",
            hard_links: HardLinks::Copy,
            suspect: false,
            attempt: super::Attempt::Last,
            stream: None,
        };
        let differences = self.differences(dir, itself, &old, &new);
        let items = Items::changed(ChangeKind::Metadata, &new, differences);
        differences.is_any().then_some(items)
    }

    fn differences(
        &mut self,
        dir: &mut DirPair,
        entry: Entry<'_>,
        old: &FileStat,
        new: &FileStat,
    ) -> Differences {
        let value = match file_type(new) {
            FileType::Symlink => {
                let from = fs::readlinkat(dir.source(), entry.from, Vec::new()).ok();
                let destination = dir.destination().ok();
                let to = destination.and_then(|dir| fs::readlinkat(dir, entry.to, Vec::new()).ok());
                from != to
            }
            FileType::CharacterDevice | FileType::BlockDevice => old.rdev != new.rdev,
            _ => false,
        };
        let config = &self.context.config;
        let is_time_kept = config.preserve.timestamps.is_wanted();
        let (owner, group) = self.other_owner(dir, old, new);
        let is_acl = |name: &std::ffi::CStr| name.to_bytes().starts_with(ACL_PREFIX);
        Differences {
            value,
            size: file_type(new) == FileType::RegularFile && old.size != new.size,
            time: is_time_kept && old.mtime != new.mtime && !self.is_same_time(dir, old, new),
            mode: self.has_other_mode(dir, old, new),
            owner,
            group,
            acl: self.differ_in_attributes(dir, entry.from, entry.to, is_acl),
            attributes: self.differ_in_attributes(dir, entry.from, entry.to, |name| !is_acl(name)),
        }
    }
}
