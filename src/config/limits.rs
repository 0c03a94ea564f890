//! The limits of a run, and how often it tries again.

use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::cli::limits::Limits as Options;

/// How long to wait before trying again.
const RETRY_WAIT: Duration = Duration::from_secs(5);

/// The limits of a run.
#[derive(Clone, Debug)]
pub struct Limits {
    /// How often to try again what failed for a reason that can pass.
    pub retries: u32,
    /// How long to wait before that.
    pub retry_wait: Duration,
    /// The most bytes a second.
    pub bwlimit: Option<NonZeroU64>,
    /// How long the run may begin new entries.
    pub stop_after: Option<Duration>,
    /// The file that only one run may lock.
    pub lock: Option<PathBuf>,
}

impl Limits {
    /// Checks the options.
    ///
    /// # Errors
    /// If a wait is given and nothing to wait for.
    pub(super) fn new(options: Options) -> Result<Self> {
        if options.retry_wait.is_some() && options.retries == 0 {
            bail!("--retry-wait needs --retries N: without it nothing is tried again");
        }
        Ok(Self {
            retries: options.retries,
            retry_wait: options.retry_wait.unwrap_or(RETRY_WAIT),
            bwlimit: options.bwlimit.flatten(),
            stop_after: options.stop_after,
            lock: options.lock,
        })
    }
}
