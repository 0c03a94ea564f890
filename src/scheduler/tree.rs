//! The directories and chunked files in progress.
//!
//! **A node completes when nothing of it is pending.** Each node counts its pending items: jobs,
//! child nodes, and hard links that wait for their leader. Code that adds work adds to the counter
//! in the same step, and completes each item once. At zero, one more job applies a directory's
//! metadata, or commits or discards a chunked file. Then the node is removed, and its parent has
//! one pending item less. So every node is removed in the end, children before their parent, and a
//! directory's metadata comes last.
//!
//! A node exists only while it is in progress, so memory does not grow with the tree.

use std::collections::HashSet;
use std::sync::Arc;

use slab::Slab;

use super::extraneous::{Deletion, Found};
use crate::fs::path::{Name, Names, RelPath};
use crate::fs::stat::{DirIds, FileId, FileStat};
use crate::protocol::entry::{ChunkedFile, DirOrigin};
use crate::protocol::error::CopyError;
use crate::protocol::{JobKind, Resume};

pub(super) type NodeKey = usize;

/// A directory or a chunked file in progress.
struct Node {
    /// The directory above; `None` for the directory of a target.
    parent: Option<NodeKey>,
    pending: u64,
    /// Where workers have crashed once.
    strikes: Vec<CrashSite>,
    kind: NodeKind,
}

enum NodeKind {
    Directory(Directory),
    Chunked(Chunked),
}

pub(super) struct Directory {
    pub(super) target: u32,
    pub(super) path: RelPath,
    pub(super) origin: DirOrigin,
    pub(super) suspects: Vec<Suspect>,
    /// The directories above.
    pub(super) ancestors: Arc<[DirIds]>,
    /// Its own ids, once its listing has shown subdirectories.
    pub(super) ids: Option<DirIds>,
    pub(super) listing: ListingState,
    /// Set if the directory must be finished by a job once nothing is pending.
    pub(super) stat_to_finish: Option<Box<FileStat>>,
    /// Errors of the directory itself that were reported.
    errors: Vec<CopyError>,
    /// Set if entries of this directory must be deleted.
    deletion: Option<Box<Deletion>>,
}

/// State of a directory's listing.
pub(super) enum ListingState {
    /// Its job is queued or running.
    Running(ListingProgress),
    /// Its worker was lost. It is repeated when nothing else of the directory is pending, so that
    /// no entry is worked on twice at a time.
    Repeat(ListingProgress),
    /// It failed, and is repeated at the end of the run.
    Deferred(ListingProgress),
    Done,
}

/// An entry at which a worker crashed, and that was not examined since.
pub(super) struct Suspect {
    pub(super) name: Name,
    /// The worker was writing it under its own name, which was free before. If no worker copies it
    /// again, it must be removed.
    pub(super) is_incomplete: bool,
}

/// The reported progress of a listing.
#[derive(Default)]
pub(super) struct ListingProgress {
    /// Entries listed, in the order of the listing.
    pub(super) entries: u64,
    /// Of these, the ones that the lister copies itself and has not reported.
    pub(super) own: Names,
    /// Entries that other jobs have, or that failed.
    pub(super) handed_out: HashSet<Name>,
    pub(super) is_announced: bool,
}

/// A file that is being copied in chunks.
pub(super) struct Chunked {
    pub(super) file: ChunkedFile,
    /// The group of hard links that waits for it.
    pub(super) leads: Option<FileId>,
    /// A worker saw the source change.
    pub(super) has_changed: bool,
    pub(super) has_failed: bool,
    /// It is copied again at the end of the run.
    pub(super) is_deferred: bool,
    /// The job that commits or discards it is queued or running.
    has_last_job: bool,
}

/// Where a worker crashed. `position` is the chunk's offset, or for the directory itself the number
/// of entries done. It is 0 for any other entry.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct CrashSite {
    pub(super) entry: Option<Name>,
    pub(super) position: u64,
}

/// The next step when a pending item of a node completes.
pub(super) enum Next {
    /// More of it is pending.
    Wait,
    /// Its listing must be repeated.
    RepeatListing,
    /// This last job of the node is pending now.
    Finish(JobKind),
    /// It is complete and gone; its parent has one less pending.
    Closed(Option<NodeKey>),
}

/// All nodes in progress.
#[derive(Default)]
pub(super) struct Tree {
    nodes: Slab<Node>,
    /// The entries that complete directories leave to remove at the end of the run.
    pub(super) found: Vec<Found>,
}

impl Tree {
    /// Opens the directory of a target, with one job pending.
    pub(super) fn open_target(
        &mut self,
        target: u32,
        origin: DirOrigin,
        listing: ListingState,
    ) -> NodeKey {
        self.insert(
            None,
            1,
            NodeKind::Directory(Directory {
                target,
                path: RelPath::default(),
                origin,
                suspects: Vec::new(),
                ancestors: Arc::default(),
                ids: None,
                listing,
                stat_to_finish: None,
                errors: Vec::new(),
                deletion: None,
            }),
        )
    }

    /// Opens a subdirectory, with its listing pending. Its parent has counted it already.
    pub(super) fn open_subdir(
        &mut self,
        parent: NodeKey,
        name: &[u8],
        origin: DirOrigin,
    ) -> NodeKey {
        let above = self.dir(parent);
        let directory = Directory {
            target: above.target,
            path: above.path.join(name),
            origin,
            suspects: Vec::new(),
            ancestors: above.ancestors.iter().copied().chain(above.ids).collect(),
            ids: None,
            listing: ListingState::Running(ListingProgress::default()),
            stat_to_finish: None,
            errors: Vec::new(),
            deletion: None,
        };
        self.insert(Some(parent), 1, NodeKind::Directory(directory))
    }

    /// Opens a directory again that was complete, with so many jobs pending.
    pub(super) fn open_again(
        &mut self,
        target: u32,
        path: RelPath,
        jobs: usize,
        deletion: Deletion,
    ) -> NodeKey {
        let node = self.open_target(target, DirOrigin::default(), ListingState::Done);
        self.nodes[node].pending = jobs as u64;
        let directory = self.dir_mut(node);
        directory.path = path;
        directory.deletion = Some(Box::new(deletion));
        node
    }

    /// Opens a directory that only the destination has, to be removed. Its parent has counted it.
    pub(super) fn open_doomed(&mut self, parent: NodeKey, name: &[u8]) -> NodeKey {
        let node = self.open_subdir(parent, name, DirOrigin::default());
        let mut deletion = Deletion::default();
        deletion.doom(self.dir(parent).deletion.as_deref());
        self.dir_mut(node).deletion = Some(Box::new(deletion));
        node
    }

    /// Opens a chunked file with so many chunks pending, and counts it in its directory.
    pub(super) fn open_chunked(
        &mut self,
        parent: NodeKey,
        file: ChunkedFile,
        chunks: usize,
        leads: Option<FileId>,
    ) -> NodeKey {
        self.add_pending(parent, 1);
        let chunked = Chunked {
            file,
            leads,
            has_changed: false,
            has_failed: false,
            is_deferred: false,
            has_last_job: false,
        };
        self.insert(Some(parent), chunks as u64, NodeKind::Chunked(chunked))
    }

    fn insert(&mut self, parent: Option<NodeKey>, pending: u64, kind: NodeKind) -> NodeKey {
        self.nodes.insert(Node {
            parent,
            pending,
            strikes: Vec::new(),
            kind,
        })
    }

    /// Returns the key of a node's directory: the node itself, or its parent for a chunked file.
    pub(super) fn dir_key(&self, key: NodeKey) -> NodeKey {
        match (&self.nodes[key].kind, self.nodes[key].parent) {
            (NodeKind::Chunked(_), Some(parent)) => parent,
            _ => key,
        }
    }

    /// Returns the directory that a node is, or that a chunked file is in.
    pub(super) fn dir(&self, key: NodeKey) -> &Directory {
        match &self.nodes[self.dir_key(key)].kind {
            NodeKind::Directory(directory) => directory,
            NodeKind::Chunked(_) => unreachable!("a chunked file is in a directory"),
        }
    }

    pub(super) fn dir_mut(&mut self, key: NodeKey) -> &mut Directory {
        let key = self.dir_key(key);
        match &mut self.nodes[key].kind {
            NodeKind::Directory(directory) => directory,
            NodeKind::Chunked(_) => unreachable!("a chunked file is in a directory"),
        }
    }

    /// Returns the chunked file that a node is.
    pub(super) fn chunked_mut(&mut self, key: NodeKey) -> Option<&mut Chunked> {
        match &mut self.nodes[key].kind {
            NodeKind::Chunked(chunked) => Some(chunked),
            NodeKind::Directory(_) => None,
        }
    }

    /// Takes the group of hard links that waits for a chunked file.
    pub(super) fn take_lead(&mut self, key: NodeKey) -> Option<FileId> {
        self.chunked_mut(key)?.leads.take()
    }

    /// Returns all directories in progress.
    pub(super) fn directories(&self) -> impl Iterator<Item = &Directory> {
        self.nodes.iter().filter_map(|(_, node)| match &node.kind {
            NodeKind::Directory(directory) => Some(directory),
            NodeKind::Chunked(_) => None,
        })
    }

    /// Returns all chunked files, each with its directory.
    pub(super) fn chunked_files(&self) -> impl Iterator<Item = (&Directory, &Chunked)> {
        self.nodes
            .iter()
            .filter_map(|(key, node)| match &node.kind {
                NodeKind::Chunked(chunked) => Some((self.dir(key), chunked)),
                NodeKind::Directory(_) => None,
            })
    }

    /// Returns true while the listings of more directories than this have not been reported done.
    pub(super) fn has_more_listings_than(&self, most: usize) -> bool {
        let mut listings = self
            .directories()
            .filter(|directory| !matches!(directory.listing, ListingState::Done));
        listings.nth(most).is_some()
    }

    /// Adds pending items to a node.
    pub(super) fn add_pending(&mut self, key: NodeKey, count: usize) {
        self.nodes[key].pending += count as u64;
    }

    /// Returns true if a listing must be repeated and nothing else in its directory is pending.
    fn should_repeat(&self, key: NodeKey) -> bool {
        let node = &self.nodes[key];
        let NodeKind::Directory(directory) = &node.kind else {
            return false;
        };
        node.pending == 1 && matches!(directory.listing, ListingState::Repeat(_))
    }

    /// Repeats a listing as soon as nothing else of its directory is pending.
    pub(super) fn repeat_listing(&mut self, key: NodeKey, listed: ListingProgress) -> Next {
        let directory = self.dir_mut(key);
        directory.listing = ListingState::Repeat(listed);
        if let Some(deletion) = &mut directory.deletion {
            deletion.forget_extraneous();
        }
        if self.should_repeat(key) {
            Next::RepeatListing
        } else {
            Next::Wait
        }
    }

    /// Returns the job that lists a directory, of which that job is pending.
    pub(super) fn listing_job(&mut self, key: NodeKey) -> JobKind {
        let has_others = self.nodes[key].pending > 1;
        let mut job = self.dir_mut(key).listing_job();
        if let JobKind::Directory { resume, .. } = &mut job {
            resume.is_shared = has_others;
        }
        job
    }

    /// Returns the directories whose listings wait to be repeated.
    pub(super) fn repeats(&self) -> Vec<NodeKey> {
        let is_repeat = |(_, node): &(NodeKey, &Node)| match &node.kind {
            NodeKind::Directory(directory) => matches!(directory.listing, ListingState::Repeat(_)),
            NodeKind::Chunked(_) => false,
        };
        let repeats = self.nodes.iter().filter(is_repeat);
        repeats.map(|(key, _)| key).collect()
    }

    /// Completes one pending item of a node.
    pub(super) fn complete_one(&mut self, key: NodeKey) -> Next {
        self.nodes[key].pending -= 1;
        if self.should_repeat(key) {
            return Next::RepeatListing;
        }
        let node = &mut self.nodes[key];
        if node.pending > 0 {
            return Next::Wait;
        }
        let last = match &mut node.kind {
            NodeKind::Directory(directory) => directory.last_job(),
            NodeKind::Chunked(chunked) => chunked.last_job(),
        };
        if let Some(last) = last {
            node.pending = 1;
            return Next::Finish(last);
        }
        let node = self.nodes.remove(key);
        if let NodeKind::Directory(directory) = node.kind {
            self.note_deletion(directory, node.parent);
        }
        Next::Closed(node.parent)
    }

    /// Remembers the entries that a complete directory leaves to remove at the end of the run.
    fn note_deletion(&mut self, directory: Directory, parent: Option<NodeKey>) {
        let Some(deletion) = directory.deletion else {
            return;
        };
        if deletion.keeps_parent()
            && let Some(parent) = parent
        {
            self.dir_mut(parent).deletion().keep();
        }
        let found = deletion.into_found(directory.path, directory.ids);
        self.found.extend(found);
    }

    /// Notes a crash. Returns false if a worker has crashed at this site before.
    pub(super) fn add_strike(&mut self, key: NodeKey, site: CrashSite) -> bool {
        let strikes = &mut self.nodes[key].strikes;
        let is_first = !strikes.contains(&site);
        if is_first {
            strikes.push(site);
        }
        is_first
    }

    /// Forgets a crash at a directory that could be opened after all.
    pub(super) fn forgive(&mut self, key: NodeKey) {
        let is_open = CrashSite {
            entry: None,
            position: 0,
        };
        self.nodes[key].strikes.retain(|site| *site != is_open);
    }

    /// Returns true when everything is finished.
    pub(super) fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Takes the stats of all directories that still must be finished, the deepest first.
    pub(super) fn take_unfinished(&mut self) -> Vec<(NodeKey, FileStat)> {
        let mut unfinished = Vec::new();
        for (key, node) in &mut self.nodes {
            if let NodeKind::Directory(directory) = &mut node.kind
                && let Some(stat) = directory.stat_to_finish.take()
            {
                unfinished.push((directory.path.as_bytes().len(), key, *stat));
            }
        }
        unfinished.sort_unstable_by_key(|&(length, key, _)| (std::cmp::Reverse(length), key));
        unfinished
            .into_iter()
            .map(|(_, key, stat)| (key, stat))
            .collect()
    }
}

impl Directory {
    /// Returns the state of deletion in this directory.
    pub(super) fn deletion(&mut self) -> &mut Deletion {
        self.deletion.get_or_insert_default()
    }

    /// Returns true if only the destination has it, and it must be removed.
    pub(super) fn is_doomed(&self) -> bool {
        self.deletion.as_ref().is_some_and(|it| it.is_doomed())
    }

    /// Returns the next job if nothing of the directory is pending.
    fn last_job(&mut self) -> Option<JobKind> {
        let last = self.deletion.as_mut().and_then(|it| it.last_job());
        let finish = || {
            let stat = self.stat_to_finish.take();
            stat.map(|stat| JobKind::FinishDirectory { stat: *stat })
        };
        last.or_else(finish)
    }

    /// Returns the job that lists this directory, or lists it again.
    pub(super) fn listing_job(&mut self) -> JobKind {
        if self.is_doomed() {
            self.listing = ListingState::Done;
            return JobKind::EmptyDirectory;
        }
        let listed = match std::mem::replace(&mut self.listing, ListingState::Done) {
            ListingState::Running(listed)
            | ListingState::Repeat(listed)
            | ListingState::Deferred(listed) => listed,
            ListingState::Done => ListingProgress::default(),
        };
        let resume = Resume {
            reported: listed.entries,
            skip: listed.handed_out.clone(),
            is_announced: listed.is_announced,
            is_shared: false,
        };
        self.listing = ListingState::Running(listed);
        JobKind::Directory {
            ancestors: Arc::clone(&self.ancestors),
            resume,
        }
    }

    /// Remembers that other jobs have these entries, or that they failed, for as long as the
    /// directory may be listed again.
    pub(super) fn hand_out(&mut self, names: impl IntoIterator<Item = Name>) {
        if let ListingState::Running(listed)
        | ListingState::Repeat(listed)
        | ListingState::Deferred(listed) = &mut self.listing
        {
            listed.handed_out.extend(names);
        }
    }

    /// Notes that a worker crashed at an entry.
    pub(super) fn add_suspect(&mut self, suspect: Suspect) {
        match self.suspects.iter_mut().find(|it| it.name == suspect.name) {
            Some(known) => known.is_incomplete |= suspect.is_incomplete,
            None => self.suspects.push(suspect),
        }
    }

    /// Takes out a suspect that was examined, or is given up.
    pub(super) fn take_suspect(&mut self, name: &Name) -> Option<Suspect> {
        let at = self
            .suspects
            .iter()
            .position(|suspect| suspect.name == *name)?;
        Some(self.suspects.swap_remove(at))
    }

    /// Returns the entries that the lister copies itself and has not reported.
    pub(super) fn own_entries(&self) -> Names {
        match &self.listing {
            ListingState::Running(listed) | ListingState::Repeat(listed) => listed.own.clone(),
            ListingState::Deferred(_) | ListingState::Done => Names::default(),
        }
    }

    /// Notes an error of the directory itself. Returns false if it was reported before: several
    /// jobs open the same directory.
    pub(super) fn add_error(&mut self, error: CopyError) -> bool {
        let is_new = !self.errors.contains(&error);
        if is_new {
            self.errors.push(error);
        }
        is_new
    }
}

impl Chunked {
    /// Returns the last job of the file, once.
    fn last_job(&mut self) -> Option<JobKind> {
        if std::mem::replace(&mut self.has_last_job, true) {
            return None;
        }
        let file = self.file.clone();
        Some(if self.has_failed {
            JobKind::Discard { file }
        } else {
            JobKind::Commit {
                file,
                changed: self.has_changed,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open() -> (Tree, NodeKey) {
        let mut tree = Tree::default();
        let listing = ListingState::Running(ListingProgress::default());
        let root = tree.open_target(0, DirOrigin::default(), listing);
        (tree, root)
    }

    #[test]
    fn a_parent_is_closed_after_its_children() {
        let (mut tree, root) = open();
        tree.add_pending(root, 1);
        assert!(matches!(tree.complete_one(root), Next::Wait));
        let below = tree.open_subdir(root, b"a", DirOrigin::default());
        assert_eq!(tree.dir(below).path.as_bytes(), b"a");
        assert!(matches!(tree.complete_one(below), Next::Closed(Some(parent)) if parent == root));
        assert!(matches!(tree.complete_one(root), Next::Closed(None)));
        assert!(tree.is_empty());
    }

    #[test]
    fn a_listing_is_repeated_when_nothing_else_is_pending() {
        let (mut tree, root) = open();
        tree.add_pending(root, 1);
        let next = tree.repeat_listing(root, ListingProgress::default());
        assert!(matches!(next, Next::Wait));
        assert!(matches!(tree.complete_one(root), Next::RepeatListing));
        let job = tree.dir_mut(root).listing_job();
        assert!(matches!(job, JobKind::Directory { .. }));
    }

    #[test]
    fn a_repeated_listing_forgets_what_it_has_found() {
        let (mut tree, root) = open();
        let found = &mut tree.dir_mut(root).deletion().extraneous;
        found.push(crate::fs::path::Kind::File, b"old");
        tree.repeat_listing(root, ListingProgress::default());
        assert!(tree.dir_mut(root).deletion().extraneous.is_empty());
    }

    #[test]
    fn a_chunked_file_is_committed_when_its_chunks_are_there() {
        let (mut tree, root) = open();
        let file = ChunkedFile::sample("film", 64 << 20, 64 << 20);
        let node = tree.open_chunked(root, file, 2, None);
        assert!(matches!(tree.complete_one(node), Next::Wait));
        let next = tree.complete_one(node);
        assert!(matches!(
            next,
            Next::Finish(JobKind::Commit { changed: false, .. })
        ));
        assert!(matches!(tree.complete_one(node), Next::Closed(Some(parent)) if parent == root));
    }

    #[test]
    fn an_error_of_a_directory_is_new_once() {
        use crate::protocol::error::{Reason, Step};
        let (mut tree, root) = open();
        let error = CopyError::new(Step::OpenDirectory, Reason::System(2));
        assert!(tree.dir_mut(root).add_error(error));
        assert!(!tree.dir_mut(root).add_error(error));
    }
}
