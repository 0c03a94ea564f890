//! Options that choose which entries are copied.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, ValueHint, value_parser};

/// Options that choose which entries are copied.
#[derive(Debug, Args)]
pub struct Filters {
    /// The rules of four options.
    #[command(flatten)]
    pub rules: Rules,

    /// Copy exactly the paths that FILE lists: paths below the one SRC ("-" reads stdin)
    ///
    /// One path a line, in any order. Directories on the way are made with their metadata. As in
    /// rsync, a listed directory is made without its contents, unless -r is given. A path that is
    /// missing is named and fails. Rules apply to the listed paths, and below them with -r.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub files_from: Option<PathBuf>,

    /// Expect NUL after each path or rule in FILE, and not the end of a line
    #[arg(short = '0', long)]
    pub from0: bool,

    /// Leave out what the .gitignore files in SRC ignore, as git reads them
    ///
    /// Those of the repository that SRC lies in count too. .git itself is copied.
    #[arg(long)]
    pub gitignore: bool,

    /// Leave out the contents of directories with a CACHEDIR.TAG
    ///
    /// As in GNU tar and restic, the directory and the tag are copied.
    #[arg(long)]
    pub exclude_caches: bool,

    /// Leave out the contents of directories that have an entry NAME
    ///
    /// As in GNU tar and restic, the directory and NAME are copied.
    #[arg(long, value_name = "NAME")]
    pub exclude_if_present: Vec<OsString>,

    /// Leave out files larger than SIZE, such as 100M, 1.5GiB or 2GB
    ///
    /// K, M, G, T and P, also KiB and so on, are powers of 1024. KB, MB and so on are powers of
    /// 1000.
    #[arg(long, value_name = "SIZE")]
    pub max_size: Option<String>,

    /// Leave out files smaller than SIZE
    #[arg(long, value_name = "SIZE")]
    pub min_size: Option<String>,

    /// Copy only files modified at TIME or later, such as 7d, 12h, 2026-01-31 or "2026-01-31 12:00"
    ///
    /// A duration counts back from now: weeks (w), days (d), hours (h), minutes (m), seconds (s), as
    /// in 1d12h. A date is in local time. Directories are made in any case.
    #[arg(long, value_name = "TIME")]
    pub newer_than: Option<String>,

    /// Copy only files modified before TIME
    #[arg(long, value_name = "TIME")]
    pub older_than: Option<String>,

    /// Keep the path of each SRC below DST, as it is named: a/b/c becomes DST/a/b/c
    ///
    /// The directories on the way get their metadata. The path begins after /./ if SRC has that.
    /// --relative is the same. -R means what it means for cp, and not this.
    #[arg(long, visible_alias = "relative")]
    pub parents: bool,

    /// Update only what DST has already, and create nothing
    #[arg(long, alias = "ignore-non-existing")]
    pub existing: bool,

    /// Leave alone what DST has already: the same as --overwrite=never
    #[arg(long, overrides_with_all = ["overwrite", "update"])]
    pub ignore_existing: bool,
}

/// The rules of `--exclude`, `--include` and their files, in the order of the command line.
#[derive(Clone, Debug, Default)]
pub struct Rules(pub Vec<RuleOption>);

/// One of the options that add rules.
#[derive(Clone, Debug)]
pub struct RuleOption {
    /// The option's name, with dashes.
    pub name: &'static str,
    /// The rule, or the file with rules.
    pub value: OsString,
    /// What rules without a sign of their own do.
    pub is_include: bool,
    /// The value is a file.
    pub is_file: bool,
}

/// An option, before it is used: its ID, name, help.
struct Declared {
    id: &'static str,
    name: &'static str,
    value_name: &'static str,
    help: &'static str,
    long_help: &'static str,
    is_include: bool,
}

const DECLARED: [Declared; 4] = [
    Declared {
        id: "exclude",
        name: "--exclude",
        value_name: "GLOB",
        help: "Leave out entries that match GLOB, by the rules of rsync",
        long_help: "\
Of all rules the first one that matches an entry decides, in the order of the command line. \
/x matches at the top of SRC only, x/ matches directories only. * and ? stop at a slash, ** does \
not. Without a slash GLOB is compared with the name, else with the end of the path. An excluded \
directory is not entered. -n -v names the rule that decided.",
        is_include: false,
    },
    Declared {
        id: "include",
        name: "--include",
        value_name: "GLOB",
        help: "Copy entries that match GLOB, whatever a later rule says",
        long_help: "\
An entry is looked at only if its directory is copied: to copy only *.jpg, say --include='*/' \
--include='*.jpg' --exclude='*'.",
        is_include: true,
    },
    Declared {
        id: "exclude_from",
        name: "--exclude-from",
        value_name: "FILE",
        help: "Read rules to exclude from FILE (\"-\" reads stdin)",
        long_help: "\
One rule a line. Empty lines and those that begin with # or ; are left out. \"+ GLOB\" includes, \
\"- GLOB\" excludes, and ! alone forgets all rules before it.",
        is_include: false,
    },
    Declared {
        id: "include_from",
        name: "--include-from",
        value_name: "FILE",
        help: "Read rules to include from FILE (\"-\" reads stdin)",
        long_help: "",
        is_include: true,
    },
];

impl Declared {
    fn is_file(&self) -> bool {
        self.value_name == "FILE"
    }

    fn to_arg(&self) -> Arg {
        let arg = Arg::new(self.id)
            .long(self.name.trim_start_matches('-'))
            .value_name(self.value_name)
            .value_parser(value_parser!(OsString))
            .action(ArgAction::Append)
            .help(self.help);
        let arg = match self.is_file() {
            true => arg.value_hint(ValueHint::FilePath),
            // A rule may begin with "- ".
            false => arg.allow_hyphen_values(true),
        };
        match self.long_help {
            "" => arg,
            more => arg.long_help(format!("{}\n\n{more}", self.help)),
        }
    }
}

impl Args for Rules {
    fn augment_args(command: Command) -> Command {
        DECLARED
            .iter()
            .fold(command, |command, option| command.arg(option.to_arg()))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Rules {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut rules = Vec::new();
        for option in &DECLARED {
            let values = matches.get_many::<OsString>(option.id).unwrap_or_default();
            let indices = matches.indices_of(option.id).unwrap_or_default();
            rules.extend(indices.zip(values).map(|(index, value)| {
                let rule = RuleOption {
                    name: option.name,
                    value: value.clone(),
                    is_include: option.is_include,
                    is_file: option.is_file(),
                };
                (index, rule)
            }));
        }
        rules.sort_by_key(|(index, _)| *index);
        Ok(Self(rules.into_iter().map(|(_, rule)| rule).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use crate::cli::Cli;

    #[test]
    fn rules_are_in_the_order_of_the_command_line() {
        let words = [
            "pcopy",
            "--exclude",
            "a",
            "--include=b",
            "x",
            "--exclude-from",
            "f",
            "--exclude=- c",
            "y",
            "--include-from",
            "g",
            "--exclude",
            "-d",
        ];
        let cli = Cli::try_parse_from(words).unwrap();
        let rules = cli.filters.rules.0.iter();
        let rules: Vec<_> = rules
            .map(|rule| format!("{} {}", rule.name, rule.value.display()))
            .collect();
        let expected = [
            "--exclude a",
            "--include b",
            "--exclude-from f",
            "--exclude - c",
            "--include-from g",
            "--exclude -d",
        ];
        assert_eq!(rules, expected);
        assert_eq!(cli.paths.len(), 2);
    }
}
