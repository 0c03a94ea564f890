//! A disk with one head, for `--head`.
//!
//! It reads one thing at a time, in the order in which the requests come. A read that does not go
//! on near the place where the last one ended waits for a seek first, and every other file is
//! elsewhere on the disk. So files that are read side by side cost a seek for each request.

use std::sync::Mutex;
use std::time::{Duration, Instant};

/// A read that begins this near to the end of the last one needs no seek: several requests of one
/// readahead may come in any order.
const NEAR: u64 = 1 << 20;

/// How fast the disk is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Speed {
    seek: Duration,
    /// Bytes in a second.
    rate: f64,
}

impl Speed {
    /// Parses `SEEK_MS,MIB_S`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let (seek, rate) = text.split_once(',').ok_or("SEEK_MS,MIB_S expected")?;
        let number = |text: &str| text.parse::<f64>().map_err(|error| error.to_string());
        let rate = number(rate)? * f64::from(1 << 20);
        if rate.is_nan() || rate <= 0.0 {
            return Err("the rate must be above 0".to_owned());
        }
        let seek = Duration::try_from_secs_f64(number(seek)? / 1000.0);
        Ok(Speed { seek: seek.map_err(|error| error.to_string())?, rate })
    }
}

/// The head, and what it has to do.
pub(crate) struct Head {
    speed: Speed,
    state: Mutex<State>,
}

struct State {
    /// When everything so far will have been read.
    free_at: Instant,
    /// The file that was read last, and where that ended.
    inode: u64,
    end: u64,
}

impl Head {
    pub(crate) fn new(speed: Speed) -> Self {
        let state = State { free_at: Instant::now(), inode: 0, end: 0 };
        Head { speed, state: Mutex::new(state) }
    }

    /// Adds a read to what the head has to do. Returns how long after `now` it is done.
    pub(crate) fn read(&self, now: Instant, inode: u64, offset: u64, length: u64) -> Duration {
        // Beyond the end of a file there is nothing to read.
        if length == 0 {
            return Duration::ZERO;
        }
        let mut state = self.state.lock().unwrap();
        let seeks = state.inode != inode || state.end.abs_diff(offset) > NEAR;
        let seek = if seeks { self.speed.seek } else { Duration::ZERO };
        let transfer = Duration::from_secs_f64(length as f64 / self.speed.rate);
        state.free_at = state.free_at.max(now) + seek + transfer;
        (state.inode, state.end) = (inode, offset + length);
        state.free_at - now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn ms(time: u64) -> Duration {
        Duration::from_millis(time)
    }

    #[test]
    fn one_read_at_a_time_and_a_seek_between_files() {
        let head = Head::new(Speed::parse("8,100").unwrap());
        let now = Instant::now();
        assert_eq!(head.read(now, 1, 0, MIB), ms(18), "a seek and 10 ms");
        assert_eq!(head.read(now, 1, MIB, MIB), ms(28), "it goes on");
        assert_eq!(head.read(now, 1, 3 * MIB, MIB), ms(38), "a request overtook another one");
        assert_eq!(head.read(now, 1, 2 * MIB, 0), ms(0), "nothing there");
        assert_eq!(head.read(now, 2, 4 * MIB, MIB), ms(56), "another file");
        assert_eq!(head.read(now, 2, 9 * MIB, MIB), ms(74), "far away in it");
        assert_eq!(head.read(now + ms(100), 2, 10 * MIB, MIB), ms(10), "it had nothing to do");
    }

    #[test]
    fn a_speed_is_two_numbers() {
        assert!(Speed::parse("8,150").is_ok() && Speed::parse("0.5,0.1").is_ok());
        for text in ["8", "8,0", "-1,150", "8,-1", "8,x", "", "nan,1"] {
            assert!(Speed::parse(text).is_err(), "{text}");
        }
    }
}
