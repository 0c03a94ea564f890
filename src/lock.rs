//! The file of `--lock`: one run at a time.
//!
//! flock(2) locks the open file, which forked workers share. So the lock is held until all of them
//! have ended, however the parent ends: they could still write. A run that ends as it should unlocks
//! the file itself, and a worker that hangs in a dead disk holds nothing.

use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use rustix::fs::{self, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::protocol::error::Reason;
use crate::quote::quote;

/// A lock that this run holds.
#[derive(Debug)]
pub(crate) struct Lock(OwnedFd);

impl Lock {
    /// Locks a file, and makes it if it is missing.
    ///
    /// # Errors
    /// If another process has locked it, or it cannot be opened.
    pub(crate) fn take(path: &Path) -> Result<Self> {
        let shown = quote(path.as_os_str().as_encoded_bytes());
        let open = |flags| {
            let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
            fs::open(path, flags, Mode::from_raw_mode(0o666))
        };
        // NFS locks only what may be written to.
        let file = match open(OFlags::RDWR | OFlags::CREATE) {
            Err(Errno::ACCESS | Errno::ISDIR | Errno::ROFS | Errno::PERM) => open(OFlags::RDONLY),
            result => result,
        };
        let file = file
            .map_err(Reason::from)
            .with_context(|| format!("{shown}: open lock"))?;
        match fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self(file)),
            Err(Errno::WOULDBLOCK) => bail!("{shown}: lock: another run holds it"),
            Err(errno) => Err(Reason::from(errno)).with_context(|| format!("{shown}: lock")),
        }
    }

    /// Unlocks the file, also for workers that still have it open.
    pub(crate) fn release(self) {
        let _ = fs::flock(&self.0, FlockOperation::Unlock);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_has_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let first = Lock::take(&path).unwrap();
        let message = Lock::take(&path).unwrap_err().to_string();
        assert!(
            message.ends_with("lock: lock: another run holds it"),
            "{message}"
        );
        // A worker that is left behind has it open too.
        let _inherited = first.0.try_clone().unwrap();
        first.release();
        assert!(Lock::take(&path).is_ok());
        // As flock(1) does.
        assert!(Lock::take(dir.path()).is_ok());
        assert!(Lock::take(&path.join("below")).is_err());
    }
}
