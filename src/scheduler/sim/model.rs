//! The world of a simulated run: a source tree, the destination, and the rules that must hold.
//!
//! Nothing here knows of jobs, reports or the scheduler. A worker of any protocol calls the
//! operations of [`World`] as it would call the system, and [`World::check`] judges the run by
//! the destination and by what was printed.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Range;
use std::path::PathBuf;

use crate::fs::path::Name;

use super::extra::Extras;
use super::tree::{Before, CHUNK, Dir, Entry, Tree, Trouble, join};

/// Where temporary names begin.
pub(super) const TEMPORARY: &[u8] = b".pcopy.";

/// A file at the destination.
#[derive(Clone, Debug, Default)]
pub(super) struct Inode {
    /// The source's inode number. `None` for an older file that differs.
    pub(super) source: Option<u64>,
    pub(super) is_complete: bool,
    /// Offsets of the chunks that have been written.
    chunks: BTreeSet<u64>,
    /// Everything that was written is on disk.
    is_synced: bool,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct DestinationDir {
    pub(super) exists: bool,
    /// This run has made it.
    pub(super) is_new: bool,
    /// When a name in it was last made, removed or replaced.
    pub(super) changed: u64,
    /// When its metadata was applied.
    pub(super) finished: Option<u64>,
}

/// A worker's current item: a directory's listing, an entry, or a chunk of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Claim {
    worker: usize,
    dir: usize,
    name: Option<Vec<u8>>,
    chunk: Option<u64>,
}

/// What must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rule {
    /// The run ends within a bounded number of steps.
    Ends,
    /// The scheduler does not panic.
    DoesNotPanic,
    /// No name is worked on by two live workers at once.
    OneWorkerAName,
    /// An entry is complete at the destination, or a failure names it.
    CompleteOrFailed,
    /// Not more than one failure names an entry.
    FailsOnce,
    /// Only what cannot be copied fails.
    FailsForAReason,
    /// An entry is completed at the destination once.
    CommittedOnce,
    /// Exit status 0 if and only if everything is there.
    ExitStatus,
    /// copied + unchanged + failed = entries.
    SummaryAddsUp,
    /// What was there is counted as unchanged, everything else as copied.
    SummaryIsRight,
    /// Each copied entry has a line (-v).
    LineIsPrinted,
    /// No copied entry has two lines (-v).
    LineIsPrintedOnce,
    /// Each new directory has one line (-v).
    DirectoryLine,
    /// Directories have their metadata, applied after the last change in them.
    MetadataLast,
    /// No temporary name is left.
    NoTemporaryName,
    /// A run that was stopped leaves nothing incomplete under an entry's own name.
    NothingIncomplete,
    /// A group of hard links is one file.
    Linked,
    /// The bar's total is the number of entries.
    Total,
    /// Whatever limits the chunked files at one time is free again.
    ChunkedSlots,
    /// With `--fsync`, a file is on disk before it looks complete.
    SyncedFirst,
    /// With `--fsync`, everything is on disk at the end of a run that succeeds.
    SyncedLast,
    /// Nothing is deleted that the source has, that is protected, or that holds something.
    DeletesOnlyExtra,
    /// Nothing is deleted before the whole source has arrived, nor after a failure.
    DeletesLast,
    /// A run without failures deletes everything that only the destination has.
    DeletesAll,
    /// What was deleted is counted and printed once.
    DeletesOnce,
    /// A message is about something that exists.
    Message,
}

#[derive(Clone, Debug)]
pub(super) struct Broken {
    pub(super) rule: Rule,
    pub(super) how: String,
}

/// A run that has ended, seen from outside.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) status: i32,
    pub(super) out: Vec<String>,
    pub(super) err: Vec<String>,
    /// The total of the bar.
    pub(super) found: u64,
    /// By a signal, a full disk, or for want of workers.
    pub(super) was_stopped: bool,
    /// A worker could not be ended and still holds its item.
    pub(super) is_left_behind: bool,
    pub(super) free_chunked_slots: bool,
    /// How often what can pass was tried again.
    pub(super) retries: u32,
    /// The first parts of paths in messages.
    pub(super) roots: Vec<String>,
}

/// The tree and the destination of one run.
pub(super) struct World {
    pub(super) tree: Tree,
    pub(super) dirs: Vec<DestinationDir>,
    pub(super) names: BTreeMap<(usize, Vec<u8>), u64>,
    pub(super) inodes: HashMap<u64, Inode>,
    /// What only the destination has.
    pub(super) extras: Extras,
    last_inode: u64,
    clock: u64,
    /// The run has `--fsync`.
    pub(super) is_durable: bool,
    /// When everything was synced last.
    synced: u64,
    /// A sync has failed, or may have.
    pub(super) has_sync_failed: bool,
    claims: Vec<Claim>,
    /// How often entries and directories have failed for a reason that passes.
    passed: HashMap<(usize, Vec<u8>), u32>,
    /// How many workers died at an entry or directory.
    pub(super) deaths: HashMap<(usize, Option<Vec<u8>>), u32>,
    /// Entries that failed since the destination was full.
    pub(super) full: HashSet<usize>,
    pub(super) commits: HashMap<usize, u32>,
    /// Entries that were reported and were not there when they were examined again.
    pub(super) missed: HashSet<usize>,
    /// Some worker was lost.
    pub(super) has_losses: bool,
    /// All workers of a host were.
    pub(super) has_lost_host: bool,
    pub(super) broken: Vec<Broken>,
    /// A real directory in which the scheduler itself removes what is incomplete.
    mirror: Option<PathBuf>,
    mirrored: BTreeSet<(usize, Vec<u8>)>,
    is_traced: bool,
}

impl World {
    pub(super) fn new(tree: Tree, is_durable: bool) -> Self {
        let dir = |dir: &Dir| DestinationDir {
            exists: dir.existed || dir.parent.is_none(),
            is_new: !dir.existed,
            ..DestinationDir::default()
        };
        let mut world = Self {
            dirs: tree.dirs.iter().map(dir).collect(),
            tree,
            names: BTreeMap::new(),
            inodes: HashMap::new(),
            extras: Extras::default(),
            last_inode: 0,
            clock: 0,
            is_durable,
            synced: 0,
            has_sync_failed: false,
            claims: Vec::new(),
            passed: HashMap::new(),
            deaths: HashMap::new(),
            full: HashSet::new(),
            commits: HashMap::new(),
            missed: HashSet::new(),
            has_losses: false,
            has_lost_host: false,
            broken: Vec::new(),
            mirror: None,
            mirrored: BTreeSet::new(),
            is_traced: std::env::var_os("PCOPY_SIM_TRACE").is_some(),
        };
        let mut of_group: HashMap<u64, u64> = HashMap::new();
        for entry in 0..world.tree.entries.len() {
            let source = world.tree.source(entry);
            let Entry { dir, before, .. } = world.tree.entries[entry];
            let name = world.tree.entries[entry].name.clone();
            let inode = match before {
                Before::Missing => continue,
                Before::Same if of_group.contains_key(&source) => of_group[&source],
                Before::Same | Before::Differs => {
                    let is_same = before == Before::Same;
                    world.last_inode += 1;
                    let inode = Inode {
                        source: Some(source).filter(|_| is_same),
                        is_complete: is_same,
                        ..Inode::default()
                    };
                    world.inodes.insert(world.last_inode, inode);
                    if is_same {
                        of_group.insert(source, world.last_inode);
                    }
                    world.last_inode
                }
            };
            world.names.insert((dir, name), inode);
        }
        world
    }

    pub(super) fn broke(&mut self, rule: Rule, how: impl Into<String>) {
        let how = how.into();
        self.broken.push(Broken { rule, how });
    }

    /// Prints what happens, if PCOPY_SIM_TRACE is set.
    pub(super) fn trace(&self, what: impl FnOnce() -> String) {
        if self.is_traced {
            println!("  {}", what());
        }
    }

    fn trace_name(&self, what: &str, dir: usize, name: &[u8]) {
        self.trace(|| {
            let dir_path = self.tree.dirs.get(dir).map_or(&b""[..], |it| &it.path);
            let path = join(dir_path, name);
            let inode = self.existing(dir, name);
            format!("{what} {} {inode:?}", path.escape_ascii())
        });
    }

    // What the system does.

    /// Makes a directory. Returns false if it exists.
    pub(super) fn make_dir(&mut self, dir: usize) -> bool {
        if self.dirs[dir].exists || self.extras.get(&self.tree.dirs[dir].path).is_some() {
            return false;
        }
        self.dirs[dir].exists = true;
        if let Some(parent) = self.tree.dirs[dir].parent {
            self.touch(parent);
        }
        true
    }

    pub(super) fn touch(&mut self, dir: usize) {
        self.clock += 1;
        self.dirs[dir].changed = self.clock;
    }

    /// Returns the inode that has a name.
    pub(super) fn existing(&self, dir: usize, name: &[u8]) -> Option<u64> {
        self.names.get(&(dir, name.to_vec())).copied()
    }

    /// Returns true if an inode is a complete copy of an entry.
    pub(super) fn is_copy(&self, inode: u64, entry: usize) -> bool {
        let inode = &self.inodes[&inode];
        inode.is_complete && inode.source == Some(self.tree.source(entry))
    }

    /// Returns true if an inode is as large as an entry.
    pub(super) fn has_size_of(&self, inode: u64, entry: usize) -> bool {
        // An older file that differs has other contents.
        self.is_copy(inode, entry) || self.inodes[&inode].source.is_none()
    }

    /// Creates an incomplete file. Returns none if the name is taken (EEXIST).
    pub(super) fn create(&mut self, dir: usize, name: &[u8], entry: usize) -> Option<u64> {
        if self.existing(dir, name).is_some() {
            return None;
        }
        self.last_inode += 1;
        let inode = Inode {
            source: Some(self.tree.source(entry)),
            ..Inode::default()
        };
        self.inodes.insert(self.last_inode, inode);
        self.names.insert((dir, name.to_vec()), self.last_inode);
        self.touch(dir);
        self.mirror_create(dir, name);
        self.trace_name("create", dir, name);
        Some(self.last_inode)
    }

    pub(super) fn write_chunk(&mut self, inode: u64, offset: u64) {
        let inode = self.inodes.get_mut(&inode).unwrap();
        inode.chunks.insert(offset);
        inode.is_synced = false;
    }

    /// Writes all of a file.
    pub(super) fn write_all(&mut self, inode: u64, entry: usize) {
        for offset in (0..self.tree.size(entry)).step_by(CHUNK as usize) {
            self.write_chunk(inode, offset);
        }
    }

    /// Sets a file's metadata: it is complete now, if all was written.
    pub(super) fn complete(&mut self, inode: u64, entry: usize) {
        let size = self.tree.size(entry);
        let inode = self.inodes.get_mut(&inode).unwrap();
        if inode.is_complete {
            // A commit is done again if its report was lost.
            return;
        }
        let is_unsafe = self.is_durable && !inode.is_synced;
        inode.is_complete = inode.chunks.len() as u64 == size.div_ceil(CHUNK);
        *self.commits.entry(entry).or_default() += 1;
        self.clock += 1;
        self.trace(|| format!("complete {}", self.tree.entries[entry].name.escape_ascii()));
        if is_unsafe {
            let name = self.tree.entries[entry].name.escape_ascii().to_string();
            self.broke(Rule::SyncedFirst, name);
        }
    }

    /// Writes one file to disk.
    pub(super) fn sync_one(&mut self, inode: u64) {
        self.inodes.get_mut(&inode).unwrap().is_synced = true;
    }

    /// Writes everything to disk.
    pub(super) fn sync(&mut self) {
        for inode in self.inodes.values_mut() {
            inode.is_synced = true;
        }
        self.clock += 1;
        self.synced = self.clock;
        self.trace(|| "sync".to_owned());
    }

    /// Returns true if something was changed after the last sync.
    pub(super) fn is_unsynced(&self) -> bool {
        self.is_durable && self.clock > self.synced
    }

    pub(super) fn rename(&mut self, dir: usize, from: &[u8], to: &[u8]) {
        let dir_number = dir;
        let inode = self.names.remove(&(dir, from.to_vec()));
        self.names
            .insert((dir, to.to_vec()), inode.expect("renamed"));
        self.trace_name("rename", dir, to);
        self.touch(dir);
        if let Some(mirror) = &self.mirror {
            let dir = mirror.join(text(&self.tree.dirs[dir].path));
            let _ = std::fs::rename(dir.join(text(from)), dir.join(text(to)));
            self.mirrored.insert((dir_number, to.to_vec()));
        }
    }

    /// Makes a hard link. Returns false if the name is taken.
    pub(super) fn link(&mut self, inode: u64, dir: usize, name: &[u8]) -> bool {
        if self.existing(dir, name).is_some() {
            return false;
        }
        self.names.insert((dir, name.to_vec()), inode);
        self.touch(dir);
        self.mirror_create(dir, name);
        self.trace_name("link", dir, name);
        true
    }

    pub(super) fn remove(&mut self, dir: usize, name: &[u8]) {
        self.trace_name("remove", dir, name);
        if self.names.remove(&(dir, name.to_vec())).is_some() {
            self.touch(dir);
            if let Some(path) = self.mirror_path(dir, name) {
                let _ = std::fs::remove_file(path);
            }
        }
    }

    /// Removes the temporary files of these workers, except some.
    pub(super) fn remove_temps(&mut self, dir: usize, workers: &Range<u64>, keep: &[Name]) {
        let is_theirs = |name: &[u8]| {
            let worker = name.split(|&b| b == b'.').nth(3);
            let worker = worker.and_then(|text| std::str::from_utf8(text).ok()?.parse().ok());
            name.starts_with(TEMPORARY)
                && worker.is_some_and(|worker| workers.contains(&worker))
                && !keep.iter().any(|kept| kept.as_bytes() == name)
        };
        let names = self
            .names
            .keys()
            .filter(|(of, name)| *of == dir && is_theirs(name));
        let names: Vec<Vec<u8>> = names.map(|(_, name)| name.clone()).collect();
        for name in names {
            self.remove(dir, &name);
        }
    }

    /// Examines an entry again that was reported, and copies it if it is not there.
    pub(super) fn recheck(&mut self, dir: usize, name: &[u8], entry: usize) {
        if self
            .existing(dir, name)
            .is_some_and(|inode| self.is_copy(inode, entry))
        {
            return;
        }
        self.missed.insert(entry);
        self.remove(dir, name);
        if let Some(inode) = self.create(dir, name, entry) {
            self.write_all(inode, entry);
            self.sync_one(inode);
            self.complete(inode, entry);
        }
    }

    /// Applies a directory's metadata.
    pub(super) fn finish_dir(&mut self, dir: usize) {
        self.clock += 1;
        self.trace_name("finish", dir, b"");
        self.dirs[dir].finished = Some(self.clock);
    }

    // What the simulation tells.

    /// Notes that a worker begins an item. Breaks a rule if another worker has it.
    pub(super) fn claim(
        &mut self,
        worker: usize,
        dir: usize,
        name: Option<&[u8]>,
        chunk: Option<u64>,
    ) {
        let claim = Claim {
            worker,
            dir,
            name: name.map(<[u8]>::to_vec),
            chunk,
        };
        let collides = |other: &&Claim| {
            other.worker != worker
                && (other.dir, &other.name) == (dir, &claim.name)
                && (chunk.is_none() || other.chunk.is_none() || chunk == other.chunk)
        };
        if let Some(other) = self.claims.iter().find(collides) {
            let how = format!("{other:?} and {claim:?}");
            self.broke(Rule::OneWorkerAName, how);
        }
        self.trace(|| format!("{claim:?}"));
        self.claims.push(claim);
    }

    /// Notes that a worker has ended the item with this name.
    pub(super) fn release(&mut self, worker: usize, name: Option<&[u8]>) {
        self.claims
            .retain(|claim| !(claim.worker == worker && claim.name.as_deref() == name));
    }

    /// Notes that a worker is lost.
    pub(super) fn lose(&mut self, worker: usize) {
        self.has_losses = true;
        self.claims.retain(|claim| claim.worker != worker);
    }

    /// Notes that a worker died at an entry, or at the directory itself.
    pub(super) fn died_at(&mut self, dir: usize, name: Option<&[u8]>) {
        self.trace_name("died at", dir, name.unwrap_or(b""));
        let place = (dir, name.map(<[u8]>::to_vec));
        *self.deaths.entry(place).or_default() += 1;
    }

    /// Returns true if an entry, or the directory itself, fails this time.
    pub(super) fn fails_for_now(&mut self, dir: usize, name: &[u8]) -> bool {
        let times = if name.is_empty() {
            self.tree.dirs[dir].passes
        } else {
            match self.tree.entries[self.tree.entry(dir, name)].trouble {
                Trouble::Passes(times) => times,
                _ => 0,
            }
        };
        let passed = self.passed.entry((dir, name.to_vec())).or_default();
        *passed += 1;
        *passed <= times
    }

    pub(super) fn failed_for_space(&mut self, entry: usize) {
        self.full.insert(entry);
    }

    // The scheduler's own removals.

    /// Makes what is incomplete real, below a directory from which the scheduler may remove it.
    pub(super) fn begin_mirror(&mut self, destination: PathBuf) {
        if self.mirror.is_some() {
            return;
        }
        self.mirror = Some(destination);
        let incomplete = |(name, inode): (&(usize, Vec<u8>), &u64)| {
            let is_temporary = name.1.starts_with(TEMPORARY);
            (is_temporary || !self.inodes[inode].is_complete).then(|| name.clone())
        };
        let names: Vec<_> = self.names.iter().filter_map(incomplete).collect();
        for (dir, name) in names {
            self.mirror_create(dir, &name);
        }
    }

    fn mirror_path(&self, dir: usize, name: &[u8]) -> Option<PathBuf> {
        let dir = text(&self.tree.dirs[dir].path);
        Some(self.mirror.as_ref()?.join(dir).join(text(name)))
    }

    fn mirror_create(&mut self, dir: usize, name: &[u8]) {
        if let Some(path) = self.mirror_path(dir, name) {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
            self.mirrored.insert((dir, name.to_vec()));
        }
    }
}

impl World {
    /// Takes over what the scheduler has removed.
    pub(super) fn end_mirror(&mut self) {
        for (dir, name) in std::mem::take(&mut self.mirrored) {
            if self
                .mirror_path(dir, &name)
                .is_some_and(|path| !path.exists())
            {
                self.names.remove(&(dir, name));
            }
        }
    }
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}
