//! Observed behaviour of the destination's file systems.
//!
//! A server can accept metadata and store something else. Its umask may cut modes, its times may
//! end in 2038, or it may set times when it writes the data. Verifying each file would cost a
//! system call. So a worker verifies the first file of each type on a device. It also verifies
//! values unlike those before: new mode bits, a new owner, a time far away. If one was not stored,
//! the worker corrects and verifies every file from then on.

use super::Copier;
use super::dir::Owner;
use super::foresight::Holds;
use crate::fs::path::Kind;
use crate::fs::stat::FileStat;

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
/// The most owners remembered for one device.
const OWNERS: usize = 64;
/// The most clamped times remembered for one device.
const CLAMPED: usize = 16;

/// Seconds and nanoseconds.
type Time = (i64, i64);

/// The observed behaviour of one device.
#[derive(Debug, Default)]
pub(super) struct Learned {
    device: u64,
    /// Mode bits that creating a file was seen to set correctly.
    created: Bits,
    /// Mode bits that chmod(2) was seen to set correctly, by type of entry.
    changed: [Bits; 4],
    /// New files do not get the mode that they are created with.
    pub(super) cuts_modes: bool,
    /// chmod(2) was accepted and had no effect.
    pub(super) ignores_modes: bool,
    /// Owners that were seen to be set correctly, the latest last.
    owners: Vec<Owner>,
    /// The times of an empty file, and of one with data, stay when the file is closed.
    pub(super) keeps_times: [bool; 2],
    /// The times of files change when they are closed, and are set again.
    pub(super) resets_times: bool,
    /// Setting the times again has no effect either.
    pub(super) ignores_times: bool,
    /// Times beyond the limits of the device, and the times that it stores instead.
    pub(super) clamped: Vec<(Time, Time)>,
    /// What its type can hold, once it was looked up.
    pub(super) holds: Option<Holds>,
}

/// Mode bits that were correctly stored as 1, and as 0.
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
    Chmod(Kind),
}

impl Learned {
    fn bits(&mut self, by: SetBy) -> &mut Bits {
        match by {
            SetBy::Create => &mut self.created,
            SetBy::Chmod(kind) => &mut self.changed[kind as usize],
        }
    }

    /// Returns true if a mode need not be verified.
    pub(super) fn is_mode_trusted(&mut self, by: SetBy, mode: u32) -> bool {
        !self.ignores_modes && self.bits(by).cover(mode)
    }

    pub(super) fn add_mode(&mut self, by: SetBy, mode: u32) {
        self.bits(by).add(mode);
    }

    /// Returns true if an owner need not be verified. A server may know some owners and not others.
    pub(super) fn is_owner_trusted(&self, owner: Owner) -> bool {
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
pub(super) fn is_possibly_clamped(new: &FileStat, old: &FileStat) -> bool {
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
        assert!(!learned.is_mode_trusted(by, 0o644));
        learned.add_mode(by, 0o644);
        assert!(learned.is_mode_trusted(by, 0o644));
        assert!(!learned.is_mode_trusted(by, 0o600), "0044 might be added");
        assert!(!learned.is_mode_trusted(by, 0o755));
        learned.add_mode(by, 0o600);
        assert!(learned.is_mode_trusted(by, 0o640));
        assert!(!learned.is_mode_trusted(SetBy::Chmod(Kind::File), 0o644));
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
        assert!(!learned.is_owner_trusted(Owner { uid: 0, gid: 0 }));
        assert!(learned.is_owner_trusted(Owner { uid: 1, gid: 0 }));
    }
}
