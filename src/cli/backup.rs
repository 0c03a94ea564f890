//! Options that keep what is replaced or removed.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, ValueHint};

use crate::environment::Control;

/// Options of backups.
#[derive(Debug, Args)]
pub struct Backups {
    /// Keep what is replaced, as cp does: NAME~, or NAME.~1~ and so on
    ///
    /// simple: NAME~, one for each name. numbered: NAME.~N~. existing: numbered if there are
    /// numbered ones of that name already, else simple. none: no backup. Entries that --delete
    /// removes are kept too, and backups are not removed. The default is VERSION_CONTROL, or
    /// existing.
    #[arg(
        short = 'b',
        long,
        value_enum,
        num_args = 0..=1,
        require_equals = true,
        hide_possible_values = true,
        value_name = "simple|numbered|existing|none"
    )]
    pub backup: Option<Option<Control>>,

    /// End the names of simple backups in SUFFIX instead of "~" (implies --backup)
    ///
    /// The default is SIMPLE_BACKUP_SUFFIX, and with --backup-dir no suffix.
    #[arg(short = 'S', long, value_name = "SUFFIX")]
    pub suffix: Option<OsString>,

    /// Keep what is replaced or removed in DIR, under its path (implies --backup)
    ///
    /// A relative DIR is relative to DST, as with rsync. DIR must be on the file system of DST,
    /// because files are linked into it and moved.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub backup_dir: Option<PathBuf>,
}
