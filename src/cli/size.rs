//! Sizes, spelled as rsync(1) spells them.

use anyhow::{Result, bail};

/// Parses a size: `100`, `1.5M`, `2GB`, `10KiB`. Without a unit it is in bytes.
///
/// K, M, G, T and P, alone or as KiB, are powers of 1024, and KB, MB and so on those of 1000. `+1`
/// or `-1` at the end moves it by a byte.
pub(crate) fn parse_size(text: &str) -> Result<u64> {
    let is_number = |c: char| c.is_ascii_digit() || c == '.';
    let (number, rest) = text.split_at(text.find(|c| !is_number(c)).unwrap_or(text.len()));
    let (unit, offset) = match rest.as_bytes() {
        [unit @ .., b'+', b'1'] => (unit, 1),
        [unit @ .., b'-', b'1'] => (unit, -1),
        unit => (unit, 0),
    };
    let factor = if unit.is_empty() {
        Some(1)
    } else {
        bytes_of(unit)
    };
    let Some(factor) = factor.filter(|_| number.contains(|c: char| c.is_ascii_digit())) else {
        bail!("not a size; write it as 100, 1.5M, 2GB or 10KiB");
    };
    let bytes = match number.parse::<u64>() {
        Ok(number) => number.checked_mul(factor),
        Err(_) => match number.parse::<f64>() {
            Ok(number) if number * (factor as f64) < u64::MAX as f64 => {
                Some((number * factor as f64) as u64)
            }
            Ok(_) => None,
            Err(_) => bail!("not a size; write it as 100, 1.5M, 2GB or 10KiB"),
        },
    };
    match bytes.and_then(|bytes| bytes.checked_add_signed(offset)) {
        Some(bytes) => Ok(bytes),
        None => bail!("out of range"),
    }
}

/// Returns the bytes of a unit: `B`, `K`, `KiB`, `KB` and so on, in any case.
pub(super) fn bytes_of(unit: &[u8]) -> Option<u64> {
    let unit = unit.to_ascii_lowercase();
    let (letter, rest) = unit.split_first()?;
    if *letter == b'b' {
        return rest.is_empty().then_some(1);
    }
    let power = b"kmgtp".iter().position(|it| it == letter)? + 1;
    let base: u64 = match rest {
        b"" | b"ib" => 1024,
        b"b" => 1000,
        _ => return None,
    };
    Some(base.pow(power as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_those_of_rsync() {
        for (text, bytes) in [
            ("0", 0),
            ("100", 100),
            ("7b", 7),
            ("2K", 2048),
            ("2k", 2048),
            ("2KiB", 2048),
            ("2KB", 2000),
            ("1.5m", 1_572_864),
            (".5kb", 500),
            ("1M-1", 1_048_575),
            ("100+1", 101),
            ("3GB", 3_000_000_000),
            ("1P", 1 << 50),
        ] {
            assert_eq!(parse_size(text).unwrap(), bytes, "{text}");
        }
        for text in [
            "", "K", "5x", "-5", "1.2.3", "5KBB", "0-1", "9999999P", "5 M", "bib", "5bb",
        ] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }
}
