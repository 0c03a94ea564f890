//! What is typed: habits from cp and rsync, the environment, the manual and completions.

use crate::env::skip;
use crate::targets::refused;
use crate::trees::small_tree;

once!(the_letters_of_cp_are_accepted, |env| {
    small_tree(env);
    for (number, letters) in [
        &["-r"][..],
        &["-R"],
        &["-rf"],
        &["-Rp"],
        &["-a"],
        &["-dpR"],
        &["-rH"],
        &["--recursive", "--archive", "--force"],
    ]
    .iter()
    .enumerate()
    {
        let copy = format!("dst-{number}");
        env.pcopy([letters, &["src", &copy][..]].concat()).ok();
        env.assert_same("src", &copy);
    }
    let help = env.pcopy(["--help"]).exits(0);
    for hidden in ["--recursive", "--archive", "--force"] {
        assert!(!help.stdout().contains(hidden), "{help}");
    }
});

once!(update_chooses_as_in_cp, |env| {
    env.file("src/newer", "from the source").mtime(9, 0);
    env.file("src/older", "from the source").mtime(1, 0);
    for (option, newer, older) in [
        ("-u", "from the source", "at the destination"),
        ("--update", "from the source", "at the destination"),
        ("--update=older", "from the source", "at the destination"),
        ("--update=none", "at the destination", "at the destination"),
        ("--update=all", "from the source", "from the source"),
    ] {
        env.file("dst/newer", "at the destination").mtime(5, 0);
        env.file("dst/older", "at the destination").mtime(5, 0);
        env.pcopy([option, "src", "dst"]).ok();
        assert_eq!(env.read("dst/newer"), newer.as_bytes(), "{option}");
        assert_eq!(env.read("dst/older"), older.as_bytes(), "{option}");
    }
});

once!(options_of_others_are_explained, |env| {
    small_tree(env);
    for (options, words) in [
        (
            &["--delete-before"][..],
            "--delete-before: pcopy does not have this option of rsync; nearest: --delete",
        ),
        (
            &["--filter=- *.o"],
            "--filter: pcopy does not have this option of rsync",
        ),
        (&["-avz"], "-z: pcopy does not have this option of rsync"),
        (&["--no-clobber"], "nearest: --update=none"),
        (&["-X"], "-X: pcopy does not need this option of rsync"),
    ] {
        let run = env.pcopy([options, &["src", "dst"]].concat());
        assert_eq!(run.stderr.lines().count(), 1, "{run}");
        assert!(run.stderr.starts_with("pcopy: "), "{run}");
        refused(env, run, words);
    }
    let run = env.pcopy(["--what-is-this", "src", "dst"]);
    assert!(!run.stderr.contains("as a value"), "{run}");
    refused(env, run, "--what-is-this");
});

once!(a_stall_timeout_implies_processes, |env| {
    small_tree(env);
    let run = env.command(["-v", "--stall-timeout=60", "src", "copy"]);
    let run = run.without_mode().run().ok();
    let mut workers = run.entries_by_worker().into_keys();
    assert!(workers.all(|worker| worker.starts_with("[pid ")), "{run}");
    refused(
        env,
        env.pcopy(["--stall-timeout=60", "src", "dst"]),
        "--stall-timeout needs --mode process",
    );
});

once!(an_empty_destination_is_refused, |env| {
    small_tree(env);
    for arguments in [
        &["src", ""][..],
        &["src", "src", ""],
        &["-t", "", "src"],
        &["-T", "src", ""],
    ] {
        let run = env.pcopy(arguments);
        assert_eq!(run.stderr.lines().count(), 1, "{run}");
        refused(env, run, " is empty; perhaps a variable");
    }
});

once!(a_destination_below_a_file_is_refused, |env| {
    small_tree(env);
    env.file("file", "x");
    for arguments in [
        &["src", "file/dst"][..],
        &["src", "file/dst/"],
        &["file", "file/a/b"],
        &["-t", "file/x", "src"],
    ] {
        refused(env, env.pcopy(arguments), ": file is not a directory");
    }
});

once!(an_option_wins_over_a_wrong_variable, |env| {
    small_tree(env);
    for (args, number) in [
        (&["-j2", "--progress=never", "src", "dst"][..], 0),
        (&["--generate", "man"], 0),
        (&["-j2", "src", "dst-2"], 2),
        (&["--progress=never", "src", "dst-2"], 2),
    ] {
        let run = env.command(args);
        let run = run.after("export PCOPY_JOBS=many PCOPY_PROGRESS=yes").run();
        run.exits(number);
    }
    env.assert_same("src", "dst");
});

once!(help_that_cannot_be_written_is_an_error, |env| {
    let program = env.program(false);
    let program = program.display();
    for what in ["--help", "--version", "--generate man"] {
        let script = format!(
            "{program} {what} >/dev/full 2>stderr && exit 9 || test $? = 1
             {program} {what} >&- 2>>stderr && exit 9 || test $? = 1
             {program} {what} | true"
        );
        env.sh(&script);
        let stderr = String::from_utf8(env.read("stderr")).unwrap();
        assert_eq!(
            stderr,
            "pcopy: standard output: write: No space left on device\n\
             pcopy: standard output: write: Bad file descriptor\n",
            "{what}"
        );
    }
});

once!(the_environment_has_defaults, |env| {
    small_tree(env);
    for (variable, words) in [
        (
            "PCOPY_JOBS=0",
            "PCOPY_JOBS: 0 is not a number from 1 to 1024",
        ),
        ("PCOPY_JOBS=many", "PCOPY_JOBS: many is not"),
        (
            "PCOPY_PROGRESS=yes",
            "PCOPY_PROGRESS: yes is not auto, always or never",
        ),
    ] {
        let run = env.command(["src", "dst"]);
        let run = run.after(&format!("export {variable}")).run();
        refused(env, run, words);
    }
    let run = env.command(["-v", "src", "dst"]);
    let run = run.after("export PCOPY_JOBS=1 PCOPY_PROGRESS=").run().ok();
    assert_eq!(run.entries_by_worker().len(), 1, "{run}");
});

once!(preserve_takes_the_words_of_cp, |env| {
    small_tree(env);
    env.pcopy(["--preserve=acl,context,xattr", "src", "dst-1"])
        .ok();
    env.assert_same("src", "dst-1");
    env.pcopy(["--no-preserve=context", "src", "dst-2"]).ok();
    env.assert_same("src", "dst-2");
    refused(
        env,
        env.pcopy(["--no-preserve=acl", "src", "dst"]),
        "--no-preserve=acl: an ACL cannot be left out alone",
    );
});

// ---- manual and completions -----------------------------------------------------------------

once!(the_manual_page_has_no_faults, |env| {
    let page = env.pcopy(["--generate", "man"]).exits(0);
    env.file("pcopy.1", page.stdout());
    for words in [".SH EXIT STATUS", ".SH ENVIRONMENT", ".SH FILES", "mkpath"] {
        assert!(page.stdout().contains(words), "{words}");
    }
    if env.skipped_without("mandoc") {
        return;
    }
    let faults = env.sh("mandoc -T lint -W warning pcopy.1 2>&1 || true");
    assert_eq!(faults, "");
});

once!(shells_accept_their_completions, |env| {
    for shell in ["bash", "zsh", "fish"] {
        let name = format!("complete-{shell}");
        let script = env.pcopy(["--generate", &name]).exits(0);
        assert!(script.stdout().contains("stall-timeout"), "{shell}");
        for hidden in ["stall-warning", "--recursive", "-l recursive"] {
            assert!(!script.stdout().contains(hidden), "{shell}: {hidden}");
        }
        env.file(&name, script.stdout());
        if env.sh(&format!("command -v {shell} || true")).is_empty() {
            skip(format_args!("needs {shell}"));
            continue;
        }
        env.sh(&format!("{shell} -n {name}"));
    }
    if !env.skipped_without("bash") {
        let script = ". ./complete-bash; COMP_WORDS=(pcopy --mk); COMP_CWORD=1
            _pcopy pcopy --mk pcopy; echo \"${COMPREPLY[@]}\"
            COMP_WORDS=(pcopy src ''); COMP_CWORD=2
            _pcopy pcopy '' src; echo \"${COMPREPLY[@]}\"";
        env.file("script", script);
        // With no offer of the second one, bash offers files.
        assert_eq!(env.sh("bash script"), "--mkpath\n\n");
    }
});
