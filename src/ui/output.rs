//! The only place that writes to stdout and stderr.
//!
//! A message is one line and one write(2). Other programs may write to the same terminal, pipe or
//! file at the same time, and several writes would mix with theirs. `eprintln!` needs several.

use std::io::Write as _;

use super::summary::exit;
use crate::fs::sys;
use crate::protocol::error::error_text;
use crate::quote::escape_hidden;

/// Prints a message on stderr, with the program's name in front.
pub(crate) fn print_message(message: &str) {
    #[cfg(test)]
    if captured::keep(captured::Stream::Err, message) {
        return;
    }
    write_stderr(&format!("pcopy: {message}\n"));
}

/// Prints complete lines on stdout.
pub(super) fn print_lines(lines: &str) -> std::io::Result<()> {
    #[cfg(test)]
    if captured::keep(captured::Stream::Out, lines) {
        return Ok(());
    }
    if sys::is_stdout_closed_at_start() {
        return Err(rustix::io::Errno::BADF.into());
    }
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(lines.as_bytes())?;
    stdout.flush()
}

/// Prints the error that kept a run from starting, and returns the exit status.
///
/// clap returns `--help` and `--version` as errors too. They go to stdout, with exit status 0.
pub(crate) fn print_fatal(error: &anyhow::Error) -> i32 {
    match error.downcast_ref::<clap::Error>() {
        None => print_message(&format!("{error:#}")),
        Some(usage) if usage.use_stderr() => write_stderr(&usage_text(usage)),
        Some(help) => return print_to_stdout(|| help.print()),
    }
    exit::NOT_STARTED
}

/// Prints a text that was asked for on stdout, and returns the exit status.
pub(crate) fn print_text(text: &[u8]) -> i32 {
    print_to_stdout(|| std::io::stdout().write_all(text))
}

fn print_to_stdout(print: impl FnOnce() -> std::io::Result<()>) -> i32 {
    let printed = if sys::is_stdout_closed_at_start() {
        Err(rustix::io::Errno::BADF.into())
    } else {
        print().and_then(|()| std::io::stdout().flush())
    };
    match printed {
        // `pcopy --help | head` is no error.
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            let reason = error
                .raw_os_error()
                .map_or_else(|| error.to_string(), error_text);
            print_message(&format!("standard output: write: {reason}"));
            exit::FAILURES
        }
        _ => exit::SUCCESS,
    }
}

/// Returns clap's message as plain text, with hidden characters escaped.
///
/// clap repeats arguments unchanged. One of them may be a file name that the shell found for a
/// `*`, with escape sequences in it.
fn usage_text(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let lines = text.lines().map(|line| escape_hidden(line) + "\n");
    lines.collect()
}

fn write_stderr(text: &str) {
    // If stderr is closed or full, the exit status still reports the error.
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// Keeps what this thread prints, for a test that asks for it.
#[cfg(test)]
pub(crate) mod captured {
    use std::cell::RefCell;

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) enum Stream {
        Out,
        Err,
    }

    thread_local! {
        static KEPT: RefCell<Option<Vec<(Stream, String)>>> = const { RefCell::new(None) };
    }

    /// Keeps what this thread prints from now on.
    pub(crate) fn begin() {
        KEPT.set(Some(Vec::new()));
    }

    /// Returns the lines kept since [`begin`], and prints again from now on.
    pub(crate) fn end() -> Vec<(Stream, String)> {
        KEPT.take().unwrap_or_default()
    }

    /// Keeps a text, line by line. Returns false if it must be printed.
    pub(super) fn keep(stream: Stream, text: &str) -> bool {
        KEPT.with_borrow_mut(|kept| {
            let Some(kept) = kept else {
                return false;
            };
            kept.extend(text.lines().map(|line| (stream, line.to_owned())));
            true
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn a_usage_error_cannot_move_the_cursor() {
        let error =
            Cli::try_parse_from(["pcopy", "--x\x1b[2J\u{202e}\r\u{9b}1A", "a", "b"]).unwrap_err();
        let text = usage_text(&error);
        assert!(
            text.starts_with("error: unexpected argument '--x"),
            "{text}"
        );
        assert!(text.ends_with("\n"), "{text}");
        for c in ['\x1b', '\u{202e}', '\r', '\u{9b}'] {
            assert!(!text.contains(c), "{text:?}");
        }
    }
}
