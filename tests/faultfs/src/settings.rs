//! The behaviour of the whole mount.

use std::time::Duration;

use clap::Args;
use rustix::fs::Mode;

use crate::head::Speed;

#[derive(Args)]
pub(crate) struct Settings {
    /// How long every call takes, in milliseconds
    #[arg(long = "delay-ms", value_name = "MS", default_value = "0", value_parser = milliseconds)]
    pub(crate) delay: Duration,
    /// Read as a disk with one head: milliseconds of a seek, MiB in a second
    #[arg(long, value_name = "SEEK_MS,MIB_S", value_parser = Speed::parse)]
    pub(crate) head: Option<Speed>,
    /// How much longer it takes to sync a file, in milliseconds
    #[arg(long = "flush-ms", value_name = "MS", default_value = "0", value_parser = milliseconds)]
    pub(crate) flush: Duration,
    /// How long the kernel may cache names and attributes, in milliseconds
    #[arg(long = "ttl-ms", value_name = "MS", default_value = "1000", value_parser = milliseconds)]
    pub(crate) ttl: Duration,
    /// Do not let the kernel check permissions
    #[arg(long)]
    pub(crate) no_permissions: bool,
    /// The bits to remove from the modes of new entries, in octal
    #[arg(long, value_name = "OCTAL", default_value = "0", value_parser = octal)]
    pub(crate) create_mask: u32,
    /// Set the mtime of a created or written file when it is closed
    #[arg(long)]
    pub(crate) mtime_at_flush: bool,
    /// Treat names that differ only in case as one
    #[arg(long)]
    pub(crate) fold_case: bool,
    /// Find names as they are, and refuse new ones that differ only in case from an existing one
    #[arg(long, conflicts_with = "fold_case")]
    pub(crate) hide_twins: bool,
    /// The most bytes of extended attributes that an entry can have
    #[arg(long, value_name = "N")]
    pub(crate) xattr_max: Option<usize>,
    /// Store holes as zeros
    #[arg(long)]
    pub(crate) fill_holes: bool,
    /// Show another inode number at each lookup
    #[arg(long)]
    pub(crate) volatile_inodes: bool,
    /// Let a rename of one link of a file to another one remove the first
    #[arg(long)]
    pub(crate) rename_links: bool,
    /// Refuse hard links
    #[arg(long)]
    pub(crate) no_hard_links: bool,
}

impl Settings {
    /// Returns the mode of a new entry for which this mode was requested.
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
