//! What a simulated worker does with one entry: `copy::Copier`, in steps.

use std::sync::Arc;

use super::env::Env;
use super::tree::{Sort, Trouble};
use super::worker::{
    EACCES, EEXIST, EIO, ENOENT, ENOSPC, ETIMEDOUT, Outcome, State, Worker, Writing, stat,
};
use crate::copy::temp;
use crate::fs::path::Name;
use crate::fs::stat::{FileId, FileStat};
use crate::protocol::entry::{ChunkedFile, Decision, HardLinks};
use crate::protocol::error::{CopyError, Death, Reason, Step};
use crate::protocol::unsynced::Unsynced;
use crate::protocol::{JobKind, Line};
use crate::scoreboard::WriteTarget;

/// How an entry is copied.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Copying {
    First,
    /// A comparison in chunks has found a difference.
    Different,
    /// The existing file was replaced during its comparison.
    Undivided,
}

impl Worker {
    pub(super) fn pick(&mut self, env: &mut Env) -> State {
        let job = Arc::clone(&self.current().job);
        let is_listing = matches!(job.kind, JobKind::Directory { .. });
        if self.current().left == 0 || env.is_stopping() {
            self.update.is_cut |= self.current().left > 0;
            if is_listing {
                let current = self.current();
                current.names.clear();
                current.left = 0;
                self.slot.begin_dir();
                return State::List;
            }
            return State::EndJob;
        }
        let may_share = match &job.kind {
            JobKind::HardLinks { .. } | JobKind::CommitSynced { .. } => false,
            JobKind::Entries { hard_links, .. } => *hard_links == HardLinks::Report,
            _ => true,
        };
        if may_share && self.current().left >= 2 && env.board(self.number).take_wanted() {
            if is_listing {
                let before = self.current().names.len();
                self.list_some(env, before + env.batch, usize::MAX);
                if self.death.is_some() {
                    return State::Free;
                }
            }
            let current = self.current();
            let half = current.left / 2;
            current.left -= half;
            self.update.shared = current.names.split_off(half);
            self.send_update(env);
            if self.death.is_some() {
                return State::Free;
            }
        }
        let current = self.current();
        let Some((kind, name, next)) = current.names.at(current.offset) else {
            return State::EndJob;
        };
        let name = name.to_bytes().to_vec();
        current.kind = kind;
        current.offset = next;
        current.name.clone_from(&name);
        let dir = current.dir;
        self.slot.begin_entry(&name);
        let mut world = env.world.borrow_mut();
        world.claim(self.number, dir, Some(&name), None);
        State::Begun
    }

    pub(super) fn begun(&mut self, env: &mut Env) -> State {
        let job = Arc::clone(&self.current().job);
        let dir = self.dir();
        let name = self.current().name.clone();
        let entry = env.world.borrow().tree.entry(dir, &name);
        let trouble = env.world.borrow().tree.entries[entry].trouble;
        let fails = env.world.borrow_mut().fails_for_now(dir, &name);
        match &job.kind {
            JobKind::Chunk { .. } if fails => failed(Step::Read, ETIMEDOUT),
            JobKind::Commit { file, .. } if fails => {
                if let Some(temp) = &file.temp {
                    env.world.borrow_mut().remove(dir, temp.as_bytes());
                }
                failed(Step::Open, ETIMEDOUT)
            }
            JobKind::HardLinks { .. } if fails => failed(Step::Link, ETIMEDOUT),
            JobKind::Chunk { file, chunk } => {
                State::Concluded(self.write_chunk(env, file, *chunk, trouble))
            }
            JobKind::Commit { file, changed } => self.commit(env, file, *changed, entry),
            JobKind::CommitSynced { files } => {
                let file = files.iter().find(|file| file.name.as_bytes() == name);
                self.commit_synced(env, file.expect("a file of the job"), entry)
            }
            JobKind::HardLinks { leader, .. } => {
                if trouble == Trouble::Fails {
                    return failed(Step::Link, EACCES);
                }
                let world = env.world.borrow();
                let leader_dir = world.tree.dir(leader.dir.as_bytes());
                let target = world.existing(leader_dir, leader.name.as_bytes());
                drop(world);
                self.link(env, target, entry)
            }
            _ => {
                if let Some(reason) = self.reason_to_wait(env, entry) {
                    return reason;
                }
                if trouble == Trouble::Fails {
                    return failed(Step::Open, EACCES);
                }
                if fails {
                    return failed(Step::Open, ETIMEDOUT);
                }
                self.copy(env, entry, Copying::First)
            }
        }
    }

    fn existing(&mut self, env: &Env) -> Option<u64> {
        let current = self.current();
        if current.job.origin.known_empty {
            return None;
        }
        env.world.borrow().existing(current.dir, &current.name)
    }

    /// Returns why an entry is not copied now: something is in its way, or it waits for others of
    /// its group of hard links.
    fn reason_to_wait(&mut self, env: &Env, entry: usize) -> Option<State> {
        let world = env.world.borrow();
        if env.is_obstructed(&world.tree.path(entry)) {
            let error = CopyError::new(Step::Create, Reason::DirectoryInTheWay);
            return Some(State::Concluded(Err(error)));
        }
        let is_leader = matches!(
            self.current().job.kind,
            JobKind::Entries {
                hard_links: HardLinks::Copy,
                ..
            }
        );
        let is_linked = matches!(world.tree.entries[entry].sort, Sort::Linked(_));
        (is_linked && !is_leader).then_some(State::Concluded(Ok(Outcome::HardLink)))
    }

    /// Copies an entry, or begins to.
    pub(super) fn copy(&mut self, env: &mut Env, entry: usize, copying: Copying) -> State {
        let dir = self.dir();
        let name = self.current().name.clone();
        let (sort, trouble) = {
            let entry = &env.world.borrow().tree.entries[entry];
            (entry.sort, entry.trouble)
        };
        let existing = self.existing(env);
        let compares = env.context.config.contents.checksum;
        let is_divisible = matches!(sort, Sort::Chunked(_));
        if let Some(inode) = existing
            && compares
            && is_divisible
            && copying == Copying::First
            && env.world.borrow().has_size_of(inode, entry)
        {
            return State::Concluded(Ok(Outcome::Chunked(ChunkedFile {
                temp: None,
                decision: Decision::LeaveUnchanged,
                ..chunked_file(env, entry, inode)
            })));
        }
        let is_same = existing.is_some_and(|inode| env.world.borrow().is_copy(inode, entry));
        if is_same && (compares || !self.is_suspect(&name)) {
            return State::Concluded(Ok(Outcome::Done(Decision::LeaveUnchanged)));
        }
        if trouble == Trouble::Crashes && env.is_process {
            self.die(env, Death::Signal(11));
            return State::Free;
        }
        let is_chunked =
            is_divisible && copying != Copying::Undivided && env.board(self.number).begin_chunked();
        let (written_as, decision) = if is_chunked {
            self.temps += 1;
            self.slot.set_writing(WriteTarget::Chunked(self.temps));
            (self.temp_name(env), Decision::ReplaceTime)
        } else {
            self.write_target(env, existing.is_some())
        };
        let failure = if env.is_full() {
            env.world.borrow_mut().failed_for_space(entry);
            Some(failed(Step::Write, ENOSPC))
        } else {
            None
        };
        let created = match failure {
            Some(failure) => Err(failure),
            None => {
                let created = env.world.borrow_mut().create(dir, &written_as, entry);
                created.ok_or(failed(Step::Create, EEXIST))
            }
        };
        let inode = match created {
            Ok(inode) => inode,
            Err(failure) => {
                if is_chunked {
                    env.board(self.number).end_chunked();
                }
                self.slot.set_writing(WriteTarget::None);
                return failure;
            }
        };
        if is_chunked {
            return State::Concluded(Ok(Outcome::Chunked(ChunkedFile {
                temp: Some(Name::new(&written_as)),
                decision,
                ..chunked_file(env, entry, inode)
            })));
        }
        State::Written(Writing {
            name: written_as,
            inode,
            decision,
            is_link: false,
        })
    }

    /// Says under which name something is made, its own or a temporary one.
    fn write_target(&mut self, env: &Env, is_temp: bool) -> (Vec<u8>, Decision) {
        if !is_temp {
            self.slot.set_writing(WriteTarget::Final);
            return (self.current().name.clone(), Decision::Create);
        }
        self.temps += 1;
        self.slot.set_writing(WriteTarget::Temp(self.temps));
        (self.temp_name(env), Decision::ReplaceTime)
    }

    fn temp_name(&self, env: &Env) -> Vec<u8> {
        let name = temp::name(env.context, self.number, self.temps);
        name.to_bytes().to_vec()
    }

    pub(super) fn written(&mut self, env: &mut Env, writing: Writing) -> State {
        let dir = self.dir();
        let name = self.current().name.clone();
        let mut world = env.world.borrow_mut();
        let entry = world.tree.entry(dir, &name);
        if !writing.is_link {
            world.write_all(writing.inode, entry);
            if env.is_batched() {
                let source = world.tree.source(entry);
                drop(world);
                return State::Concluded(Ok(self.leave_unsynced(&name, writing, source)));
            }
            world.sync_one(writing.inode);
            world.complete(writing.inode, entry);
        }
        if writing.name != name {
            if env.rng.chance(0.5) && !writing.is_link {
                // Complete, and not in place yet.
                drop(world);
                return State::Written(Writing {
                    is_link: true,
                    ..writing
                });
            }
            world.rename(dir, &writing.name, &name);
        }
        State::Renamed(writing.decision)
    }

    fn link(&mut self, env: &mut Env, target: Option<u64>, entry: usize) -> State {
        let dir = self.dir();
        let old = self.existing(env);
        if old.is_some() && old == target {
            return State::Concluded(Ok(Outcome::Done(Decision::LeaveUnchanged)));
        }
        let Some(target) = target else {
            return failed(Step::Link, ENOENT);
        };
        let (written_as, decision) = self.write_target(env, old.is_some());
        if env.is_full() {
            self.slot.set_writing(WriteTarget::None);
            env.world.borrow_mut().failed_for_space(entry);
            return failed(Step::Link, ENOSPC);
        }
        if !env.world.borrow_mut().link(target, dir, &written_as) {
            self.slot.set_writing(WriteTarget::None);
            return failed(Step::Link, EEXIST);
        }
        State::Written(Writing {
            name: written_as,
            inode: target,
            decision,
            is_link: true,
        })
    }

    /// Leaves a file that is written to a batch.
    pub(super) fn leave_unsynced(&mut self, name: &[u8], writing: Writing, source: u64) -> Outcome {
        let id = |dev, ino| FileId { dev, ino };
        Outcome::Unsynced(Unsynced {
            name: Name::new(name),
            temp: (writing.name != name).then(|| Name::new(&writing.name)),
            id: id(2, writing.inode),
            stat: Box::new(stat(id(1, source))),
            decision: writing.decision,
            failures: Vec::new(),
            refusals: Vec::new(),
        })
    }

    fn commit_synced(&mut self, env: &mut Env, file: &Unsynced, entry: usize) -> State {
        let dir = self.dir();
        let mut world = env.world.borrow_mut();
        let written_as = file.temp.as_ref().unwrap_or(&file.name).as_bytes();
        match world.existing(dir, written_as) {
            Some(inode) if inode == file.id.ino => {
                world.complete(inode, entry);
                State::Written(Writing {
                    name: written_as.to_vec(),
                    inode,
                    decision: file.decision,
                    is_link: true,
                })
            }
            _ => {
                // A worker renamed it and crashed before it could report that.
                let existing = world.existing(dir, file.name.as_bytes());
                if existing.is_some_and(|inode| world.is_copy(inode, entry)) {
                    return State::Concluded(Ok(Outcome::Done(Decision::Create)));
                }
                failed(Step::Rename, ENOENT)
            }
        }
    }

    /// Syncs and commits the job's files, as a worker does with very many of them.
    fn settle_own(&mut self, env: &mut Env) {
        let files = std::mem::take(&mut self.current().unsynced);
        if !env.sync() {
            env.board(self.number).sync_alone();
            self.update.sync_error = Some(CopyError::new(Step::Sync, Reason::System(EIO)));
            return;
        }
        let dir = self.dir();
        for file in files {
            if env.rng.chance(env.faults.crash) {
                return self.die(env, Death::Signal(9));
            }
            let mut world = env.world.borrow_mut();
            let entry = world.tree.entry(dir, file.name.as_bytes());
            world.complete(file.id.ino, entry);
            if let Some(temp) = &file.temp {
                world.rename(dir, temp.as_bytes(), file.name.as_bytes());
            }
            drop(world);
            self.slot.add_outcome(file.decision.outcome());
            self.update.lines.push(Line {
                name: Some(file.name),
                decision: file.decision,
                items: None,
                size: None,
            });
            self.update.settled_unsynced += 1;
        }
    }

    pub(super) fn conclude(&mut self, env: &mut Env, outcome: Result<Outcome, CopyError>) -> State {
        let current = self.current();
        let (name, dir) = (current.name.clone(), current.dir);
        let job = Arc::clone(&current.job);
        let number = self.number;
        env.world.borrow_mut().release(number, Some(&name));
        let (mut is_ok, mut is_urgent) = (outcome.is_ok(), false);
        match outcome {
            Ok(Outcome::Done(decision)) => {
                let is_retry = job.origin.created && !job.origin.known_empty;
                let decision = match decision {
                    Decision::LeaveUnchanged if is_retry => Decision::Create,
                    decision => decision,
                };
                self.slot.add_outcome(decision.outcome());
                if decision.changes() {
                    let name = Some(Name::new(&name));
                    self.update.lines.push(Line {
                        name,
                        decision,
                        items: None,
                        size: None,
                    });
                }
            }
            Ok(Outcome::HardLink) => {
                let world = env.world.borrow();
                let entry = world.tree.entry(dir, &name);
                let Sort::Linked(group) = world.tree.entries[entry].sort else {
                    unreachable!("only links are reported as such");
                };
                let id = world.tree.source(entry);
                let links = world.tree.groups[group].len() as u64;
                self.add_hard_link(&name, id, links);
            }
            Ok(Outcome::Chunked(file)) => {
                self.update.chunked.push(file);
                is_urgent = true;
            }
            Ok(Outcome::Unsynced(file)) => {
                if file.temp.is_none() {
                    self.slot.set_writing(WriteTarget::None);
                }
                is_urgent = file.temp.is_some();
                self.current().unsynced.push(file.clone());
                self.update.unsynced.push(file);
            }
            Ok(Outcome::Chunk) => {}
            Err(error) if self.leave_obstructed(env, error) => is_ok = true,
            Err(error) => self.fail_with(env, Some(&name), error),
        }
        if is_ok && self.is_suspect(&name) {
            self.update.settled_suspects.push(Name::new(&name));
        }
        self.slot.end_entry();
        if let JobKind::Chunk { .. } | JobKind::Commit { .. } = job.kind {
            return State::EndJob;
        }
        let current = self.current();
        current.left -= 1;
        current.settled += 1;
        if is_urgent || env.rng.chance(0.08) {
            self.send_update(env);
            if self.death.is_some() {
                return State::Free;
            }
        }
        if is_urgent {
            self.slot.set_writing(WriteTarget::None);
        }
        if self.current().unsynced.len() >= env.batch / 4 {
            self.settle_own(env);
            if self.death.is_some() {
                return State::Free;
            }
        }
        State::Pick
    }
}

/// Returns a chunked file without a name to write it under.
fn chunked_file(env: &Env, entry: usize, inode: u64) -> ChunkedFile {
    let world = env.world.borrow();
    let size = world.tree.size(entry);
    let id = |dev, ino| FileId { dev, ino };
    ChunkedFile {
        name: Name::new(&world.tree.entries[entry].name),
        temp: None,
        decision: Decision::Create,
        items: None,
        id: id(2, inode),
        stat: Box::new(FileStat {
            size,
            allocated: size,
            ..stat(id(1, world.tree.source(entry)))
        }),
    }
}

pub(super) fn failed(step: Step, errno: i32) -> State {
    let error = CopyError::new(step, Reason::System(errno));
    State::Concluded(Err(error))
}
