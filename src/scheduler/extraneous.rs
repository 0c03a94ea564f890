//! What only the destination has: what is known of it in one directory.

use std::collections::HashSet;

use crate::fs::path::{Name, Names, RelPath};
use crate::fs::stat::DirIds;
use crate::protocol::JobKind;
use crate::protocol::entry::HardLinks;

/// What deletion knows of a directory in progress.
#[derive(Default)]
pub(super) struct Deletion {
    /// Entries that only the destination has.
    pub(super) extraneous: Names,
    /// Entries that wait until something of another type is removed.
    pub(super) obstructed: Names,
    /// Only the destination has the directory, and it is to be removed.
    is_doomed: bool,
    /// Something else of the source gets its name.
    is_in_the_way: bool,
    /// Something in it has to stay, so it stays too.
    has_kept: bool,
    /// The job that removes it is queued or running.
    is_removing: bool,
    /// Directories in it that are being emptied, or were.
    emptying: HashSet<Name>,
}

/// What was found in a directory, to be removed at the end.
pub(super) struct Found {
    pub(super) path: RelPath,
    pub(super) ids: Option<DirIds>,
    pub(super) extraneous: Names,
    pub(super) obstructed: Names,
}

impl Deletion {
    /// Returns the state of a directory in which room is made for entries of the source.
    pub(super) fn making_room() -> Self {
        Self {
            is_removing: true,
            ..Self::default()
        }
    }

    /// Returns true if only the destination has the directory, and it is to be removed.
    pub(super) fn is_doomed(&self) -> bool {
        self.is_doomed
    }

    /// Marks a directory as one to be removed. `above` is what is known of the one above it.
    pub(super) fn doom(&mut self, above: Option<&Self>) {
        self.is_doomed = true;
        // A directory in which room is made has nothing else to remove.
        self.is_in_the_way = above.is_some_and(|above| above.is_removing && !above.is_doomed);
    }

    /// Notes directories in this one that are to be emptied. Returns those that are not known yet: a
    /// job that is done again finds them once more.
    pub(super) fn begin_emptying(&mut self, mut names: Names) -> Names {
        names.remove_all(&self.emptying);
        let new = names.iter().map(|(_, name)| Name::new(name.to_bytes()));
        self.emptying.extend(new);
        names
    }

    /// Returns the next job of a directory of which nothing is pending.
    pub(super) fn last_job(&mut self) -> Option<JobKind> {
        if self.is_doomed && !self.has_kept && !self.is_removing {
            self.is_removing = true;
            return Some(JobKind::RemoveDirectory {
                is_in_the_way: self.is_in_the_way,
            });
        }
        if self.is_doomed || self.obstructed.is_empty() || !self.is_removing {
            return None;
        }
        // Room was made for them.
        Some(JobKind::Entries {
            names: std::mem::take(&mut self.obstructed),
            hard_links: HardLinks::Report,
        })
    }

    /// Forgets what a listing has shown that is repeated.
    pub(super) fn forget_extraneous(&mut self) {
        self.extraneous.clear();
    }

    /// Returns true if the directory above has to stay too.
    pub(super) fn keeps_parent(&self) -> bool {
        self.is_doomed && self.has_kept
    }

    pub(super) fn keep(&mut self) {
        self.has_kept = true;
    }

    /// Returns what a directory that is complete leaves to the end of the run.
    pub(super) fn into_found(self, path: RelPath, ids: Option<DirIds>) -> Option<Found> {
        let has_found = !(self.extraneous.is_empty() && self.obstructed.is_empty());
        has_found.then_some(Found {
            path,
            ids,
            extraneous: self.extraneous,
            obstructed: self.obstructed,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::path::Kind;

    #[test]
    fn a_directory_is_emptied_once() {
        let mut deletion = Deletion::default();
        let names = |list: &[&str]| {
            let mut names = Names::default();
            for name in list {
                names.push(Kind::Directory, name.as_bytes());
            }
            names
        };
        assert_eq!(deletion.begin_emptying(names(&["a", "b"])).len(), 2);
        // The job was done again.
        let new = deletion.begin_emptying(names(&["a", "b", "c"]));
        assert!(new.len() == 1 && new.contains(&Name::new(b"c")));
    }
}
