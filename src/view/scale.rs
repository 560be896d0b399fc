//! Ticks of an axis, and numbers for people.

/// Returns round numbers within `low..=high`, about `wanted` of them.
pub(super) fn ticks(low: f64, high: f64, wanted: u32) -> Vec<f64> {
    let raw = (high - low) / f64::from(wanted.max(1));
    if !(raw.is_finite() && raw > 0.0) {
        return vec![low];
    }
    let power = 10_f64.powi(raw.log10().floor() as i32);
    let step = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power).into_iter().find(|step| *step >= raw);
    let step = step.unwrap_or(10.0 * power);
    let first = (low / step).ceil();
    // Bounded, because a step may be too small to change a large number.
    let all = (0..=2 * wanted).map(|number| (first + f64::from(number)) * step);
    all.take_while(|at| *at <= high + step * 1e-9).map(|at| if at.abs() < step * 1e-9 { 0.0 } else { at }).collect()
}

/// Formats a number with about three significant digits.
pub(super) fn number(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    let size = value.abs();
    if !(1e-4..1e7).contains(&size) {
        return format!("{value:.1e}");
    }
    let decimals = (2 - size.log10().floor() as i32).max(0) as usize;
    let text = format!("{value:.decimals$}");
    match text.split_once('.') {
        Some((whole, part)) => {
            let part = part.trim_end_matches('0');
            if part.is_empty() { group(whole) } else { format!("{}.{part}", group(whole)) }
        }
        None => group(&text),
    }
}

/// Puts a comma between groups of three digits.
fn group(digits: &str) -> String {
    let (sign, digits) = digits.strip_prefix('-').map_or(("", digits), |rest| ("-", rest));
    let mut grouped = sign.to_owned();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_significant_digits() {
        let shown = [0.0, 0.78512, 0.1, 12.345, 999.6, 1234.5, 123_456.0, 1e7, 0.000_012_3, -0.25, f64::MAX];
        let expected =
            ["0", "0.785", "0.1", "12.3", "1,000", "1,234", "123,456", "1.0e7", "1.2e-5", "-0.25", "1.8e308"];
        assert_eq!(shown.map(number), expected);
    }

    #[test]
    fn ticks_are_round() {
        assert_eq!(ticks(0.0, 1.05, 4), [0.0, 0.5, 1.0]);
        assert_eq!(ticks(100.0, 460.0, 5), [100.0, 200.0, 300.0, 400.0]);
        assert_eq!(ticks(-0.1, 0.1, 4), [-0.1, -0.05, 0.0, 0.05, 0.1]);
    }

    #[test]
    fn ticks_of_odd_ranges_are_few() {
        let odd = [0.0, -1.0, 1e-300, 1e300, f64::MAX, f64::MIN, f64::NAN, f64::INFINITY, f64::MIN_POSITIVE];
        for low in odd {
            for high in odd {
                assert!((0..=11).contains(&ticks(low, high, 5).len()), "{low} {high}");
            }
        }
        assert_eq!(ticks(3.0, 3.0, 5), [3.0]);
    }
}
