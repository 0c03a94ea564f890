//! Digests of contents that pass through a worker.
//!
//! Holes are not read. A digest for `--manifest` takes them for zeros. A digest for `--verify` leaves
//! them out and notes where the data was: the same places are read back, and the rest must be zeros.

use std::ops::Range;

use sha2::Digest as _;
use twox_hash::XxHash3_128;

use crate::cli::Algorithm;
use crate::protocol::entry::Checksum;

/// A digest of contents, in order.
pub(super) struct Digest {
    hasher: Hasher,
    start: u64,
    /// Where the data was, in order. Everything else up to `end` was a hole.
    data: Vec<Range<u64>>,
    end: u64,
}

enum Hasher {
    /// Proves only that two readings are the same.
    Xxh3(Box<XxHash3_128>),
    Sha256(Box<sha2::Sha256>),
    Blake3(Box<blake3::Hasher>),
}

/// The value of a digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Value {
    Xxh3(u128),
    Checksum(Checksum),
}

impl Digest {
    /// Begins a digest at an offset. Without an algorithm, it is only good for [`Digest::is_same`].
    pub(super) fn new(algorithm: Option<Algorithm>, start: u64) -> Self {
        let hasher = match algorithm {
            None => Hasher::Xxh3(Box::new(XxHash3_128::new())),
            Some(Algorithm::Sha256) => Hasher::Sha256(Box::default()),
            Some(Algorithm::Blake3) => Hasher::Blake3(Box::default()),
        };
        Self {
            hasher,
            start,
            data: Vec::new(),
            end: start,
        }
    }

    /// Adds data that was read at an offset. The gap before it was a hole.
    pub(super) fn add(&mut self, bytes: &[u8], offset: u64) {
        if bytes.is_empty() {
            return;
        }
        self.add_hole(offset);
        self.end = offset + bytes.len() as u64;
        match self.data.last_mut() {
            Some(last) if last.end == offset => last.end = self.end,
            _ => self.data.push(offset..self.end),
        }
        self.hash(bytes);
    }

    /// Adds a hole up to an offset.
    pub(super) fn add_hole(&mut self, end: u64) {
        const ZEROS: &[u8] = &[0; 64 << 10];
        if matches!(self.hasher, Hasher::Sha256(_) | Hasher::Blake3(_)) {
            while self.end < end {
                let length = (end - self.end).min(ZEROS.len() as u64);
                self.hash(&ZEROS[..length as usize]);
                self.end += length;
            }
        }
        self.end = self.end.max(end);
    }

    fn hash(&mut self, bytes: &[u8]) {
        match &mut self.hasher {
            Hasher::Xxh3(hasher) => hasher.write(bytes),
            Hasher::Sha256(hasher) => hasher.update(bytes),
            Hasher::Blake3(hasher) => {
                hasher.update(bytes);
            }
        }
    }

    /// Begins a digest of the same kind and start.
    pub(super) fn begin_again(&self) -> Self {
        let algorithm = match self.hasher {
            Hasher::Xxh3(_) => None,
            Hasher::Sha256(_) => Some(Algorithm::Sha256),
            Hasher::Blake3(_) => Some(Algorithm::Blake3),
        };
        Self::new(algorithm, self.start)
    }

    /// Returns where the digest began and ends.
    pub(super) fn range(&self) -> Range<u64> {
        self.start..self.end
    }

    /// Returns where the data was.
    pub(super) fn data(&self) -> &[Range<u64>] {
        &self.data
    }

    /// Returns true if both have the same length and contents.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        (self.range(), self.value()) == (other.range(), other.value())
    }

    /// Returns the checksum, if it is one that a list can contain.
    pub(super) fn checksum(&self) -> Option<Checksum> {
        match self.value() {
            Value::Checksum(checksum) => Some(checksum),
            Value::Xxh3(_) => None,
        }
    }

    fn value(&self) -> Value {
        match &self.hasher {
            Hasher::Xxh3(hasher) => Value::Xxh3(hasher.finish_128()),
            Hasher::Sha256(hasher) => Value::Checksum((*hasher).clone().finalize().into()),
            Hasher::Blake3(hasher) => Value::Checksum(*hasher.finalize().as_bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hex(digest: &Digest) -> String {
        let checksum = digest.checksum().unwrap();
        checksum.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn checksums_are_those_of_the_programs() {
        let of = |algorithm| {
            let mut digest = Digest::new(Some(algorithm), 0);
            digest.add(b"abc", 0);
            hex(&digest)
        };
        assert_eq!(
            of(Algorithm::Sha256),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_eq!(
            of(Algorithm::Blake3),
            "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85"
        );
        let mut xxh3 = Digest::new(None, 0);
        xxh3.add(b"abc", 0);
        assert_eq!(xxh3.checksum(), None);
    }

    proptest! {
        /// Checks that it does not matter how contents are divided, and that holes are zeros.
        #[test]
        fn parts_and_holes_do_not_matter(
            parts in proptest::collection::vec((0_u64..100_000, 1_usize..5000), 0..6),
        ) {
            for algorithm in [Algorithm::Sha256, Algorithm::Blake3] {
                let (mut digest, mut whole) = (Digest::new(Some(algorithm), 0), Vec::new());
                for &(hole, length) in &parts {
                    whole.resize(whole.len() + hole as usize, 0);
                    digest.add_hole(whole.len() as u64);
                    let data = vec![7; length];
                    digest.add(&data, whole.len() as u64);
                    whole.extend(data);
                }
                let mut expected = Digest::new(Some(algorithm), 0);
                expected.add(&whole, 0);
                prop_assert!(digest.is_same(&expected));
                prop_assert_eq!(digest.checksum(), expected.checksum());
            }
        }
    }
}
