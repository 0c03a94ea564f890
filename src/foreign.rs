//! Options of cp and rsync that pcopy does not have: what the error says is nearest.

use clap::error::{ContextKind, ContextValue, ErrorKind};

/// An option of another program.
struct Foreign {
    /// All its spellings.
    names: &'static [&'static str],
    program: &'static str,
    instead: Instead,
}

/// What a user can do without an option.
enum Instead {
    /// Leave it out: pcopy does so in any case.
    Nothing(&'static str),
    /// The nearest option or command.
    Use(&'static str),
}

use Instead::{Nothing, Use};

const fn cp(names: &'static [&'static str], instead: Instead) -> Foreign {
    Foreign {
        names,
        program: "cp",
        instead,
    }
}

const fn rsync(names: &'static [&'static str], instead: Instead) -> Foreign {
    Foreign {
        names,
        program: "rsync",
        instead,
    }
}

const DELETE: &str = "--delete, which deletes after the copy";
const FILTER: &str = "--exclude, which leaves out entries by name";
const REMOTE: &str = "pcopy copies to mounted file systems only: mount the other one with sshfs";
const RESUME: &str = "--partial, which goes on with large files that were interrupted";
const LOG: &str = "--log-file for people, --json for programs";
const REPORT: &str = "-n for the changes before the copy, -v for those that were made";

/// Options that pcopy has itself are not here, even if they mean something else there.
const FOREIGN: &[Foreign] = &[
    cp(
        &["--attributes-only"],
        Use("a second run: it brings metadata that alone has changed"),
    ),
    cp(
        &["--copy-contents"],
        Use("/dev/stdin or <(...) as SRC, which is read to its end"),
    ),
    cp(&["--interactive"], Use(REPORT)),
    rsync(&["--links"], Nothing("links are copied as links")),
    cp(&["--no-clobber"], Use("--update=none")),
    cp(
        &["--keep-directory-symlink"],
        Use("DST/LINK/ as DST: a link is followed if it is named"),
    ),
    cp(
        &["--remove-destination"],
        Nothing("a file is replaced by a rename"),
    ),
    cp(
        &["--strip-trailing-slashes"],
        Nothing("a slash after SRC changes nothing"),
    ),
    cp(
        &["-Z", "--context"],
        Use("--preserve=context or --no-preserve=context"),
    ),
    // What pcopy keeps or does in any case.
    rsync(&["--times"], Nothing("times are kept")),
    rsync(&["--perms"], Nothing("modes are kept")),
    rsync(&["-o", "--owner"], Nothing("owners are kept")),
    rsync(&["-g", "--group"], Nothing("groups are kept")),
    rsync(
        &["-D", "--devices", "--specials"],
        Nothing("devices and special files are kept"),
    ),
    rsync(
        &["-A", "--acls"],
        Nothing("ACLs are kept; --preserve=acl makes them a must"),
    ),
    rsync(
        &["-X", "--xattrs"],
        Nothing("attributes are kept; --preserve=xattr makes them a must"),
    ),
    rsync(&["--hard-links"], Nothing("hard links are kept")),
    rsync(&["-E", "--executability"], Nothing("modes are kept")),
    rsync(&["-U", "--atimes"], Nothing("access times are kept")),
    rsync(&["--numeric-ids"], Nothing("owners are kept by number")),
    rsync(&["-W", "--whole-file"], Nothing("files are copied whole")),
    rsync(&["--no-compress"], Nothing("nothing is compressed")),
    rsync(&["--dirs", "--old-dirs"], Nothing("directories are copied")),
    rsync(&["--stats"], Nothing("the last line has the figures")),
    rsync(
        &["--delay-updates"],
        Nothing("each file is renamed into place when it is complete"),
    ),
    rsync(
        &["--temp-dir"],
        Nothing("temporary files are in the directory they will be in"),
    ),
    rsync(&["--super"], Nothing("root keeps owners")),
    rsync(
        &["--preallocate"],
        Nothing("space for large files is reserved"),
    ),
    rsync(
        &["-8", "--8-bit-output"],
        Nothing("names are shown in UTF-8"),
    ),
    rsync(
        &["--human-readable", "--no-human-readable"],
        Nothing("sizes have units"),
    ),
    rsync(
        &["--no-implied-dirs"],
        Nothing("--parents makes the directories on the way, and follows no link there"),
    ),
    rsync(
        &["--secluded-args", "--protect-args", "--old-args"],
        Nothing("no shell reads names"),
    ),
    // Which entries.
    rsync(
        &[
            "--delete-before",
            "--delete-during",
            "--delete-missing-args",
            "--ignore-errors",
        ],
        Use(DELETE),
    ),
    rsync(
        &["--filter", "-F", "-C", "--cvs-exclude"],
        Use("--exclude, --include and --gitignore"),
    ),
    rsync(
        &["-m", "--prune-empty-dirs"],
        Use("find DST -type d -empty -delete, after the copy"),
    ),
    rsync(
        &["--checksum-choice", "--cc", "--checksum-seed"],
        Nothing("-c compares the contents themselves"),
    ),
    rsync(&["-I", "--ignore-times"], Use("--overwrite=always")),
    rsync(
        &["--size-only"],
        Use("--update=none, which leaves all existing entries alone"),
    ),
    rsync(
        &["--modify-window", "-@"],
        Nothing("times are compared as exactly as DST keeps them"),
    ),
    rsync(
        &["--remove-source-files"],
        Use("rm -r SRC after pcopy has ended with status 0"),
    ),
    rsync(&["--ignore-missing-args"], Use("the sources that exist")),
    rsync(&["--copy-links"], Use("-L")),
    rsync(
        &["-k", "--copy-dirlinks", "--copy-unsafe-links"],
        Use("-L, which follows all links"),
    ),
    rsync(
        &["-K", "--keep-dirlinks"],
        Use("DST/LINK/ as DST: a link is followed if it is named"),
    ),
    rsync(
        &["--safe-links", "--munge-links"],
        Nothing("links in the tree are copied, not followed"),
    ),
    // How.
    rsync(
        &["--append", "--append-verify", "--partial-dir"],
        Use(RESUME),
    ),
    rsync(
        &["-y", "--fuzzy", "--compare-dest", "--copy-dest"],
        Use("--link-dest, or --reflink=always if the file system shares extents"),
    ),
    rsync(
        &[
            "-z",
            "--compress",
            "--compress-choice",
            "--zc",
            "--compress-level",
            "--zl",
            "--skip-compress",
        ],
        Use("rsync itself, if the network is slow"),
    ),
    rsync(
        &["--stop-at", "--time-limit"],
        Use("--stop-after, in minutes"),
    ),
    rsync(&["--timeout", "--contimeout"], Use("--stall-timeout")),
    rsync(
        &["--usermap", "--groupmap", "--fake-super", "--copy-as"],
        Use("--chown, or --no-preserve=ownership"),
    ),
    rsync(&["--no-perms", "--no-p"], Use("--no-preserve=mode")),
    rsync(
        &["--no-owner", "--no-o", "--no-group", "--no-g"],
        Use("--no-preserve=ownership"),
    ),
    rsync(
        &[
            "--no-times",
            "--no-t",
            "-O",
            "--omit-dir-times",
            "-J",
            "--omit-link-times",
        ],
        Use("--no-preserve=timestamps"),
    ),
    rsync(
        &[
            "--no-links",
            "--no-l",
            "--no-devices",
            "--no-specials",
            "--no-D",
        ],
        Use(FILTER),
    ),
    rsync(&["--no-hard-links", "--no-H"], Use("--no-preserve=links")),
    rsync(&["--no-xattrs", "--no-X"], Use("--no-preserve=xattr")),
    rsync(&["--no-acls", "--no-A"], Use("--no-preserve=mode")),
    rsync(
        &["--no-recursive", "--no-r", "--no-dirs", "--no-d"],
        Use("find SRC -maxdepth 1 -type f \
        -exec pcopy -t DST {} +"),
    ),
    rsync(
        &["-N", "--crtimes", "--open-noatime"],
        Use("the file system sets times of creation itself"),
    ),
    rsync(
        &["--copy-devices", "--write-devices"],
        Use("dd, for the contents of a device"),
    ),
    rsync(
        &[
            "-B",
            "--block-size",
            "--max-alloc",
            "--no-whole-file",
            "--no-W",
        ],
        Use("files that differ are copied whole"),
    ),
    rsync(
        &[
            "-e",
            "--rsh",
            "--rsync-path",
            "--blocking-io",
            "-M",
            "--remote-option",
            "--address",
            "--port",
            "--sockopts",
            "--password-file",
            "--early-input",
            "--protocol",
            "-4",
            "--ipv4",
            "-6",
            "--ipv6",
            "--iconv",
            "--daemon",
            "--server",
            "--no-motd",
            "--trust-sender",
        ],
        Use(REMOTE),
    ),
    rsync(
        &["--write-batch", "--only-write-batch", "--read-batch"],
        Use("rsync itself"),
    ),
    rsync(
        &["--log-file-format", "--out-format", "--info", "--outbuf"],
        Use(LOG),
    ),
    rsync(
        &["--stderr", "--msgs2stderr"],
        Nothing("messages go to stderr, and -v to stdout"),
    ),
    rsync(&["--list-only"], Use("-n -v")),
];

/// Replaces an error about an unknown option by one that says what is nearest, if another program
/// has that option, and an error about an empty value by one that says so.
pub(crate) fn explain(mut error: clap::Error) -> anyhow::Error {
    if let (ErrorKind::InvalidValue, Some(ContextValue::String(value)), Some(option)) = (
        error.kind(),
        error.get(ContextKind::InvalidValue),
        error.get(ContextKind::InvalidArg),
    ) && value.is_empty()
    {
        let option = option.to_string();
        let what = match option.as_str() {
            "[PATH]..." => "a path".to_owned(),
            option => format!("the value of {option}"),
        };
        return anyhow::anyhow!(
            "{what} is empty; perhaps a variable on the command line is not set"
        );
    }
    if error.kind() != ErrorKind::UnknownArgument {
        return error.into();
    }
    // The tip to write a name with a dash after `--` hides the one that helps.
    error.remove(ContextKind::Suggested);
    let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidArg) else {
        return error.into();
    };
    let name = word.split_once('=').map_or(word.as_str(), |(name, _)| name);
    match describe(name) {
        Some(message) => anyhow::Error::msg(message),
        None => error.into(),
    }
}

fn describe(name: &str) -> Option<String> {
    let mut all = FOREIGN.iter();
    let Foreign {
        program, instead, ..
    } = all.find(|option| option.names.contains(&name))?;
    Some(match instead {
        Nothing(why) => format!("{name}: pcopy does not need this option of {program}: {why}"),
        Use(what) => {
            format!("{name}: pcopy does not have this option of {program}; nearest: {what}")
        }
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use clap::{CommandFactory, Parser};

    use super::*;
    use crate::cli::Cli;

    fn message(words: &[&str]) -> String {
        let words = [&["pcopy"], words, &["src", "dst"]].concat();
        let error = explain(Cli::try_parse_from(words).unwrap_err());
        format!("{error:#}")
    }

    #[test]
    fn the_nearest_is_named() {
        for (words, part) in [
            (
                &["--delete-before"][..],
                "--delete-before: pcopy does not have this option of rsync; nearest: ",
            ),
            (&["--filter=- *.o"], "--filter: pcopy does not have"),
            (&["-avz"], "-z: pcopy does not have this option of rsync"),
            (
                &["-X"],
                "-X: pcopy does not need this option of rsync: attributes are kept",
            ),
            (&["--no-clobber"], "option of cp; nearest: --update=none"),
        ] {
            let message = message(words);
            assert!(
                message.starts_with(part) || message.contains(part),
                "{message}"
            );
            assert_eq!(message.lines().count(), 1, "{message}");
        }
    }

    #[test]
    fn an_option_of_nobody_is_not_taken_for_a_name() {
        let message = message(&["--progess"]);
        assert!(message.contains("'--progress'"), "{message}");
        assert!(!super::tests::message(&["--zzz"]).contains("as a value"));
    }

    #[test]
    fn no_option_of_pcopy_is_foreign() {
        let command = Cli::command();
        let mut own = HashSet::new();
        for option in command.get_arguments() {
            let short = option.get_short_and_visible_aliases().unwrap_or_default();
            own.extend(short.into_iter().map(|c| format!("-{c}")));
            own.extend(option.get_long().map(|long| format!("--{long}")));
        }
        let all = FOREIGN.iter().flat_map(|option| option.names);
        for name in all {
            assert!(!own.contains(*name), "{name}");
        }
    }
}
