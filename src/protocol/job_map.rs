//! A map from the numbers of jobs. The parent looks into it several times for each job.
//!
//! The parent counts these numbers itself. So nobody can choose them to collide, and a hash that
//! spreads consecutive numbers is enough.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use super::JobId;

pub(crate) type JobMap<T> = HashMap<JobId, T, BuildHasherDefault<JobHasher>>;

const UPPER: u64 = 0x7f << 57;

/// Hashes one number.
#[derive(Default)]
pub(crate) struct JobHasher(u64);

impl Hasher for JobHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(self.0 ^ u64::from(byte));
        }
    }

    fn write_u64(&mut self, number: u64) {
        // The map takes the place from the lower bits, and tells the entries of a place apart by
        // the upper ones, for which the number is multiplied by the golden ratio.
        self.0 = number ^ (number.wrapping_mul(0x9e37_79b9_7f4a_7c15) & UPPER);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::hash::BuildHasher;

    #[test]
    fn consecutive_numbers_have_different_hashes() {
        let hash = |number: JobId| BuildHasherDefault::<JobHasher>::default().hash_one(number);
        for bits in [0, 57] {
            let parts = (0..128).map(|number| hash(number) >> bits & 0x7f);
            let parts: HashSet<u64> = parts.collect();
            assert!(parts.len() > 60, "{bits}: {}", parts.len());
        }
    }
}
