//! A message about the run, as people and programs get it.

use crate::protocol::error::{Reason, Step};

/// How much a message matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MessageKind {
    /// Something was not copied, or not reported.
    Error,
    /// Something is not as it was, or waits.
    Warning,
    /// Nothing is wrong.
    Note,
}

/// What a message is about. Programs get it beside the text.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct About<'a> {
    /// The path in the text, as bytes.
    pub(crate) path: Option<&'a [u8]>,
    pub(crate) step: Option<Step>,
    pub(crate) errno: Option<i32>,
    /// The worker as messages name it.
    pub(crate) worker: Option<&'a str>,
}

impl About<'_> {
    /// Adds what failed and why.
    pub(crate) fn failed(self, step: Step, reason: Reason) -> Self {
        let errno = match reason {
            Reason::System(errno) => Some(errno),
            _ => None,
        };
        Self {
            step: Some(step),
            errno,
            ..self
        }
    }
}
