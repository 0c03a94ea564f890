//! What a worker has learned of the destination's file systems by looking.
//!
//! A server can accept metadata and do nothing, or something else: its umask cuts modes, its
//! range of times ends in 2038, it sets times when it writes the data. To look at each file would
//! cost a system call for each. So a worker looks at the first file of its kind on a device, and at
//! values that are unlike those it has seen: new mode bits, a new owner, a time far away. If it
//! finds a lie, it mends that for all files and looks at each of them from then on.

use super::Copier;
use super::dir::Owner;
use crate::fs::stat::FileStat;
use crate::protocol::metadata::Sort;

/// Every file system that is in use stores these seconds: from 1980 (FAT) to 2038 (32 bits).
/// There are two days between, since some store local time.
const SAFE_SECONDS: std::ops::Range<i64> = 315_532_800 + 172_800..(1 << 31) - 172_800;
/// The first and last seconds that file systems store: 32 bits with and without sign, FAT,
/// ext4 (34 bits), XFS (bigtime).
const LIMITS: [i64; 9] = [
    -(1 << 31),
    0,
    315_532_800,
    (1 << 31) - 1,
    (1 << 32) - 1,
    4_354_819_198,
    4_354_819_199,
    15_032_385_535,
    16_299_260_424,
];
/// So many owners are remembered as kept by a device.
const OWNERS: usize = 64;
/// So many times are remembered that a device stores as others.
const CLAMPED: usize = 16;

/// Seconds and nanoseconds.
type Time = (i64, i64);

/// What was learned of one device.
#[derive(Debug, Default)]
pub(super) struct Learned {
    device: u64,
    /// Mode bits that files are created with as asked for.
    created: Bits,
    /// Mode bits that chmod(2) sets as asked for, by type of entry.
    changed: [Bits; 4],
    /// New files do not get the mode that they are created with.
    pub(super) cuts_modes: bool,
    /// chmod(2) was accepted and had no effect.
    pub(super) ignores_modes: bool,
    /// Owners that entries got as asked for, the latest last.
    owners: Vec<Owner>,
    /// The times of an empty file, and of one with data, stay when the file is closed.
    pub(super) keeps_times: [bool; 2],
    /// The times of files change when they are closed, and are set again.
    pub(super) resets_times: bool,
    /// Even then they are not right.
    pub(super) ignores_times: bool,
    /// Times, and what the device stores instead: they are beyond what it can store.
    pub(super) clamped: Vec<(Time, Time)>,
    /// It is FAT or exFAT, which hold neither owners nor modes.
    pub(super) is_fat: Option<bool>,
}

/// Mode bits that were seen set, and seen clear, as asked for.
#[derive(Clone, Copy, Debug, Default)]
struct Bits {
    set: u32,
    clear: u32,
}

impl Bits {
    fn cover(self, mode: u32) -> bool {
        mode & !self.set == 0 && !mode & 0o7777 & !self.clear == 0
    }

    fn add(&mut self, mode: u32) {
        self.set |= mode;
        self.clear |= !mode & 0o7777;
    }
}

/// How a mode was set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SetBy {
    Create,
    Chmod(Sort),
}

impl Learned {
    fn bits(&mut self, by: SetBy) -> &mut Bits {
        match by {
            SetBy::Create => &mut self.created,
            SetBy::Chmod(sort) => &mut self.changed[sort as usize],
        }
    }

    /// Returns true if a mode need not be looked at.
    pub(super) fn trusts_mode(&mut self, by: SetBy, mode: u32) -> bool {
        !self.ignores_modes && self.bits(by).cover(mode)
    }

    pub(super) fn add_mode(&mut self, by: SetBy, mode: u32) {
        self.bits(by).add(mode);
    }

    /// Returns true if an owner need not be looked at. A server may know some and not others.
    pub(super) fn trusts_owner(&self, owner: Owner) -> bool {
        self.owners.contains(&owner)
    }

    pub(super) fn add_owner(&mut self, owner: Owner) {
        if !self.owners.contains(&owner) {
            if self.owners.len() == OWNERS {
                self.owners.remove(0);
            }
            self.owners.push(owner);
        }
    }

    /// Returns true if a time is known to be stored as another one, since it is beyond the
    /// limit of the device.
    pub(super) fn clamps(&self, time: Time, stored: Time) -> bool {
        self.clamped.iter().any(|&(known, limit)| {
            stored == limit && (known > limit && time >= known || known < limit && time <= known)
        })
    }

    pub(super) fn add_clamped(&mut self, time: Time, stored: Time) {
        if self.clamped.len() == CLAMPED {
            self.clamped.remove(0);
        }
        self.clamped.push((time, stored));
    }
}

impl Copier {
    pub(super) fn learned(&mut self, device: u64) -> &mut Learned {
        let at = self.learned.iter().position(|known| known.device == device);
        let at = at.unwrap_or_else(|| {
            self.learned.push(Learned {
                device,
                ..Learned::default()
            });
            self.learned.len() - 1
        });
        &mut self.learned[at]
    }
}

/// Returns true for a time that every file system can store.
pub(super) fn is_safe((seconds, _): Time) -> bool {
    SAFE_SECONDS.contains(&seconds)
}

/// Guesses whether a time was stored as the limit of a file system, without a probe: a dry run
/// must not write one.
pub(super) fn may_be_clamped(new: &FileStat, old: &FileStat) -> bool {
    LIMITS.contains(&old.mtime.0) && !is_safe(new.mtime)
        || LIMITS.contains(&(old.mtime.0 + 1)) && !is_safe(new.mtime)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_is_trusted_once_each_of_its_bits_was_seen() {
        let mut learned = Learned::default();
        let by = SetBy::Create;
        assert!(!learned.trusts_mode(by, 0o644));
        learned.add_mode(by, 0o644);
        assert!(learned.trusts_mode(by, 0o644));
        assert!(!learned.trusts_mode(by, 0o600), "0044 might be added");
        assert!(!learned.trusts_mode(by, 0o755));
        learned.add_mode(by, 0o600);
        assert!(learned.trusts_mode(by, 0o640));
        assert!(!learned.trusts_mode(SetBy::Chmod(Sort::File), 0o644));
    }

    #[test]
    fn a_clamped_time_is_known_beyond_the_limit_only() {
        let mut learned = Learned::default();
        let limit = ((1 << 31) - 1, 0);
        learned.add_clamped((4_102_444_800, 0), limit);
        assert!(learned.clamps((4_102_444_801, 5), limit));
        assert!(!learned.clamps((1 << 31, 0), limit));
        assert!(!learned.clamps((4_102_444_801, 5), (7, 0)));
    }

    #[test]
    fn owners_are_forgotten_in_the_order_they_came() {
        let mut learned = Learned::default();
        for uid in 0..=OWNERS as u32 {
            learned.add_owner(Owner { uid, gid: 0 });
        }
        assert!(!learned.trusts_owner(Owner { uid: 0, gid: 0 }));
        assert!(learned.trusts_owner(Owner { uid: 1, gid: 0 }));
    }
}
