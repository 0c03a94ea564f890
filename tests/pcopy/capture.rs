//! The output of a running program.

use std::io::Read;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Instant;

use crate::env::DEADLINE;

/// The bytes from a pipe. A thread reads them, so that the pipe never fills up.
pub(crate) struct Capture(Arc<(Mutex<Captured>, Condvar)>);

#[derive(Default)]
struct Captured {
    bytes: Vec<u8>,
    ended: bool,
}

impl Capture {
    pub(crate) fn of(mut pipe: impl Read + Send + 'static) -> Capture {
        let shared = Arc::new((Mutex::new(Captured::default()), Condvar::new()));
        let capture = Capture(Arc::clone(&shared));
        thread::spawn(move || {
            let mut buffer = vec![0; 64 * 1024];
            loop {
                let count = pipe.read(&mut buffer).unwrap_or(0);
                let mut captured = shared.0.lock().unwrap();
                captured.bytes.extend_from_slice(&buffer[..count]);
                captured.ended = count == 0;
                shared.1.notify_all();
                if count == 0 {
                    return;
                }
            }
        });
        capture
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.0.0.lock().unwrap().bytes.clone()
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes()).into_owned()
    }

    /// Waits until the text so far fulfils the condition; fails the test if it never does.
    #[track_caller]
    pub(crate) fn wait_for(&self, what: &str, mut condition: impl FnMut(&str) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        let (captured, changed) = &*self.0;
        let mut captured = captured.lock().unwrap();
        while !condition(&String::from_utf8_lossy(&captured.bytes)) {
            let remaining = deadline.saturating_duration_since(Instant::now());
            let why = if captured.ended {
                "the output ended"
            } else {
                "the time is up"
            };
            assert!(
                !captured.ended && !remaining.is_zero(),
                "{why} without {what}:\n{}",
                String::from_utf8_lossy(&captured.bytes)
            );
            captured = changed.wait_timeout(captured, remaining).unwrap().0;
        }
    }

    /// Waits for the end of the pipe; returns false if a process keeps it open.
    pub(crate) fn wait_for_end(&self) -> bool {
        let (captured, changed) = &*self.0;
        let captured = captured.lock().unwrap();
        let (captured, _) = changed
            .wait_timeout_while(captured, DEADLINE, |captured| !captured.ended)
            .unwrap();
        captured.ended
    }
}
