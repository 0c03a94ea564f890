//! The error type: an operation and a reason. Workers report it, and the parent prints it.

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::fs::names::RefusedName;

/// Why an entry was not copied, or not faithfully.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{step}: {reason}")]
pub(crate) struct CopyError {
    /// The operation that failed.
    pub(crate) step: Step,
    pub(crate) reason: Reason,
}

impl CopyError {
    /// Makes an error from an errno, or from a reason that pcopy found.
    pub(crate) fn new(step: Step, reason: impl Into<Reason>) -> Self {
        let reason = reason.into();
        Self { step, reason }
    }

    /// Returns true if the destination is full, so that everything after it would fail too. An
    /// attribute that is too large fails with the same errnos, but does not mean that the disk is
    /// full.
    pub(crate) fn is_full_destination(&self) -> bool {
        self.step.is_at_destination() && self.step != Step::SetAttributes && self.reason.is_full()
    }

    /// Returns true if the source moved: the entry was listed and is gone, or it changed while it
    /// was read. A run in which nothing else failed has an exit status of its own.
    pub(crate) fn is_moving_source(&self) -> bool {
        let Reason::System(errno) = self.reason else {
            return matches!(self.reason, Reason::Changed | Reason::Grown(_));
        };
        let errno = Errno::from_raw_os_error(errno);
        match self.step {
            // The directory has become a file or a link since its parent was listed.
            Step::OpenDirectory if matches!(errno, Errno::NOTDIR | Errno::LOOP) => true,
            // Not `Copy`: that may be an error of the destination.
            Step::OpenDirectory
            | Step::ListDirectory
            | Step::Look
            | Step::Open
            | Step::Read
            | Step::ReadLink
            | Step::ReadAttributes => matches!(errno, Errno::NOENT | Errno::STALE),
            _ => false,
        }
    }

    /// Returns true if a later attempt may succeed.
    pub(crate) fn may_pass(&self) -> bool {
        self.reason.may_pass()
    }

    /// Returns true if the entry was copied despite the error.
    pub(crate) fn is_copied(&self) -> bool {
        matches!(self.reason, Reason::Grown(_))
    }
}

/// Adds the operation to an error of the system.
pub(crate) trait At<T> {
    fn at(self, step: Step) -> Result<T, CopyError>;
}

impl<T> At<T> for rustix::io::Result<T> {
    fn at(self, step: Step) -> Result<T, CopyError> {
        self.map_err(|errno| CopyError::new(step, errno))
    }
}

/// An operation on an entry. Messages contain its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub(crate) enum Step {
    #[error("open directory")]
    OpenDirectory,
    #[error("list directory")]
    ListDirectory,
    #[error("stat")]
    Look,
    #[error("open")]
    Open,
    #[error("read")]
    Read,
    #[error("read link")]
    ReadLink,
    #[error("read attributes")]
    ReadAttributes,
    #[error("read back")]
    ReadBack,
    #[error("copy")]
    Copy,
    #[error("open directory")]
    OpenDestinationDirectory,
    #[error("create directory")]
    MakeDirectory,
    #[error("stat")]
    LookAtDestination,
    #[error("create")]
    Create,
    #[error("write")]
    Write,
    #[error("reserve space")]
    Reserve,
    #[error("clone (--reflink=always)")]
    Clone,
    #[error("set owner")]
    SetOwner,
    #[error("set mode")]
    SetMode,
    #[error("set times")]
    SetTimes,
    #[error("set attributes")]
    SetAttributes,
    #[error("set inode flags")]
    SetFlags,
    #[error("close")]
    Close,
    #[error("sync to disk")]
    Sync,
    #[error("rename into place")]
    Rename,
    #[error("create hard link")]
    Link,
    #[error("remove temporary file")]
    Remove,
    #[error("delete")]
    Delete,
    #[error("keep backup")]
    Backup,
}

impl Step {
    /// Returns true for an operation on the destination: its failure is shown with that path.
    pub(crate) const fn is_at_destination(self) -> bool {
        !matches!(
            self,
            Self::OpenDirectory
                | Self::ListDirectory
                | Self::Look
                | Self::Open
                | Self::Read
                | Self::ReadLink
                | Self::ReadAttributes
                | Self::Copy
        )
    }
}

/// Why an operation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub(crate) enum Reason {
    /// An errno.
    #[error("{}", error_text(*.0))]
    System(i32),
    #[error("file changed while being copied (2 attempts)")]
    Changed,
    /// The file has only grown. Its length when it was opened.
    #[error("file grew while being copied; kept its first {0} bytes")]
    Grown(u64),
    /// A path that the user has listed.
    #[error("No such file or directory")]
    Missing,
    /// A listed path leads through it.
    #[error("a listed path leads through this symbolic link; pcopy follows it only with -L")]
    LinkOnTheWay,
    /// With `--verify`; or a chunk, with `--checksum`.
    #[error("contents differ from those of the source")]
    Differs,
    /// With `--dereference`.
    #[error("symbolic link to nothing")]
    DanglingLink,
    /// A directory without search permission can be listed only through /proc.
    #[error("cannot be listed without /proc")]
    NoProc,
    /// A pipe, and another worker has read from it.
    #[error("pipe can be read only once, and a worker was lost while reading")]
    ReadOnce,
    /// Two source names that the destination takes for one. The [`EntryError`] names the other.
    ///
    /// [`EntryError`]: crate::protocol::EntryError
    #[error("same name as another entry at the destination")]
    SameName,
    /// The file system allows no such name.
    #[error("{0}")]
    Name(RefusedName),
    #[error("destination cannot rename; use --inplace")]
    CannotRename,
    #[error("a directory of that name is in the way")]
    DirectoryInTheWay,
    #[error("a file of that name is in the way")]
    FileInTheWay,
    #[error("a symbolic link is in the way; pcopy does not follow it")]
    LinkInTheWay,
    /// Another process renamed something over a file that this run was writing.
    #[error("replaced by another process; run pcopy again")]
    Replaced,
    /// The source directory is the destination itself, or one that is being copied to.
    #[error("directory is the destination itself")]
    IsDestination,
    #[error("would replace another source of this run")]
    IsSource,
    /// Replacing it by the link would lose what the link leads to.
    #[error("source is a link to this entry")]
    IsLinkedTo,
    /// The destination directory is the source, or lies inside it.
    #[error("directory belongs to the source")]
    LandsOnSource,
    /// Something is mounted there, and what is on it is not part of the copy.
    #[error("is a mount point, and stays")]
    IsMountPoint,
    /// The source's directory, or the destination's, is not the one that was listed.
    #[error("another directory has taken its place; nothing in it was deleted")]
    OtherDirectory,
    #[error("the source has an entry with the name of the backup; choose another --suffix")]
    BackupIsSource,
    /// Another run's temporary file, in a directory to remove.
    #[error("belongs to another run of pcopy, and stays")]
    InUse,
    #[error("symbolic links lead back to a parent directory")]
    Loop,
    #[error("workers crashed on it twice ({0})")]
    Crashed(Death),
    /// No progress for this many seconds.
    #[error("no progress for {0} s (2 attempts)")]
    Stalled(u64),
    /// Setting metadata succeeded, but it was not stored.
    #[error("accepted by the file system, but not kept")]
    Ineffective,
    /// A panic. Its message is on stderr in thread mode.
    #[error("internal error, please report it")]
    Bug,
    /// The run was stopped. Never shown.
    #[error("interrupted")]
    Stopped,
}

impl Reason {
    /// Returns true for the errors of a full file system or quota.
    pub(crate) fn is_full(self) -> bool {
        self == Errno::NOSPC.into() || self == Errno::DQUOT.into()
    }
}

impl Reason {
    /// Returns true for the errors of servers, networks and devices that may be gone a little later,
    /// and for a file that may not change any more.
    pub(crate) fn may_pass(self) -> bool {
        let Self::System(errno) = self else {
            return self == Self::Changed;
        };
        matches!(
            Errno::from_raw_os_error(errno),
            Errno::IO
                | Errno::STALE
                | Errno::AGAIN
                | Errno::BUSY
                | Errno::TXTBSY
                | Errno::DEADLK
                | Errno::NOLCK
                | Errno::NOMEM
                | Errno::NOBUFS
                | Errno::NFILE
                | Errno::MFILE
                | Errno::REMOTEIO
                | Errno::TIMEDOUT
                | Errno::TIME
                | Errno::NOTCONN
                | Errno::CONNRESET
                | Errno::CONNABORTED
                | Errno::CONNREFUSED
                | Errno::NETDOWN
                | Errno::NETUNREACH
                | Errno::NETRESET
                | Errno::HOSTDOWN
                | Errno::HOSTUNREACH
                | Errno::NOLINK
                | Errno::COMM
        )
    }
}

impl From<Errno> for Reason {
    fn from(errno: Errno) -> Self {
        Self::System(errno.raw_os_error())
    }
}

/// How a worker ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub(crate) enum Death {
    #[error("{}", signal_text(*.0))]
    Signal(i32),
    #[error("exit status {0}")]
    Exit(i32),
    /// Its status was lost: another process reaped it, or it could not be killed.
    #[error("unknown status")]
    Unknown,
    /// Its whole machine was lost, which is not the fault of an entry.
    #[error("its host was lost")]
    Host,
}

/// Returns the system's text for an errno, without the number.
pub(crate) fn error_text(errno: i32) -> String {
    let text = std::io::Error::from_raw_os_error(errno).to_string();
    match text.find(" (os error") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

fn signal_text(signal: i32) -> String {
    signal_hook::low_level::signal_name(signal)
        .map_or_else(|| format!("signal {signal}"), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_read_well() {
        let error = CopyError::new(Step::Open, Errno::ACCESS);
        assert_eq!(error.to_string(), "open: Permission denied");
        let crashed = |death| Reason::Crashed(death).to_string();
        assert_eq!(
            crashed(Death::Signal(9)),
            "workers crashed on it twice (SIGKILL)"
        );
        assert_eq!(
            crashed(Death::Exit(3)),
            "workers crashed on it twice (exit status 3)"
        );
        assert_eq!(
            crashed(Death::Unknown),
            "workers crashed on it twice (unknown status)"
        );
    }

    #[test]
    fn a_source_moves_if_it_vanishes_or_changes() {
        let moves = |step, errno| CopyError::new(step, errno).is_moving_source();
        assert!(moves(Step::Open, Errno::NOENT));
        assert!(moves(Step::ListDirectory, Errno::STALE));
        assert!(moves(Step::OpenDirectory, Errno::NOTDIR));
        assert!(!moves(Step::Open, Errno::LOOP));
        assert!(!moves(Step::Open, Errno::ACCESS));
        assert!(!moves(Step::Create, Errno::NOENT));
        assert!(!moves(Step::Copy, Errno::STALE));
        for reason in [Reason::Changed, Reason::Grown(1)] {
            assert!(CopyError::new(Step::Read, reason).is_moving_source());
        }
        assert!(!CopyError::new(Step::Look, Reason::DanglingLink).is_moving_source());
    }

    #[test]
    fn only_a_full_destination_stops_everything() {
        let full = |step, errno| CopyError::new(step, errno).is_full_destination();
        assert!(full(Step::Write, Errno::NOSPC));
        assert!(full(Step::Create, Errno::DQUOT));
        assert!(!full(Step::Write, Errno::IO));
        assert!(!full(Step::Read, Errno::NOSPC));
        assert!(!full(Step::SetAttributes, Errno::NOSPC));
    }
}
