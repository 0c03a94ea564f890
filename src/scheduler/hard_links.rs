//! Groups of hard links: which entries are names of one file, and which of them leads.
//!
//! The first name that is found leads: it is copied, and the others become links to it. If it
//! fails, the next one that waits leads.

use std::collections::HashMap;

use super::tree::NodeKey;
use crate::fs::path::{Kind, Name};
use crate::fs::stat::FileId;
use crate::protocol::Leader;

/// An entry that waits for its leader. It is counted as pending in its directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Follower {
    pub(super) dir: NodeKey,
    pub(super) kind: Kind,
    pub(super) name: Name,
}

struct Group {
    /// `None` while the leader is being copied.
    leader: Option<Leader>,
    waiting: Vec<Follower>,
    /// Names of the file that have not been found.
    unseen: u64,
}

/// The role of a name in its group.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// It is copied, and leads its group.
    Lead,
    /// It becomes a link to the leader.
    LinkTo(Leader),
    /// The leader is being copied.
    Wait,
}

/// The groups that may still get another name.
#[derive(Default)]
pub(super) struct HardLinkGroups {
    groups: HashMap<FileId, Group>,
    /// Leaders that can take no more links, each with its successor.
    successors: HashMap<Leader, Leader>,
}

impl HardLinkGroups {
    /// Adds a name of a file that has `links` names.
    pub(super) fn add(&mut self, id: FileId, links: u64, follower: &Follower) -> Role {
        let Some(group) = self.groups.get_mut(&id) else {
            let unseen = links.saturating_sub(1);
            let group = Group {
                leader: None,
                waiting: Vec::new(),
                unseen,
            };
            self.groups.insert(id, group);
            return Role::Lead;
        };
        group.unseen = group.unseen.saturating_sub(1);
        let Some(leader) = &group.leader else {
            group.waiting.push(follower.clone());
            return Role::Wait;
        };
        let role = Role::LinkTo(leader.clone());
        if group.unseen == 0 {
            self.groups.remove(&id);
        }
        role
    }

    /// Notes that the leader was copied. Returns those that waited for it.
    pub(super) fn leader_copied(&mut self, id: FileId, leader: Leader) -> Vec<Follower> {
        let Some(group) = self.groups.get_mut(&id) else {
            return Vec::new();
        };
        let waiting = std::mem::take(&mut group.waiting);
        group.leader = Some(leader);
        if group.unseen == 0 {
            self.groups.remove(&id);
        }
        waiting
    }

    /// Notes that a leader can take no more links. From now on another copy leads.
    pub(super) fn leader_full(&mut self, full: &Leader, next: &Leader) {
        for group in self.groups.values_mut() {
            if group.leader.as_ref() == Some(full) {
                group.leader = Some(next.clone());
            }
        }
        let next = next.clone();
        self.successors.entry(full.clone()).or_insert(next);
    }

    /// Returns the successor of a leader that could take no more links.
    pub(super) fn successor(&self, full: &Leader) -> Option<Leader> {
        let mut last = self.successors.get(full)?;
        // A damaged report could make a cycle, so the number of steps is bounded.
        for _ in 0..self.successors.len() {
            match self.successors.get(last) {
                Some(next) => last = next,
                None => break,
            }
        }
        Some(last.clone())
    }

    /// Notes that the leader could not be copied. Returns the one that leads now, if one waits.
    ///
    /// If the old leader is tried again later (`is_deferred`), its name is found once more then.
    pub(super) fn leader_failed(&mut self, id: FileId, is_deferred: bool) -> Option<Follower> {
        let group = self.groups.get_mut(&id)?;
        group.unseen += u64::from(is_deferred);
        if group.waiting.is_empty() {
            self.groups.remove(&id);
            return None;
        }
        Some(group.waiting.remove(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::path::RelPath;

    fn follower(name: &str) -> Follower {
        Follower {
            dir: 1,
            kind: Kind::File,
            name: Name::new(name.as_bytes()),
        }
    }

    const FILE: FileId = FileId { dev: 1, ino: 2 };

    fn leader() -> Leader {
        Leader {
            target: 0,
            dir: RelPath::default(),
            name: Name::new(b"a"),
            checksum: None,
        }
    }

    #[test]
    fn the_first_name_leads_and_the_others_follow() {
        let mut groups = HardLinkGroups::default();
        assert_eq!(groups.add(FILE, 3, &follower("a")), Role::Lead);
        assert_eq!(groups.add(FILE, 3, &follower("b")), Role::Wait);
        assert_eq!(groups.leader_copied(FILE, leader()), [follower("b")]);
        assert_eq!(groups.add(FILE, 3, &follower("c")), Role::LinkTo(leader()));
        assert!(groups.groups.is_empty());
    }

    #[test]
    fn if_the_leader_is_full_another_one_leads() {
        let mut groups = HardLinkGroups::default();
        let next = |name: &str| Leader {
            name: Name::new(name.as_bytes()),
            ..leader()
        };
        groups.add(FILE, 9, &follower("a"));
        groups.leader_copied(FILE, leader());
        groups.leader_full(&leader(), &next("b"));
        assert_eq!(groups.successor(&leader()), Some(next("b")));
        groups.leader_full(&next("b"), &next("c"));
        // A job that was sent before reports the first one again.
        groups.leader_full(&leader(), &next("d"));
        assert_eq!(groups.successor(&leader()), Some(next("c")));
        assert_eq!(groups.successor(&next("c")), None);
        assert_eq!(groups.add(FILE, 9, &follower("e")), Role::LinkTo(next("c")));
    }

    #[test]
    fn if_the_leader_fails_the_next_one_leads() {
        let mut groups = HardLinkGroups::default();
        assert_eq!(groups.add(FILE, 2, &follower("a")), Role::Lead);
        assert_eq!(groups.add(FILE, 2, &follower("b")), Role::Wait);
        assert_eq!(groups.leader_failed(FILE, false), Some(follower("b")));
        assert_eq!(groups.leader_failed(FILE, false), None);
        assert!(groups.groups.is_empty());
    }

    #[test]
    fn a_leader_that_is_tried_again_becomes_a_link() {
        let mut groups = HardLinkGroups::default();
        assert_eq!(groups.add(FILE, 2, &follower("b")), Role::Lead);
        assert_eq!(groups.add(FILE, 2, &follower("a")), Role::Wait);
        assert_eq!(groups.leader_failed(FILE, true), Some(follower("a")));
        assert_eq!(groups.leader_copied(FILE, leader()), []);
        assert_eq!(groups.add(FILE, 2, &follower("b")), Role::LinkTo(leader()));
        assert!(groups.groups.is_empty());
    }
}
