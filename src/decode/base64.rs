//! Base64 text → bytes, as Python's `base64.b64decode` decodes it, but without its tolerance for foreign characters.
//!
//! The alphabet is the standard one, with padding. White space is skipped and unused bits of the last character are
//! ignored, as in Python. Any other character is refused, where Python would skip it, because it can only be damage.

use super::error::DecodeError;

/// Decodes `text` in place and returns the bytes. Nothing is allocated.
pub(super) fn decode(text: &mut [u8], limit: u64) -> Result<&mut [u8], DecodeError> {
    let text = trim(text);
    if text.is_empty() {
        return Err(DecodeError::MissingData);
    }
    if decoded_bytes(text.len()) > limit {
        // The text may be long because of white space, which is counted only then.
        let solid = text.iter().filter(|byte| !byte.is_ascii_whitespace()).count();
        let bytes = decoded_bytes(solid);
        if bytes > limit {
            return Err(DecodeError::TooLarge { bytes, limit });
        }
    }
    if base64_simd::STANDARD.check(text).is_ok() {
        return decode_in_place(text);
    }
    let text = remove_white_space(text);
    clear_unused_bits(text);
    decode_in_place(text)
}

fn decode_in_place(text: &mut [u8]) -> Result<&mut [u8], DecodeError> {
    let detail = if text.len().is_multiple_of(4) {
        "it holds characters outside the alphabet"
    } else {
        "its length is not a multiple of 4"
    };
    base64_simd::STANDARD.decode_inplace(text).map_err(|_| DecodeError::InvalidBase64 { detail })
}

fn trim(text: &mut [u8]) -> &mut [u8] {
    let start = text.len() - text.trim_ascii_start().len();
    let end = start + text[start..].trim_ascii_end().len();
    &mut text[start..end]
}

/// Moves all other characters to the front.
fn remove_white_space(text: &mut [u8]) -> &mut [u8] {
    let mut len = 0;
    for at in 0..text.len() {
        if !text[at].is_ascii_whitespace() {
            text[len] = text[at];
            len += 1;
        }
    }
    &mut text[..len]
}

/// Lower bound on the bytes that so many characters encode: padding takes up to two.
fn decoded_bytes(characters: usize) -> u64 {
    (u64::try_from(characters).unwrap_or(u64::MAX) / 4).saturating_mul(3).saturating_sub(2)
}

/// Zeroes the unused bits of the last character, which not all encoders do.
fn clear_unused_bits(text: &mut [u8]) {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (last, mask) = match text {
        [.., last, b'=', b'='] => (last, 0b11_0000),
        [.., last, b'='] => (last, 0b11_1100),
        _ => return,
    };
    if let Some(value) = ALPHABET.iter().position(|character| character == last) {
        *last = ALPHABET[value & mask];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode_copy(text: &[u8]) -> Result<Vec<u8>, DecodeError> {
        decode(&mut text.to_vec(), 1 << 20).map(|bytes| bytes.to_vec())
    }

    #[test]
    fn white_space_and_unused_bits_are_tolerated() {
        for text in
            [&b"aGVsbG8h"[..], b"aGVs\r\nbG8h\r\n", b"  aGVs bG8h\t", b"a\nGVsbG8h\0".strip_suffix(b"\0").unwrap()]
        {
            assert_eq!(decode_copy(text).unwrap(), b"hello!");
        }
        assert_eq!(decode_copy(b"YR==").unwrap(), b"a");
        assert_eq!(decode_copy(b"YWK=").unwrap(), b"ab");
    }

    #[test]
    fn damage_is_refused() {
        for text in [&b"YQ"[..], b"YQ=", b"YWJj*A==", b"YWJj-A==", b"====", b"A===", b"YQ==YQ=="] {
            assert_eq!(decode_copy(text).unwrap_err().reason().as_str(), "invalid_base64", "{}", text.escape_ascii());
        }
        assert_eq!(decode_copy(b" \r\n").unwrap_err(), DecodeError::MissingData);
    }

    #[test]
    fn white_space_does_not_count_towards_the_limit() {
        let error = decode(&mut [b'A'; 4000], 100).unwrap_err();
        assert_eq!(error, DecodeError::TooLarge { bytes: 2998, limit: 100 });
        let mut padded = [&[b'A'; 100][..], &[b'\n'; 4000], &[b'A'; 32]].concat();
        assert_eq!(decode(&mut padded, 100).unwrap().len(), 99);
    }

    proptest! {
        #[test]
        fn encoded_bytes_are_restored(data in prop::collection::vec(any::<u8>(), 1..300), line in 1usize..80) {
            let text = base64_simd::STANDARD.encode_to_string(&data);
            prop_assert_eq!(decode_copy(text.as_bytes()).unwrap(), data.clone());
            let wrapped: Vec<u8> = text.as_bytes().chunks(line).flat_map(|part| [part, b"\r\n"].concat()).collect();
            prop_assert_eq!(decode_copy(&wrapped).unwrap(), data);
        }

        #[test]
        fn any_bytes_are_decoded_or_refused(text in prop::collection::vec(any::<u8>(), 0..100)) {
            decode_copy(&text).ok();
        }
    }
}
