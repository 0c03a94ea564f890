//! Writes the lines of the bar to the terminal, for indicatif.
//!
//! indicatif fills each line with spaces, so that the next text begins a new row. For that it must
//! know how many columns a text takes, and terminals disagree on some emoji. If one takes more than
//! indicatif thinks, each redraw scrolls. So each line is ended as such here, and nothing depends on
//! what is counted.

use std::io::{self, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

use indicatif::TermLike;

/// The terminal on stderr.
#[derive(Debug, Default)]
pub(super) struct Screen(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// What is written with the next flush, as a whole.
    text: String,
    /// The next text belongs to the next row.
    has_line_ended: bool,
}

impl Screen {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a sequence that moves the cursor or clears a row.
    fn control(&self, sequence: &str) -> io::Result<()> {
        let mut state = self.state();
        state.text.push_str(sequence);
        state.has_line_ended = false;
        Ok(())
    }

    fn go(&self, steps: usize, direction: char) -> io::Result<()> {
        match steps {
            0 => Ok(()),
            steps => self.control(&format!("\x1b[{steps}{direction}")),
        }
    }
}

impl TermLike for Screen {
    fn width(&self) -> u16 {
        size().0
    }

    fn height(&self) -> u16 {
        size().1
    }

    fn move_cursor_up(&self, rows: usize) -> io::Result<()> {
        self.go(rows, 'A')
    }

    fn move_cursor_down(&self, rows: usize) -> io::Result<()> {
        self.go(rows, 'B')
    }

    fn move_cursor_right(&self, columns: usize) -> io::Result<()> {
        self.go(columns, 'C')
    }

    fn move_cursor_left(&self, columns: usize) -> io::Result<()> {
        self.go(columns, 'D')
    }

    fn write_line(&self, text: &str) -> io::Result<()> {
        self.write_str(text)?;
        self.state().text.push_str("\r\n");
        Ok(())
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        let mut state = self.state();
        if text.bytes().all(|byte| byte == b' ') {
            // The spaces that fill a line.
            state.has_line_ended = true;
        } else {
            if std::mem::take(&mut state.has_line_ended) {
                state.text.push_str("\r\n");
            }
            state.text.push_str(text);
        }
        Ok(())
    }

    fn clear_line(&self) -> io::Result<()> {
        self.control("\r\x1b[2K")
    }

    fn flush(&self) -> io::Result<()> {
        let text = std::mem::take(&mut self.state().text);
        std::io::stderr().write_all(text.as_bytes())
    }
}

/// Returns the columns and rows of the terminal.
pub(super) fn size() -> (u16, u16) {
    /// Some terminals on a serial line do not know their size.
    const USUAL: (u16, u16) = (80, 24);
    match rustix::termios::tcgetwinsize(std::io::stderr()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (size.ws_col, size.ws_row),
        _ => USUAL,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_begins_a_row_however_wide_the_one_before_is() {
        let screen = Screen::default();
        for text in ["first", "   ", "second \u{2764}\u{fe0f}", "  "] {
            screen.write_str(text).unwrap();
        }
        screen.move_cursor_up(1).unwrap();
        screen.move_cursor_up(0).unwrap();
        screen.clear_line().unwrap();
        screen.write_str("third").unwrap();
        assert_eq!(
            screen.state().text,
            "first\r\nsecond \u{2764}\u{fe0f}\x1b[1A\r\x1b[2Kthird"
        );
    }
}
