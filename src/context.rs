//! What every worker has from the start: the choices, the roots, the board.

use std::ffi::CString;

use crate::config::Config;
use crate::scoreboard::Scoreboard;
use crate::targets::Targets;

/// One for the run. Threads share it, forked workers inherit it.
pub(crate) struct Context {
    /// The choices.
    pub(crate) config: Config,
    /// Sources and destinations, open.
    pub(crate) roots: Targets,
    /// The shared memory.
    pub(crate) board: Scoreboard,
}

impl Context {
    /// The name under which a worker of this run writes the entry of this number that replaces
    /// an existing one. Each entry has a name of its own: that of a large file is in use until
    /// all its pieces are there, while the worker is at other entries.
    pub(crate) fn temporary_name(&self, worker: usize, number: u32) -> CString {
        let name = format!(".pcopy.{:016x}.{worker}.{number}.tmp", self.config.run);
        CString::new(name).unwrap_or_default()
    }

    /// True for a temporary name of another run. Those of this run are in use, or soon removed by
    /// who made them.
    pub(crate) fn is_left_over(&self, name: &[u8]) -> bool {
        let own = format!(".pcopy.{:016x}.", self.config.run);
        is_temporary(name) && !name.starts_with(own.as_bytes())
    }
}

/// True for the names that [`Context::temporary_name`] gives, in this run or another.
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
