//! Sizes as people write them: `10G`, `512MiB`, `1073741824`.

/// Powers of 1024, by the letter that stands for them.
const UNITS: [(char, u32); 5] = [('K', 10), ('M', 20), ('G', 30), ('T', 40), ('P', 50)];

/// Reads a size in bytes. A unit is a power of 1024 (`10G`, `10GiB` and `10g` are the same); a fraction is allowed (`1.5T`).
pub fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let split = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let unit = unit.trim().to_ascii_uppercase();
    let unit = unit
        .strip_suffix("IB")
        .or(unit.strip_suffix('B'))
        .unwrap_or(&unit);
    let shift = match unit.chars().next() {
        None => 0,
        Some(c) if unit.len() == 1 => UNITS
            .iter()
            .find(|u| u.0 == c)
            .map(|u| u.1)
            .ok_or_else(|| wrong(text))?,
        Some(_) => return Err(wrong(text)),
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole
            .checked_mul(1 << shift)
            .ok_or_else(|| format!("{text} is more than 64 bits can count"));
    }
    let fraction: f64 = number.parse().map_err(|_| wrong(text))?;
    let bytes = fraction * (1u64 << shift) as f64;
    if bytes < u64::MAX as f64 {
        Ok(bytes as u64)
    } else {
        Err(format!("{text} is more than 64 bits can count"))
    }
}

fn wrong(text: &str) -> String {
    format!(
        "`{text}` is not a size: write a number of bytes, or one with K, M, G, T or P behind it, like 10G"
    )
}

/// The shortest exact spelling when there is one, else one decimal: `10 GiB`, `1.5 TiB`, `4097 B`.
pub fn show_size(bytes: u64) -> String {
    let Some((letter, shift)) = UNITS.iter().rev().find(|(_, shift)| bytes >= 1 << shift) else {
        return format!("{bytes} B");
    };
    let value = bytes as f64 / (1u64 << shift) as f64;
    if bytes.is_multiple_of(1 << shift) {
        format!("{value:.0} {letter}iB")
    } else {
        format!("{value:.1} {letter}iB")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_people_write() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("1k", 1024),
            ("10G", 10 << 30),
            ("10 GiB", 10 << 30),
            ("10gb", 10 << 30),
            ("1.5T", 3 << 39),
            ("512B", 512),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn refuses_what_is_not_a_size() {
        for text in [
            "",
            "G",
            "10X",
            "ten",
            "-1",
            "1.2.3G",
            "10GG",
            "99999999P",
            "1e3",
        ] {
            assert!(parse_size(text).is_err(), "{text} was taken for a size");
        }
    }

    #[test]
    fn shows_sizes_shortly() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (10 << 30, "10 GiB"),
            (3 << 39, "1.5 TiB"),
            (1 << 20, "1 MiB"),
        ] {
            assert_eq!(show_size(bytes), text);
        }
    }
}
