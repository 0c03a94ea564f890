//! How the mount behaves apart from its faults.

use std::time::Duration;

use clap::Args;
use rustix::fs::Mode;

#[derive(Args)]
pub(crate) struct Settings {
    /// How long every call takes, in milliseconds.
    #[arg(long = "delay-ms", value_name = "MS", default_value = "0", value_parser = milliseconds)]
    pub(crate) delay: Duration,
    /// How long the kernel may remember names and attributes, in milliseconds.
    #[arg(long = "ttl-ms", value_name = "MS", default_value = "1000", value_parser = milliseconds)]
    pub(crate) ttl: Duration,
    /// Let the kernel check no permissions.
    #[arg(long)]
    pub(crate) no_permissions: bool,
    /// The bits to cut from the modes of new entries, in octal.
    #[arg(long, value_name = "OCTAL", default_value = "0", value_parser = octal)]
    pub(crate) create_mask: u32,
    /// Set the mtime of a file that was created or written when it is closed.
    #[arg(long)]
    pub(crate) mtime_at_flush: bool,
    /// Take names for one that differ in case only.
    #[arg(long)]
    pub(crate) fold_case: bool,
    /// How many bytes of extended attributes an entry can have.
    #[arg(long, value_name = "N")]
    pub(crate) xattr_max: Option<usize>,
    /// Store holes as zeros.
    #[arg(long)]
    pub(crate) fill_holes: bool,
    /// Show another inode number at each lookup.
    #[arg(long)]
    pub(crate) volatile_inodes: bool,
    /// Refuse hard links.
    #[arg(long)]
    pub(crate) no_hard_links: bool,
}

impl Settings {
    /// The mode that a new entry gets if this one is asked for.
    pub(crate) fn new_mode(&self, mode: u32) -> Mode {
        Mode::from_raw_mode(mode & !self.create_mask)
    }
}

fn milliseconds(text: &str) -> Result<Duration, String> {
    let ms: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    Duration::try_from_secs_f64(ms / 1000.0).map_err(|error| error.to_string())
}

fn octal(text: &str) -> Result<u32, String> {
    u32::from_str_radix(text, 8).map_err(|error| error.to_string())
}
