//! Options about contents: comparing, verifying and listing them, and resuming large files.

use std::path::PathBuf;

use clap::{Args, ValueEnum, ValueHint};

/// Options about contents.
#[derive(Debug, Args)]
pub struct Contents {
    /// Compare files by contents instead of size and time
    ///
    /// A file of the same size is read on both sides. If the contents are the same, only the
    /// metadata is updated, including the time. With -n this compares two trees.
    #[arg(short, long)]
    pub checksum: bool,

    /// With -n: exit with status 4 if DST differs
    #[arg(long)]
    pub exit_code: bool,

    /// Read each new file back from the disk and compare it with what was read from SRC
    ///
    /// A file that differs is copied once more. If it differs again, it fails and is not kept.
    #[arg(long)]
    pub verify: bool,

    /// Write a list for "sha256sum -c" of the files that are at DST
    ///
    /// It has one line for each regular file that was copied or was the same already. Paths are
    /// relative to DST. FILE is replaced at the end of the run.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub manifest: Option<PathBuf>,

    /// Choose the checksums of --manifest: for sha256sum or b3sum [default: sha256]
    #[arg(
        long,
        value_enum,
        hide_possible_values = true,
        value_name = "sha256|blake3"
    )]
    pub manifest_algorithm: Option<Algorithm>,

    /// Keep large files that were interrupted, and go on with them in the next run
    ///
    /// For files from 32 MiB, which are copied in chunks. Data that is there is trusted if SRC has
    /// not changed. With -c it is compared.
    #[arg(long)]
    pub partial: bool,
}

/// A kind of checksum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Algorithm {
    /// SHA-256, as sha256sum(1) prints it.
    #[default]
    Sha256,
    /// BLAKE3, as b3sum(1) prints it.
    Blake3,
}
