//! The promises of pcopy, each tried on the real binary in both modes.
//!
//! - `cargo test` runs everything; `cargo test --test pcopy safety::` one module;
//!   a test's name ends in `::thread` or `::process`, the mode it runs pcopy in.
//! - A test that needs root, a mount or a tool that is not there prints
//!   `skipped: TEST: REASON` and passes. With `PCOPY_TEST_NO_SKIP` set it fails instead.
//! - `PCOPY_TEST_DIR` names the folder in which the tests make their temporary folders
//!   (any file system will do); without it that is the system's temporary folder.
//! - `PCOPY_TEST_PROGRAM` names another pcopy to be tested, say an installed one.

/// Makes two tests of one body: the same promise, kept by threads and by processes.
///
/// Each gets an environment of its own; `env.mode()` says which mode that is.
macro_rules! both_modes {
    ($name:ident, |$env:ident| $body:block) => {
        mod $name {
            #[allow(unused_imports, reason = "not every body needs its module's imports")]
            use super::*;

            fn body($env: &crate::env::Env) {
                $body
            }

            #[test]
            fn thread() {
                body(&crate::env::Env::new(crate::env::Mode::Thread));
            }

            #[test]
            fn process() {
                body(&crate::env::Env::new(crate::env::Mode::Process));
            }
        }
    };
}

// What the tests stand on.
mod compare;
mod env;
mod faultfs;
mod run;
mod zoo;

// The promises.
mod basics;
mod faults;
mod fidelity;
mod limits;
mod messages;
mod random;
mod safety;
mod workers;
