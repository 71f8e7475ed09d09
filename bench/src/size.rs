//! Sizes on the command line: `4096`, `4k`, `1M`, `2GiB`; powers of two throughout.

/// Why a text is not a size.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SizeError {
    /// No digits in front, or something that is not a known unit behind them.
    #[error("{0:?} is not a size: write a number and, if you like, k, m, g or t (powers of 1024)")]
    Malformed(String),
    /// More than 2^64 − 1 bytes.
    #[error("{0:?} does not fit 64 bits")]
    TooLarge(String),
}

/// Parses a size in bytes.
pub fn parse_size(text: &str) -> Result<u64, SizeError> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    if number.is_empty() {
        return Err(SizeError::Malformed(text.to_owned()));
    }
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(SizeError::Malformed(text.to_owned())),
    };
    let number: u64 = number
        .parse()
        .map_err(|_| SizeError::TooLarge(text.to_owned()))?;
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| SizeError::TooLarge(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024() {
        assert_eq!(parse_size("0"), Ok(0));
        assert_eq!(parse_size("512"), Ok(512));
        assert_eq!(parse_size("4k"), Ok(4096));
        assert_eq!(parse_size("128KiB"), Ok(131_072));
        assert_eq!(parse_size("1M"), Ok(1 << 20));
        assert_eq!(parse_size("3t"), Ok(3 << 40));
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "k", "4x", "-1", "4 k", "0x10"] {
            assert_eq!(
                parse_size(text),
                Err(SizeError::Malformed(text.to_owned())),
                "{text}"
            );
        }
        assert_eq!(
            parse_size("18446744073709551616"),
            Err(SizeError::TooLarge("18446744073709551616".into()))
        );
        assert_eq!(
            parse_size("99999999t"),
            Err(SizeError::TooLarge("99999999t".into()))
        );
    }
}
