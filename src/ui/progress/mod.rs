//! The progress of a run on stderr: a bar on a terminal, otherwise a line from time to time.
//!
//! Only this file and [`screen`] use indicatif.

mod count;
mod estimate;
mod layout;
mod rate;
mod screen;
mod style;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::output::print_message;
use crate::context::Context;
use crate::protocol::Counts;
use count::Counter;
pub(super) use estimate::Precision;
use estimate::{Estimate, Known};
pub(crate) use layout::Activity;
pub(super) use layout::Figures;
use rate::{Clock, Rate, Window};
use screen::Screen;
use style::Style;

const REDRAWS_PER_SECOND: u8 = 10;
/// A run that is over by then shows no bar.
const DRAW_AFTER: Duration = Duration::from_millis(300);
/// The period of plain lines, for `--progress=always` without a terminal.
const LINE_PERIOD: Duration = Duration::from_secs(1);
/// The same, after the first minute.
const LATER_LINE_PERIOD: Duration = Duration::from_secs(10);
const LATER: Duration = Duration::from_secs(60);
/// A run that is over by then is not worth counting ahead.
const COUNT_AFTER: Duration = Duration::from_secs(1);
/// How often the rate and the time left change: often enough, and slow enough to be read.
const RATE_PERIOD: Duration = Duration::from_millis(500);

/// The state of a run in progress, as the scheduler knows it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Status {
    pub(crate) counts: Counts,
    /// Entries that have failed.
    pub(crate) failed: u64,
    /// Every directory has been listed.
    pub(crate) is_listed: bool,
    pub(crate) workers: usize,
}

/// Where progress is shown.
#[derive(Clone, Copy)]
enum Display {
    None,
    Lines,
    Bar(Style),
    /// The caller prints the figures.
    Figures,
}

/// Shows the progress of a run.
pub(super) struct Progress {
    display: Display,
    state: RefCell<State>,
}

struct State {
    clock: Clock,
    /// When the display last changed.
    updated: Duration,
    bar: Option<ProgressBar>,
    counter: Option<Counter>,
    /// Every directory has been listed. Only a repeated listing could find more.
    is_listed: bool,
    /// The highest percentage so far. The percentage that is shown never goes back.
    percent: Option<u8>,
    window: Window,
    rate: Option<Rate>,
    rated: Duration,
}

impl Progress {
    /// Prepares to show the progress, or with `is_for_programs` to return figures.
    pub(super) fn new(is_wanted: bool, is_for_programs: bool) -> Self {
        let variable = |name: &str| std::env::var(name).ok();
        let display = if !is_wanted {
            Display::None
        } else if is_for_programs {
            Display::Figures
        } else if std::io::stderr().is_terminal() && !style::is_dumb(variable) {
            Display::Bar(Style::of(variable))
        } else {
            Display::Lines
        };
        let state = State {
            clock: Clock::start(!matches!(display, Display::None)),
            updated: Duration::ZERO,
            bar: None,
            counter: None,
            is_listed: false,
            percent: None,
            window: Window::new(),
            rate: None,
            rated: Duration::ZERO,
        };
        Self {
            display,
            state: RefCell::new(state),
        }
    }

    /// Returns the interval at which to call [`Progress::update`], if progress is shown.
    pub(super) fn period(&self) -> Option<Duration> {
        match self.display {
            Display::None => None,
            // More often than lines are printed, to notice when the run is stopped.
            Display::Lines | Display::Bar(_) | Display::Figures => {
                Some(Duration::from_secs(1) / u32::from(REDRAWS_PER_SECOND))
            }
        }
    }

    /// Draws the progress, unless it was drawn less than a period ago. Returns the figures if the
    /// caller must print them.
    pub(super) fn update(
        &self,
        context: &'static Context,
        status: impl FnOnce() -> Status,
        activity: impl FnOnce() -> Activity,
    ) -> Option<Figures> {
        let period = self.period()?;
        let state = &mut *self.state.borrow_mut();
        let now = Instant::now();
        if state.clock.read(now)
            && let Some(bar) = &state.bar
        {
            // The shell has written below the bar. It begins anew below that.
            bar.set_draw_target(draw_target());
        }
        let elapsed = state.clock.elapsed(now);
        let period = match self.display {
            Display::Lines if elapsed > LATER => LATER_LINE_PERIOD,
            Display::Lines | Display::Figures => LINE_PERIOD,
            Display::None | Display::Bar(_) => period,
        };
        if elapsed < DRAW_AFTER || elapsed.saturating_sub(state.updated) < period {
            return None;
        }
        state.updated = elapsed;
        let figures = state.figures(context, status(), elapsed);
        match self.display {
            Display::None => {}
            Display::Figures => return Some(figures),
            Display::Lines => print_message(&figures.plain()),
            Display::Bar(style) => {
                let lines = figures.lines(&activity(), screen::size().0.into(), style);
                let bar = state.bar.get_or_insert_with(new_bar);
                bar.set_message(lines.join("\n"));
            }
        }
        None
    }

    /// Returns the time since the start of the run. If progress is shown, the time in which the run
    /// was stopped does not count.
    pub(super) fn elapsed(&self) -> Duration {
        self.state.borrow().clock.elapsed(Instant::now())
    }

    /// Runs `print` while the bar is hidden, so that its lines stay above the bar.
    pub(super) fn suspend<T>(&self, print: impl FnOnce() -> T) -> T {
        let bar = self.state.borrow().bar.clone();
        match bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }

    /// Removes the bar, and stops counting.
    pub(super) fn end(&self) {
        let state = &mut *self.state.borrow_mut();
        state.counter = None;
        if let Some(bar) = state.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl State {
    fn figures(&mut self, context: &'static Context, status: Status, elapsed: Duration) -> Figures {
        self.is_listed |= status.is_listed;
        let mut known = Known {
            counts: status.counts,
            failed: status.failed,
            is_listed: self.is_listed,
            counted: None,
        };
        let needs_counter = || Estimate::new(&known).precision != Precision::Exact;
        if elapsed >= COUNT_AFTER && self.counter.is_none() && needs_counter() {
            self.counter = Some(Counter::start(context));
        }
        known.counted = self.counter.as_ref().map(Counter::counted);
        let estimate = Estimate::new(&known);
        self.percent = self.percent.max(estimate.percent());
        let rate = self
            .window
            .add(elapsed, estimate.bytes_done, estimate.work_done);
        if self.rate.is_none() || elapsed.saturating_sub(self.rated) >= RATE_PERIOD {
            (self.rate, self.rated) = (rate, elapsed);
        }
        Figures {
            percent: self.percent,
            files: estimate.files,
            files_done: estimate.files_done,
            bytes: estimate.bytes,
            bytes_done: estimate.bytes_done,
            precision: estimate.precision,
            rate: self.rate.map(|rate| rate.bytes),
            time_left: self.rate.and_then(|rate| estimate.time_left(rate.work)),
            failed: status.failed,
            workers: status.workers,
        }
    }
}

fn new_bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, draw_target());
    let style = ProgressStyle::with_template("{msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
    bar
}

fn draw_target() -> ProgressDrawTarget {
    ProgressDrawTarget::term_like_with_hz(Box::new(Screen::default()), REDRAWS_PER_SECOND)
}
