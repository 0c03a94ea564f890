//! SIGINT, SIGTERM and SIGHUP: the first one stops the run cleanly, the second one ends it at
//! once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context as _, Result};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::flag;

use crate::fs::sys;

/// Signals that stop a run.
pub(crate) const STOP_SIGNALS: [i32; 3] = [SIGINT, SIGTERM, SIGHUP];

/// The signals that are ignored, a bit for each (proc_pid_status(5)).
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    line.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok())
        .unwrap_or(0)
}

/// Which signal has come.
pub(crate) struct Signals {
    caught: Arc<AtomicUsize>,
}

impl Signals {
    /// Takes the signals over.
    ///
    /// # Errors
    /// Where the system does not allow it.
    pub(crate) fn take_over() -> Result<Self> {
        let caught = Arc::new(AtomicUsize::new(0));
        let ignored = ignored();
        for signal in STOP_SIGNALS {
            // By nohup, or a shell that has started this in the background.
            let is_ignored = ignored & 1 << (signal - 1) != 0;
            if !is_ignored {
                let taken = sys::stop_on(signal, Arc::clone(&caught));
                taken.context("cannot handle signals")?;
            }
        }
        // A file that is larger than `ulimit -f` allows fails alone (EFBIG) and does not end
        // the program.
        flag::register(SIGXFSZ, Arc::default()).context("cannot handle signals")?;
        // Ignored, nobody could tell how a worker has ended (waitpid(2)).
        flag::register(SIGCHLD, Arc::default()).context("cannot handle signals")?;
        Ok(Self { caught })
    }

    /// The signal that has come, if any.
    pub(crate) fn caught(&self) -> Option<i32> {
        match self.caught.load(Ordering::Relaxed) {
            0 => None,
            signal => Some(signal as i32),
        }
    }
}
