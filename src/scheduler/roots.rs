//! Examines the roots of a target when errors or stalls suggest that a whole file system is gone.
//! Examples: an unplugged stick, an unreachable server.

use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};
use rustix::fs::{self, Mode, RawDir};
use rustix::io::{self, Errno};

use super::{Phase, Scheduler};
use crate::context::Context;
use crate::fs::open::DIRECTORY;
use crate::fs::path::RelPath;
use crate::protocol::Job;
use crate::protocol::error::{CopyError, Reason};
use crate::quote::quote;
use crate::ui::{About, MessageKind, Side};

/// How long a root may take to answer. The parent waits that long once for each root that hangs.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(300);

/// The state of a root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Health {
    Well,
    Gone(Errno),
    /// It has not answered.
    Silent,
}

/// The roots that have not answered.
#[derive(Default)]
pub(super) struct Roots {
    silent: HashMap<(u32, Side), Receiver<io::Result<()>>>,
}

impl Roots {
    /// Examines a root, in a thread of its own, because the root may hang. There is one such thread
    /// at most for each root.
    fn examine(&mut self, context: &'static Context, target: u32, side: Side) -> Health {
        let root = (target, side);
        let (answer, timeout) = match self.silent.remove(&root) {
            Some(answer) => (answer, Duration::ZERO),
            None => {
                let (sender, answer) = bounded(1);
                let thread = std::thread::Builder::new().spawn(move || {
                    let _ = sender.send(probe_root(context, target, side));
                });
                if thread.is_err() {
                    return Health::Well;
                }
                (answer, ANSWER_TIMEOUT)
            }
        };
        match answer.recv_deadline(Instant::now() + timeout) {
            Ok(Err(errno)) if is_gone(errno) => Health::Gone(errno),
            Err(RecvTimeoutError::Timeout) => {
                self.silent.insert(root, answer);
                Health::Silent
            }
            _ => Health::Well,
        }
    }

    /// Returns the side of a target that hangs. If both roots answer, that is the source: one of
    /// its entries may hang.
    pub(super) fn hanging_side(&mut self, context: &'static Context, target: u32) -> Side {
        let is_silent =
            |roots: &mut Self, side| roots.examine(context, target, side) == Health::Silent;
        if is_silent(self, Side::Destination) && !is_silent(self, Side::Source) {
            Side::Destination
        } else {
            Side::Source
        }
    }
}

impl Scheduler {
    /// Returns true if an error need not be reported, because the whole source or destination is
    /// gone. At the first such error this is reported, and the run stops.
    pub(super) fn is_root_gone(&mut self, job: &Job, error: &CopyError) -> bool {
        self.is_target_gone(job.target, error)
    }

    /// The same, by the number of the target.
    pub(super) fn is_target_gone(&mut self, target: u32, error: &CopyError) -> bool {
        let first = if error.step.is_at_destination() {
            Side::Destination
        } else {
            Side::Source
        };
        let Reason::System(errno) = error.reason else {
            return false;
        };
        let errno = Errno::from_raw_os_error(errno);
        // Single entries of a source often vanish. Examining its root each time would cost too
        // much.
        if !is_gone(errno) || errno == Errno::NOENT && first == Side::Source {
            return false;
        }
        if self.summary.gone.is_some() {
            return true;
        }
        if let Phase::Stopping { .. } = self.phase {
            return false;
        }
        for side in [first, first.other()] {
            if let Health::Gone(errno) = self.roots.examine(self.context, target, side) {
                let path = self.ui.path(side, target, &RelPath::default(), None);
                let reason = Reason::from(errno);
                let about = About {
                    path: Some(&path),
                    ..About::default()
                };
                let line = format!(
                    "{}: {} is gone: {reason}; stopped",
                    quote(&path),
                    side.name()
                );
                self.ui
                    .say(MessageKind::Error, &line, &about.failed(error.step, reason));
                self.summary.gone = Some(side);
                self.stop();
                return true;
            }
        }
        false
    }
}

/// Returns true for an errno that every call returns if the file system is gone.
fn is_gone(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::STALE
            | Errno::NOTCONN
            | Errno::CONNABORTED
            | Errno::SHUTDOWN
            | Errno::HOSTDOWN
            | Errno::NODEV
            | Errno::NXIO
            | Errno::NOMEDIUM
            | Errno::IO
            | Errno::NOENT
    )
}

/// Examines a root by calls that reach its server or device. Many others are answered from the
/// cache.
fn probe_root(context: &Context, target: u32, side: Side) -> io::Result<()> {
    let target = &context.targets.list[target as usize];
    let root = match (side, &target.destination) {
        (Side::Source, _) => target.source.as_fd(),
        (Side::Destination, Some(destination)) => destination.as_fd(),
        (Side::Destination, None) => return Ok(()),
    };
    fs::fstatfs(root)?;
    let device = fs::fstat(root)?.st_dev;
    let (major, minor) = (fs::major(device), fs::minor(device));
    // A stick that was pulled out leaves its file system behind, but no device. Others, such as
    // network mounts, have none (0), and a container may show no /sys.
    if major != 0
        && fs::access("/sys/dev/block", fs::Access::EXISTS).is_ok()
        && fs::access(
            format!("/sys/dev/block/{major}:{minor}"),
            fs::Access::EXISTS,
        ) == Err(Errno::NOENT)
    {
        return Err(Errno::NODEV);
    }
    let opened = fs::openat(root, c".", DIRECTORY, Mode::empty())?;
    let mut buffer = [MaybeUninit::uninit(); 4096];
    // Not `Dir`, which takes a directory that was removed (ENOENT) for an empty one.
    RawDir::new(opened, &mut buffer)
        .next()
        .transpose()
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_one_entry_are_not_those_of_a_root() {
        for errno in [Errno::ACCESS, Errno::NOSPC, Errno::PERM, Errno::ROFS] {
            assert!(!is_gone(errno));
        }
        assert!(is_gone(Errno::NOTCONN));
    }
}
