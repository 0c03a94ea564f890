//! Temporary names: the only file that knows their protocol.
//!
//! An entry is written under a temporary name, and renamed into place once it is complete, if it
//! replaces another one or is copied in chunks. Under `--overwrite=older` and `never` this holds
//! for all entries, because these trust every existing one.
//!
//! - The name is `.pcopy.RUN.WORKER.NUMBER.tmp`. No name is used twice in a run.
//! - A worker's slot says which name it is writing under. So the parent can remove the file if the
//!   worker crashes.
//! - A directory in which temporary files are being written has a shared lock. A run that finds
//!   leftovers of another run removes them only if it gets an exclusive lock.

use std::borrow::Cow;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{self, AtFlags, FlockOperation};
use rustix::io::Errno;

use super::Copier;
use super::dir::DirPair;
use crate::context::Context;
use crate::fs::list::{self, Listing};
use crate::fs::path::Name;
use crate::fs::stat::FileId;
use crate::protocol::entry::Decision;
use crate::protocol::error::{At, CopyError, Step};
use crate::scoreboard::{WorkerSlot, WriteTarget};

/// Returns a worker's temporary name of this number. Each entry gets a name of its own: that of a
/// chunked file is in use until all chunks are there, and its worker goes on to other entries.
pub(crate) fn name(context: &Context, worker: usize, number: u32) -> CString {
    let name = format!(".pcopy.{:016x}.{worker}.{number}.tmp", context.identity.run);
    CString::new(name).unwrap_or_default()
}

/// Returns true for a temporary name of another run. This run's own temporary files are in use, or
/// soon removed by the worker that made them.
fn is_leftover(context: &Context, name: &[u8]) -> bool {
    let own = format!(".pcopy.{:016x}.", context.identity.run);
    is_temporary(name) && !name.starts_with(own.as_bytes())
}

/// Returns true for every name that [`name`] can return, in this run or another.
fn is_temporary(name: &[u8]) -> bool {
    let parts = name
        .strip_prefix(b".pcopy.")
        .and_then(|rest| rest.strip_suffix(b".tmp"));
    let Some((run, numbers)) = parts.and_then(|parts| parts.split_at_checked(16)) else {
        return false;
    };
    let is_number = |part: &[u8]| !part.is_empty() && part.iter().all(u8::is_ascii_digit);
    let mut parts = numbers.split(|&b| b == b'.');
    run.iter().all(u8::is_ascii_hexdigit)
        && parts.next() == Some(b"")
        && parts.next().is_some_and(is_number)
        && parts.next().is_some_and(is_number)
        && parts.next().is_none()
}

/// Locks the destination, so that other runs do not take temporary files in it for leftovers. The
/// lock lasts while the directory is open. A file system without locks has to do without.
pub(super) fn lock(dir: &mut DirPair) {
    if let (Ok(destination), false) = (dir.destination(), dir.has_temp_lock) {
        let _ = fs::flock(destination, FlockOperation::NonBlockingLockShared);
        dir.has_temp_lock = true;
    }
}

/// Removes the temporary files that a killed run has left in the destination directory. Removes
/// nothing while another run is writing temporary files there.
pub(crate) fn remove_leftovers(
    context: &Context,
    dir: &DirPair,
    own_cwd: bool,
    mut heartbeat: impl FnMut(),
) {
    let Ok(destination) = dir.destination() else {
        return;
    };
    if context.config.dry_run {
        return;
    }
    let mut leftovers = Vec::new();
    // If the directory cannot be listed, the copy into it reports that.
    let mut listing = Listing::of(list::path_to(destination, own_cwd));
    while let Some((_, name)) = listing.read() {
        heartbeat();
        // If the user names one as a source, it is to be rescued.
        let is_source = || context.targets.is_single(name.to_bytes());
        if is_leftover(context, name.to_bytes()) && !is_source() {
            leftovers.push(name.to_owned());
        }
    }
    if leftovers.is_empty() {
        return;
    }
    let lock = fs::flock(destination, FlockOperation::NonBlockingLockExclusive);
    if lock == Err(Errno::WOULDBLOCK) {
        return;
    }
    for name in leftovers {
        let _ = fs::unlinkat(destination, &name, AtFlags::empty());
    }
    let _ = fs::flock(destination, FlockOperation::Unlock);
}

/// An unfinished entry at the destination. Dropping it removes the entry.
pub(super) struct Unfinished<'a> {
    dir: Rc<OwnedFd>,
    name: Cow<'a, CStr>,
    /// The slot that shows it. None for a chunked file that another worker has begun.
    slot: Option<WorkerSlot>,
    remove_on_drop: bool,
}

impl Unfinished<'static> {
    /// Takes over an unfinished file that another worker has begun.
    ///
    /// The slot does not show it: if this worker crashes too, the file must stay, because the next
    /// worker goes on with it.
    pub(super) fn adopt(dir: &mut DirPair, temp: &Name) -> Result<Self, CopyError> {
        lock(dir);
        Ok(Self {
            dir: dir.share_destination()?,
            name: Cow::Owned(temp.to_c_string()),
            slot: None,
            remove_on_drop: true,
        })
    }
}

impl Unfinished<'_> {
    /// Returns the name under which the entry is being written.
    pub(super) fn name(&self) -> &CStr {
        &self.name
    }

    /// Renames the finished entry into place.
    pub(super) fn commit(self, to: &CStr) -> Result<(), CopyError> {
        if *self.name != *to {
            fs::renameat(&self.dir, &*self.name, &self.dir, to).at(Step::Rename)?;
        }
        self.keep();
        Ok(())
    }

    /// Leaves the entry as it is.
    pub(super) fn keep(mut self) {
        self.remove_on_drop = false;
    }

    /// Leaves the entry to other workers. The slot goes on showing the name: if this worker crashes
    /// before the parent knows of the file, the parent can still remove it.
    pub(super) fn hand_over(mut self) {
        self.slot = None;
        self.remove_on_drop = false;
    }

    /// Returns true if the name stands for another file than the given one.
    pub(super) fn is_replaced(&self, id: FileId) -> bool {
        fs::statat(&self.dir, &*self.name, AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|stat| FileId::of(&stat) != id)
    }
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if self.remove_on_drop {
            // If even this fails there is nothing else to try. The error that led here is
            // reported, and the next run sees that the entry is incomplete.
            let _ = fs::unlinkat(&self.dir, &*self.name, AtFlags::empty());
        }
        if let Some(slot) = self.slot {
            slot.set_writing(WriteTarget::None);
        }
    }
}

impl Copier {
    /// Creates an entry under its own name or a temporary one. `create` gets the directory and
    /// that name.
    pub(super) fn create<'a, T>(
        &self,
        dir: &mut DirPair,
        to: &'a CStr,
        target: WriteTarget,
        create: impl FnOnce(BorrowedFd<'_>, &CStr) -> Result<T, CopyError>,
    ) -> Result<(T, Unfinished<'a>), CopyError> {
        let name = match target {
            WriteTarget::Temp(number) | WriteTarget::Chunked(number) => {
                lock(dir);
                Cow::Owned(name(self.context, self.worker, number))
            }
            WriteTarget::Final | WriteTarget::None => Cow::Borrowed(to),
        };
        let dir = dir.share_destination()?;
        // The slot shows it first, so that the parent knows of it even if this worker crashes.
        self.slot.set_writing(target);
        let created =
            create(dir.as_fd(), &name).inspect_err(|_| self.slot.set_writing(WriteTarget::None))?;
        let unfinished = Unfinished {
            dir,
            name,
            slot: Some(self.slot),
            remove_on_drop: true,
        };
        Ok((created, unfinished))
    }

    /// Chooses the name under which to write an entry before it is complete.
    pub(super) fn write_target(&mut self, decision: Decision) -> WriteTarget {
        if decision == Decision::Create && !self.is_existing_trusted() {
            WriteTarget::Final
        } else {
            self.next_temp()
        }
    }

    /// Returns a temporary name that this worker has not used yet.
    pub(super) fn next_temp(&mut self) -> WriteTarget {
        WriteTarget::Temp(self.next_number())
    }

    /// Returns the number of a temporary name that this worker has not used yet.
    pub(super) fn next_number(&mut self) -> u32 {
        self.temps += 1;
        self.temps
    }

    /// Removes a temporary file that a crashed worker has left. It may be gone already.
    pub(crate) fn remove_temp(&mut self, dir: &DirPair, name: &Name) -> Result<(), CopyError> {
        if self.context.config.dry_run {
            return Ok(());
        }
        match fs::unlinkat(dir.destination()?, name.as_bytes(), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(CopyError::new(Step::Remove, errno)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::is_temporary;

    #[test]
    fn only_pcopys_own_names_are_temporary() {
        assert!(is_temporary(b".pcopy.0123456789abcdef.7.12.tmp"));
        for other in [
            &b".pcopy.tmp"[..],
            b".pcopy.0123456789abcdef..12.tmp",
            b".pcopy.0123456789abcdef.7.tmp",
            b".pcopy.0123456789abcdef.7.1.2.tmp",
            b".pcopy.0123456789abcdeg.7.12.tmp",
            b".pcopy.0123456789abcdef.7.12.tmp~",
            b".pcopy.notes.tmp",
        ] {
            assert!(!is_temporary(other), "{}", other.escape_ascii());
        }
    }
}
