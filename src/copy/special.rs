//! Entries without contents: symbolic links, FIFOs, sockets, devices.

use std::ops::ControlFlow;

use rustix::fs::{self, FileType, Mode};

use super::dir::DirPair;
use super::{Copier, Entry, EntryResult, file_type};
use crate::config::Keep;
use crate::fs::stat::FileStat;
use crate::protocol::error::{At, CopyError, Reason, Step};

impl Copier {
    /// Copies an entry that is neither a regular file nor a directory.
    pub(super) fn copy_special(
        &mut self,
        dir: &mut DirPair,
        entry: Entry<'_>,
    ) -> Result<EntryResult, CopyError> {
        let stat = self.stat_source(dir, entry.from)?;
        let file_type = file_type(&stat);
        // The entry may have changed its type since it was listed.
        match file_type {
            FileType::RegularFile => return self.copy_file(dir, entry),
            FileType::Directory => return Err(CopyError::new(Step::Look, Reason::Changed)),
            _ => {}
        }
        let decision = match self.decide(dir, entry)? {
            ControlFlow::Continue(decision) => decision,
            ControlFlow::Break(result) => return Ok(result),
        };
        if self.should_report(&stat, entry.hard_links) {
            return Ok(EntryResult::HardLink(stat));
        }
        self.make_room(dir, entry.to, decision)?;
        let target = self.write_target(decision);
        let ((), unfinished) = if file_type == FileType::Symlink {
            let link = fs::readlinkat(dir.source(), entry.from, Vec::new()).at(Step::ReadLink)?;
            self.create(dir, entry.to, target, |dir, name| {
                fs::symlinkat(&link, dir, name).at(Step::Create)
            })?
        } else {
            let mode = Mode::from_raw_mode(self.initial_special_mode(&stat));
            self.create(dir, entry.to, target, |dir, name| {
                fs::mknodat(dir, name, file_type, mode, stat.rdev).at(Step::Create)
            })?
        };
        dir.observe_default_acl();
        self.apply_metadata_by_path(dir, entry.from, unfinished.name(), entry.to, &stat)?;
        self.commit_with_backup(dir, unfinished, entry.to, decision)?;
        Ok(EntryResult::Done(decision))
    }

    /// Returns the mode to create a FIFO, socket or device with. Other users must not open the
    /// entry before its owner is set.
    fn initial_special_mode(&self, stat: &FileStat) -> u32 {
        let config = &self.context.config;
        match config.preserve.mode {
            // The umask or a default ACL cuts it.
            Keep::No => stat.mode & 0o777,
            _ if config.preserve.ownership.is_wanted() => 0o600 & stat.mode,
            _ => stat.mode & 0o777,
        }
    }
}
