//! `--json`: each line is an object with the fields that the manual lists.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::env::{Env, bytes_path};
use crate::faultfs::FaultFs;
use crate::noise::pattern;
use crate::outcome::Run;
use crate::trees::small_tree;

/// The fields of each kind of object, from the manual.
fn schema(env: &Env) -> BTreeMap<String, BTreeSet<String>> {
    let manual = env.command(["--generate", "man"]).without_mode().run();
    let manual = manual.exits(0).stdout();
    let (_, section) = manual.split_once("\n.SH JSON\n").unwrap();
    let (section, _) = section.split_once("\n.SH ").unwrap();
    let (_, kinds) = section.split_once("\n.TP\n").unwrap();
    let mut schema = BTreeMap::new();
    for kind in kinds.split(".TP\n") {
        let (name, rest) = kind.split_once('\n').unwrap();
        let (fields, _) = rest.split_once("\n.br\n").unwrap();
        let fields = fields.split_whitespace().filter(|word| *word != ".I");
        let name = name.strip_prefix(".B ").unwrap();
        schema.insert(name.to_owned(), fields.map(str::to_owned).collect());
    }
    schema
}

/// Returns the objects of a run, and fails unless each has exactly the fields of the manual.
#[track_caller]
pub(crate) fn objects(env: &Env, run: &Run) -> Vec<Value> {
    let schema = schema(env);
    let stdout = std::str::from_utf8(&run.stdout).unwrap();
    assert!(stdout.ends_with('\n'), "{run}");
    let parse = |line: &str| {
        let object: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"));
        let mut fields: BTreeSet<String> = object.as_object().unwrap().keys().cloned().collect();
        if fields.remove("path_bytes") {
            assert!(
                object["path"].as_str().unwrap().contains('\u{fffd}'),
                "{line}"
            );
        }
        let kind = object["message_type"].as_str().unwrap();
        assert_eq!(Some(&fields), schema.get(kind), "{line}");
        object
    };
    let objects: Vec<Value> = stdout.lines().map(parse).collect();
    let (last, others) = objects.split_last().unwrap();
    assert_eq!(last["message_type"], "summary", "{run}");
    assert!(
        others.iter().all(|it| it["message_type"] != "summary"),
        "{run}"
    );
    assert_eq!(last["exit_status"], run.status.code().unwrap(), "{run}");
    objects
}

fn of_kind<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a Value> {
    let is_of = |object: &&Value| object["message_type"] == kind;
    objects.iter().filter(is_of).collect()
}

both_modes!(each_line_has_the_fields_of_the_manual, |env| {
    small_tree(env);
    env.file(bytes_path(b"src/caf\xe9"), "x");
    env.file("src/a \"quoted\"\nname", "four");
    env.file("dst/a", "in the way");
    let run = env.pcopy(["--json", "-v", "src", "dst"]).exits(1);
    let objects = objects(env, &run);
    let errors = of_kind(&objects, "error");
    assert_eq!(errors.len(), 1, "{run}");
    assert_eq!(errors[0]["path"], "dst/a");
    assert_eq!(errors[0]["errno"], Value::Null);
    // The text is that of stderr, which stays as it is.
    let text = errors[0]["text"].as_str().unwrap();
    assert_eq!(run.complaints(), [format!("pcopy: {text}")]);
    let worker = errors[0]["worker"].as_str().unwrap();
    assert!(
        worker.starts_with("thread ") || worker.starts_with("pid "),
        "{worker}"
    );
    let entries = of_kind(&objects, "entry");
    let find = |path: &str| {
        let mut found = entries.iter().filter(|entry| entry["path"] == path);
        found.next().unwrap_or_else(|| panic!("no {path}:\n{run}"))
    };
    assert_eq!(find("src/a \"quoted\"\nname")["size"], 4);
    assert_eq!(find("src/caf\u{fffd}")["path_bytes"], "c3JjL2NhZuk=");
    assert_eq!(find("src/empty-directory/")["action"], "make");
    let summary = objects.last().unwrap();
    assert_eq!(summary["path"], "dst");
    assert_eq!(summary["failed"], 1);
    assert_eq!(summary["schema_version"], 1);
    assert_eq!(summary["stopped_by"], Value::Null);
    let copied = run.summary().copied;
    assert_eq!(summary["files_copied"], copied, "{run}");
    // One line for each entry, and without -v none.
    let run = env.pcopy(["--json", "-q", "src", "dst-2"]).exits(0);
    assert_eq!(run.stderr, "");
    assert_eq!(self::objects(env, &run).len(), 1, "{run}");
});

both_modes!(a_dry_run_says_what_would_be_done, |env| {
    env.file("src/new", "12345");
    env.file("src/same", "x").mtime(5, 0);
    env.file("dst/same", "x").mtime(5, 0);
    let run = env.pcopy(["--json", "-n", "-v", "src", "dst"]).exits(0);
    let objects = objects(env, &run);
    let mut plans: Vec<String> = of_kind(&objects, "entry")
        .iter()
        .map(|it| {
            format!(
                "{} {} ({}) {}",
                it["action"], it["path"], it["reason"], it["size"]
            )
        })
        .map(|plan| plan.replace('"', ""))
        .collect();
    plans.sort();
    assert_eq!(
        plans[..2],
        ["copy src/new (new) 5", "leave src/same (unchanged) 1"],
        "{run}"
    );
    assert_eq!(objects.last().unwrap()["dry_run"], true);
    assert!(!env.exists("dst/new"));
});

both_modes!(errors_have_the_errno_and_chunked_files_their_size, |env| {
    env.file("real/bad", pattern(100_000, 1));
    env.file("real/large", pattern(34 << 20, 2));
    let faults = ["--fault", "eio-open:bad:9"];
    let Some(_faulty) = FaultFs::mount(env, "real", "src", &faults) else {
        return;
    };
    let run = env.pcopy(["--json", "-v", "-j2", "src", "dst"]).exits(1);
    let objects = objects(env, &run);
    let error = of_kind(&objects, "error")[0];
    let (step, name) = (error["step"].as_str(), error["errno_name"].as_str());
    assert_eq!((step, name), (Some("open"), Some("EIO")), "{run}");
    assert_eq!(error["errno"], 5);
    let large = of_kind(&objects, "entry");
    let large = large.iter().find(|it| it["path"] == "src/large").unwrap();
    assert_eq!(large["size"], 34 << 20, "{run}");
});

both_modes!(progress_is_shown_if_asked_for, |env| {
    env.file("real/slow", pattern(1 << 20, 1));
    let faults = ["--fault", "slow-read:slow:400"];
    let Some(_faulty) = FaultFs::mount(env, "real", "src", &faults) else {
        return;
    };
    let run = env
        .pcopy(["--json", "--progress=always", "src", "dst"])
        .ok();
    let objects = objects(env, &run);
    let progress = of_kind(&objects, "progress");
    assert!(!progress.is_empty(), "{run}");
    for object in progress {
        assert_eq!(object["bytes_total"], 1 << 20, "{run}");
        assert!(object["bytes_done"].as_u64().unwrap() <= 1 << 20, "{run}");
    }
    assert_eq!(run.stderr.lines().count(), 1, "there is no bar:\n{run}");
});

once!(a_full_stdout_fails_the_run, |env| {
    small_tree(env);
    let program = env.program(false);
    let program = program.display();
    env.sh(&format!(
        "{program} --json src dst >/dev/full 2>stderr && exit 9 || test $? = 1
         test \"$({program} --json src missing/dst 2>/dev/null)\" = '' || exit 9"
    ));
    let stderr = String::from_utf8(env.read("stderr")).unwrap();
    assert_eq!(
        stderr.matches("standard output: write: ").count(),
        1,
        "{stderr}"
    );
    assert!(!stderr.contains("failed"), "{stderr}");
    env.assert_same("src", "dst");
});
