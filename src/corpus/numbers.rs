//! A feature vector as text: numbers between commas, as in the published `resnet_embeddings` files.

use std::fmt;

/// Longest accepted text of one number. The shortest text that gives an `f64` exactly has at most 24 letters.
pub const MAX_NUMBER_BYTES: usize = 64;

/// Reason why a text is not a feature vector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NumbersProblem {
    /// It holds another number of values.
    WrongCount {
        /// Values in the text.
        found: usize,
        /// Values of a feature.
        expected: usize,
    },
    /// A value is not a number.
    Invalid {
        /// Position of the value, from 1.
        position: usize,
        /// Start of the value.
        text: String,
    },
    /// A value is infinite, not a number, or too large for an `f32`.
    NotFinite {
        /// Position of the value, from 1.
        position: usize,
        /// Start of the value.
        text: String,
    },
}

impl NumbersProblem {
    /// Returns the name used in counts and quarantine files.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::WrongCount { .. } => "wrong_value_count",
            Self::Invalid { .. } => "invalid_number",
            Self::NotFinite { .. } => "not_finite",
        }
    }
}

impl fmt::Display for NumbersProblem {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WrongCount { found, expected } => write!(out, "{found} numbers where {expected} are expected"),
            Self::Invalid { position, text } => write!(out, "value {position}, `{text}`, is not a number"),
            Self::NotFinite { position, text } => write!(out, "value {position}, `{text}`, is not finite"),
        }
    }
}

/// Parses numbers between commas and writes them to `out` as little-endian `f32`, rounded to nearest. White space around a
/// number is ignored. Returns the first problem; `out` is then undefined.
///
/// # Errors
/// When the text does not hold exactly as many finite numbers as `out` has room for.
pub fn parse_numbers(text: &[u8], out: &mut [u8]) -> Result<(), NumbersProblem> {
    let slots = out.as_chunks_mut::<4>().0;
    let expected = slots.len();
    let found = text.split(|byte| *byte == b',').count();
    if found != expected {
        return Err(NumbersProblem::WrongCount { found, expected });
    }
    for ((index, value), slot) in text.split(|byte| *byte == b',').enumerate().zip(slots) {
        let value = value.trim_ascii();
        let parsed = std::str::from_utf8(value).ok().filter(|value| value.len() <= MAX_NUMBER_BYTES);
        let (position, shown) = (index + 1, || displayable(value));
        let Some(number) = parsed.and_then(|value| value.parse::<f32>().ok()) else {
            return Err(NumbersProblem::Invalid { position, text: shown() });
        };
        if !number.is_finite() {
            return Err(NumbersProblem::NotFinite { position, text: shown() });
        }
        *slot = number.to_le_bytes();
    }
    Ok(())
}

/// Returns a displayable start of a value.
fn displayable(value: &[u8]) -> String {
    String::from_utf8_lossy(value.get(..MAX_NUMBER_BYTES).unwrap_or(value)).into_owned()
}

/// Returns whether a field looks like a feature vector: a few numbers between commas at its start.
pub fn looks_like_numbers(field: &[u8]) -> bool {
    /// Values that are looked at.
    const LOOKED_AT: usize = 8;
    let values: Vec<&[u8]> = field.split(|byte| *byte == b',').take(LOOKED_AT).collect();
    let is_number = |value: &&[u8]| {
        value.len() <= MAX_NUMBER_BYTES
            && std::str::from_utf8(value.trim_ascii()).is_ok_and(|value| value.parse::<f32>().is_ok())
    };
    values.len() == LOOKED_AT && values.iter().all(is_number)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str, count: usize) -> Result<Vec<f32>, String> {
        let mut out = vec![0; 4 * count];
        parse_numbers(text.as_bytes(), &mut out).map_err(|problem| format!("{} {problem}", problem.as_str()))?;
        Ok(out.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
    }

    #[test]
    fn published_text_gives_the_exact_values() {
        // The files print each f32 with the digits of the same f64.
        assert_eq!(parse("3.612905502319336,0.0, 1e-3", 3).unwrap(), [3.612_905_5, 0.0, 0.001]);
        assert_eq!(parse("36.80434036254883", 1).unwrap(), [36.804_34]);
    }

    #[test]
    fn each_problem_is_named_with_its_position() {
        for (text, expected) in [
            ("1,2", "wrong_value_count 2 numbers where 3 are expected"),
            ("1,2,3,4", "wrong_value_count 4 numbers where 3 are expected"),
            ("", "wrong_value_count 1 numbers where 3 are expected"),
            ("1,,3", "invalid_number value 2, ``, is not a number"),
            ("1,2,QUJD", "invalid_number value 3, `QUJD`, is not a number"),
            ("1,0x10,2", "invalid_number value 2, `0x10`, is not a number"),
            ("NaN,1,2", "not_finite value 1, `NaN`, is not finite"),
            ("1,-inf,2", "not_finite value 2, `-inf`, is not finite"),
            ("1,1e39,2", "not_finite value 2, `1e39`, is not finite"),
        ] {
            assert_eq!(parse(text, 3).unwrap_err(), expected);
        }
        let long = format!("1,{},2", "1".repeat(65));
        assert!(parse(&long, 3).unwrap_err().starts_with("invalid_number value 2"));
    }

    #[test]
    fn numbers_are_told_from_base64() {
        assert!(looks_like_numbers(b"0.0,1.5,2,3,4,5,6,7.25,8"));
        assert!(
            !looks_like_numbers(b"0.0,1.5") && !looks_like_numbers(b"/9j/4AAQSkZJRg==") && !looks_like_numbers(b"")
        );
    }

    proptest! {
        #[test]
        fn printed_values_are_read_back(values in prop::collection::vec(any::<f32>().prop_filter("finite", |v| v.is_finite()), 1..40)) {
            let text: Vec<String> = values.iter().map(|value| f64::from(*value).to_string()).collect();
            let short = text.iter().all(|text| text.len() <= MAX_NUMBER_BYTES);
            let read = parse(&text.join(","), values.len());
            prop_assert_eq!(read.is_ok(), short);
            if let Ok(read) = read {
                prop_assert!(read.iter().zip(&values).all(|(one, other)| one.to_bits() == other.to_bits()));
            }
        }
    }
}
