//! Base64 text → bytes, as Python's `base64.b64decode` takes it, but stricter about foreign characters.
//!
//! The standard alphabet with its padding. White space anywhere is skipped, and bits left over in the last
//! character are ignored, as Python does; any other character is refused, where Python would skip it, because
//! there it can only be damage.

use base64_simd::Out;

use super::error::DecodeError;

/// Decodes `text` into `out`, whose old content is replaced; fails before allocating where the result would be
/// over `limit` bytes. `compact` is scratch.
pub(super) fn decode(text: &[u8], limit: u64, compact: &mut Vec<u8>, out: &mut Vec<u8>) -> Result<(), DecodeError> {
    let text = text.trim_ascii();
    if text.is_empty() {
        return Err(DecodeError::MissingData);
    }
    if decoded_bytes(text.len()) > limit {
        // White space may be what makes it long: only then is it worth a count.
        let solid = text.iter().filter(|byte| !byte.is_ascii_whitespace()).count();
        let bytes = decoded_bytes(solid);
        if bytes > limit {
            return Err(DecodeError::TooLarge { bytes, limit });
        }
    }
    if simd(text, out) {
        return Ok(());
    }
    compact.clear();
    compact.extend(text.iter().filter(|byte| !byte.is_ascii_whitespace()));
    clear_leftover_bits(compact);
    if simd(compact, out) {
        return Ok(());
    }
    let detail = if compact.len().is_multiple_of(4) {
        "it holds characters outside the alphabet"
    } else {
        "its length is not a multiple of 4"
    };
    Err(DecodeError::InvalidBase64 { detail })
}

/// Bytes behind `characters` of base64 at least: padding takes up to two.
fn decoded_bytes(characters: usize) -> u64 {
    (u64::try_from(characters).unwrap_or(u64::MAX) / 4).saturating_mul(3).saturating_sub(2)
}

fn simd(text: &[u8], out: &mut Vec<u8>) -> bool {
    let Ok(bytes) = base64_simd::STANDARD.decoded_length(text) else {
        return false;
    };
    out.resize(bytes, 0);
    base64_simd::STANDARD.decode(text, Out::from_slice(out)).is_ok()
}

/// Zeroes the bits of the last character that no byte takes: encoders should, and not all do.
fn clear_leftover_bits(text: &mut [u8]) {
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

    fn plain(text: &[u8]) -> Result<Vec<u8>, DecodeError> {
        let mut out = b"left over from before".to_vec();
        decode(text, 1 << 20, &mut Vec::new(), &mut out).map(|()| out)
    }

    #[test]
    fn white_space_and_leftover_bits_are_tolerated_as_in_python() {
        for text in
            [&b"aGVsbG8h"[..], b"aGVs\r\nbG8h\r\n", b"  aGVs bG8h\t", b"a\nGVsbG8h\0".strip_suffix(b"\0").unwrap()]
        {
            assert_eq!(plain(text).unwrap(), b"hello!");
        }
        assert_eq!(plain(b"YR==").unwrap(), b"a");
        assert_eq!(plain(b"YWK=").unwrap(), b"ab");
    }

    #[test]
    fn damage_is_refused() {
        for text in [&b"YQ"[..], b"YQ=", b"YWJj*A==", b"YWJj-A==", b"====", b"A===", b"YQ==YQ=="] {
            assert_eq!(plain(text).unwrap_err().reason().as_str(), "invalid_base64", "{}", text.escape_ascii());
        }
        assert_eq!(plain(b" \r\n").unwrap_err(), DecodeError::MissingData);
    }

    #[test]
    fn the_limit_is_checked_before_anything_is_allocated() {
        let mut out = Vec::new();
        let error = decode(&[b'A'; 4000], 100, &mut Vec::new(), &mut out).unwrap_err();
        assert_eq!(error, DecodeError::TooLarge { bytes: 2998, limit: 100 });
        assert_eq!(out.capacity(), 0);
        let padded = [&[b'A'; 100][..], &[b'\n'; 4000], &[b'A'; 32]].concat();
        decode(&padded, 100, &mut Vec::new(), &mut out).unwrap();
        assert_eq!(out.len(), 99);
    }

    proptest! {
        #[test]
        fn what_is_encoded_comes_back(data in prop::collection::vec(any::<u8>(), 1..300), line in 1usize..80) {
            let text = base64_simd::STANDARD.encode_to_string(&data);
            prop_assert_eq!(plain(text.as_bytes()).unwrap(), data.clone());
            let wrapped: Vec<u8> = text.as_bytes().chunks(line).flat_map(|part| [part, b"\r\n"].concat()).collect();
            prop_assert_eq!(plain(&wrapped).unwrap(), data);
        }

        #[test]
        fn any_bytes_are_decoded_or_refused(text in prop::collection::vec(any::<u8>(), 0..100)) {
            plain(&text).ok();
        }
    }
}
