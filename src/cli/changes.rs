//! Options that change metadata on the way, and that list changes.

use std::ffi::OsString;

use clap::Args;

/// Options of metadata.
#[derive(Debug, Args)]
pub struct Changes {
    /// Change modes on the way, as rsync does: D755,F644 or u+rwX,go-w
    ///
    /// A comma-separated list of octal or symbolic modes. D in front means directories only, F
    /// everything else. Links keep their modes. A second run has nothing to do.
    #[arg(long, value_name = "MODES")]
    pub chmod: Vec<String>,

    /// Give the copy this owner and group, names or numbers; one of them may be left out
    ///
    /// An entry fails if that cannot be done. --chown USER changes the owner only, --chown :GROUP the
    /// group only.
    #[arg(long, value_name = "USER:GROUP")]
    pub chown: Option<OsString>,

    /// Print each change in the eleven letters of rsync, YXcstpoguax, instead of the lines of -v
    ///
    /// Works with -n too. An unchanged entry has no line. "*deleting" is a removed entry.
    #[arg(short = 'i', long)]
    pub itemize_changes: bool,
}
