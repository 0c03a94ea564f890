//! How a simulated worker lists a directory.

use std::rc::Rc;
use std::sync::Arc;

use super::env::Env;
use super::tree::{Item, Sort};
use super::worker::{EEXIST, ETIMEDOUT, State, Worker, stat};
use crate::fs::path::{Kind, Name, Names};
use crate::fs::stat::FileId;
use crate::protocol::error::Step;
use crate::protocol::{HardLinkEntry, JobKind, Progress};

impl Worker {
    pub(super) fn list(&mut self, env: &mut Env) -> State {
        let few = env.rng.range(1, 8);
        let enough = env.batch;
        if self.list_some(env, enough, few) {
            return State::List;
        }
        let is_stopping = env.is_stopping();
        if !self.current().names.is_empty() && !is_stopping {
            let current = self.current();
            current.offset = 0;
            current.left = current.names.len();
            if !self.update.subdirs.is_empty() {
                self.send_update(env);
            }
            return State::Pick;
        }
        self.update.is_cut = is_stopping;
        if env.context.config.limits.retries > 0 {
            self.update.progress = Progress::Listed {
                entries: self.current().listed as u64,
                own: Names::default(),
            };
        }
        if self.current().list_fails_at.is_some() && !is_stopping {
            self.fail(env, None, Step::ListDirectory, ETIMEDOUT);
        } else {
            self.report_extraneous(env);
            if self.death.is_some() {
                return State::Free;
            }
        }
        let has_unsynced = !self.current().unsynced.is_empty();
        let has_children = self.current().has_reported_children || self.update.has_children();
        let may_be_retried = self.current().may_be_retried;
        if has_children || has_unsynced || may_be_retried || is_stopping {
            let id = FileId {
                dev: 1,
                ino: self.dir() as u64 + 1,
            };
            self.update.unfinished = Some(Box::new(stat(id)));
            return State::EndJob;
        }
        self.slot.begin_dir();
        State::FinishDir
    }

    /// Lists up to `most` items, or until there are `enough` names. Returns false at that point,
    /// or at the end.
    pub(super) fn list_some(&mut self, env: &mut Env, enough: usize, most: usize) -> bool {
        self.slot.begin_dir();
        for _ in 0..most {
            if self.current().names.len() >= enough || env.is_stopping() || self.death.is_some() {
                return false;
            }
            let dir = self.dir();
            let world = Rc::clone(&env.world);
            let mut world = world.borrow_mut();
            let listed = self.current().listed;
            if self.current().list_fails_at.is_some_and(|at| listed >= at) {
                return false;
            }
            let Some(&item) = world.tree.dirs[dir].items.get(listed) else {
                return false;
            };
            self.current().listed += 1;
            let name = match item {
                Item::Dir(dir) => world.tree.dirs[dir].name.clone(),
                Item::Entry(entry) => world.tree.entries[entry].name.clone(),
            };
            let job = Arc::clone(&self.current().job);
            let JobKind::Directory { resume, .. } = &job.kind else {
                unreachable!("only a directory is listed");
            };
            if resume.skip.contains(&name[..]) {
                continue;
            }
            match item {
                Item::Entry(entry) if (listed as u64) < resume.reported => {
                    // Reported before, so it should be there. If not, it is copied, uncounted.
                    match world.tree.entries[entry].sort {
                        Sort::Linked(group) => {
                            let id = world.tree.source(entry);
                            let links = world.tree.groups[group].len();
                            if world.existing(dir, &name).is_none() {
                                self.add_hard_link(&name, id, links as u64);
                            }
                        }
                        _ => world.recheck(dir, &name, entry),
                    }
                }
                Item::Entry(_) => {
                    self.slot.add_found();
                    self.current().names.push(Kind::File, &name);
                    self.current().left += 1;
                }
                Item::Dir(sub) => {
                    self.slot.begin_entry(&name);
                    let subdirs = &mut self.update.subdirs;
                    let list = match (world.make_dir(sub), job.origin) {
                        (true, _) => Some(&mut subdirs.new),
                        (false, origin) if origin.known_empty => None,
                        (false, origin) if origin.created => Some(&mut subdirs.resumed),
                        (false, _) => Some(&mut subdirs.merged),
                    };
                    match list {
                        Some(list) => list.push(Kind::Directory, &name),
                        None => self.fail(env, Some(&name), Step::MakeDirectory, EEXIST),
                    }
                    if let Some(ids) = self.current().ids.take() {
                        self.update.dir_ids = Some(ids);
                    }
                    self.slot.begin_dir();
                }
            }
            drop(world);
            let has_subdirs = !self.update.subdirs.is_empty();
            if has_subdirs && env.board(self.number).take_wanted() || env.rng.chance(0.01) {
                self.send_update(env);
            }
        }
        true
    }

    pub(super) fn add_hard_link(&mut self, name: &[u8], ino: u64, links: u64) {
        self.update.hard_links.push(HardLinkEntry {
            name: Name::new(name),
            kind: Kind::File,
            id: FileId { dev: 1, ino },
            links,
        });
    }
}
