//! The settings about contents, checked.

use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::cli::{Algorithm, Cli, Overwrite, Reflink, Sparse};

/// Settings about contents.
#[derive(Clone, Debug)]
pub struct Contents {
    /// Compare files by their contents.
    pub checksum: bool,
    /// Let the exit status of a dry run say whether the destination differs.
    pub exit_code: bool,
    /// Read copies back and compare them.
    pub verify: bool,
    /// Write a list of the files that arrived. `None` in a dry run.
    pub manifest: Option<Manifest>,
    /// Keep files that were interrupted, and go on with those of earlier runs.
    pub partial: bool,
}

/// The list of the files that arrived.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// Where it is written.
    pub path: PathBuf,
    /// The kind of its checksums.
    pub algorithm: Algorithm,
}

impl Contents {
    /// Checks the options.
    ///
    /// # Errors
    /// If they contradict others.
    pub(super) fn new(cli: &Cli, overwrite: Overwrite) -> Result<Self> {
        let options = &cli.contents;
        if options.checksum && matches!(overwrite, Overwrite::Always | Overwrite::Never) {
            bail!(
                "--checksum does not go with --overwrite=always or never: these do not ask what \
                 differs"
            );
        }
        if options.exit_code && !cli.dry_run {
            bail!("--exit-code needs -n: a run that copies leaves no difference");
        }
        if options.verify && cli.reflink == Reflink::Always {
            bail!(
                "--verify does not go with --reflink=always: shared extents are those of the \
                 source, and nothing is written"
            );
        }
        if options.partial {
            Self::check_partial(cli)?;
        }
        Ok(Self {
            checksum: options.checksum,
            exit_code: options.exit_code,
            verify: options.verify,
            manifest: Self::manifest(cli)?.filter(|_| !cli.dry_run),
            partial: options.partial,
        })
    }

    /// Refuses options with which no file is copied in chunks.
    fn check_partial(cli: &Cli) -> Result<()> {
        if cli.inplace {
            bail!(
                "--partial does not go with --inplace: a file that is written in place has no \
                 temporary file to go on with"
            );
        }
        if cli.reflink == Reflink::Always {
            bail!("--partial does not go with --reflink=always: extents are shared at once");
        }
        if cli.sparse != Sparse::Auto {
            bail!("--partial needs --sparse=auto: only then are files copied in chunks");
        }
        Ok(())
    }

    fn manifest(cli: &Cli) -> Result<Option<Manifest>> {
        let options = &cli.contents;
        let Some(path) = &options.manifest else {
            if options.manifest_algorithm.is_some() {
                bail!("--manifest-algorithm needs --manifest");
            }
            return Ok(None);
        };
        if matches!(path.as_os_str().as_bytes(), b"" | b"-") {
            bail!("--manifest: name a file; it is replaced when the list is complete");
        }
        Ok(Some(Manifest {
            path: path.clone(),
            algorithm: options.manifest_algorithm.unwrap_or_default(),
        }))
    }

    /// Returns true if all contents must pass through this process.
    pub(crate) fn reads_everything(&self) -> bool {
        self.verify || self.manifest.is_some()
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::config::Config;

    fn contents(words: &[&str]) -> Result<Contents> {
        let cli = Cli::try_parse_from([&["pcopy", "a", "b"], words].concat())?;
        Ok(Config::new(cli)?.contents)
    }

    #[test]
    fn what_contradicts_is_refused() {
        for words in [
            &["-c", "--overwrite=always"][..],
            &["-c", "--update=none"],
            &["--exit-code"],
            &["--verify", "--reflink"],
            &["--partial", "--inplace"],
            &["--partial", "--reflink"],
            &["--partial", "--sparse=always"],
            &["--manifest-algorithm=blake3"],
            &["--manifest=-"],
        ] {
            assert!(contents(words).is_err(), "{words:?}");
        }
        for words in [
            &["-c", "-u"][..],
            &["-nc", "--exit-code"],
            &["--verify", "--inplace", "--sparse=always"],
            &["--partial", "-c", "--verify", "-j1", "--manifest=list"],
        ] {
            assert!(contents(words).is_ok(), "{words:?}");
        }
    }

    #[test]
    fn a_manifest_is_for_sha256sum_and_not_of_a_dry_run() {
        let manifest = |words: &[&str]| contents(words).unwrap().manifest;
        let written = manifest(&["--manifest=list"]).unwrap();
        assert_eq!(written.algorithm, Algorithm::Sha256);
        assert!(manifest(&["--manifest=list", "-n"]).is_none());
    }
}
