//! What a person sees: messages, progress, the summary.

pub(crate) mod paths;
pub(crate) mod progress;
pub(crate) mod quote;
pub(crate) mod summary;
