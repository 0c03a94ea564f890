//! Answers that are held back.
//!
//! A call is slow here because its answer is sent late, not because a thread sleeps over it. So
//! any number of calls can be under way at a time, and each takes its own time only.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

type Answer = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Queue {
    /// By when they are due; the number tells apart what is due at the same time.
    answers: BTreeMap<(Instant, u64), Answer>,
    added: u64,
}

/// The answers that are not due yet.
#[derive(Clone, Default)]
pub(crate) struct Delayed(Arc<(Mutex<Queue>, Condvar)>);

impl Delayed {
    /// Starts the thread that sends them.
    pub(crate) fn start() -> Self {
        let delayed = Delayed::default();
        let sender = delayed.clone();
        thread::spawn(move || sender.send_all());
        delayed
    }

    /// Calls `answer` once `time` has passed.
    pub(crate) fn after(&self, time: Duration, answer: impl FnOnce() + Send + 'static) {
        if time.is_zero() {
            return answer();
        }
        let (queue, is_earlier) = &*self.0;
        let mut queue = queue.lock().unwrap();
        queue.added += 1;
        let due = (Instant::now() + time, queue.added);
        let is_first = queue.answers.first_key_value().is_none_or(|(first, _)| due < *first);
        queue.answers.insert(due, Box::new(answer));
        drop(queue);
        if is_first {
            is_earlier.notify_one();
        }
    }

    fn send_all(&self) -> ! {
        let (queue, is_earlier) = &*self.0;
        let mut queue = queue.lock().unwrap();
        loop {
            let Some(first) = queue.answers.first_entry() else {
                queue = is_earlier.wait(queue).unwrap();
                continue;
            };
            let time = first.key().0.saturating_duration_since(Instant::now());
            if time.is_zero() {
                let answer = first.remove();
                drop(queue);
                answer();
                queue = self.0.0.lock().unwrap();
            } else {
                queue = is_earlier.wait_timeout(queue, time).unwrap().0;
            }
        }
    }
}
