//! Options for runs that nobody watches: second attempts, limits of speed and time, one run at a
//! time.

use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueHint};

use super::size::bytes_of;

/// Options about limits.
#[derive(Debug, Args)]
pub struct Limits {
    /// Try failed entries again at the end, up to N times, if the reason can pass
    ///
    /// Such as a server that does not answer, a bad read, or a file that changed meanwhile.
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub retries: u32,

    /// Wait so long before each of --retries [default: 5]
    #[arg(long, value_name = "SECS", value_parser = seconds)]
    pub retry_wait: Option<Duration>,

    /// Copy at most RATE bytes a second, all workers together
    ///
    /// RATE is in KiB, or has a suffix: K, M, G, T (1024), KB, MB, GB, TB (1000), B. 0 is no limit.
    #[arg(long, value_name = "RATE", value_parser = rate)]
    pub bwlimit: Option<Rate>,

    /// Begin nothing more after MINUTES, and end with status 5
    ///
    /// Files that were begun are completed. The same command goes on from there.
    #[arg(long, value_name = "MINUTES", value_parser = minutes)]
    pub stop_after: Option<Duration>,

    /// Do nothing, and exit with status 2, while another run holds the lock FILE
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub lock: Option<PathBuf>,
}

/// Bytes a second. `None`: no limit.
pub type Rate = Option<NonZeroU64>;

/// The lowest rate, as in rsync.
const LOWEST_RATE: f64 = 512.0;
/// The longest time that makes sense: a century.
const LONGEST_SECONDS: f64 = 100.0 * 365.0 * 24.0 * 3600.0;

fn seconds(text: &str) -> Result<Duration, String> {
    duration(text, 1.0)
}

fn minutes(text: &str) -> Result<Duration, String> {
    match duration(text, 60.0)? {
        Duration::ZERO => Err("it must be more than 0".to_owned()),
        time => Ok(time),
    }
}

fn duration(text: &str, unit: f64) -> Result<Duration, String> {
    let number = decimal(text).ok_or("it is no number")?;
    if number * unit > LONGEST_SECONDS {
        return Err("it is too long".to_owned());
    }
    Duration::try_from_secs_f64(number * unit).map_err(|_| "it is no time".to_owned())
}

/// Reads a rate as rsync does: in KiB unless it has a suffix.
fn rate(text: &str) -> Result<Rate, String> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.');
    let (number, suffix) = text.split_at(end.unwrap_or(text.len()));
    let number = decimal(number).ok_or("it is no number")?;
    let unit = if suffix.is_empty() {
        Some(1024)
    } else {
        bytes_of(suffix.as_bytes())
    };
    let unit = unit.ok_or("the suffix is one of B, K, M, G, T, KB, MB, GB, TB")?;
    let rate = number * unit as f64;
    if rate > 0.0 && rate < LOWEST_RATE {
        return Err("the lowest rate is 512 bytes a second".to_owned());
    }
    // A rate that no device reaches is none.
    Ok(NonZeroU64::new(rate as u64).filter(|rate| rate.get() < 1 << 60))
}

/// Reads a number with decimals, and nothing else that Rust takes for a number.
fn decimal(text: &str) -> Option<f64> {
    let is_plain = text.bytes().all(|c| c.is_ascii_digit() || c == b'.');
    text.parse().ok().filter(|_| is_plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_spelled_as_in_rsync() {
        for (text, bytes) in [
            ("100", 102_400),
            ("1.5m", 1_572_864),
            ("1.5MB", 1_500_000),
            ("2K", 2048),
            ("2KiB", 2048),
            ("1g", 1 << 30),
            (".5T", 1 << 39),
            ("1000b", 1000),
            ("0", 0),
            ("0K", 0),
            ("9999P", 0),
        ] {
            let found = rate(text).unwrap().map_or(0, NonZeroU64::get);
            assert_eq!(found, bytes, "{text}");
        }
        for text in [
            "", "x", "-1", "1x", "1MX", "1bb", "511b", "1e3", "inf", "K", "1 M",
        ] {
            assert!(rate(text).is_err(), "{text}");
        }
    }

    #[test]
    fn times_have_decimals() {
        assert_eq!(minutes("0.5"), Ok(Duration::from_secs(30)));
        assert_eq!(seconds("0"), Ok(Duration::ZERO));
        for text in ["0", "-1", "nan", "inf", "", "1h", "99999999999999999999"] {
            assert!(minutes(text).is_err(), "{text}");
        }
    }
}
