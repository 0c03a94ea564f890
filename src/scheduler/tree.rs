//! The folders that are being worked on: which parts of each are still out, and what is to be
//! done when the last one is back. A folder is forgotten once it is finished, so memory follows
//! what is open, not the size of the tree.

use std::collections::HashMap;

use crate::fs::path::{Name, RelPath};
use crate::fs::stat::{DirIds, FileStat};

/// A folder's number.
pub(crate) type FolderId = u64;

/// A folder that is being worked on.
#[derive(Debug)]
pub(crate) struct OpenFolder {
    /// The folder above; none for a root.
    pub(crate) parent: Option<FolderId>,
    /// Which root it is below.
    pub(crate) root: u32,
    /// Its path there.
    pub(crate) path: RelPath,
    /// This run has made it at the destination.
    pub(crate) fresh: bool,
    /// The folders above, and this one once it has told of subfolders.
    pub(crate) above: Vec<DirIds>,
    /// Set when it is to be finished once all parts are back.
    pub(crate) unfinished: Option<Box<FileStat>>,
    /// Entries to leave out, should it be listed again: they failed, or others have them.
    pub(crate) left_out: Vec<Name>,
    /// It has been listed to its end, so nothing needs to be remembered for that.
    is_listed: bool,
    /// Parts that are out: its own job, subfolders, batches, links, large files.
    parts: u64,
}

/// All open folders.
#[derive(Debug, Default)]
pub(crate) struct Tree {
    folders: HashMap<FolderId, OpenFolder>,
    last: FolderId,
}

impl Tree {
    /// Opens a root folder with one part out.
    pub(crate) fn open_root(&mut self, root: u32, fresh: bool) -> FolderId {
        self.insert(OpenFolder {
            parent: None,
            root,
            path: RelPath::default(),
            fresh,
            above: Vec::new(),
            unfinished: None,
            left_out: Vec::new(),
            is_listed: false,
            parts: 1,
        })
    }

    /// Opens a subfolder with one part out. The subfolder itself was a part of its parent
    /// already.
    pub(crate) fn open_below(&mut self, parent: FolderId, name: &[u8], fresh: bool) -> FolderId {
        let above = self.get(parent);
        let folder = OpenFolder {
            parent: Some(parent),
            root: above.root,
            path: above.path.join(name),
            fresh,
            above: above.above.clone(),
            unfinished: None,
            left_out: Vec::new(),
            is_listed: false,
            parts: 1,
        };
        self.insert(folder)
    }

    fn insert(&mut self, folder: OpenFolder) -> FolderId {
        self.last += 1;
        self.folders.insert(self.last, folder);
        self.last
    }

    /// An open folder.
    ///
    /// # Panics
    /// When it is not open: a part of it is out, so it must be.
    pub(crate) fn get(&self, id: FolderId) -> &OpenFolder {
        &self.folders[&id]
    }

    /// An open folder.
    ///
    /// # Panics
    /// As [`Tree::get`].
    pub(crate) fn get_mut(&mut self, id: FolderId) -> &mut OpenFolder {
        self.folders.get_mut(&id).expect("an open folder")
    }

    /// Entries of a folder are not to be looked at again, should it be listed again.
    pub(crate) fn leave_out(&mut self, id: FolderId, names: impl IntoIterator<Item = Name>) {
        let folder = self.get_mut(id);
        if !folder.is_listed {
            folder.left_out.extend(names);
        }
    }

    /// A folder has been listed to its end.
    pub(crate) fn listed(&mut self, id: FolderId) {
        let folder = self.get_mut(id);
        folder.is_listed = true;
        folder.left_out = Vec::new();
    }

    /// More parts of a folder are out.
    pub(crate) fn add_parts(&mut self, id: FolderId, parts: usize) {
        self.get_mut(id).parts += parts as u64;
    }

    /// A part is back. True when it was the last one.
    pub(crate) fn part_done(&mut self, id: FolderId) -> bool {
        let folder = self.get_mut(id);
        debug_assert!(folder.parts > 0, "a part too many of {:?}", folder.path);
        folder.parts -= 1;
        folder.parts == 0
    }

    /// True when nothing but the given number of parts is out.
    pub(crate) fn waits_for(&self, id: FolderId, parts: u64) -> bool {
        self.get(id).parts == parts
    }

    /// Forgets a folder, and gives the one above.
    pub(crate) fn close(&mut self, id: FolderId) -> Option<FolderId> {
        self.folders.remove(&id).and_then(|folder| folder.parent)
    }

    /// The folders that are open, the deepest first.
    pub(crate) fn open(&self) -> Vec<FolderId> {
        let mut open: Vec<FolderId> = self.folders.keys().copied().collect();
        open.sort_unstable_by_key(|id| std::cmp::Reverse(self.get(*id).path.as_bytes().len()));
        open
    }

    /// True when everything is finished.
    pub(crate) fn is_empty(&self) -> bool {
        self.folders.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_ends_with_its_last_part() {
        let mut tree = Tree::default();
        let root = tree.open_root(0, true);
        tree.add_parts(root, 1);
        assert!(!tree.part_done(root));
        let below = tree.open_below(root, b"a", true);
        assert_eq!(tree.get(below).path.as_bytes(), b"a");
        assert!(tree.part_done(below));
        assert_eq!(tree.close(below), Some(root));
        assert!(tree.part_done(root));
        assert_eq!(tree.close(root), None);
        assert!(tree.is_empty());
    }
}
