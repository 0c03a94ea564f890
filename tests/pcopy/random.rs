//! Random trees, for the cases that the zoo lacks.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestRunner};

use crate::compare::{self, Properties};
use crate::env::{Env, Mode, bytes_path, is_root};
use crate::noise::{pattern, seed};

/// The number of trees for each mode.
const TREES: u32 = 20;

/// An entry of a random tree.
#[derive(Clone, Debug)]
enum Node {
    Dir {
        children: Children,
        metadata: Metadata,
    },
    File {
        size: usize,
        seed: u64,
        metadata: Metadata,
    },
    Sparse {
        size: u64,
        data_at: u64,
        metadata: Metadata,
    },
    Link {
        target: Vec<u8>,
        mtime: (i64, i64),
    },
    Fifo {
        metadata: Metadata,
    },
    /// Another name for a file; the number chooses which.
    HardLink {
        which: usize,
    },
}

type Children = BTreeMap<Vec<u8>, Node>;

/// The metadata of an entry.
#[derive(Clone, Debug)]
struct Metadata {
    mode: u32,
    mtime: (i64, i64),
    owner: (u32, u32),
    xattrs: BTreeMap<String, Vec<u8>>,
}

/// Generates names of any bytes except `/` and NUL, as Linux allows.
fn names() -> impl Strategy<Value = Vec<u8>> {
    let odd = vec(any::<u8>(), 1..24);
    let readable = "[a-c]{1,2}".prop_map(String::into_bytes);
    let long = any::<u8>().prop_map(|byte| vec![byte; 255]);
    prop_oneof![4 => odd, 4 => readable, 1 => long]
        .prop_map(|mut name: Vec<u8>| {
            for byte in &mut name {
                if matches!(byte, 0 | b'/') {
                    *byte = b'_';
                }
            }
            name
        })
        .prop_filter("reserved", |name| name != b"." && name != b"..")
}

fn times() -> impl Strategy<Value = (i64, i64)> {
    // The range of ext4 and XFS.
    (-2_000_000_000_i64..8_000_000_000, 0..1_000_000_000_i64)
}

fn metadata() -> impl Strategy<Value = Metadata> {
    let xattrs = btree_map("user\\.[a-z]{1,8}", vec(any::<u8>(), 0..60), 0..3);
    // Only root can copy an entry that its owner cannot read.
    let always = if is_root() { 0 } else { 0o700 };
    let mode = prop_oneof![3 => 0o700..=0o777_u32, 1 => 0..=0o7777_u32]
        .prop_map(move |mode| mode | always);
    let owner = prop_oneof![3 => Just((0, 0)), 1 => (0..5_u32, 0..5_u32)];
    (mode, times(), owner, xattrs).prop_map(|(mode, mtime, owner, xattrs)| Metadata {
        mode,
        mtime,
        owner,
        xattrs,
    })
}

fn trees() -> impl Strategy<Value = Children> {
    let sizes = prop_oneof![
        Just(0),
        1..5_000_usize,
        Just(4096),
        Just(65_536),
        Just(300_001)
    ];
    let leaf = prop_oneof![
        4 => (sizes, any::<u64>(), metadata()).prop_map(|(size, seed, metadata)| Node::File { size, seed, metadata }),
        1 => (0..4_000_000_u64, 0..4_000_000_u64, metadata())
            .prop_map(|(size, data_at, metadata)| Node::Sparse { size, data_at, metadata }),
        2 => (vec(1..=255_u8, 1..80), times()).prop_map(|(target, mtime)| Node::Link { target, mtime }),
        1 => metadata().prop_map(|metadata| Node::Fifo { metadata }),
        2 => any::<usize>().prop_map(|which| Node::HardLink { which }),
    ];
    let node = leaf.prop_recursive(6, 60, 8, |inner| {
        (btree_map(names(), inner, 0..8), metadata())
            .prop_map(|(children, metadata)| Node::Dir { children, metadata })
    });
    btree_map(names(), node, 1..10)
}

/// Creates a tree in the environment.
struct Builder<'a> {
    env: &'a Env,
    /// Entries that hard links can name.
    files: Vec<PathBuf>,
}

impl Builder<'_> {
    fn build(&mut self, path: &Path, node: &Node) {
        let env = self.env;
        match node {
            Node::Dir { children, metadata } => {
                env.dir(path);
                for (name, child) in children {
                    self.build(&path.join(bytes_path(name)), child);
                }
                self.set_metadata(path, metadata, true);
            }
            Node::File {
                size,
                seed,
                metadata,
            } => {
                env.file(path, pattern(*size, *seed));
                self.set_metadata(path, metadata, true);
                self.files.push(path.to_owned());
            }
            Node::Sparse {
                size,
                data_at,
                metadata,
            } => {
                let end = (*data_at + 100).min(*size);
                let data = pattern(usize::try_from(end.saturating_sub(*data_at)).unwrap(), 1);
                env.sparse(path, *size, &[(*data_at, &data)]);
                self.set_metadata(path, metadata, true);
                self.files.push(path.to_owned());
            }
            Node::Link { target, mtime } => {
                env.symlink(path, bytes_path(target))
                    .mtime(mtime.0, mtime.1);
                self.files.push(path.to_owned());
            }
            Node::Fifo { metadata } => {
                env.fifo(path);
                self.set_metadata(path, metadata, false);
                self.files.push(path.to_owned());
            }
            Node::HardLink { which } => {
                if let Some(file) = self.files.get(which % self.files.len().max(1)) {
                    env.hard_link(path, file);
                } else {
                    env.file(path, "there was nothing to link to");
                }
            }
        }
    }

    fn set_metadata(&self, path: &Path, metadata: &Metadata, has_xattrs: bool) {
        let created = self.env.at(path);
        for (name, value) in metadata.xattrs.iter().filter(|_| has_xattrs) {
            // Not every file system supports them.
            created.try_xattr(name, value);
        }
        let created = if is_root() {
            created.owner(metadata.owner.0, metadata.owner.1)
        } else {
            created
        };
        created
            .mode(metadata.mode)
            .mtime(metadata.mtime.0, metadata.mtime.1);
    }
}

/// A change of the tree between two runs.
#[derive(Clone, Debug)]
enum Change {
    /// New content and a new time.
    Rewrite { size: usize, mtime: (i64, i64) },
    /// A new time.
    Touch { mtime: (i64, i64) },
    /// A link in place of the file.
    Relink,
    /// The copy is removed, as if the file had never been copied.
    Lose,
    /// A new file in the same directory.
    Sibling,
}

fn changes() -> impl Strategy<Value = Vec<(usize, Change)>> {
    let change = prop_oneof![
        (0..9_000_usize, times()).prop_map(|(size, mtime)| Change::Rewrite { size, mtime }),
        times().prop_map(|mtime| Change::Touch { mtime }),
        Just(Change::Relink),
        Just(Change::Lose),
        Just(Change::Sibling),
    ];
    vec((any::<usize>(), change), 0..6)
}

fn change(env: &Env, files: &[PathBuf], (which, change): &(usize, Change)) {
    let Some(file) = files.get(which % files.len().max(1)) else {
        return;
    };
    let is_file = env.stat(file).is_file();
    match change {
        Change::Rewrite { size, mtime } if is_file => {
            env.file(file, pattern(*size, 99)).mtime(mtime.0, mtime.1);
        }
        Change::Rewrite { mtime, .. } | Change::Touch { mtime } => {
            env.at(file).mtime(mtime.0, mtime.1);
        }
        Change::Relink => {
            std::fs::remove_file(env.path(file)).unwrap();
            env.symlink(file, "elsewhere").mtime(1, 1);
        }
        Change::Lose => {
            let copy = Path::new("dst").join(file.strip_prefix("src").unwrap());
            // A second change may choose the same file.
            let _ = std::fs::remove_file(env.path(copy));
        }
        Change::Sibling => {
            env.file(file.with_file_name("a new sibling"), "new");
        }
    }
}

fn copied_faithfully(mode: Mode, tree: &Children, changes: &[(usize, Change)], jobs: u8) {
    let env = Env::new(mode);
    let mut builder = Builder {
        env: &env,
        files: Vec::new(),
    };
    for (name, node) in tree {
        builder.build(&Path::new("src").join(bytes_path(name)), node);
    }
    let files = builder.files;
    let jobs = jobs.to_string();
    let run = || env.pcopy(["-j", &jobs, "src", "dst"]);
    let source = env.snapshot("src");
    run().ok().counts(source.leaves(), 0, 0);
    compare::assert_same(&source, &env.snapshot("dst"), Properties::KEPT);
    run().ok().counts(0, source.leaves(), 0);

    for one in changes {
        change(&env, &files, one);
    }
    let source = env.snapshot("src");
    run().ok();
    let copy = env.snapshot("dst");
    compare::assert_same(&source, &copy, Properties::KEPT);
    copy.assert_no_temporaries();
    run().ok().counts(0, source.leaves(), 0);
}

fn copies_of_random_trees(mode: Mode) {
    let config = Config {
        // To start nodes takes longer than to copy a small tree.
        cases: if mode == Mode::Mpi { TREES / 3 } else { TREES },
        rng_seed: RngSeed::Fixed(seed()),
        max_shrink_iters: 300,
        failure_persistence: None,
        ..Config::default()
    };
    TestRunner::new(config)
        .run(&(trees(), changes(), 1..6_u8), |(tree, changes, jobs)| {
            copied_faithfully(mode, &tree, &changes, jobs);
            Ok(())
        })
        .unwrap_or_else(|e| panic!("{e}"));
}

all_modes!(random_trees_are_copied_and_brought_up_to_date, |env| {
    copies_of_random_trees(env.mode());
});
