//! Delayed answers.
//!
//! A call is slow because its answer is sent late, not because a thread sleeps. So any number of
//! calls can be in progress at a time, and none delays another.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

type Answer = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Queue {
    /// By due time, and by a number that tells answers with the same time apart.
    answers: BTreeMap<(Instant, u64), Answer>,
    added: u64,
}

/// The answers that are not yet due.
#[derive(Clone, Default)]
pub(crate) struct Delayed(Arc<(Mutex<Queue>, Condvar)>);

impl Delayed {
    /// Starts the thread that sends the answers.
    pub(crate) fn start() -> Self {
        let delayed = Delayed::default();
        let sender = delayed.clone();
        thread::spawn(move || sender.send_all());
        delayed
    }

    /// Calls `answer` after `time`.
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
