//! The progress bar, as a person sees it in a terminal.

use rustix::process::Signal;

use crate::env::Env;
use crate::faultfs::FaultFs;
use crate::noise::pattern;
use crate::terminal::{Recording, Terminal};

/// Names that take more columns than characters, and fewer than bytes.
const WIDE: [&str; 5] = [
    "日本旅行 2023",
    "照片和视频",
    "가족 사진",
    "🎉 birthday 👍🏽 ❤\u{fe0f} 🇩🇪",
    "Ångström e\u{301}te\u{301}",
];

/// Makes a tree with wide names that takes some seconds to copy.
fn slow_wide_tree(env: &Env) -> Option<FaultFs> {
    for (number, name) in WIDE.into_iter().enumerate() {
        for file in 0..30 {
            let path = format!("real/{name}/{name} {name}/{name}-{file}.jpg");
            env.file(path, pattern(20_000, (100 * number + file) as u64));
        }
    }
    FaultFs::mount(env, "real", "src", &["--delay-ms", "4"])
}

fn run_in(env: &Env, columns: u16, variables: &[(&str, &str)]) -> Option<Recording> {
    let _slow = slow_wide_tree(env)?;
    let args = ["-j2", "src", "dst"];
    let run = Terminal::start(env, columns, variables, &args).wait();
    assert!(run.status.success(), "{:?}", run.text());
    Some(run)
}

/// Returns true for a row of the summary.
fn is_message(row: &str) -> bool {
    row.starts_with("pcopy: ")
}

#[track_caller]
fn assert_percentages_grow(run: &Recording) {
    let percentages = run.percentages();
    assert!(percentages.first().is_some_and(|&first| first < 100));
    assert!(percentages.is_sorted(), "{percentages:?}");
}

/// Starts a run that lasts until it is interrupted.
fn start_endless(env: &Env, columns: u16) -> Option<(FaultFs, Terminal)> {
    env.file("real/a/stuck", pattern(100_000, 1));
    env.file("real/b/fine", "x");
    let faulty = FaultFs::mount(env, "real", "src", &["--fault", "hang-read:stuck"])?;
    let terminal = Terminal::start(env, columns, &[], &["-j2", "src", "dst"]);
    terminal.await_output("the bar", |text| text.contains("stuck"));
    Some((faulty, terminal))
}

#[track_caller]
fn interrupt(terminal: Terminal) -> Recording {
    terminal.signal_group(Signal::INT);
    let run = terminal.wait();
    assert_eq!(run.status.code(), Some(130), "{:?}", run.text());
    run
}

both_modes!(eighty_columns_show_two_rows_and_never_go_back, |env| {
    let Some(run) = run_in(env, 80, &[]) else {
        return;
    };
    assert_percentages_grow(&run);
    let mut has_bar = false;
    let last = run.replay(|_, rows| {
        if !rows.iter().any(|row| is_message(row)) {
            assert!(rows.len() <= 2, "{rows:#?}");
        }
        has_bar |= rows
            .first()
            .is_some_and(|row| row.contains('╸') && row.contains(" left"))
            && rows
                .last()
                .is_some_and(|row| row.contains(" files · 2 workers · "));
    });
    assert!(has_bar, "{:?}", run.text());
    let [last] = &last[..] else {
        panic!("more than the summary is left: {last:#?}");
    };
    assert!(
        last.starts_with("pcopy: 150 files copied to dst, 2.9 MiB in "),
        "{last}"
    );
});

once!(forty_columns_show_one_row, |env| {
    let Some(run) = run_in(env, 40, &[]) else {
        return;
    };
    assert_percentages_grow(&run);
    run.replay(|_, rows| {
        if !rows.iter().any(|row| is_message(row)) {
            assert!(rows.len() <= 1, "{rows:#?}");
        }
    });
});

once!(two_hundred_columns_show_whole_paths, |env| {
    let Some(run) = run_in(env, 200, &[]) else {
        return;
    };
    assert_percentages_grow(&run);
    let mut has_path = false;
    run.replay(|_, rows| {
        if !rows.iter().any(|row| is_message(row)) {
            assert!(rows.len() <= 2, "{rows:#?}");
        }
        // Any of the directories: on a busy machine, one may be copied between two drawings.
        let has_path_in = |dir: &str| {
            let path = format!("· src/{dir}/{dir} {dir}/{dir}-");
            rows.last().is_some_and(|row| row.contains(&path))
        };
        has_path |= WIDE.into_iter().any(has_path_in);
    });
    assert!(has_path, "{:?}", run.text());
});

once!(a_terminal_without_colours_and_utf_8_gets_neither, |env| {
    let variables = [("NO_COLOR", "1"), ("LC_ALL", "C")];
    let Some(run) = run_in(env, 80, &variables) else {
        return;
    };
    let text = run.text();
    assert!(text.is_ascii(), "{text:?}");
    assert!(!text.contains("\x1b[3"), "{text:?}");
    assert!(text.contains("=>-"), "{text:?}");
});

/// Fails unless the progress consists of lines, without anything that moves the cursor.
fn gets_lines(env: &Env, terminal: &str) {
    let Some(run) = run_in(env, 80, &[("TERM", terminal)]) else {
        return;
    };
    let text = run.text();
    assert!(!text.contains('\x1b'), "{text:?}");
    // How many lines there are depends on how fast the machine is.
    let is_progress = |line: &str| line.starts_with("pcopy: ") && line.contains(" of 1");
    assert!(text.lines().any(is_progress), "{text:?}");
}

once!(a_terminal_without_a_cursor_gets_lines, |env| {
    gets_lines(env, "dumb");
});

once!(a_terminal_without_a_name_gets_lines, |env| {
    gets_lines(env, "");
});

once!(a_quick_run_draws_nothing, |env| {
    env.file("src/a", "x");
    let run = Terminal::start(env, 80, &[], &["src", "dst"]).wait();
    let text = run.text();
    // On a machine that is very busy it may take long enough for a bar.
    if !text.contains('╸') {
        assert!(!text.contains('\x1b'), "{text:?}");
    }
    assert_eq!(run.replay(|_, _| ()).len(), 1);
});

once!(errors_stay_above_the_bar_and_are_counted_in_it, |env| {
    let names = [0, 7, 14, 21, 28].map(|file| format!("{0}/{0} {0}/{0}-{file}.jpg", WIDE[0]));
    for name in &names {
        env.file(format!("dst/{name}/x"), "in the way");
    }
    let Some(_slow) = slow_wide_tree(env) else {
        return;
    };
    let run = Terminal::start(env, 200, &[], &["-j2", "src", "dst"]).wait();
    assert_eq!(run.status.code(), Some(1));
    assert_percentages_grow(&run);
    assert!(
        run.text().contains("\x1b[31m5 failed\x1b[0m"),
        "{:?}",
        run.text()
    );
    let last = run.replay(|_, rows| {
        let bar = rows.iter().filter(|row| !is_message(row)).count();
        assert!(bar <= 2, "{rows:#?}");
    });
    for name in &names {
        let line = format!("pcopy: dst/{name}: ");
        let found = last.iter().filter(|row| row.starts_with(&line)).count();
        assert_eq!(found, 1, "{line}: {last:#?}");
    }
    assert_eq!(last.len(), names.len() + 2, "{last:#?}");
    assert!(
        last[names.len() + 1].starts_with("pcopy: 5 failed (named above); "),
        "{last:#?}"
    );
});

once!(a_terminal_may_change_its_width, |env| {
    let Some((_faulty, terminal)) = start_endless(env, 200) else {
        return;
    };
    for columns in [40, 80, 40] {
        terminal.resize(columns);
        let has_second_row = columns >= 80;
        terminal.await_output("some draws", |text| {
            let (before, last) = text.rsplit_once("\x1b[2K").unwrap_or_default();
            before.matches('\r').count() >= 8 && last.contains("worker") == has_second_row
        });
    }
    let run = interrupt(terminal);
    let last = run.replay(|_, rows| {
        if !rows.iter().any(|row| is_message(row)) {
            assert!(rows.len() <= 2, "{rows:#?}");
        }
    });
    let summary = "pcopy: 1 file copied to dst, ";
    assert!(last.iter().any(|row| row.starts_with(summary)), "{last:#?}");
});

both_modes!(
    what_the_shell_prints_while_the_run_is_stopped_stays,
    |env| {
        let Some((_faulty, terminal)) = start_endless(env, 80) else {
            return;
        };
        terminal.stop_group();
        let lines = ["[1]+  Stopped", "$ fg", "pcopy src dst"];
        terminal.print(&format!("^Z\r\n{}\r\n", lines.join("\r\n")));
        terminal.signal_group(Signal::CONT);
        terminal.await_output("some draws", |text| text.matches("worker").count() >= 3);
        let last = interrupt(terminal).replay(|_, _| ());
        for line in lines {
            assert!(last.iter().any(|row| row == line), "{line}: {last:#?}");
        }
    }
);

both_modes!(a_worker_that_waits_is_named, |env| {
    let Some((_faulty, terminal)) = start_endless(env, 80) else {
        return;
    };
    terminal.await_output("the worker", |text| {
        text.contains(" has waited ") && text.contains(" s for src/a/stuck")
    });
    interrupt(terminal);
});
