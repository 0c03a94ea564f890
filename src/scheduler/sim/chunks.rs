//! What a simulated worker does with the chunks of a file: `copy::chunked`, in steps.

use super::entry::{Copying, failed};
use super::env::Env;
use super::tree::{CHUNK, Trouble};
use super::worker::{EIO, ENOENT, Outcome, State, Worker, Writing};
use crate::protocol::entry::{Chunk, ChunkedFile, Decision};
use crate::protocol::error::{CopyError, Reason, Step};

impl Worker {
    pub(super) fn write_chunk(
        &mut self,
        env: &mut Env,
        file: &ChunkedFile,
        chunk: Chunk,
        trouble: Trouble,
    ) -> Result<Outcome, CopyError> {
        let dir = self.dir();
        let mut world = env.world.borrow_mut();
        let number = chunk.offset / CHUNK;
        if trouble == Trouble::ChunkFails(number) {
            return Err(CopyError::new(Step::Read, Reason::System(EIO)));
        }
        if trouble == Trouble::ChunkChanges(number) {
            return Err(CopyError::new(Step::Read, Reason::Changed));
        }
        if file.is_comparison() {
            let name = file.name.as_bytes();
            let (entry, existing) = (world.tree.entry(dir, name), world.existing(dir, name));
            let is_same = existing.is_some_and(|inode| world.is_copy(inode, entry));
            // One of its chunks differs.
            let chunks = world.tree.size(entry) / CHUNK;
            if !is_same && (existing.is_none() || number == entry as u64 % chunks) {
                return Err(CopyError::new(Step::Read, Reason::Differs));
            }
            return Ok(Outcome::Chunk);
        }
        match world.existing(dir, file.temp_name()) {
            None => Err(CopyError::new(Step::Write, Reason::System(ENOENT))),
            Some(inode) if inode != file.id.ino => {
                Err(CopyError::new(Step::Write, Reason::Replaced))
            }
            Some(inode) => {
                world.write_chunk(inode, chunk.offset);
                Ok(Outcome::Chunk)
            }
        }
    }

    pub(super) fn commit(
        &mut self,
        env: &mut Env,
        file: &ChunkedFile,
        changed: bool,
        entry: usize,
    ) -> State {
        let dir = self.dir();
        let name = self.current().name.clone();
        if file.is_comparison() {
            let world = env.world.borrow();
            let has_changed = matches!(world.tree.entries[entry].trouble, Trouble::ChunkChanges(_));
            let is_moved = has_changed || world.existing(dir, &name) != Some(file.id.ino);
            drop(world);
            return match (is_moved, changed) {
                (true, _) => self.copy(env, entry, Copying::Undivided),
                (false, true) => self.copy(env, entry, Copying::Different),
                (false, false) => State::Concluded(Ok(Outcome::Done(Decision::LeaveUnchanged))),
            };
        }
        let mut world = env.world.borrow_mut();
        let temp = file.temp_name();
        match world.existing(dir, temp) {
            None => {
                // A worker renamed it and crashed before it could report that.
                let existing = world.existing(dir, &name);
                if existing.is_some_and(|inode| world.is_copy(inode, entry)) {
                    return State::Concluded(Ok(Outcome::Done(Decision::Create)));
                }
                failed(Step::Write, ENOENT)
            }
            Some(inode) if inode != file.id.ino => {
                State::Concluded(Err(CopyError::new(Step::Write, Reason::Replaced)))
            }
            Some(inode) => {
                if changed {
                    world.write_all(inode, entry);
                }
                if env.is_batched() {
                    let source = world.tree.source(entry);
                    drop(world);
                    let writing = Writing {
                        name: temp.to_vec(),
                        inode,
                        decision: Decision::Create,
                        is_link: false,
                    };
                    return State::Concluded(Ok(self.leave_unsynced(&name, writing, source)));
                }
                world.sync_one(inode);
                world.complete(inode, entry);
                State::Written(Writing {
                    name: temp.to_vec(),
                    inode,
                    decision: Decision::Create,
                    is_link: true,
                })
            }
        }
    }
}
