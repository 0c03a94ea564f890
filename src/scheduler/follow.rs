//! What follows from a report: folders are finished, hard links made, large files sealed.

use std::collections::HashMap;

use super::{Dealt, LargeFile, Part, Scheduler, Todo};
use crate::fs::path::{Name, Names};
use crate::fs::stat::FileId;
use crate::protocol::entry::{ChunkedFile, HardLinks};
use crate::protocol::{HardLink, JobId, JobKind};
use crate::scheduler::hard_links::{Decision, Link, Target};
use crate::scheduler::tree::FolderId;

impl Scheduler {
    pub(super) fn job_ended(&mut self, mut dealt: Dealt) {
        if !self.deaths.is_empty() {
            // A folder that could be worked on is not what its workers died of.
            self.deaths.remove(&(dealt.folder, None, 0));
        }
        self.firsts_failed(&mut dealt);
        for (name, inode) in &dealt.firsts {
            self.first_copied(dealt.folder, name, *inode);
        }
        match &dealt.job.task {
            JobKind::Directory { .. } => self.tree.listed(dealt.folder),
            JobKind::Chunk { large, .. } => {
                if dealt.folder_failed {
                    self.large_failed(dealt.folder, large);
                }
                self.piece_done(dealt.folder, large);
            }
            JobKind::Commit { large, .. } | JobKind::Discard { large } => {
                let key = (dealt.folder, large.name.clone());
                let sealed = matches!(dealt.job.task, JobKind::Commit { .. });
                let copied = sealed && dealt.failed.is_empty() && !dealt.folder_failed;
                let file = self.large.remove(&key);
                if file.is_some() {
                    self.context.board.end_chunked();
                }
                match file.and_then(|file| file.first) {
                    Some(inode) if copied => {
                        self.first_copied(dealt.folder, &large.name, inode);
                    }
                    Some(inode) => self.first_failed(inode),
                    None => {}
                }
            }
            _ => {}
        }
        self.release(dealt.folder, dealt.weight);
    }

    /// Some parts of a folder are back.
    fn release(&mut self, folder: FolderId, parts: usize) {
        let mut next = Some((folder, parts));
        while let Some((folder, parts)) = next.take() {
            let mut last = false;
            for _ in 0..parts {
                last = self.tree.part_done(folder);
            }
            if self.tree.waits_for(folder, 1)
                && let Some(part) = self.parked.remove(&folder)
            {
                self.push_part(part);
            }
            if !last {
                return;
            }
            let open = self.tree.get_mut(folder);
            let fresh = open.fresh;
            if let Some(stamp) = open.unfinished.take() {
                self.tree.add_parts(folder, 1);
                let task = JobKind::FinishDirectory {
                    stamp: *stamp,
                    fresh,
                };
                self.push(folder, task, 1);
            } else {
                next = self.tree.close(folder).map(|above| (above, 1));
            }
        }
    }

    pub(super) fn hard_links(&mut self, folder: FolderId, links: Vec<HardLink>) {
        let mut copies = Names::default();
        let mut firsts = Vec::new();
        let mut linked: Vec<(Target, Names)> = Vec::new();
        for hard_link in links {
            let Some((kind, name)) = hard_link.names.iter().next() else {
                continue;
            };
            self.tree.add_parts(folder, 1);
            let link = Link {
                folder,
                kind,
                name: Name::new(name.to_bytes()),
            };
            match self.links.found(hard_link.inode, hard_link.count, &link) {
                Decision::Copy => {
                    copies.push(kind, name.to_bytes());
                    firsts.push((link.name, hard_link.inode));
                }
                Decision::LinkTo(target) => linked.push((target, hard_link.names)),
                Decision::Wait => {}
            }
        }
        for (target, names) in linked {
            self.push_link(folder, target, names);
        }
        if !copies.is_empty() {
            self.push_firsts(folder, copies, firsts);
        }
    }

    fn push_firsts(&mut self, folder: FolderId, names: Names, firsts: Vec<(Name, FileId)>) {
        let weight = names.len();
        let task = JobKind::Entries {
            names,
            fresh: self.tree.get(folder).fresh,
            hard_links: HardLinks::Copy,
        };
        self.push_part(Part {
            firsts,
            ..Part::new(folder, task, weight)
        });
    }

    fn push_link(&mut self, folder: FolderId, target: Target, names: Names) {
        let weight = names.len();
        let task = JobKind::HardLinks {
            names,
            fresh: self.tree.get(folder).fresh,
            to_root: target.root,
            to_folder: target.folder,
            to_name: target.name,
        };
        self.push(folder, task, weight);
    }

    /// Of the hard links that this job was to copy as the first of their groups, those that could
    /// not be copied leave it to the next ones.
    pub(super) fn firsts_failed(&mut self, dealt: &mut Dealt) {
        let (all, failed) = (dealt.folder_failed, &dealt.failed);
        let of = |(name, _): &mut (Name, FileId)| all || failed.contains(name);
        let failed: Vec<_> = dealt.firsts.extract_if(.., of).collect();
        for (_, inode) in failed {
            self.first_failed(inode);
        }
    }

    fn first_failed(&mut self, inode: FileId) {
        if let Some(next) = self.links.failed(inode) {
            let names = Names::one(next.kind, next.name.as_bytes());
            self.push_firsts(next.folder, names, vec![(next.name, inode)]);
        }
    }

    /// The others of the group become links to it.
    fn first_copied(&mut self, folder: FolderId, name: &Name, inode: FileId) {
        let open = self.tree.get(folder);
        let target = Target {
            root: open.root,
            folder: open.path.clone(),
            name: name.clone(),
        };
        let mut waiting: HashMap<FolderId, Names> = HashMap::new();
        for link in self.links.copied(inode, target.clone()) {
            let names = waiting.entry(link.folder).or_default();
            names.push(link.kind, link.name.as_bytes());
        }
        for (folder, names) in waiting {
            self.push_link(folder, target.clone(), names);
        }
    }

    pub(super) fn begin_large(&mut self, folder: FolderId, job: JobId, large: ChunkedFile) {
        let mut rest = large.chunks();
        rest.reverse();
        self.tree.add_parts(folder, 1);
        // It is the file that says now whether it is copied, not the job.
        let first = self.dealt.get_mut(&job).and_then(|dealt| {
            let at = dealt
                .firsts
                .iter()
                .position(|(name, _)| *name == large.name)?;
            Some(dealt.firsts.swap_remove(at).1)
        });
        let file = LargeFile {
            large: large.clone(),
            pieces: rest.len(),
            changed: false,
            failed: false,
            first,
        };
        self.large.insert((folder, large.name.clone()), file);
        self.todo_size += rest.len();
        self.todo.push(Todo::Pieces {
            folder,
            large,
            rest,
        });
    }

    /// A large file cannot be had; what is not dealt of it need not be. False where that was known
    /// already.
    pub(super) fn large_failed(&mut self, folder: FolderId, large: &ChunkedFile) -> bool {
        let Some(file) = self.large.get_mut(&(folder, large.name.clone())) else {
            return false;
        };
        if std::mem::replace(&mut file.failed, true) {
            return false;
        }
        let of_it = |todo: &Todo| matches!(todo, Todo::Pieces { folder: of, large: it, .. } if *of == folder && it.name == large.name);
        let at = self.todo.iter().position(of_it);
        if let Some(Todo::Pieces { rest, .. }) = at.map(|at| self.todo.remove(at)) {
            self.todo_size = self.todo_size.saturating_sub(rest.len());
            file.pieces -= rest.len();
        }
        true
    }

    fn piece_done(&mut self, folder: FolderId, large: &ChunkedFile) {
        let Some(file) = self.large.get_mut(&(folder, large.name.clone())) else {
            return;
        };
        file.pieces -= 1;
        if file.pieces > 0 {
            return;
        }
        let large = large.clone();
        let task = if file.failed {
            JobKind::Discard { large }
        } else {
            JobKind::Commit {
                large,
                changed: file.changed,
            }
        };
        self.push(folder, task, 1);
    }
}
