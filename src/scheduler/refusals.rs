//! Tells the limits of a file system from the failures of single entries.
//!
//! The errno is not enough: EPERM comes from an immutable file, from FAT, and from a server that
//! gives root no rights. The grants of other entries on the device decide. They are all known only
//! when the run ends, so refusals are remembered until then.
//!
//! Refusals are compared with grants by these rules:
//!
//! - **Only a real change is a grant.** Even FAT accepts an owner that the entry already has. So
//!   workers note a grant only if the call was needed and had an effect (`copy/issues.rs`).
//! - **Ownership** is granted by a change that needs a privilege. Every user may set their own
//!   groups, which proves nothing.
//! - **Modes** with set-user-id and the like are a property of their own: servers refuse them and
//!   accept permissions. **Attributes** are compared within their namespace, and capabilities and
//!   ACLs each by themselves.
//! - **EPERM, EACCES** ([`Cause::Denied`]) is about the right to change an entry. Files,
//!   directories and special files have the same rules, and links others.
//! - **EOPNOTSUPP, ENOSYS** ([`Cause::Unsupported`]) is about a type of entry: some file systems
//!   keep the times of files, and none of directories.
//! - **EINVAL and the like, or an accepted value that is not there afterwards** ([`Cause::Value`])
//!   is about the value: an owner without a number in this user namespace, a time beyond 2038, a
//!   mode that FAT cuts. Another value that was accepted shows nothing.

use std::collections::{BTreeMap, HashSet};

use crate::fs::path::{Kind, Name, RelPath};
use crate::protocol::entry::Outcome;
use crate::protocol::metadata::{Cause, Grant, Lacking, MetadataError, MissingMetadata, Refusal};

/// The maximum number of refused entries that are remembered by name.
const REMEMBERED: usize = 1_000;
/// The maximum number of combinations of refusals that are counted apart. There are hardly ever
/// more than ten.
const PATTERNS: usize = 10_000;

/// The grants and refusals of a run.
#[derive(Default)]
pub(super) struct Refusals {
    granted: HashSet<Grant>,
    /// Refused entries, grouped by their combination of refusals.
    patterns: BTreeMap<Vec<Key>, Pattern>,
    remembered: usize,
    entries: u64,
}

/// A refused grant, and its cause.
type Key = (Grant, Cause);

#[derive(Default)]
struct Pattern {
    /// How many entries, by how they were counted.
    counts: BTreeMap<Option<Outcome>, u64>,
    /// The first of them, and more as long as there is room.
    remembered: Vec<RefusedEntry>,
}

/// An entry that was refused something.
pub(super) struct RefusedEntry {
    /// Its place in the order of the reports.
    number: u64,
    pub(super) target: u32,
    pub(super) dir: RelPath,
    pub(super) name: Option<Name>,
    refusals: Vec<Refusal>,
}

/// An entry that fails because others were granted the same change.
pub(super) struct FailedEntry {
    pub(super) entry: RefusedEntry,
    pub(super) errors: Vec<MetadataError>,
}

/// The judgement of all refusals of a run.
#[derive(Default)]
pub(super) struct Verdict {
    /// The entries that fail, as far as they are remembered.
    pub(super) failures: Vec<FailedEntry>,
    /// How many entries fail in all, by how they were counted before.
    pub(super) failed: BTreeMap<Option<Outcome>, u64>,
    /// Metadata that the destination cannot hold.
    pub(super) lacking: BTreeMap<Lacking, Lack>,
}

/// How many entries lack it, and the first of them.
pub(super) struct Lack {
    pub(super) entries: u64,
    number: u64,
    pub(super) target: u32,
    pub(super) dir: RelPath,
    pub(super) name: Option<Name>,
}

impl Refusals {
    pub(super) fn grant(&mut self, grants: &[Grant]) {
        self.granted.extend(grants);
    }

    /// Returns true if another entry was granted the same change.
    fn is_granted(&self, (grant, cause): &Key) -> bool {
        let by_kind = |kind| self.granted.contains(&Grant { kind, ..*grant });
        match cause {
            Cause::Value => false,
            Cause::Unsupported => by_kind(grant.kind),
            Cause::Denied if grant.kind == Kind::Symlink => by_kind(Kind::Symlink),
            Cause::Denied => [Kind::File, Kind::Directory, Kind::Special]
                .into_iter()
                .any(by_kind),
        }
    }

    /// Turns those refusals of an entry into failures that are known to be its own.
    pub(super) fn take_known_failures(&self, missing: &mut MissingMetadata) {
        let refusals = std::mem::take(&mut missing.refusals);
        for refusal in refusals {
            if self.is_granted(&(refusal.grant, refusal.cause)) {
                missing.failures.push(refusal.error);
            } else {
                missing.refusals.push(refusal);
            }
        }
    }

    /// Remembers an entry's refusals until the end of the run.
    pub(super) fn add(&mut self, target: u32, dir: &RelPath, missing: MissingMetadata) {
        if missing.refusals.is_empty() {
            return;
        }
        let mut keys: Vec<Key> = missing
            .refusals
            .iter()
            .map(|refusal| (refusal.grant, refusal.cause))
            .collect();
        keys.sort_unstable();
        keys.dedup();
        if self.patterns.len() >= PATTERNS && !self.patterns.contains_key(&keys) {
            keys.truncate(1);
        }
        self.entries += 1;
        let pattern = self.patterns.entry(keys).or_default();
        *pattern.counts.entry(missing.outcome).or_default() += 1;
        if self.remembered < REMEMBERED || pattern.remembered.is_empty() {
            self.remembered += 1;
            pattern.remembered.push(RefusedEntry {
                number: self.entries,
                target,
                dir: dir.clone(),
                name: missing.name,
                refusals: missing.refusals,
            });
        }
    }

    /// Decides about all refusals of the run.
    pub(super) fn decide(&mut self) -> Verdict {
        let mut verdict = Verdict::default();
        for (keys, pattern) in std::mem::take(&mut self.patterns) {
            let (failing, lacking): (Vec<Key>, Vec<Key>) =
                keys.into_iter().partition(|key| self.is_granted(key));
            if let Some(first) = pattern.remembered.first() {
                let entries = pattern.counts.values().sum();
                let mut kinds: Vec<Lacking> = lacking
                    .iter()
                    .map(|(grant, _)| grant.property.lacking())
                    .collect();
                kinds.dedup();
                for kind in kinds {
                    verdict.add_lack(kind, entries, first);
                }
            }
            if failing.is_empty() {
                continue;
            }
            for (outcome, count) in pattern.counts {
                *verdict.failed.entry(outcome).or_default() += count;
            }
            for entry in pattern.remembered {
                let is_failing =
                    |refusal: &&Refusal| failing.contains(&(refusal.grant, refusal.cause));
                let errors = entry.refusals.iter().filter(is_failing);
                let errors = errors.map(|refusal| refusal.error.clone()).collect();
                verdict.failures.push(FailedEntry { entry, errors });
            }
        }
        verdict.failures.sort_by_key(|failure| failure.entry.number);
        verdict
    }
}

impl Verdict {
    fn add_lack(&mut self, kind: Lacking, entries: u64, first: &RefusedEntry) {
        let lack = self.lacking.entry(kind).or_insert_with(|| Lack {
            entries: 0,
            number: u64::MAX,
            target: 0,
            dir: RelPath::default(),
            name: None,
        });
        lack.entries += entries;
        if first.number < lack.number {
            lack.number = first.number;
            lack.target = first.target;
            lack.dir = first.dir.clone();
            lack.name.clone_from(&first.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;
    use crate::protocol::error::Step;
    use crate::protocol::metadata::{AttributeClass, Property};

    fn dir() -> RelPath {
        RelPath::default()
    }

    fn grant(kind: Kind, property: Property) -> Grant {
        Grant {
            device: 1,
            kind,
            property,
        }
    }

    fn refused(name: &[u8], keys: &[Key]) -> MissingMetadata {
        let refusals = keys.iter().map(|&(grant, cause)| Refusal {
            grant,
            cause,
            error: MetadataError {
                step: Step::SetOwner,
                attribute: None,
                reason: Errno::PERM.into(),
            },
        });
        MissingMetadata {
            name: Some(Name::new(name)),
            kind: None,
            outcome: Some(Outcome::Copied),
            failures: Vec::new(),
            refusals: refusals.collect(),
        }
    }

    #[test]
    fn what_nobody_was_granted_is_a_limit_of_the_file_system() {
        let mut refusals = Refusals::default();
        let key = (grant(Kind::File, Property::Ownership), Cause::Denied);
        for name in [b"a", b"b"] {
            refusals.add(0, &dir(), refused(name, &[key]));
        }
        // Another device, another kind, links.
        refusals.grant(&[
            Grant { device: 2, ..key.0 },
            grant(Kind::File, Property::Timestamps),
            grant(Kind::Symlink, Property::Ownership),
        ]);
        let verdict = refusals.decide();
        assert!(verdict.failures.is_empty() && verdict.failed.is_empty());
        let lack = &verdict.lacking[&Lacking::Ownership];
        assert_eq!(lack.entries, 2);
        assert_eq!(lack.name, Some(Name::new(b"a")));
    }

    #[test]
    fn what_others_were_granted_is_the_entrys_failure() {
        let mut refusals = Refusals::default();
        let denied = (grant(Kind::File, Property::Ownership), Cause::Denied);
        let value = (grant(Kind::File, Property::Timestamps), Cause::Value);
        refusals.add(0, &dir(), refused(b"a", &[denied, value]));
        refusals.grant(&[
            grant(Kind::Directory, Property::Ownership),
            grant(Kind::File, Property::Timestamps),
        ]);
        // By now it is known when it is reported.
        let mut late = refused(b"b", &[denied, value]);
        refusals.take_known_failures(&mut late);
        assert_eq!((late.failures.len(), late.refusals.len()), (1, 1));
        let verdict = refusals.decide();
        assert_eq!(verdict.failures.len(), 1);
        assert_eq!(verdict.failures[0].errors.len(), 1);
        assert_eq!(verdict.failed[&Some(Outcome::Copied)], 1);
        assert_eq!(verdict.lacking[&Lacking::Timestamps].entries, 1);
    }

    #[test]
    fn unsupported_types_and_namespaces_are_compared_by_themselves() {
        let user = Property::Attribute(AttributeClass::User);
        let label = Property::Attribute(AttributeClass::Label);
        let mut refusals = Refusals::default();
        let unsupported = |kind, property| (grant(kind, property), Cause::Unsupported);
        refusals.grant(&[
            grant(Kind::File, user),
            grant(Kind::File, Property::Timestamps),
        ]);
        let of = |key| !refusals.is_granted(&key);
        assert!(of(unsupported(Kind::Directory, Property::Timestamps)));
        assert!(of(unsupported(Kind::File, label)));
        assert!(!of(unsupported(Kind::File, user)));
        refusals.add(0, &dir(), refused(b"a", &[unsupported(Kind::File, label)]));
        assert_eq!(refusals.decide().lacking.len(), 1);
    }

    #[test]
    fn memory_is_bounded_and_the_number_is_exact() {
        let mut refusals = Refusals::default();
        let key = (grant(Kind::File, Property::Ownership), Cause::Denied);
        for number in 0..5_000 {
            let name = format!("{number}");
            refusals.add(0, &dir(), refused(name.as_bytes(), &[key]));
        }
        refusals.grant(&[key.0]);
        let verdict = refusals.decide();
        assert_eq!(verdict.failures.len(), REMEMBERED);
        assert_eq!(verdict.failed[&Some(Outcome::Copied)], 5_000);
    }
}
