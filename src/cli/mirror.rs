//! Options that make DST a mirror of SRC: what SRC does not have is removed.

use clap::{Args, ValueEnum};

/// Options of deletion.
#[derive(Debug, Args)]
pub struct Mirror {
    /// Remove from DST what SRC does not have, once everything is copied
    ///
    /// One SRC, a directory. Nothing is removed if an entry of SRC failed, if a directory of SRC
    /// could not be listed, if the run was stopped, or if SRC is empty; --delete=force allows an
    /// empty SRC. Mount points stay. A directory at DST that is in the way of a file is removed,
    /// and the other way round. With -n the lines say "delete".
    #[arg(
        long,
        value_enum,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "safe",
        hide_possible_values = true,
        value_name = "force",
        aliases = ["del", "delete-after", "delete-delay"]
    )]
    pub delete: Option<Delete>,

    /// Let --delete remove at most N entries
    ///
    /// If there are more, they stay, a line says how many, and the exit status is 1.
    #[arg(long, value_name = "N")]
    pub max_delete: Option<u64>,

    /// Remove what the filters exclude, too (implies --delete)
    #[arg(long)]
    pub delete_excluded: bool,
}

/// How careful `--delete` is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Delete {
    /// It refuses an empty source.
    Safe,
    /// An empty source empties the destination.
    Force,
}
