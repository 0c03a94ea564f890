//! Prints the manual page and the completions of shells.

use anyhow::Result;
use clap::builder::Resettable;
use clap::{Command, CommandFactory, Id};
use clap_complete::{Shell, generate};
use clap_mangen::Man;

use crate::cli::{Cli, Generate};
use crate::ui::output::print_text;

/// The page, with marks for the parts that are generated.
const PAGE: &str = include_str!("manual/pcopy.1.in");

/// Options that an example explains best, by their IDs.
const EXAMPLES: &[(&str, &str)] = &[
    (
        "target_directory",
        "find . -name '*.jpg' -print0 | xargs -0 pcopy -t /mnt/backup",
    ),
    ("no_target_directory", "pcopy -T photos /mnt/backup/"),
    ("mkpath", "pcopy --mkpath photos /mnt/backup/2026/november"),
    ("duplicate", "pcopy --duplicate=.old notes.txt"),
    ("mode", "pcopy --mode process /srv /mnt/nas/srv"),
    ("jobs", "pcopy -j 1 photos /media/me/STICK/"),
    ("progress", "pcopy --progress=always src dst 2>log"),
    ("verbose", "pcopy -v src dst >copied.txt"),
    ("dry_run", "pcopy -n --overwrite=older src dst"),
    ("overwrite", "pcopy --overwrite=never src dst"),
    ("update", "pcopy -u src/*.log logs"),
    (
        "inplace",
        "pcopy --inplace music /run/user/1000/gvfs/phone/Music",
    ),
    ("checksum", "pcopy -c photos /mnt/backup/photos"),
    ("exit_code", "pcopy -n -c --exit-code a b && echo the same"),
    ("verify", "pcopy --verify photos /media/me/STICK/"),
    (
        "manifest",
        "pcopy --manifest SUMS photos /mnt/copy && (cd /mnt/copy && sha256sum -c) <SUMS",
    ),
    (
        "manifest_algorithm",
        "pcopy --manifest SUMS.b3 --manifest-algorithm=blake3 src dst",
    ),
    ("partial", "pcopy --partial machines /mnt/nas/machines"),
    (
        "preserve",
        "pcopy --preserve=ownership,acl /home /mnt/backup/home",
    ),
    (
        "no_preserve",
        "pcopy --no-preserve=mode,ownership stick/ ~/stick",
    ),
    (
        "reflink",
        "pcopy --reflink=always machine.qcow2 snapshot.qcow2",
    ),
    ("sparse", "pcopy --sparse=always disk.img small.img"),
    (
        "exclude",
        "pcopy --exclude=*.o --exclude=/build/ src /mnt/backup/src",
    ),
    (
        "include",
        "pcopy --include=*/ --include=*.jpg --exclude=* phone photos",
    ),
    (
        "exclude_from",
        "pcopy --exclude-from=rules.txt /home /mnt/backup/home",
    ),
    (
        "files_from",
        "git ls-files -z | pcopy -0 --files-from - . /srv/release",
    ),
    ("gitignore", "pcopy --gitignore project /mnt/usb/"),
    (
        "exclude_if_present",
        "pcopy --exclude-caches --exclude-if-present .nobackup /home /mnt/backup/home",
    ),
    ("max_size", "pcopy --max-size=100M downloads /mnt/usb/"),
    ("newer_than", "pcopy --newer-than=7d /var/log logs"),
    ("parents", "pcopy --parents /etc/fstab /etc/ssh /mnt/backup"),
    ("existing", "pcopy --existing src dst"),
    ("delete", "pcopy -n --delete photos /mnt/backup/photos"),
    (
        "max_delete",
        "pcopy --delete --max-delete=100 /home /mnt/backup/home",
    ),
    (
        "backup_dir",
        "pcopy --delete --backup-dir=../old-$(date +%F) /home /mnt/backup/home",
    ),
    (
        "link_dest",
        "pcopy --link-dest=../monday /home /mnt/backup/tuesday",
    ),
    ("chmod", "pcopy --chmod=D755,F644 stick/ ~/stick"),
    ("chown", "pcopy --chown=www-data: site /var/www/site"),
    ("itemize_changes", "pcopy -ni src dst"),
    ("one_file_system", "pcopy -x / /mnt/root"),
    (
        "fsync",
        "pcopy --fsync photos /media/me/STICK/ && umount /media/me/STICK",
    ),
    (
        "stall_timeout",
        "pcopy --stall-timeout 60 /mnt/dying rescued",
    ),
    (
        "json",
        "pcopy --json -v src dst | jq -r 'select(.message_type==\"error\").path'",
    ),
    ("log_file", "pcopy -q --log-file /var/log/pcopy.log src dst"),
    ("failed_to", "pcopy --failed-to failed src dst"),
    (
        "retries",
        "pcopy --retries 3 --retry-wait 60 /mnt/nas/srv /srv",
    ),
    ("retry_wait", "pcopy --retries 3 --retry-wait 0.5 src dst"),
    ("bwlimit", "pcopy --bwlimit 2.5M src dst"),
    ("stop_after", "pcopy --stop-after 90 src dst"),
    ("lock", "pcopy --lock /run/lock/pcopy src dst"),
    (
        "generate",
        "pcopy --generate complete-bash >/etc/bash_completion.d/pcopy",
    ),
];

/// Prints what `--generate` asks for on stdout, and returns the exit status.
///
/// # Errors
/// If stdout cannot be written to.
pub fn print(what: Generate) -> Result<i32> {
    let text = match what {
        Generate::Man => page()?,
        Generate::CompleteBash => complete(Shell::Bash),
        Generate::CompleteZsh => complete(Shell::Zsh),
        Generate::CompleteFish => complete(Shell::Fish),
    };
    Ok(print_text(&text))
}

fn complete(shell: Shell) -> Vec<u8> {
    let mut text = Vec::new();
    // clap_complete also offers what is hidden. Paths are hidden in the help only.
    let all = Cli::command();
    let shown = all
        .get_arguments()
        .filter(|arg| arg.is_positional() || !arg.is_hide_set());
    let shown = shown.map(|arg| arg.clone().overrides_with(Resettable::<Id>::Reset));
    let mut command = Command::new("pcopy").version("").args(shown);
    generate(shell, &mut command, "pcopy", &mut text);
    if shell == Shell::Bash {
        // It offers options where a path is expected. With no offer of its own, bash offers files.
        let script = String::from_utf8_lossy(&text);
        let script = script.replace(" || ${COMP_CWORD} -eq 1", "").replace(
            "esac\n            COMPREPLY=( $(compgen -W \"${opts}\" -- \"${cur}\") )",
            "esac\n            COMPREPLY=()",
        );
        text = script.into_bytes();
    }
    text
}

/// Returns the manual page.
fn page() -> Result<Vec<u8>> {
    let mut options = Vec::new();
    Man::new(with_examples()).render_options_section(&mut options)?;
    let options = String::from_utf8(options)?;
    let page = PAGE
        .replace("@VERSION@", env!("CARGO_PKG_VERSION"))
        .replace("@OPTIONS@\n", &options);
    Ok(page.into_bytes())
}

fn with_examples() -> Command {
    let mut command = Cli::command();
    command.build();
    for (id, example) in EXAMPLES {
        command = command.mut_arg(id, |option| {
            let help = option.get_long_help().or(option.get_help());
            let help = help.map(ToString::to_string).unwrap_or_default();
            option.long_help(format!("{help}\n\nExample: {example}"))
        });
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_names_each_option_that_is_not_hidden() {
        let page = String::from_utf8(page().unwrap()).unwrap();
        assert!(!page.contains('@'), "a mark is left");
        for option in Cli::command().get_arguments() {
            if let Some(long) = option.get_long() {
                let name = format!("\\-\\-{}", long.replace('-', "\\-"));
                assert!(option.is_hide_set() || page.contains(&name), "{name}");
            }
        }
    }

    #[test]
    fn the_examples_are_right() {
        use clap::Parser;
        for (id, example) in EXAMPLES {
            let command = example
                .rsplit(['|', '&', '<'])
                .find(|part| part.contains("pcopy"));
            let words = command
                .unwrap_or(example)
                .split(" >")
                .next()
                .unwrap_or_default();
            let words = words
                .split(" 2>")
                .next()
                .unwrap_or_default()
                .split_whitespace();
            let words = words.skip_while(|word| *word != "pcopy");
            let parsed = Cli::try_parse_from(words);
            assert!(parsed.is_ok(), "{id}: {example}: {parsed:?}");
        }
    }
}
