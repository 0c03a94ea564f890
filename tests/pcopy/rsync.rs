//! Random trees and rules, given to rsync(1) and to pcopy: both must copy the same. And what git(1)
//! ignores, pcopy leaves out.
//!
//! `PCOPY_TEST_RSYNC=5000 cargo test --test pcopy rsync::` tries so many cases in each mode.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, RngSeed, TestRunner};

use crate::compare::{self, Properties, Property};
use crate::env::{Env, bytes_path};
use crate::noise::{pattern, seed};

/// The number of cases for each mode and test.
const CASES: u32 = 16;

/// Few names, so that rules match.
const NAMES: [&[u8]; 11] = [
    b"a", b"b", b"c", b"ab", b"x.o", b"a.o", b"x", b"#a", b"a b", b"\xffa", b"[a]",
];
/// Parts of patterns between slashes.
const PARTS: [&[u8]; 24] = [
    b"a",
    b"b",
    b"c",
    b"ab",
    b"x.o",
    b"*",
    b"*.o",
    b"a*",
    b"?",
    b"??",
    b"[ab]",
    b"[!a]",
    b"[^b]*",
    b"[[:alpha:]]",
    b"**",
    b"a**",
    b"**b",
    b"*a*",
    b"\\a",
    b"\\a*",
    b"\xff*",
    b"[",
    b"\\[a\\]",
    b"[[]a]",
];

#[derive(Clone, Debug)]
enum Node {
    Dir(BTreeMap<Vec<u8>, Node>),
    File {
        size: usize,
        mtime: i64,
    },
    Link(Vec<u8>),
    /// Another name for a file; the number chooses which.
    HardLink(usize),
}

fn trees() -> impl Strategy<Value = BTreeMap<Vec<u8>, Node>> {
    let name = || select(&NAMES[..]).prop_map(<[u8]>::to_vec);
    let leaf = prop_oneof![
        6 => (0..3000_usize, 1_000_000..1_000_100_i64).prop_map(|(size, mtime)| Node::File { size, mtime }),
        1 => name().prop_map(Node::Link),
        1 => any::<usize>().prop_map(Node::HardLink),
    ];
    let node = leaf.prop_recursive(4, 40, 6, move |inner| {
        btree_map(name(), inner, 0..6).prop_map(Node::Dir)
    });
    btree_map(name(), node, 1..7)
}

fn build(env: &Env, path: &Path, node: &Node, files: &mut Vec<PathBuf>) {
    match node {
        Node::Dir(children) => {
            env.dir(path);
            for (name, child) in children {
                build(env, &path.join(bytes_path(name)), child, files);
            }
            let many = children.len() as i64;
            env.at(path)
                .mode(0o750 + (many as u32 & 5))
                .mtime(2_000_000 + many, 7);
        }
        Node::File { size, mtime } => {
            env.file(path, pattern(*size, *mtime as u64))
                .mtime(*mtime, 0);
            files.push(path.to_owned());
        }
        Node::Link(target) => {
            env.symlink(path, bytes_path(target)).mtime(5, 5);
        }
        Node::HardLink(which) => match files.get(which % files.len().max(1)) {
            Some(file) => {
                env.hard_link(path, file);
            }
            None => {
                env.file(path, "").mtime(6, 6);
            }
        },
    }
}

/// Builds the tree and returns all its paths, directories included.
fn build_source(env: &Env, tree: &BTreeMap<Vec<u8>, Node>) -> Vec<Vec<u8>> {
    build(
        env,
        Path::new("src"),
        &Node::Dir(tree.clone()),
        &mut Vec::new(),
    );
    let mut paths = Vec::new();
    let mut rest: Vec<(Vec<u8>, &Node)> = tree
        .iter()
        .map(|(name, node)| (name.clone(), node))
        .collect();
    while let Some((path, node)) = rest.pop() {
        if let Node::Dir(children) = node {
            let below = |name: &Vec<u8>| [&path[..], b"/", name].concat();
            rest.extend(children.iter().map(|(name, node)| (below(name), node)));
        }
        paths.push(path);
    }
    paths.sort();
    paths
}

fn patterns() -> impl Strategy<Value = Vec<u8>> {
    let part = select(&PARTS[..]);
    let start = prop_oneof![4 => Just(&b""[..]), 2 => Just(&b"/"[..])];
    let end = prop_oneof![
        6 => Just(&b""[..]), 2 => Just(&b"/"[..]), 1 => Just(&b"/***"[..]), 1 => Just(&b"/**"[..])
    ];
    (start, vec(part, 1..4), end)
        .prop_map(|(start, parts, end)| [start, &parts.join(&b'/'), end].concat())
}

/// An option with a rule, or a line of a file with one.
#[derive(Clone, Debug)]
struct RuleCase {
    is_include: bool,
    is_in_file: bool,
    sign: &'static [u8],
    pattern: Vec<u8>,
}

fn rules() -> impl Strategy<Value = Vec<RuleCase>> {
    let sign = prop_oneof![12 => Just(&b""[..]), 1 => Just(&b"+ "[..]), 1 => Just(&b"- "[..])];
    let rule = (
        prop::bool::weighted(0.35),
        prop::bool::weighted(0.3),
        sign,
        patterns(),
    )
        .prop_map(|(is_include, is_in_file, sign, pattern)| RuleCase {
            is_include,
            is_in_file,
            sign,
            pattern,
        });
    vec(rule, 0..5)
}

/// Returns the options of these rules. Files with rules are made in the environment.
fn rule_options(env: &Env, rules: &[RuleCase], label: &str) -> Vec<OsString> {
    let options = rules.iter().enumerate().map(|(number, rule)| {
        let option = if rule.is_include {
            "--include"
        } else {
            "--exclude"
        };
        let text = [rule.sign, &rule.pattern].concat();
        if !rule.is_in_file {
            let text = [option.as_bytes(), b"=", &text].concat();
            return OsString::from_vec(text);
        }
        let file = format!("rules-{label}-{number}");
        env.file(&file, [b"# a comment\n\n", &text[..], b"\r\n;*\n"].concat());
        format!("{option}-from={file}").into()
    });
    options.collect()
}

/// The other options of a run.
#[derive(Clone, Debug)]
struct Others {
    sizes: Option<(u32, u32)>,
    existing: bool,
    ignore_existing: bool,
    follows_links: bool,
}

fn others() -> impl Strategy<Value = Others> {
    let sizes = prop::option::weighted(0.2, (0..3000_u32, 0..3000_u32));
    let rare = || prop::bool::weighted(0.2);
    (sizes, rare(), rare(), rare()).prop_map(|(sizes, existing, ignore_existing, follows_links)| {
        Others {
            sizes,
            existing,
            ignore_existing,
            follows_links,
        }
    })
}

fn other_options(others: &Others) -> Vec<OsString> {
    let mut options = Vec::new();
    if let Some((a, b)) = others.sizes {
        options.push(format!("--min-size={}", a.min(b)));
        options.push(format!("--max-size={}", a.max(b)));
    }
    options.extend(others.existing.then(|| "--existing".to_owned()));
    options.extend(
        others
            .ignore_existing
            .then(|| "--ignore-existing".to_owned()),
    );
    options.into_iter().map(OsString::from).collect()
}

/// Runs rsync, which must end with this status.
#[track_caller]
fn rsync(env: &Env, options: &[OsString], source: &str, copy: &str, status: i32) {
    let run = Command::new("rsync")
        .arg("-aHAX")
        .args(options)
        .args([source, copy])
        .current_dir(env.path("."))
        .output()
        .unwrap();
    assert_eq!(
        run.status.code(),
        Some(status),
        "rsync {options:?}: {run:?}"
    );
}

fn config() -> Config {
    let cases = std::env::var("PCOPY_TEST_RSYNC").ok();
    Config {
        cases: cases.map_or(CASES, |cases| cases.parse().unwrap()),
        rng_seed: RngSeed::Fixed(seed()),
        max_shrink_iters: 500,
        failure_persistence: None,
        ..Config::default()
    }
}

/// Compares the copies of rsync and pcopy.
#[track_caller]
fn assert_same_copies(env: &Env, properties: Properties) {
    for copy in ["theirs", "ours"] {
        // rsync leaves the destination itself as it is, and it may be empty.
        env.file(format!("{copy}/~"), "").mtime(1, 1);
        env.at(copy).mode(0o755).mtime(9, 9);
    }
    compare::assert_same(&env.snapshot("theirs"), &env.snapshot("ours"), properties);
}

both_modes!(rules_mean_what_they_mean_for_rsync, |env| {
    if env.skipped_without("rsync") {
        return;
    }
    let cases = (trees(), rules(), rules(), others());
    TestRunner::new(config())
        .run(&cases, |(tree, before, rules, others)| {
            let env = &Env::new(env.mode());
            build_source(env, &tree);
            if others.existing || others.ignore_existing {
                // A part of the copy is there already.
                let options = rule_options(env, &before, "before");
                for copy in ["theirs", "ours"] {
                    rsync(env, &options, "src/", copy, 0);
                }
                for file in ["src/a", "src/b/a", "src/x.o"] {
                    if env.exists(file) && env.stat(file).is_file() {
                        env.file(file, "changed meanwhile").mtime(1_500_000, 0);
                    }
                }
            }
            let mut options = rule_options(env, &rules, "now");
            options.extend(other_options(&others));
            let can_follow = others.follows_links && !has_dangling_link(&env.path("src"));
            options.extend(can_follow.then(|| OsString::from("-L")));
            rsync(env, &options, "src/", "theirs", 0);
            env.pcopy(
                options
                    .iter()
                    .map(OsString::as_os_str)
                    .chain(["src", "ours"].map(OsStr::new)),
            )
            .ok();
            // Which of the names that belong to one file an existing copy is linked to depends on
            // its past.
            let properties = match others.existing || others.ignore_existing {
                true => Properties::KEPT.without(Property::HardLinks),
                false => Properties::KEPT,
            };
            assert_same_copies(env, properties);
            Ok(())
        })
        .unwrap_or_else(|e| panic!("{e}"));
});

/// Returns true if a link leads to nothing, or to a directory that it is in.
fn has_dangling_link(dir: &Path) -> bool {
    std::fs::read_dir(dir).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        if path.is_symlink() {
            !path.is_file()
        } else {
            path.is_dir() && has_dangling_link(&path)
        }
    })
}

both_modes!(lists_mean_what_they_mean_for_rsync, |env| {
    if env.skipped_without("rsync") {
        return;
    }
    let picks = vec((any::<usize>(), 0..7_u8), 0..12);
    let cases = (trees(), picks, rules(), any::<(bool, bool)>());
    TestRunner::new(config())
        .run(&cases, |(tree, picks, rules, (is_recursive, from0))| {
            let env = &Env::new(env.mode());
            let paths = build_source(env, &tree);
            let mut list = Vec::new();
            let mut has_missing = false;
            for (which, form) in &picks {
                let path = &paths[which % paths.len()];
                list.extend_from_slice(match form {
                    0 => b"/",
                    1 => b"./",
                    2 => b"b/..//",
                    _ => b"",
                });
                if *form == 3 {
                    list.extend_from_slice(b"missing");
                    has_missing = true;
                } else {
                    list.extend_from_slice(path);
                }
                list.push(if from0 { 0 } else { b'\n' });
            }
            // rsync drops what begins with # from a list of any kind.
            if from0
                && list
                    .split(|&byte| byte == 0)
                    .any(|path| path.starts_with(b"#"))
            {
                return Ok(());
            }
            env.file("list", &list);
            let mut options: Vec<OsString> = vec!["--files-from=list".into()];
            // With -0 the files with rules would need NUL too.
            let rules: Vec<_> = rules.into_iter().filter(|rule| !rule.is_in_file).collect();
            // A rule may leave out what is missing.
            if !has_missing {
                options.extend(rule_options(env, &rules, "now"));
            }
            options.extend(is_recursive.then(|| "-r".into()));
            options.extend(from0.then(|| "-0".into()));
            env.dir("theirs");
            let status = if has_missing { 23 } else { 0 };
            rsync(env, &options, "src/", "theirs", status);
            let run = env.pcopy(
                options
                    .iter()
                    .map(OsString::as_os_str)
                    .chain(["src", "ours"].map(OsStr::new)),
            );
            run.exits(i32::from(has_missing));
            // rsync does not make a directory for a listed path that a rule leaves out.
            if rules.is_empty() || has_missing {
                assert_same_copies(env, Properties::KEPT);
            } else {
                let files = |copy: &str| files_in(&env.path(copy));
                assert_eq!(files("theirs"), files("ours"));
            }
            Ok(())
        })
        .unwrap_or_else(|e| panic!("{e}"));
});

/// Parts of lines in `.gitignore`.
const GIT_PARTS: [&[u8]; 22] = [
    b"a",
    b"b",
    b"c",
    b"ab",
    b"x.o",
    b"*",
    b"*.o",
    b"a*",
    b"?",
    b"[ab]",
    b"[!a]",
    b"**",
    b"a**",
    b"**b",
    b"***",
    b"\\a",
    b"\\#a",
    b"a\\ b",
    b"\xff*",
    b"{a,b}",
    b"[",
    b"[[:alpha:]]",
];

fn gitignores() -> impl Strategy<Value = Vec<u8>> {
    let start = prop_oneof![5 => Just(&b""[..]), 2 => Just(&b"/"[..]), 2 => Just(&b"!"[..]), 1 => Just(&b"!/"[..])];
    let end = prop_oneof![6 => Just(&b""[..]), 2 => Just(&b"/"[..]), 1 => Just(&b" "[..]), 1 => Just(&b"\r"[..])];
    let line = (start, vec(select(&GIT_PARTS[..]), 1..4), end)
        .prop_map(|(start, parts, end)| [start, &parts.join(&b'/'), end, b"\n"].concat());
    vec(line, 0..5).prop_map(|lines| lines.concat())
}

/// Returns the paths of all files and links below a directory, without git's own.
fn files_in(dir: &Path) -> BTreeSet<PathBuf> {
    let mut files = BTreeSet::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(next) = dirs.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.is_symlink() {
                if path.file_name() != Some(OsStr::new(".git")) {
                    dirs.push(path);
                }
            } else {
                files.insert(path.strip_prefix(dir).unwrap().to_owned());
            }
        }
    }
    files
}

both_modes!(what_git_ignores_is_left_out, |env| {
    if env.skipped_without("git") {
        return;
    }
    let cases = (trees(), vec((any::<usize>(), gitignores()), 1..4));
    TestRunner::new(config())
        .run(&cases, |(tree, ignores)| {
            let env = &Env::new(env.mode());
            let paths = build_source(env, &tree);
            let is_dir =
                |path: &&Vec<u8>| env.stat(Path::new("src").join(bytes_path(path))).is_dir();
            let dirs: Vec<_> = paths.iter().filter(is_dir).cloned().collect();
            for (which, text) in &ignores {
                let dir = match which % (dirs.len() + 1) {
                    0 => PathBuf::new(),
                    at => bytes_path(&dirs[at - 1]),
                };
                env.file(Path::new("src").join(dir).join(".gitignore"), text);
            }
            let git = |words: &[&str]| {
                let run = Command::new("git")
                    .args(words)
                    .current_dir(env.path("src"))
                    .env("GIT_CONFIG_GLOBAL", "/dev/null")
                    .env("GIT_CONFIG_NOSYSTEM", "1")
                    .output()
                    .unwrap();
                assert!(run.status.success(), "{run:?}");
                run.stdout
            };
            git(&["init", "-q"]);
            let listed = git(&["ls-files", "-o", "-z", "--exclude-per-directory=.gitignore"]);
            let listed = listed
                .split(|&byte| byte == 0)
                .filter(|path| !path.is_empty());
            let expected: BTreeSet<PathBuf> = listed.map(bytes_path).collect();
            env.pcopy(["--gitignore", "src", "dst"]).ok();
            assert_eq!(files_in(&env.path("dst")), expected);
            Ok(())
        })
        .unwrap_or_else(|e| panic!("{e}"));
});
