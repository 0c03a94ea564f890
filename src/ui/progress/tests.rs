//! The lines of the bar in terminals of several widths.

use std::time::Duration;

use super::estimate::Precision;
use super::layout::{Activity, Figures, columns};
use super::style::Style;

const PLAIN: Style = Style {
    has_colour: false,
    is_utf8: true,
};

fn middle() -> Figures {
    Figures {
        percent: Some(26),
        files: 543,
        files_done: 141,
        bytes: 19 << 30,
        bytes_done: 504 << 20,
        precision: Precision::Exact,
        rate: Some(509 << 17),
        time_left: Some(Duration::from_secs(28)),
        failed: 3,
        workers: 8,
    }
}

fn start() -> Figures {
    Figures {
        percent: Some(2),
        bytes_done: 473 << 17,
        precision: Precision::AtLeast,
        files_done: 12,
        failed: 0,
        ..middle()
    }
}

fn copying(path: &str) -> Activity {
    Activity::Copying(path.to_owned())
}

fn lines(figures: &Figures, path: &str, width: usize) -> Vec<String> {
    figures.lines(&copying(path), width, PLAIN)
}

#[test]
fn eighty_columns_have_two_lines() {
    let path = "photos/2023/日本旅行 2023/IMG_0171.jpg";
    assert_eq!(
        lines(&start(), path, 80),
        [
            " ~2% ╸━━━━━━━━━━━  59.1 MiB of 19.0+ GiB  63.6 MiB/s   ~0:28 left",
            "      12 of 543+ files · 8 workers · photos/2023/日本旅行 2023/IMG_0171.jpg",
        ]
    );
    assert_eq!(
        lines(&middle(), path, 80),
        [
            " 26% ━━━╸━━━━━━━━   504 MiB of 19.0 GiB   63.6 MiB/s    0:28 left  3 failed",
            "     141 of 543 files · 8 workers · photos/2023/日本旅行 2023/IMG_0171.jpg",
        ]
    );
}

#[test]
fn nothing_that_is_not_known_is_shown() {
    let figures = Figures {
        percent: None,
        rate: None,
        time_left: None,
        failed: 0,
        workers: 1,
        precision: Precision::AtLeast,
        ..middle()
    };
    assert_eq!(
        lines(&figures, "", 80),
        [
            "     ━━━━━━━━━━━━   504 MiB of 19.0+ GiB",
            "     141 of 543+ files · 1 worker",
        ]
    );
    assert_eq!(
        lines(&figures, "", 40),
        ["      504M/19G+  141 of 543+ files"]
    );
}

#[test]
fn before_anything_is_found_there_are_no_totals() {
    let figures = Figures {
        percent: None,
        files: 0,
        files_done: 0,
        bytes: 0,
        bytes_done: 0,
        rate: None,
        time_left: None,
        failed: 0,
        ..start()
    };
    assert_eq!(
        lines(&figures, "", 80),
        ["     ━━━━━━━━━━━━       0 B", "     counting · 8 workers"]
    );
}

#[test]
fn the_bar_reaches_its_end() {
    let bar = |percent| {
        let figures = Figures {
            percent: Some(percent),
            ..middle()
        };
        let line = lines(&figures, "", 80).swap_remove(0);
        line.chars().skip(5).take(12).collect::<String>()
    };
    assert_eq!(bar(0), "╸━━━━━━━━━━━");
    assert_eq!(bar(99), "━━━━━━━━━━━╸");
    assert_eq!(bar(100), "━━━━━━━━━━━━");
}

#[test]
fn what_matters_least_goes_first() {
    let at = |width| lines(&middle(), "a/long/path/to/a/file.jpg", width);
    for (width, line) in [
        (
            79,
            " 26%  504M/19G    64M/s   0:28 left 3 failed 141 of 543 files …/to/a/file.jpg",
        ),
        (
            70,
            " 26%  504M/19G    64M/s   0:28 left 3 failed 141 of 543 files",
        ),
        (55, " 26%  504M/19G    64M/s   0:28 left 3 failed"),
        (40, " 26% 504M/19G 64M/s 0:28 left 3 failed"),
        (38, " 26%  504M/19G     0:28 left 3 failed"),
        (34, " 26% 504M/19G 0:28 left 3 failed"),
        (30, " 26%   0:28 left 3 failed"),
        (22, " 26%   0:28 left"),
        (12, " 26%"),
        (5, " 26%"),
        (3, ""),
    ] {
        assert_eq!(at(width), [line], "{width}");
    }
}

#[test]
fn every_line_fits_at_every_width() {
    let paths = [
        "",
        "short",
        "日本語/中文/한국어/かなカナ/非常に長い名前のファイル.jpg",
        "❤\u{fe0f}👍🏽🇩🇪🎉/e\u{301}e\u{301}e\u{301}/ภาษาไทย/שלום",
        "one-very-long-name-without-any-slash-one-very-long-name-without-any-slash-one-very-long",
    ];
    let largest = Figures {
        percent: Some(99),
        files: u64::MAX,
        files_done: u64::MAX,
        bytes: 1023 << 20,
        bytes_done: u64::MAX,
        precision: Precision::AtLeast,
        rate: Some(u64::MAX),
        time_left: Some(Duration::from_secs(23 * 3600 + 59 * 60)),
        failed: u64::MAX,
        workers: 1024,
    };
    for width in 0..300 {
        for path in paths {
            for figures in [&start(), &middle(), &largest] {
                let waiting = Activity::Waiting {
                    worker: 1000,
                    time: Duration::from_secs(100_000),
                    path: path.to_owned(),
                };
                for activity in [copying(path), waiting] {
                    let lines = figures.lines(&activity, width, PLAIN);
                    assert_eq!(lines.len(), if width < 80 { 1 } else { 2 });
                    for line in lines {
                        assert!(columns(&line) < width.max(1), "{width}: {line:?}");
                        assert!(!line.contains('\n'));
                    }
                }
            }
        }
    }
}

#[test]
fn a_path_is_cut_at_its_left() {
    let end = |path: &str, width: usize| {
        let line = lines(&middle(), path, width).swap_remove(1);
        line.rsplit_once(" · ").unwrap().1.to_owned()
    };
    let path = "a-source/with many/directories/2023/Urlaub Kreta/IMG_0471.jpg";
    assert_eq!(end(path, 200), path);
    assert_eq!(end(path, 80), "…/2023/Urlaub Kreta/IMG_0471.jpg");
    // Without a slash it is cut between two characters, and none stands half.
    let wide = end(&"日".repeat(100), 80);
    assert_eq!(wide, format!("…{}", "日".repeat(21)));
    let combining = end(&"e\u{301}".repeat(100), 80);
    assert!(combining.starts_with("…e\u{301}"), "{combining}");
}

#[test]
fn a_worker_that_waits_is_named() {
    let waiting = Activity::Waiting {
        worker: 3,
        time: Duration::from_secs(34),
        path: "photos/2019/IMG_2041.jpg".to_owned(),
    };
    assert_eq!(
        middle().lines(&waiting, 80, PLAIN)[1],
        "     worker 3 has waited 34 s for photos/2019/IMG_2041.jpg"
    );
}

#[test]
fn figures_do_not_dance() {
    let ends = |bytes_done, rate, seconds, failed| {
        let figures = Figures {
            bytes_done,
            rate: Some(rate),
            time_left: Some(Duration::from_secs(seconds)),
            failed,
            ..middle()
        };
        let line = lines(&figures, "", 80).swap_remove(0);
        let place = |text| columns(&line[..line.find(text).unwrap()]);
        [" of ", "/s", "left"].map(place)
    };
    let usual = ends(504 << 20, 1 << 20, 28, 0);
    assert_eq!(ends(5, 0, 3_000, 12), usual);
    assert_eq!(ends(1023 << 20, 999 << 20, 80_000, 9_999), usual);
}

#[test]
fn colours_and_ascii_follow_the_terminal() {
    let coloured = Style {
        has_colour: true,
        is_utf8: true,
    };
    let line = middle().lines(&copying(""), 80, coloured).swap_remove(0);
    assert!(line.contains("\x1b[36m━━━╸\x1b[0m━━━━━━━━ "), "{line:?}");
    assert!(line.ends_with("\x1b[31m3 failed\x1b[0m"), "{line:?}");
    let narrow = middle().lines(&copying(""), 40, coloured).swap_remove(0);
    assert!(narrow.ends_with("\x1b[31m3 failed\x1b[0m"), "{narrow:?}");
    let ascii = Style {
        has_colour: false,
        is_utf8: false,
    };
    let lines = middle().lines(&copying("photos/日本/a"), 80, ascii);
    assert!(lines.iter().all(|line| line.is_ascii()), "{lines:?}");
    assert!(lines[0].starts_with(" 26% ===>-------- "), "{lines:?}");
    assert_eq!(lines[1], "     141 of 543 files, 8 workers, photos/??/a");
}

#[test]
fn a_line_without_a_terminal_has_everything_but_the_path() {
    assert_eq!(
        middle().plain(),
        "26%, 141 of 543 files, 504 MiB of 19.0 GiB, 63.6 MiB/s, 0:28 left, 3 failed"
    );
    assert_eq!(
        start().plain(),
        "~2%, 12 of 543+ files, 59.1 MiB of 19.0+ GiB, 63.6 MiB/s, ~0:28 left"
    );
}
