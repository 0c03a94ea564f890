//! SIGINT and SIGTERM: the first one stops the run cleanly, the second one ends it at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::{Context as _, Result};
use signal_hook::consts::{SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::flag;

/// Which signal has come.
pub struct Signals {
    caught: Arc<AtomicUsize>,
}

impl Signals {
    /// Takes the signals over.
    ///
    /// # Errors
    /// Where the system does not allow it.
    pub fn take_over() -> Result<Self> {
        let caught = Arc::new(AtomicUsize::new(0));
        let again = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            let take = || -> std::io::Result<()> {
                // In this order: the shutdown looks at what an earlier signal has set.
                flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&again))?;
                flag::register(signal, Arc::clone(&again))?;
                flag::register_usize(signal, Arc::clone(&caught), signal as usize)?;
                Ok(())
            };
            take().context("cannot handle signals")?;
        }
        // A file that is larger than `ulimit -f` allows fails alone (EFBIG) and does not end
        // the program.
        flag::register(SIGXFSZ, Arc::default()).context("cannot handle signals")?;
        Ok(Self { caught })
    }

    /// The signal that has come, if any.
    pub fn caught(&self) -> Option<i32> {
        match self.caught.load(Ordering::Relaxed) {
            0 => None,
            signal => Some(signal as i32),
        }
    }
}
