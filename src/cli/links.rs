//! Options that make links instead of copies.

use std::path::PathBuf;

use clap::{Args, ValueHint};

/// Options of links.
#[derive(Debug, Args)]
pub struct Links {
    /// Make what is the same in DIR a hard link to it: a snapshot that costs only what has changed
    ///
    /// The same means type, size, time and the metadata that is kept. A relative DIR is relative to
    /// DST, as with rsync. May be given several times; the first DIR that has the entry counts. An
    /// entry whose metadata alone has changed is copied, so older snapshots stay as they are.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub link_dest: Vec<PathBuf>,

    /// Make hard links to the files of SRC instead of copies
    #[arg(short = 'l', long)]
    pub link: bool,

    /// Make symbolic links to the files of SRC instead of copies
    ///
    /// SRC must begin with a slash: a link with another text would lead elsewhere.
    #[arg(short = 's', long)]
    pub symbolic_link: bool,
}
