//! How a simulated worker removes what only the destination has: `worker::delete`, in steps.

use std::sync::Arc;

use super::env::Env;
use super::extra::NOWHERE;
use super::tree::{Item, join};
use super::worker::{EACCES, ENOTEMPTY, State, Worker, stat};
use crate::copy::Fate;
use crate::fs::path::{Kind, Name, Names};
use crate::fs::stat::FileId;
use crate::protocol::entry::{Decision, HardLinks, Outcome};
use crate::protocol::error::{CopyError, Reason, Step};
use crate::protocol::{Job, JobKind, Line};

/// A step of a job that removes entries.
pub(super) enum Removal {
    Begin,
    Remove,
    Note(Result<Fate, CopyError>),
    /// The job's directory itself.
    Directory,
}

impl Worker {
    pub(super) fn open_removal(&mut self, env: &mut Env, job: &Job) -> State {
        match &job.kind {
            JobKind::Delete { names, .. } | JobKind::MakeRoom { names } => {
                self.current().names = names.clone();
                let id = FileId {
                    dev: 1,
                    ino: self.dir() as u64 + 1,
                };
                self.update.unfinished = Some(Box::new(stat(id)));
            }
            JobKind::EmptyDirectory => {
                self.slot.begin_dir();
                let world = env.world.borrow();
                for (name, extra) in world.extras.names_in(job.path.as_bytes()) {
                    let kind = if extra.is_dir {
                        Kind::Directory
                    } else {
                        Kind::File
                    };
                    self.current().names.push(kind, &name);
                }
            }
            _ => return State::Removing(Removal::Directory),
        }
        self.current().left = self.current().names.len();
        State::Removing(Removal::Begin)
    }

    pub(super) fn remove(&mut self, env: &mut Env, removal: Removal) -> State {
        let path = self.path_of_entry();
        // In a directory that the source has, it is a name like others.
        let (dir, mut name) = (self.dir(), self.current().name.clone());
        if dir == NOWHERE {
            name.clone_from(&path);
        }
        let number = self.number;
        match removal {
            Removal::Begin => {
                let current = self.current();
                let Some((kind, name, next)) = current.names.at(current.offset) else {
                    return State::EndJob;
                };
                if env.is_stopping() {
                    self.update.is_cut = true;
                    self.update.has_kept |= dir == NOWHERE;
                    return State::EndJob;
                }
                let name = name.to_bytes().to_vec();
                (current.kind, current.offset) = (kind, next);
                current.name.clone_from(&name);
                self.slot.begin_entry(&name);
                let claimed = if dir == NOWHERE {
                    self.path_of_entry()
                } else {
                    name
                };
                let mut world = env.world.borrow_mut();
                world.claim(number, dir, Some(&claimed), None);
                State::Removing(Removal::Remove)
            }
            Removal::Remove => {
                let job = Arc::clone(&self.current().job);
                let fate = match job.kind {
                    JobKind::MakeRoom { .. } => return self.make_room(env, &path),
                    JobKind::EmptyDirectory if env.is_protected(&path) => Ok(Fate::Kept),
                    _ => remove_entry(env, &path),
                };
                State::Removing(Removal::Note(fate))
            }
            Removal::Note(fate) => {
                self.note_fate(env, true, fate);
                self.end_removal(env, &name)
            }
            Removal::Directory => {
                let path = self.current().job.path.as_bytes().to_vec();
                let fate = remove_emptied(env, &path);
                self.note_fate(env, false, fate);
                State::EndJob
            }
        }
    }

    fn path_of_entry(&mut self) -> Vec<u8> {
        let current = self.current();
        join(current.job.path.as_bytes(), &current.name)
    }

    fn end_removal(&mut self, env: &mut Env, name: &[u8]) -> State {
        env.world.borrow_mut().release(self.number, Some(name));
        self.slot.end_entry();
        self.current().left -= 1;
        self.current().settled += 1;
        if env.later.chance(0.3) {
            self.send_update(env);
            if self.death.is_some() {
                return State::Free;
            }
        }
        State::Removing(Removal::Begin)
    }

    /// Removes what is in the way of an entry of the source, or finds that it must be emptied.
    fn make_room(&mut self, env: &mut Env, path: &[u8]) -> State {
        let name = self.current().name.clone();
        let item = env.world.borrow().tree.item(path);
        let is_obstructed = env.is_obstructed(path);
        match item {
            Some(Item::Entry(_)) if is_obstructed => {
                return State::Removing(Removal::Note(remove_entry(env, path)));
            }
            Some(Item::Dir(sub)) => {
                if is_obstructed {
                    let fate = remove_entry(env, path);
                    let has_failed = fate.is_err();
                    self.note_fate(env, true, fate);
                    if has_failed {
                        return self.end_removal(env, &name);
                    }
                }
                let subdirs = &mut self.update.subdirs;
                let is_new = env.world.borrow_mut().make_dir(sub);
                let list = if is_new {
                    &mut subdirs.new
                } else {
                    &mut subdirs.merged
                };
                list.push(Kind::Directory, &name);
            }
            _ => {}
        }
        self.end_removal(env, &name)
    }

    fn note_fate(&mut self, env: &Env, is_entry: bool, fate: Result<Fate, CopyError>) {
        let name = is_entry.then(|| self.current().name.clone());
        match fate {
            Ok(Fate::Removed) => {
                self.slot.add_outcome(Outcome::Deleted);
                self.update.lines.push(Line {
                    name: name.as_deref().map(Name::new),
                    decision: Decision::Delete,
                    items: None,
                    size: None,
                });
            }
            Ok(Fate::Doomed) => {
                let name = name.unwrap_or_default();
                self.update.doomed.push(Kind::Directory, &name);
            }
            Ok(Fate::Kept | Fate::OverLimit) => self.update.has_kept = true,
            Err(error) => self.fail_with(env, name.as_deref(), error),
        }
    }

    /// Reports what only the destination has in the directory that was listed.
    pub(super) fn report_extraneous(&mut self, env: &mut Env) {
        let job = Arc::clone(&self.current().job);
        let is_new = job.origin.known_empty;
        if env.context.config.mirror.is_none() || is_new || env.is_stopping() {
            return;
        }
        self.slot.begin_dir();
        let path = job.path.as_bytes();
        let mut extraneous = Names::default();
        let world = env.world.borrow();
        for (name, extra) in world.extras.names_in(path) {
            if world.tree.item(&join(path, &name)).is_none() && !extra.is_protected {
                let kind = if extra.is_dir {
                    Kind::Directory
                } else {
                    Kind::File
                };
                extraneous.push(kind, &name);
            }
        }
        drop(world);
        if extraneous.is_empty() {
            return;
        }
        if self.current().listed == 0 && path.is_empty() {
            self.update.is_source_empty = true;
            return;
        }
        if let Some(ids) = self.current().ids.take() {
            self.update.dir_ids = Some(ids);
        }
        if extraneous.len() > 1 && env.later.chance(0.5) {
            self.update.extraneous = extraneous.take_last(1);
            self.send_update(env);
        }
        self.update.extraneous = extraneous;
    }

    /// Leaves an entry whose name a directory has to the end of the run. Returns false if that is
    /// not possible.
    pub(super) fn leave_obstructed(&mut self, env: &Env, error: CopyError) -> bool {
        let current = self.current();
        let can_wait = match &current.job.kind {
            JobKind::Entries { hard_links, .. } => *hard_links == HardLinks::Report,
            kind => matches!(kind, JobKind::Directory { .. }),
        };
        if error.reason != Reason::DirectoryInTheWay
            || !can_wait
            || !env.context.config.makes_room()
        {
            return false;
        }
        let (kind, name) = (current.kind, current.name.clone());
        self.update.obstructed.push(kind, &name);
        true
    }
}

/// Removes an entry, unless it is a directory. One that is gone was removed by a lost worker.
fn remove_entry(env: &Env, path: &[u8]) -> Result<Fate, CopyError> {
    let mut world = env.world.borrow_mut();
    match world.extras.get(path) {
        None if world.tree.item(path).is_none() => Ok(Fate::Removed),
        Some(extra) if extra.is_dir => Ok(Fate::Doomed),
        Some(extra) if extra.fails => Err(CopyError::new(Step::Delete, Reason::System(EACCES))),
        _ => {
            world.delete(path);
            Ok(Fate::Removed)
        }
    }
}

fn remove_emptied(env: &Env, path: &[u8]) -> Result<Fate, CopyError> {
    let mut world = env.world.borrow_mut();
    let error = |errno| CopyError::new(Step::Delete, Reason::System(errno));
    match world.extras.get(path) {
        None => Ok(Fate::Removed),
        Some(_) if !world.extras.names_in(path).is_empty() => Err(error(ENOTEMPTY)),
        Some(extra) if extra.fails => Err(error(EACCES)),
        Some(_) => {
            world.delete(path);
            Ok(Fate::Removed)
        }
    }
}
