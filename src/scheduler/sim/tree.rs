//! The made-up source of a simulated run.

use std::collections::HashMap;

/// Bytes of one chunk.
pub(super) const CHUNK: u64 = 16 << 20;

/// A small random number generator (xorshift64*).
pub(super) struct Rng(u64);

impl Rng {
    pub(super) fn new(seed: u64) -> Self {
        // Neighbouring seeds must not look alike (splitmix64).
        let mut z = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        Self((z ^ (z >> 27)) | 1)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Returns a number below `end`.
    pub(super) fn below(&mut self, end: usize) -> usize {
        (self.next() >> 33) as usize % end.max(1)
    }

    /// Returns a number from `low` to `high`.
    pub(super) fn range(&mut self, low: usize, high: usize) -> usize {
        low + self.below(high - low + 1)
    }

    pub(super) fn chance(&mut self, probability: f64) -> bool {
        ((self.next() >> 11) as f64) < probability * (1_u64 << 53) as f64
    }

    pub(super) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sort {
    Plain,
    /// One name of the file of this group.
    Linked(usize),
    /// A file of so many chunks.
    Chunked(u64),
}

/// The state of the destination's entry before the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Before {
    Missing,
    Same,
    Differs,
}

/// The permanent fault of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    Nothing,
    /// It cannot be opened.
    Fails,
    /// The chunk of this number cannot be read.
    ChunkFails(u64),
    /// The chunk of this number finds that the source has changed.
    ChunkChanges(u64),
    /// Processes crash at it.
    Crashes,
    /// It fails so many times, for a reason that passes.
    Passes(u32),
}

pub(super) struct Entry {
    pub(super) dir: usize,
    pub(super) name: Vec<u8>,
    pub(super) sort: Sort,
    pub(super) before: Before,
    pub(super) trouble: Trouble,
}

#[derive(Clone, Copy)]
pub(super) enum Item {
    Dir(usize),
    Entry(usize),
}

pub(super) struct Dir {
    pub(super) parent: Option<usize>,
    pub(super) name: Vec<u8>,
    pub(super) path: Vec<u8>,
    /// In the order of the listing.
    pub(super) items: Vec<Item>,
    /// It is at the destination before the run.
    pub(super) existed: bool,
    /// It cannot be listed, or not to its end, so many times.
    pub(super) passes: u32,
}

/// The source.
pub(super) struct Tree {
    pub(super) dirs: Vec<Dir>,
    pub(super) entries: Vec<Entry>,
    /// The entries of each group of hard links.
    pub(super) groups: Vec<Vec<usize>>,
    items: HashMap<Vec<u8>, Item>,
}

impl Tree {
    /// Makes up a tree. With `crashes`, some entries crash their workers.
    pub(super) fn random(rng: &mut Rng, root_existed: bool, crashes: bool) -> Self {
        let mut tree = Self {
            dirs: vec![Dir {
                parent: None,
                name: Vec::new(),
                path: Vec::new(),
                items: Vec::new(),
                existed: root_existed,
                passes: 0,
            }],
            entries: Vec::new(),
            groups: Vec::new(),
            items: HashMap::from([(Vec::new(), Item::Dir(0))]),
        };
        // Many small directories, so that several jobs go out at once.
        let is_bushy = rng.chance(0.3);
        let dirs = if is_bushy {
            rng.range(30, 90)
        } else {
            rng.below(14)
        };
        for number in 1..=dirs {
            let parent = rng.below(number);
            let existed = tree.dirs[parent].existed && rng.chance(0.6);
            let name = format!("d{number}").into_bytes();
            let path = join(&tree.dirs[parent].path, &name);
            tree.items.insert(path.clone(), Item::Dir(number));
            tree.dirs.push(Dir {
                parent: Some(parent),
                name,
                path,
                items: Vec::new(),
                existed,
                passes: 0,
            });
            tree.dirs[parent].items.push(Item::Dir(number));
        }
        let has_trouble = rng.chance(0.5);
        let wide = rng.chance(0.06).then(|| rng.below(tree.dirs.len()));
        for dir in 0..tree.dirs.len() {
            let count = match wide {
                Some(wide) if wide == dir => rng.range(257, 400),
                _ if is_bushy => rng.below(4),
                _ => rng.pick(&[0, 1, 3, 8, 20, 40]),
            };
            for _ in 0..count {
                let chunks = rng.range(1, 9) as u64;
                let sort = if rng.chance(0.06) {
                    Sort::Chunked(chunks)
                } else {
                    Sort::Plain
                };
                let chunk = rng.below(chunks as usize) as u64;
                let mut trouble = Trouble::Nothing;
                if has_trouble && sort != Sort::Plain && rng.chance(0.3) {
                    trouble = rng.pick(&[
                        Trouble::ChunkFails(chunk),
                        Trouble::ChunkChanges(chunk),
                        Trouble::Fails,
                    ]);
                } else if has_trouble && rng.chance(0.03) {
                    trouble = Trouble::Fails;
                } else if crashes && rng.chance(0.01) {
                    trouble = Trouble::Crashes;
                }
                let before = tree.random_before(rng, dir);
                tree.add(rng, dir, sort, before, trouble);
            }
        }
        for group in 0..rng.below(7) {
            let mut members = Vec::new();
            let before = rng.pick(&[Before::Missing, Before::Missing, Before::Same]);
            for _ in 0..rng.range(2, 6) {
                let dir = rng.below(tree.dirs.len());
                let trouble = if has_trouble && rng.chance(0.1) {
                    Trouble::Fails
                } else {
                    Trouble::Nothing
                };
                let before = if tree.dirs[dir].existed {
                    before
                } else {
                    Before::Missing
                };
                members.push(tree.add(rng, dir, Sort::Linked(group), before, trouble));
            }
            tree.groups.push(members);
        }
        tree
    }

    /// Makes some entries and directories fail for a while.
    pub(super) fn add_passing_faults(&mut self, rng: &mut Rng) {
        for entry in &mut self.entries {
            let share = if entry.sort == Sort::Plain { 0.05 } else { 0.3 };
            if entry.trouble == Trouble::Nothing && rng.chance(share) {
                entry.trouble = Trouble::Passes(rng.range(1, 3) as u32);
            }
        }
        for dir in &mut self.dirs {
            if rng.chance(0.1) {
                dir.passes = rng.range(1, 3) as u32;
            }
        }
    }

    fn random_before(&self, rng: &mut Rng, dir: usize) -> Before {
        if !self.dirs[dir].existed {
            return Before::Missing;
        }
        rng.pick(&[Before::Missing, Before::Same, Before::Same, Before::Differs])
    }

    fn add(
        &mut self,
        rng: &mut Rng,
        dir: usize,
        sort: Sort,
        before: Before,
        trouble: Trouble,
    ) -> usize {
        let number = self.entries.len();
        let name = format!("f{number}").into_bytes();
        let path = join(&self.dirs[dir].path, &name);
        self.items.insert(path, Item::Entry(number));
        self.entries.push(Entry {
            dir,
            name,
            sort,
            before,
            trouble,
        });
        let items = &mut self.dirs[dir].items;
        items.insert(rng.below(items.len() + 1), Item::Entry(number));
        number
    }

    pub(super) fn item(&self, path: &[u8]) -> Option<Item> {
        self.items.get(path).copied()
    }

    pub(super) fn dir(&self, path: &[u8]) -> usize {
        match self.items.get(path) {
            Some(&Item::Dir(dir)) => dir,
            _ => panic!("no directory {}", path.escape_ascii()),
        }
    }

    pub(super) fn entry(&self, dir: usize, name: &[u8]) -> usize {
        match self.items.get(&join(&self.dirs[dir].path, name)) {
            Some(&Item::Entry(entry)) => entry,
            _ => panic!("no entry {}", name.escape_ascii()),
        }
    }

    /// Returns the path of an entry.
    pub(super) fn path(&self, entry: usize) -> Vec<u8> {
        let entry = &self.entries[entry];
        join(&self.dirs[entry.dir].path, &entry.name)
    }

    /// Returns the inode number of an entry in the source.
    pub(super) fn source(&self, entry: usize) -> u64 {
        match self.entries[entry].sort {
            Sort::Linked(group) => 1_000_000 + group as u64,
            _ => 10_000 + entry as u64,
        }
    }

    pub(super) fn size(&self, entry: usize) -> u64 {
        match self.entries[entry].sort {
            Sort::Chunked(chunks) => chunks * CHUNK,
            _ => 1,
        }
    }
}

pub(super) fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() {
        return name.to_vec();
    }
    [path, b"/", name].concat()
}
