//! Creates, commits and removes unfinished entries. Only this file knows the protocol of temporary
//! names.
//!
//! An entry that replaces another one, or is copied in chunks, is written under a temporary name
//! and renamed into place. Under `--overwrite=older` and `never` every entry is, because these
//! treat every existing entry as complete.
//!
//! - The name is `.pcopy.RUN.WORKER.NUMBER.tmp`. No name is used twice in a run. With `--partial`
//!   that of a chunked file is `.pcopy.RUN.WORKER.NUMBER.ORIGIN.tmp` (`partial.rs`).
//! - A worker's slot says which name it is writing under. So the parent can remove the file if the
//!   worker crashes.
//! - RUN identifies the parent process of the run (`run_number.rs`), so a later run can tell
//!   whether a file is in use. All files of a live run are in use, from creation to rename. Files
//!   of another machine or container count as in use until they have not changed for an hour.
//! - Only the run itself removes a file that is in use. Two runs may write the same entry at once.
//!   Each has its own temporary file, and the last rename wins.

use std::borrow::Cow;
use std::ffi::{CStr, CString};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{self, AtFlags, RenameFlags};
use rustix::io::Errno;

use super::Copier;
use super::dir::DirPair;
use super::origin::Origin;
use crate::context::Context;
use crate::fs::list::{self, Listing};
use crate::fs::path::Name;
use crate::fs::stat::{FileId, FileStat};
use crate::protocol::entry::Decision;
use crate::protocol::error::{CopyError, Reason, Step};
use crate::run_number::{Liveness, RunNumber};
use crate::scoreboard::{WorkerSlot, WriteTarget};

/// A temporary file of another machine is stale if it has not changed for this long.
const MAX_IDLE: Duration = Duration::from_secs(60 * 60);

/// Returns a worker's temporary name with this number. Each entry gets its own name: a chunked file
/// keeps its name while the worker goes on to other entries.
pub(crate) fn name(context: &Context, worker: usize, number: u32) -> CString {
    let run = context.run().digits();
    let worker = context.scoreboard.named(worker);
    let name = format!(".pcopy.{run}.{worker}.{number}.tmp");
    CString::new(name).unwrap_or_default()
}

/// Returns a worker's temporary name for a file that a later run may go on with.
pub(super) fn partial_name(
    context: &Context,
    worker: usize,
    number: u32,
    origin: Origin,
) -> CString {
    let (run, origin) = (context.run().digits(), origin.text());
    let worker = context.scoreboard.named(worker);
    let name = format!(".pcopy.{run}.{worker}.{number}.{origin}.tmp");
    CString::new(name).unwrap_or_default()
}

/// Returns the run number in a temporary name. `None` if [`name`] and [`partial_name`] cannot return
/// that name.
pub(super) fn run_of(name: &[u8]) -> Option<RunNumber> {
    parse(name).map(|(run, _)| run)
}

/// Returns the run number in a temporary name, and the origin if it has one.
fn parse(name: &[u8]) -> Option<(RunNumber, Option<Origin>)> {
    let parts = name.strip_prefix(b".pcopy.")?.strip_suffix(b".tmp")?;
    let (run, numbers) = parts.split_at_checked(16)?;
    let is_number = |part: &[u8]| !part.is_empty() && part.iter().all(u8::is_ascii_digit);
    let mut parts = numbers.split(|&b| b == b'.');
    let is_temporary = parts.next() == Some(b"")
        && parts.next().is_some_and(is_number)
        && parts.next().is_some_and(is_number);
    let origin = match parts.next() {
        Some(text) => Some(Origin::parse(text)?),
        None => None,
    };
    let is_temporary = is_temporary && parts.next().is_none();
    let run = RunNumber::parse(run).filter(|_| is_temporary)?;
    Some((run, origin))
}

pub(super) fn is_temporary(name: &CStr) -> bool {
    run_of(name.to_bytes()).is_some()
}

/// Returns true if no run uses this temporary file any more.
pub(super) fn is_stale(run: RunNumber, dir: BorrowedFd<'_>, name: &CStr) -> bool {
    match run.liveness() {
        Liveness::Alive => false,
        Liveness::Ended => true,
        Liveness::Unknown => fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|stat| is_old(&FileStat::of(&stat), SystemTime::now())),
    }
}

/// Returns true if a file has not changed for [`MAX_IDLE`], by its ctime. The mtime does not tell:
/// it is set to the source's before the rename.
fn is_old(stat: &FileStat, now: SystemTime) -> bool {
    let changed = u64::try_from(stat.ctime.0).map(Duration::from_secs);
    let now = now.duration_since(UNIX_EPOCH);
    match (now, changed) {
        (Ok(now), Ok(changed)) => now.saturating_sub(changed) > MAX_IDLE,
        _ => false,
    }
}

/// Removes the temporary files that killed runs have left in the destination directory.
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
        // A leftover that the user names as a source must stay.
        let is_source = || context.targets.is_single(name.to_bytes());
        // This run's own files are in use, or about to be removed by their worker.
        if let Some((run, origin)) = parse(name.to_bytes())
            && run != context.run()
            && !is_source()
        {
            leftovers.push((run, origin, name.to_owned()));
        }
    }
    for (run, origin, name) in leftovers {
        let is_wanted =
            |origin: Origin| context.config.contents.partial && origin.is_wanted(context, dir);
        if is_stale(run, destination, &name) && !origin.is_some_and(is_wanted) {
            let _ = fs::unlinkat(destination, &name, AtFlags::empty());
        }
    }
}

/// Removes the temporary files of this run that these workers have made, except some. The workers
/// must be dead.
pub(crate) fn remove_of_workers(
    context: &Context,
    dir: &DirPair,
    own_cwd: bool,
    (workers, keep): (&Range<u64>, &[Name]),
    mut heartbeat: impl FnMut(),
) {
    let Ok(destination) = dir.destination() else {
        return;
    };
    if context.config.dry_run {
        return;
    }
    let run = context.run().digits();
    let mut theirs = Vec::new();
    let mut listing = Listing::of(list::path_to(destination, own_cwd));
    while let Some((_, name)) = listing.read() {
        heartbeat();
        let bytes = name.to_bytes();
        let numbers = bytes
            .strip_prefix(b".pcopy.")
            .and_then(|rest| rest.strip_prefix(run.as_bytes()))
            .and_then(|rest| rest.strip_prefix(b"."))
            // The lead's own (`ui/manifest.rs`).
            .filter(|rest| !rest.starts_with(b"0.0."));
        let worker = numbers
            .and_then(|rest| rest.split(|&b| b == b'.').next())
            .and_then(|number| std::str::from_utf8(number).ok()?.parse::<u64>().ok());
        let is_kept = || keep.iter().any(|kept| kept.as_bytes() == bytes);
        if is_temporary(name) && worker.is_some_and(|it| workers.contains(&it)) && !is_kept() {
            theirs.push(name.to_owned());
        }
    }
    for name in theirs {
        let _ = fs::unlinkat(destination, &name, AtFlags::empty());
    }
}

/// Returns the files that were begun as copies of this origin, and that no run uses. A file of this
/// run belongs to a worker that crashed before it could report it.
pub(super) fn partials_of(context: &Context, dir: &DirPair, origin: Origin) -> Vec<CString> {
    let Ok(destination) = dir.destination() else {
        return Vec::new();
    };
    let mut found = Vec::new();
    let mut listing = Listing::of(list::path_to(destination, false));
    while let Some((_, name)) = listing.read() {
        if let Some((run, Some(of))) = parse(name.to_bytes())
            && of == origin
            && (run == context.run() || is_stale(run, destination, name))
        {
            found.push(name.to_owned());
        }
    }
    found
}

/// An unfinished entry at the destination. Dropping it removes the entry.
pub(super) struct Unfinished<'a> {
    dir: Rc<OwnedFd>,
    name: Cow<'a, CStr>,
    /// The slot that shows the entry's name. `None` for a chunked file that another worker has
    /// begun.
    slot: Option<WorkerSlot>,
    remove_on_drop: bool,
}

impl Unfinished<'static> {
    /// Takes over an unfinished file that another worker has begun.
    ///
    /// The slot does not show it: if this worker crashes too, the file must stay, because the next
    /// worker goes on with it.
    pub(super) fn adopt(dir: &DirPair, temp: &Name) -> Result<Self, CopyError> {
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

    /// Renames the finished entry into place, unless it was written there. Callers use
    /// [`Copier::commit_with_backup`], except for batches. Fails with EEXIST if the name was free
    /// and is taken now.
    pub(super) fn commit(self, to: &CStr, decision: Decision) -> Result<(), CopyError> {
        if *self.name != *to {
            let renamed = if decision == Decision::Create {
                self.rename_new(to)
            } else {
                fs::renameat(&self.dir, &*self.name, &self.dir, to)
            };
            renamed.map_err(|errno| {
                let reason = match errno {
                    // Within one directory these have no other meaning.
                    Errno::NOSYS | Errno::OPNOTSUPP | Errno::XDEV | Errno::INVAL => {
                        Reason::CannotRename
                    }
                    errno => errno.into(),
                };
                CopyError::new(Step::Rename, reason)
            })?;
        }
        self.keep();
        Ok(())
    }

    /// Renames the finished hard link into place. Returns false if the entry was the same file
    /// already: rename(2) does nothing then, and reports success.
    pub(super) fn commit_link(self, to: &CStr, decision: Decision) -> Result<bool, CopyError> {
        let temp = (*self.name != *to).then(|| (Rc::clone(&self.dir), self.name.clone()));
        self.commit(to, decision)?;
        let was_same =
            temp.is_some_and(|(dir, name)| fs::unlinkat(&dir, &*name, AtFlags::empty()).is_ok());
        Ok(!was_same)
    }

    /// Renames the entry to a name that is not taken.
    fn rename_new(&self, to: &CStr) -> rustix::io::Result<()> {
        let (dir, flags) = (&self.dir, RenameFlags::NOREPLACE);
        match fs::renameat_with(dir, &*self.name, dir, to, flags) {
            // NFS and many FUSE file systems do not know the flag. Without it, another entry that
            // appears between the two calls is replaced.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                match fs::statat(dir, to, AtFlags::SYMLINK_NOFOLLOW) {
                    Err(Errno::NOENT) => fs::renameat(dir, &*self.name, dir, to),
                    Err(errno) => Err(errno),
                    Ok(_) => Err(Errno::EXIST),
                }
            }
            result => result,
        }
    }

    /// Keeps the entry when this is dropped.
    pub(super) fn keep(mut self) {
        self.remove_on_drop = false;
    }

    /// Hands the entry over to other workers. The slot keeps the name: if this worker crashes
    /// before it reports the file, the parent can remove it.
    pub(super) fn hand_over(mut self) {
        self.slot = None;
        self.remove_on_drop = false;
    }

    /// Returns true if the name belongs to another file now.
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
        dir: &DirPair,
        to: &'a CStr,
        target: WriteTarget,
        create: impl FnOnce(BorrowedFd<'_>, &CStr) -> Result<T, CopyError>,
    ) -> Result<(T, Unfinished<'a>), CopyError> {
        let name = match target {
            WriteTarget::Temp(number) | WriteTarget::Chunked(number) => {
                Cow::Owned(name(self.context, self.worker, number))
            }
            WriteTarget::Final | WriteTarget::None => Cow::Borrowed(to),
        };
        let dir = dir.share_destination()?;
        // The slot shows the name first, so that the parent knows it even if this worker crashes.
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

    /// Moves an unfinished file aside, so that dropping it removes this run's file and no other.
    ///
    /// Another run may replace the file with its own complete copy at any moment. So the file is
    /// first renamed and then examined. If it is another file, it is renamed back.
    pub(super) fn move_aside(&mut self, unfinished: &mut Unfinished<'_>, file: BorrowedFd<'_>) {
        let Ok(id) = fs::fstat(file).map(|stat| FileId::of(&stat)) else {
            return;
        };
        if unfinished.is_replaced(id) {
            unfinished.remove_on_drop = false;
            return;
        }
        self.temps += 1;
        let temp = name(self.context, self.worker, self.temps);
        let dir = Rc::clone(&unfinished.dir);
        if is_temporary(&unfinished.name)
            || fs::renameat(&dir, &*unfinished.name, &dir, &temp).is_err()
        {
            return;
        }
        let own_name = std::mem::replace(&mut unfinished.name, Cow::Owned(temp));
        if unfinished.is_replaced(id) {
            let flags = RenameFlags::NOREPLACE;
            let back = fs::renameat_with(&dir, &*unfinished.name, &dir, &*own_name, flags);
            // Otherwise a third run has put its copy there.
            unfinished.remove_on_drop = back == Err(Errno::EXIST);
        }
    }

    /// Chooses the name under which to write an entry before it is complete.
    pub(super) fn write_target(&mut self, decision: Decision) -> WriteTarget {
        let is_final = decision == Decision::Create || self.context.config.inplace;
        if is_final && !self.is_existing_trusted() {
            WriteTarget::Final
        } else {
            self.next_temp()
        }
    }

    /// Returns a temporary name that this worker has not used yet.
    pub(super) fn next_temp(&mut self) -> WriteTarget {
        WriteTarget::Temp(self.next_temp_number())
    }

    pub(super) fn next_temp_number(&mut self) -> u32 {
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
    use super::*;

    #[test]
    fn only_pcopys_own_names_are_temporary() {
        let is_temporary = |name: &[u8]| run_of(name).is_some();
        assert!(is_temporary(b".pcopy.0123456789abcdef.7.12.tmp"));
        assert!(is_temporary(b".pcopy.0123456789abcdef.7.12.1-2-3.tmp"));
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

    #[test]
    fn files_of_other_machines_are_stale_after_an_hour() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let stat = FileStat::of(&fs::stat(file.path()).unwrap());
        let later = |minutes: u64| SystemTime::now() + Duration::from_secs(60 * minutes);
        assert!(!is_old(&stat, later(0)));
        assert!(!is_old(&stat, later(59)));
        assert!(is_old(&stat, later(61)));
        // Its clock is ahead.
        assert!(!is_old(
            &stat,
            SystemTime::now() - Duration::from_secs(3 * 3600)
        ));
    }
}
