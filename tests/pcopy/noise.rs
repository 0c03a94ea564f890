//! Random numbers and bytes that a seed reproduces.

/// Returns the seed of this run's randomised tests, and prints it for a failed test's output.
pub(crate) fn seed() -> u64 {
    let seed = std::env::var("PCOPY_TEST_SEED").map_or(1, |text| {
        text.parse()
            .unwrap_or_else(|e| panic!("PCOPY_TEST_SEED={text}: {e}"))
    });
    println!("PCOPY_TEST_SEED={seed}");
    seed
}

/// A small generator (xorshift64*).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        // A state of zero would stay zero.
        Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// Returns a number from 0 up to, but not including, `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }
}

/// Returns bytes that look random and contain no block of zeros.
pub(crate) fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut bytes = vec![0; len];
    let (words, rest) = bytes.as_chunks_mut();
    for word in words {
        *word = random.next().to_le_bytes();
    }
    rest.copy_from_slice(&random.next().to_le_bytes()[..rest.len()]);
    bytes
}
