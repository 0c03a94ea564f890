//! The lines of the bar, as a function of the figures and the terminal's width.
//!
//! If room is short, the least important part is left out first: the path, the number of files, the
//! rate, the bytes, the failures, the time left, the percentage.

use std::time::Duration;

use unicode_width::UnicodeWidthChar;

use super::estimate::Precision;
use super::style::{Colour, Style};
use crate::ui::units::{format_bytes, format_compact, format_time_left};

/// From so many columns on there are two lines.
const TWO_LINES: usize = 80;
/// Columns of the bar itself.
const BAR: std::ops::RangeInclusive<usize> = 8..=40;
/// Columns of the figures on the first of two lines, and of what is between them.
const FIGURES: usize = 4 + 1 + 2 + 8 + 4 + 9 + 2 + 10 + 2 + 11 + 2 + 12;
/// A path with less room says nothing.
const SHORTEST_PATH: usize = 12;

/// Everything that the bar shows.
#[derive(Clone, Debug)]
pub(in crate::ui) struct Figures {
    pub(in crate::ui) percent: Option<u8>,
    pub(in crate::ui) files: u64,
    pub(in crate::ui) files_done: u64,
    pub(in crate::ui) bytes: u64,
    pub(in crate::ui) bytes_done: u64,
    pub(in crate::ui) precision: Precision,
    /// Bytes in a second.
    pub(in crate::ui) rate: Option<u64>,
    pub(in crate::ui) time_left: Option<Duration>,
    pub(in crate::ui) failed: u64,
    pub(in crate::ui) workers: usize,
}

/// The present activity of the workers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Activity {
    /// One of them copies the entry at this path, if it is not empty.
    Copying(String),
    /// One of them has made no progress for this time.
    Waiting {
        worker: usize,
        time: Duration,
        path: String,
    },
}

impl Figures {
    /// Returns the lines for a terminal of this width: one or two.
    pub(super) fn lines(&self, activity: &Activity, width: usize, style: Style) -> Vec<String> {
        // The last column stays free: some terminals begin a new line once it is used.
        let room = width.saturating_sub(1);
        if width < TWO_LINES {
            return vec![self.single_line(activity, room, style)];
        }
        vec![
            self.first_line(room, style),
            self.second_line(activity, room, style),
        ]
    }

    /// Returns the text of one line where there is no terminal.
    pub(super) fn plain(&self) -> String {
        let mut parts = vec![
            format!("{} of {} files", self.files_done, self.files_total()),
            format!(
                "{} of {}",
                format_bytes(self.bytes_done),
                self.bytes_total()
            ),
        ];
        parts.splice(0..0, self.percent.map(|_| self.percentage()));
        parts.extend(self.rate.map(|rate| format!("{}/s", format_bytes(rate))));
        parts.extend(self.time_left());
        parts.extend(self.failures());
        parts.join(", ")
    }

    fn first_line(&self, room: usize, style: Style) -> String {
        let bar = room.saturating_sub(FIGURES).clamp(*BAR.start(), *BAR.end());
        let rate = self.rate.map(|rate| format!("{}/s", format_bytes(rate)));
        let of_total = match self.bytes {
            0 => String::new(),
            _ => format!(" of {}", self.bytes_total()),
        };
        let line = format!(
            "{:>4} {}  {:>8}{:<13}  {:>10}  {:>11}",
            self.percentage(),
            self.bar(bar, style),
            format_bytes(self.bytes_done),
            of_total,
            rate.unwrap_or_default(),
            self.time_left().unwrap_or_default(),
        );
        match self.failures() {
            Some(failures) => format!("{line}  {}", style.paint(Colour::Red, &failures)),
            None => line.trim_end().to_owned(),
        }
    }

    fn second_line(&self, activity: &Activity, room: usize, style: Style) -> String {
        let (start, path) = match activity {
            Activity::Waiting { worker, time, path } => {
                let seconds = time.as_secs();
                (
                    format!("     worker {worker} has waited {seconds} s for "),
                    path,
                )
            }
            Activity::Copying(path) => {
                let workers = match self.workers {
                    1 => "1 worker".to_owned(),
                    workers => format!("{workers} workers"),
                };
                let separator = style.separator();
                let files = self.file_counts();
                (format!("     {files}{separator}{workers}{separator}"), path)
            }
        };
        let room = room.saturating_sub(columns(&start));
        if path.is_empty() || room < SHORTEST_PATH {
            let end = |c: char| c == ' ' || style.separator().contains(c);
            return start.trim_end_matches(end).to_owned();
        }
        start + &shorten(path, room, style)
    }

    /// Leaves out what matters least until the rest fits.
    fn single_line(&self, activity: &Activity, room: usize, style: Style) -> String {
        let total = self.marked(&format_compact(self.bytes), "+");
        let done = format_compact(self.bytes_done);
        let rate = self.rate.map(|rate| format_compact(rate) + "/s");
        // Each with the columns that it takes at most, so that figures do not dance, and with its
        // rank: the highest goes first.
        let bytes = (format!("{done:>5}/{total:<5}"), format!("{done}/{total}"));
        let rate = rate.unwrap_or_default();
        let left = self.time_left().unwrap_or_default();
        let failures = self.failures().unwrap_or_default();
        let counts = self.file_counts();
        let percent = format!("{:>4}", self.percentage());
        let mut fields = vec![
            (0, percent.clone(), percent),
            (3, bytes.0, bytes.1),
            (4, format!("{rate:>6}"), rate),
            (1, format!("{left:>11}"), left),
            (2, failures.clone(), failures),
            (5, counts.clone(), counts),
        ];
        for most in (0..=5).rev() {
            fields
                .retain(|(rank, _, natural)| *rank <= most && (*rank == 0 || !natural.is_empty()));
            let padded = fields.iter().map(|(_, padded, _)| padded.as_str());
            let natural = fields.iter().map(|(_, _, natural)| natural.as_str());
            for texts in [padded.collect::<Vec<_>>(), natural.collect()] {
                let mut line = texts.join(" ");
                let used = columns(&line);
                if used > room {
                    continue;
                }
                let path = match activity {
                    Activity::Copying(path) | Activity::Waiting { path, .. } => path,
                };
                if most == 5 && !path.is_empty() && room >= used + 1 + SHORTEST_PATH {
                    line = format!("{line} {}", shorten(path, room - used - 1, style));
                }
                let failures = self.failures().unwrap_or_default();
                return if failures.is_empty() {
                    line
                } else {
                    line.replacen(&failures, &style.paint(Colour::Red, &failures), 1)
                };
            }
        }
        String::new()
    }

    fn bar(&self, width: usize, style: Style) -> String {
        let [done, tip, rest] = style.bar();
        let Some(percent) = self.percent else {
            return rest.repeat(width);
        };
        let filled = width * usize::from(percent) / 100;
        let tip = if filled < width { tip } else { "" };
        let rest = rest.repeat((width - filled).saturating_sub(1));
        style.paint(Colour::Cyan, &(done.repeat(filled) + tip)) + &rest
    }

    /// Marks a text as an estimate or as incomplete.
    fn marked(&self, text: &str, plus: &str) -> String {
        match self.precision {
            Precision::Exact => text.to_owned(),
            Precision::About => format!("~{text}"),
            Precision::AtLeast => format!("{text}{plus}"),
        }
    }

    const fn about(&self) -> &'static str {
        match self.precision {
            Precision::Exact => "",
            Precision::About | Precision::AtLeast => "~",
        }
    }

    fn percentage(&self) -> String {
        match self.percent {
            Some(100) => "100%".to_owned(),
            Some(percent) => format!("{}{percent}%", self.about()),
            None => String::new(),
        }
    }

    /// Returns the total, such as `1.9+ GiB`.
    fn bytes_total(&self) -> String {
        let total = format_bytes(self.bytes);
        match total.split_once(' ') {
            Some((number, unit)) => format!("{} {unit}", self.marked(number, "+")),
            None => total,
        }
    }

    fn files_total(&self) -> String {
        let plus = match self.precision {
            Precision::AtLeast => "+",
            Precision::Exact | Precision::About => "",
        };
        format!("{}{plus}", self.files)
    }

    fn file_counts(&self) -> String {
        if self.files == 0 {
            return "counting".to_owned();
        }
        let digits = self.files.to_string().len();
        format!(
            "{:>digits$} of {} files",
            self.files_done,
            self.files_total()
        )
    }

    fn time_left(&self) -> Option<String> {
        let time = format_time_left(self.time_left?)?;
        Some(format!("{}{time} left", self.about()))
    }

    fn failures(&self) -> Option<String> {
        match self.failed {
            0 => None,
            failed @ 1..10_000 => Some(format!("{failed} failed")),
            _ => Some("9999+ failed".to_owned()),
        }
    }
}

/// Returns the columns that a text takes at most.
pub(super) fn columns(text: &str) -> usize {
    text.chars().map(columns_of).sum()
}

/// Returns the columns that a character takes at most. Terminals disagree on emoji that are made of
/// several characters.
fn columns_of(c: char) -> usize {
    /// It makes an emoji of a character that may be narrow.
    const EMOJI_SELECTOR: char = '\u{fe0f}';
    match c {
        EMOJI_SELECTOR => 1,
        // Half of a flag, or a letter in a box.
        '\u{1f1e6}'..='\u{1f1ff}' => 2,
        c => c.width().unwrap_or(0),
    }
}

/// Shortens a path at its left, if possible at a slash.
fn shorten(path: &str, room: usize, style: Style) -> String {
    let path = style.show(path);
    if columns(&path) <= room {
        return path;
    }
    let room = room.saturating_sub(columns(style.ellipsis()));
    let (mut best, mut at_slash, mut used) = (None, None, 0);
    for (start, c) in path.char_indices().rev() {
        used += columns_of(c);
        if used > room {
            break;
        }
        let end = &path[start..];
        // A combining character cannot stand alone.
        if c.width().unwrap_or(0) > 0 {
            best = Some(end);
        }
        if c == '/' && end.len() > 1 {
            at_slash = Some(end);
        }
    }
    let end = at_slash.or(best).unwrap_or_default();
    format!("{}{end}", style.ellipsis())
}
