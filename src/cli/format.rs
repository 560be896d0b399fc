//! Numbers for people: measurements with three significant digits, exact counts, units written out.

/// Formats a number with three significant digits, such as `0.331`, `12.3` or `4,520`.
pub(super) fn number(value: f64) -> String {
    if value == 0.0 || !value.is_finite() {
        return if value == 0.0 { "0".to_owned() } else { value.to_string() };
    }
    // Rounding first gives the exponent of the rounded value: 999.6 has four digits before the point.
    let rounded = format!("{value:.2e}");
    let exponent: i32 = rounded.rsplit('e').next().and_then(|digits| digits.parse().ok()).unwrap_or(0);
    let rounded: f64 = rounded.parse().unwrap_or(value);
    if exponent >= 3 && rounded > 0.0 {
        return count(rounded as u64);
    }
    format!("{rounded:.*}", (2 - exponent).max(0) as usize)
}

/// Formats a count with thousands separators.
pub(super) fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Formats a count with its noun: `1 row`, `2 rows`.
pub(super) fn plural(value: u64, noun: &str) -> String {
    let singular = if noun.ends_with("sses") { noun.strip_suffix("es") } else { noun.strip_suffix('s') };
    match singular {
        Some(singular) if value == 1 => format!("1 {singular}"),
        _ => format!("{} {noun}", count(value)),
    }
}

/// Formats a size in bytes, such as `52.4 MiB`.
pub(super) fn bytes(value: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut scaled, mut unit) = (value as f64, 0);
    while scaled >= 999.5 && unit + 1 < units.len() {
        scaled /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{value} B") } else { format!("{} {}", number(scaled), units[unit]) }
}

/// Formats a duration: `0.42 s`, `12.3 s`, `5 min 12 s`, `3 h 5 min`, `2 d 4 h`.
pub(super) fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{} s", number((seconds * 100.0).round() / 100.0)),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        3600..86_400 => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
        _ => format!("{} d {} h", whole / 86_400, whole % 86_400 / 3600),
    }
}

/// Formats a share between 0 and 1 as a percentage.
pub(super) fn percent(share: f64) -> String {
    format!("{} %", number((1000.0 * share).round() / 10.0))
}

/// Formats a part of a whole: `12 of 48 (25.0 %)`.
pub(super) fn part_of(part: u64, whole: u64) -> String {
    if whole == 0 {
        return count(part);
    }
    format!("{} of {} ({})", count(part), count(whole), percent(part as f64 / whole as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_significant_digits() {
        let text = [0.0, 0.33149, 0.000_030_04, 1.0, 12.345, 99.96, 999.6, 4521.7, 1_234_567.0].map(number);
        assert_eq!(text, ["0", "0.331", "0.0000300", "1.00", "12.3", "100", "1,000", "4,520", "1,230,000"]);
    }

    #[test]
    fn counts_sizes_and_durations_have_units() {
        assert_eq!([0, 999, 1000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
        let nouns = [(1, "rows"), (1, "classes"), (2000, "rows")].map(|(value, noun)| plural(value, noun));
        assert_eq!(nouns, ["1 row", "1 class", "2,000 rows"]);
        assert_eq!([0, 999, 1024, 54_945_382].map(bytes), ["0 B", "999 B", "1.00 KiB", "52.4 MiB"]);
        let durations = [0.0, 0.4231, 12.34, 312.0, 11_100.0, 190_000.0].map(duration);
        assert_eq!(durations, ["0 s", "0.420 s", "12.3 s", "5 min 12 s", "3 h 5 min", "2 d 4 h"]);
        assert_eq!([0.0, 0.123_45, 1.0].map(percent), ["0 %", "12.3 %", "100 %"]);
        assert_eq!(part_of(12, 48), "12 of 48 (25.0 %)");
    }
}
