//! Everything that a worker needs from the start.

use std::ffi::CString;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::Mode;

use crate::config::Config;
use crate::scoreboard::Scoreboard;
use crate::targets::Targets;

/// Everything that a worker needs from the start.
///
/// There is one for the run: threads share it, forked workers inherit it.
pub(crate) struct Context {
    pub(crate) config: Config,
    pub(crate) identity: Identity,
    pub(crate) targets: Targets,
    pub(crate) scoreboard: Scoreboard,
}

/// Who runs pcopy, and which run this is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Identity {
    /// The umask that pcopy was started with. It matters only if modes are not kept.
    pub(crate) umask: u32,
    /// The effective user is root.
    pub(crate) is_root: bool,
    /// The effective group.
    pub(crate) group: u32,
    /// A number in the temporary names of this run that those of other runs do not have.
    pub(crate) run: u64,
}

impl Identity {
    /// Reads the identity of this process, and sets its umask to 0.
    ///
    /// From then on, new files get exactly the mode that the code passes.
    pub(crate) fn take_over() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let nanoseconds = now.map_or(0, |now| now.as_nanos() as u64);
        Self {
            umask: rustix::process::umask(Mode::empty()).bits(),
            is_root: rustix::process::geteuid().is_root(),
            group: rustix::process::getegid().as_raw(),
            run: nanoseconds ^ u64::from(std::process::id()) << 48,
        }
    }
}

impl Context {
    /// Returns the temporary name for entry `number` of a worker.
    ///
    /// The entry is written under this name if it replaces an existing one. No name is used twice:
    /// that of a file copied in chunks is in use while its worker goes on to other entries.
    pub(crate) fn temporary_name(&self, worker: usize, number: u32) -> CString {
        let name = format!(".pcopy.{:016x}.{worker}.{number}.tmp", self.identity.run);
        CString::new(name).unwrap_or_default()
    }

    /// Returns true for a temporary name of another run.
    ///
    /// Those of this run are in use, or are about to be removed by the worker that created them.
    pub(crate) fn is_left_over(&self, name: &[u8]) -> bool {
        let own = format!(".pcopy.{:016x}.", self.identity.run);
        is_temporary(name) && !name.starts_with(own.as_bytes())
    }
}

/// Returns true for the names that [`Context::temporary_name`] returns in this run or another.
fn is_temporary(name: &[u8]) -> bool {
    let parts = name
        .strip_prefix(b".pcopy.")
        .and_then(|rest| rest.strip_suffix(b".tmp"));
    let Some((run, numbers)) = parts.and_then(|parts| parts.split_at_checked(16)) else {
        return false;
    };
    let number = |part: &[u8]| !part.is_empty() && part.iter().all(u8::is_ascii_digit);
    let mut parts = numbers.split(|&b| b == b'.');
    run.iter().all(u8::is_ascii_hexdigit)
        && parts.next() == Some(b"")
        && parts.next().is_some_and(number)
        && parts.next().is_some_and(number)
        && parts.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::is_temporary;

    #[test]
    fn only_names_of_pcopy_are_temporary() {
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
