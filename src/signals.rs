//! SIGINT, SIGTERM and SIGHUP: the first one stops the run cleanly, the second one ends it at
//! once.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context as _, Result};
use signal_hook::consts::{SIGCHLD, SIGCONT, SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::flag;

use crate::fs::sys::{self, Fork};

/// The signals that stop a run.
pub(crate) const STOP_SIGNALS: [i32; 3] = [SIGINT, SIGTERM, SIGHUP];

/// Forks this process. The caller must be its only thread.
///
/// A SIGSTOP that comes during a fork reaches the child once it runs. The following SIGCONT cancels
/// the stop only if SIGCONT has a handler. Without one the child would stay stopped (Linux 6.18,
/// `__send_signal_locked`). The child inherits the handler, and so do those that it forks.
pub(crate) fn fork() -> io::Result<Fork> {
    flag::register(SIGCONT, Arc::default())?;
    sys::fork()
}

/// The stop signal that was caught, if any.
pub(crate) struct Signals {
    /// The number of the signal, or 0.
    caught: Arc<AtomicUsize>,
}

impl Signals {
    /// Installs the signal handlers.
    pub(crate) fn take_over() -> Result<Self> {
        let caught = Arc::new(AtomicUsize::new(0));
        for signal in STOP_SIGNALS {
            // A signal that nohup(1), or a shell starting a background job, made this process
            // ignore stays ignored.
            if !sys::is_ignored(signal) {
                sys::stop_on(signal, Arc::clone(&caught)).context("cannot handle signals")?;
            }
        }
        // Without a handler a file beyond `ulimit -f` would kill the program. With one the write
        // fails (EFBIG), and only that file.
        flag::register(SIGXFSZ, Arc::default()).context("cannot handle signals")?;
        // If SIGCHLD is ignored, the kernel discards how a worker ended (waitpid(2)).
        flag::register(SIGCHLD, Arc::default()).context("cannot handle signals")?;
        Ok(Self { caught })
    }

    /// Makes signals that a simulation sends by storing a number.
    #[cfg(test)]
    pub(crate) fn simulated(caught: Arc<AtomicUsize>) -> Self {
        Self { caught }
    }

    /// Returns the signal that was caught, if any.
    pub(crate) fn caught(&self) -> Option<i32> {
        match self.caught.load(Ordering::Relaxed) {
            0 => None,
            signal => Some(signal as i32),
        }
    }
}
