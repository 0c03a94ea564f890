//! `--backup`: keeps entries that are replaced or removed. Renames into place pass through here
//! ([`Copier::commit_with_backup`]), with or without a backup. Only those of a batch (`batched.rs`)
//! do not.
//!
//! The name is never missing: the old entry gets a second name, its backup, and then the new one
//! is renamed over the first. Only if the file system has no hard links is the old entry renamed,
//! and renamed back if what follows fails. After a crash between the two steps, the next run finds
//! that the backup is the entry itself, and makes no other one.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{self, AtFlags, Gid, Mode, RenameFlags, Uid};
use rustix::io::Errno;

use super::Copier;
use super::dir::DirPair;
use super::temp::Unfinished;
use crate::config::{Backup, BackupNaming};
use crate::context::Context;
use crate::fs::list::{self, Listing};
use crate::fs::open::{DIRECTORY, open_dir};
use crate::fs::path::RelPath;
use crate::fs::stat::FileId;
use crate::protocol::entry::Decision;
use crate::protocol::error::{At, CopyError, Reason, Step};

/// How often a name is tried that another process takes or frees at the same time.
const ATTEMPTS: u32 = 4;

/// The highest numbers of the backups in one directory, by the names of the entries.
#[derive(Default)]
pub(super) struct Numbers {
    dir: Option<FileId>,
    highest: HashMap<Vec<u8>, u64>,
}

/// A directory below `--backup-dir` that was opened last.
pub(super) struct OpenBackupDir {
    path: RelPath,
    fd: Rc<OwnedFd>,
}

/// Where the backup of an entry goes.
struct BackupPlace {
    dir: Rc<OwnedFd>,
    name: CString,
    /// The backup has a number of its own, so nothing must be replaced.
    is_numbered: bool,
}

/// Returns true for a name that simple or numbered backups beside their entries have.
pub(super) fn is_backup(context: &Context, name: &[u8]) -> bool {
    let Some(backup) = &context.config.backup else {
        return false;
    };
    backup.dir.is_none()
        && (name.len() > backup.suffix.len() && name.ends_with(&backup.suffix)
            || parse_number(name).is_some())
}

/// Splits `NAME.~N~` into the name and the number.
fn parse_number(name: &[u8]) -> Option<(&[u8], u64)> {
    let rest = name.strip_suffix(b"~")?;
    let tilde = rest.iter().rposition(|&b| b == b'~')?;
    let base = rest[..tilde].strip_suffix(b".")?;
    let number = std::str::from_utf8(&rest[tilde + 1..]).ok()?;
    let is_number = !base.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
    Some((base, number.parse().ok().filter(|_| is_number)?))
}

fn numbered(name: &[u8], number: u64) -> Result<CString, CopyError> {
    let mut backup = name.to_vec();
    backup.extend_from_slice(format!(".~{number}~").as_bytes());
    CString::new(backup).map_err(|_| CopyError::new(Step::Backup, Errno::INVAL))
}

impl Copier {
    /// Renames a finished entry into place. With `--backup`, first keeps the entry that it
    /// replaces.
    pub(super) fn commit_with_backup(
        &mut self,
        dir: &DirPair,
        unfinished: Unfinished<'_>,
        to: &CStr,
        decision: Decision,
    ) -> Result<(), CopyError> {
        let moved = self.keep_replaced(dir, to, decision)?;
        let result = unfinished.commit(to, decision);
        self.restore_if_failed(dir, to, moved, result)
    }

    /// The same for a hard link. Returns false if the entry was the same file already.
    pub(super) fn commit_link_with_backup(
        &mut self,
        dir: &DirPair,
        unfinished: Unfinished<'_>,
        to: &CStr,
        decision: Decision,
    ) -> Result<bool, CopyError> {
        let moved = self.keep_replaced(dir, to, decision)?;
        let result = unfinished.commit_link(to, decision);
        self.restore_if_failed(dir, to, moved, result)
    }

    fn restore_if_failed<T>(
        &self,
        dir: &DirPair,
        to: &CStr,
        moved: Option<BackupPlace>,
        result: Result<T, CopyError>,
    ) -> Result<T, CopyError> {
        if let (Err(_), Some(place)) = (&result, moved) {
            let destination = dir.destination()?;
            let flags = RenameFlags::NOREPLACE;
            let _ = fs::renameat_with(&place.dir, &*place.name, destination, to, flags);
        }
        result
    }

    /// Links the entry that is about to be replaced to the name of its backup. If it had to be moved
    /// instead, returns its place.
    fn keep_replaced(
        &mut self,
        dir: &DirPair,
        to: &CStr,
        decision: Decision,
    ) -> Result<Option<BackupPlace>, CopyError> {
        let context = self.context;
        let (Some(backup), false) = (&context.config.backup, decision == Decision::Create) else {
            return Ok(None);
        };
        let destination = dir.share_destination()?;
        for _ in 0..ATTEMPTS {
            let place = self.place(backup, dir.target, dir.path(), &destination, to)?;
            if place.is_numbered && self.is_last_backup(&destination, to)? {
                return Ok(None);
            }
            refuse_source_name(dir, &place, backup)?;
            match fs::linkat(&destination, to, &place.dir, &*place.name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => return Ok(None),
                Err(Errno::EXIST) if place.is_numbered => {}
                Err(Errno::EXIST) => {
                    if is_same_file(&destination, to, &place) {
                        return Ok(None);
                    }
                    match fs::unlinkat(&place.dir, &*place.name, AtFlags::empty()) {
                        Ok(()) | Err(Errno::NOENT) => {}
                        Err(errno) => return Err(CopyError::new(Step::Backup, errno)),
                    }
                }
                Err(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS | Errno::MLINK) => {
                    fs::renameat(&destination, to, &place.dir, &*place.name).at(Step::Backup)?;
                    return Ok(Some(place));
                }
                Err(errno) => return Err(CopyError::new(Step::Backup, errno)),
            }
        }
        Err(CopyError::new(Step::Backup, Errno::EXIST))
    }

    /// Moves an entry that would be removed to its backup. `source` is the source's directory, if
    /// there is one.
    pub(super) fn move_to_backup(
        &mut self,
        backup: &Backup,
        target: usize,
        path: &RelPath,
        dir: BorrowedFd<'_>,
        source: Option<&DirPair>,
        name: &CStr,
    ) -> Result<(), CopyError> {
        let shared = Rc::new(
            dir.try_clone_to_owned()
                .map_err(|_| CopyError::new(Step::Backup, Errno::MFILE))?,
        );
        let place = self.place(backup, target, Some(path), &shared, name)?;
        if let Some(source) = source {
            refuse_source_name(source, &place, backup)?;
        }
        match fs::renameat(dir, name, &place.dir, &*place.name) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(CopyError::new(Step::Backup, errno)),
        }
    }

    /// Returns where the backup of an entry goes.
    fn place(
        &mut self,
        backup: &Backup,
        target: usize,
        path: Option<&RelPath>,
        destination: &Rc<OwnedFd>,
        name: &CStr,
    ) -> Result<BackupPlace, CopyError> {
        if let (Some(_), Some(path)) = (&backup.dir, path) {
            let dir = self.open_backup_dir(target, path, destination.as_fd())?;
            return simple(backup, dir, name);
        }
        let dir = Rc::clone(destination);
        let highest = match backup.naming {
            BackupNaming::Simple => None,
            BackupNaming::Numbered => Some(self.highest_number(&dir, name)?),
            BackupNaming::Existing => {
                Some(self.highest_number(&dir, name)?).filter(|&highest| highest > 0)
            }
        };
        let Some(highest) = highest else {
            return simple(backup, dir, name);
        };
        let number = highest + 1;
        self.numbers
            .highest
            .insert(name.to_bytes().to_vec(), number);
        Ok(BackupPlace {
            dir,
            name: numbered(name.to_bytes(), number)?,
            is_numbered: true,
        })
    }

    /// Returns the highest number of an entry's backups, or 0. Lists each directory once.
    fn highest_number(&mut self, dir: &OwnedFd, name: &CStr) -> Result<u64, CopyError> {
        let id = FileId::of(&fs::fstat(dir).at(Step::Backup)?);
        if self.numbers.dir != Some(id) {
            self.numbers = Numbers::default();
            let mut listing = Listing::of(list::path_to(dir.as_fd(), false));
            while let Some((_, name)) = listing.read() {
                if let Some((base, number)) = parse_number(name.to_bytes()) {
                    let highest = self.numbers.highest.entry(base.to_vec()).or_default();
                    *highest = (*highest).max(number);
                }
            }
            listing.result().at(Step::Backup)?;
            self.numbers.dir = Some(id);
        }
        let highest = self.numbers.highest.get(name.to_bytes());
        Ok(highest.copied().unwrap_or(0))
    }

    /// Returns true if the last numbered backup is the entry itself: a run crashed before it could
    /// replace the entry.
    fn is_last_backup(&self, dir: &Rc<OwnedFd>, name: &CStr) -> Result<bool, CopyError> {
        let highest = self.numbers.highest.get(name.to_bytes());
        // The number of the place that was just chosen is one more.
        let last = highest.copied().unwrap_or(0).saturating_sub(1);
        let place = BackupPlace {
            dir: Rc::clone(dir),
            name: numbered(name.to_bytes(), last)?,
            is_numbered: true,
        };
        Ok(last > 0 && is_same_file(dir, name, &place))
    }

    /// Opens the directory below `--backup-dir` for the backups of a directory. Makes it with that
    /// directory's mode and owner.
    fn open_backup_dir(
        &mut self,
        target: usize,
        path: &RelPath,
        like: BorrowedFd<'_>,
    ) -> Result<Rc<OwnedFd>, CopyError> {
        if let Some(open) = &self.backup_dir
            && open.path == *path
        {
            return Ok(Rc::clone(&open.fd));
        }
        let context = self.context;
        let Some(root) = context.targets.backup_dir() else {
            return Err(CopyError::new(Step::Backup, Errno::NOENT));
        };
        let target = &context.targets.list[target];
        let whole = target.below_named.append(path);
        let fd = match open_dir(root, &whole) {
            Err(Errno::NOENT) => make_dirs(root, &whole, like).at(Step::Backup)?,
            result => result.at(Step::Backup)?,
        };
        let fd = Rc::new(fd);
        self.backup_dir = Some(OpenBackupDir {
            path: path.clone(),
            fd: Rc::clone(&fd),
        });
        Ok(fd)
    }

    /// Syncs the directory that keeps what was replaced or removed in a directory of a target, with
    /// `--fsync`. That of a directory whose own parent is not synced after it needs `with_parents`.
    ///
    /// It is synced when the directory itself is: then it does not matter which worker has moved
    /// what there, and which of them are lost.
    pub(crate) fn sync_backups(
        &self,
        target: usize,
        path: &RelPath,
        with_parents: bool,
    ) -> Result<(), CopyError> {
        let context = self.context;
        let Some(root) = context
            .targets
            .backup_dir()
            .filter(|_| context.config.fsync)
        else {
            return Ok(());
        };
        let mut path = context.targets.list[target].below_named.append(path);
        loop {
            match open_dir(root, &path) {
                Ok(dir) => fs::fsync(dir).at(Step::Sync)?,
                // Nothing was kept.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
                Err(errno) => return Err(CopyError::new(Step::Sync, errno)),
            }
            if !with_parents || path.as_bytes().is_empty() {
                return Ok(());
            }
            path = path.split_last().0;
        }
    }

    /// The same for a directory that is open, and for the directories above that of a whole target.
    pub(crate) fn sync_backups_of(&self, dir: &DirPair) -> Result<(), CopyError> {
        // It has its path whenever there is a directory of backups.
        let Some(path) = dir.path() else {
            return Ok(());
        };
        self.sync_backups(dir.target, path, path.as_bytes().is_empty())
    }
}

fn simple(backup: &Backup, dir: Rc<OwnedFd>, name: &CStr) -> Result<BackupPlace, CopyError> {
    let mut bytes = name.to_bytes().to_vec();
    bytes.extend_from_slice(&backup.suffix);
    let name = CString::new(bytes).map_err(|_| CopyError::new(Step::Backup, Errno::INVAL))?;
    Ok(BackupPlace {
        dir,
        name,
        is_numbered: false,
    })
}

/// Fails if the source has an entry with the name of the backup: one would replace the other.
fn refuse_source_name(
    dir: &DirPair,
    place: &BackupPlace,
    backup: &Backup,
) -> Result<(), CopyError> {
    if backup.dir.is_some() {
        return Ok(());
    }
    match fs::statat(dir.source(), &*place.name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(_) => Ok(()),
        Ok(_) => Err(CopyError::new(Step::Backup, Reason::BackupIsSource)),
    }
}

fn is_same_file(dir: &OwnedFd, name: &CStr, place: &BackupPlace) -> bool {
    let id = |dir: &OwnedFd, name: &CStr| {
        fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map(|stat| FileId::of(&stat))
    };
    match (id(dir, name), id(&place.dir, &place.name)) {
        (Ok(entry), Ok(backup)) => entry == backup,
        _ => false,
    }
}

/// Makes the missing directories of a path below `root`. They get the mode and the owner of the
/// directory whose entries they keep, so that no other user can read more.
fn make_dirs(
    root: BorrowedFd<'_>,
    path: &RelPath,
    like: BorrowedFd<'_>,
) -> rustix::io::Result<OwnedFd> {
    let stat = fs::fstat(like)?;
    let mut dir = fs::openat(root, c".", DIRECTORY, Mode::empty())?;
    for name in path.as_bytes().split(|&b| b == b'/') {
        let is_new = match fs::mkdirat(&dir, name, Mode::RWXU) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(errno) => return Err(errno),
        };
        dir = fs::openat(&dir, name, DIRECTORY, Mode::empty())?;
        if is_new {
            let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
            let _ = fs::fchown(&dir, Some(uid), Some(gid));
            let _ = fs::fchmod(&dir, Mode::from_raw_mode(stat.st_mode & 0o777 | 0o700));
        }
    }
    Ok(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_backups_are_found() {
        assert_eq!(parse_number(b"a.~12~"), Some((&b"a"[..], 12)));
        for name in [&b"a~"[..], b"a.~~", b".~1~", b"a.~1", b"a.~x~", b"a~1~"] {
            assert_eq!(parse_number(name), None, "{}", name.escape_ascii());
        }
    }
}
