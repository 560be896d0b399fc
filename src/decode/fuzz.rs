//! Fuzz targets: base64 and every image format, with damaged files.

use proptest::prelude::*;
use proptest::sample::Index;

use super::tests::{file, samples, spec};
use super::*;
use crate::fuzz::{CHEAP_CASES, bounded, config, damage, damaged};

/// Bytes that a decoder may allocate beyond its announcement, while it looks for the size; a TIFF has it among other fields.
const SLACK: u64 = 4 << 20;

/// Decodes twice, within the announced memory, or within [`SLACK`] where nothing was announced.
fn decode_bounded(data: &[u8], spec: &ImageSpec, text: bool) -> Result<(), TestCaseError> {
    let mut decoder = Decoder::new(spec.clone());
    let mut out = vec![7; decoder.pixel_bytes()];
    let mut input = data.to_vec();
    let mut admitted = 0;
    let result = bounded(data, spec.decode_bytes() + SLACK, || {
        let admit = |bytes| admitted = bytes;
        if text {
            decoder.decode_base64_into(&mut input, &mut out, admit)
        } else {
            decoder.decode_into(&mut input, &mut out, admit)
        }
    })?;
    match &result {
        Ok(source) => prop_assert!(u64::from(source.width_px) * u64::from(source.height_px) <= spec.max_pixels),
        Err(_) => prop_assert!(out.iter().all(|&byte| byte == 7)),
    }
    // The second time, a new decoder stays within the announcement.
    let first = (result, out.clone());
    out.fill(7);
    let mut decoder = Decoder::new(spec.clone());
    let mut input = data.to_vec();
    let again = bounded(data, admitted + SLACK, || {
        if text {
            decoder.decode_base64_into(&mut input, &mut out, |_| ())
        } else {
            decoder.decode_into(&mut input, &mut out, |_| ())
        }
    })?;
    prop_assert_eq!(first, (again, out));
    Ok(())
}

fn wide_spec() -> ImageSpec {
    ImageSpec { max_pixels: 4_000_000, ..spec(8) }
}

/// Decodes a JPEG at its stored size with a decoder whose buffers hold `before`.
fn decode_over(data: &[u8], before: &[u8]) -> Result<Vec<u8>, DecodeError> {
    let mut decoder = Decoder::new(spec(8));
    let fill = |bytes| before.iter().copied().cycle().take(bytes * decoder.spec.max_pixels as usize).collect();
    decoder.buffers = Buffers { rgb: fill(3), raw: fill(4) };
    let mut out = vec![0; decoder.pixel_bytes()];
    let source = decoder.decode_into(&mut data.to_vec(), &mut out, |_| ())?;
    let pixels = source.width_px as usize * source.height_px as usize;
    Ok(decoder.buffers.rgb[..3 * pixels].to_vec())
}

proptest! {
    #![proptest_config(config(CHEAP_CASES))]

    #[test]
    fn damaged_jpeg_shows_nothing_of_the_last_image(which: Index, all in damage(), before: [u8; 3]) {
        let sound: Vec<Vec<u8>> = samples().iter().map(|name| file(name)).filter(|data| data.starts_with(b"\xff\xd8")).collect();
        // Pillow accepts any data with an end marker.
        let data = [&damaged(&sound, which, &all)[..], b"\xff\xd9"].concat();
        prop_assert_eq!(decode_over(&data, &[128]), decode_over(&data, &before));
    }

    #[test]
    fn damaged_images_stay_within_announced_memory(which: Index, all in damage()) {
        let sound: Vec<Vec<u8>> = samples().iter().map(|name| file(name)).collect();
        decode_bounded(&damaged(&sound, which, &all), &wide_spec(), false)?;
    }

    #[test]
    fn damaged_base64_is_decoded_or_refused(which: Index, inner in prop::option::of(damage()), outer in prop::option::of(damage())) {
        let sound: Vec<Vec<u8>> = samples().iter().map(|name| file(name)).collect();
        let data = inner.map_or_else(|| sound[which.index(sound.len())].clone(), |all| damaged(&sound, which, &all));
        let text = base64_simd::STANDARD.encode_to_string(&data).into_bytes();
        let text = outer.map_or_else(|| text.clone(), |all| damaged(std::slice::from_ref(&text), which, &all));
        decode_bounded(&text, &wide_spec(), true)?;
    }
}

#[test]
fn sound_images_stay_within_announced_memory() {
    for name in samples() {
        if let Err(error) = decode_bounded(&file(&name), &wide_spec(), false) {
            panic!("{name}: {error}");
        }
    }
}

/// Files of earlier findings: a decoder allocated for a number that the file could not contain.
#[test]
fn impossible_numbers_allocate_nothing() {
    let set = |name: &str, at: usize, bytes: &[u8]| {
        let mut data = file(name);
        data[at..at + bytes.len()].copy_from_slice(bytes);
        data
    };
    let find = |data: &[u8], name: &[u8]| memchr::memmem::find(data, name).unwrap();
    let mut found = vec![
        // Two million heights in the second field of the directory.
        ("grey16.tif", set("grey16.tif", 26, &2_097_153u32.to_le_bytes())),
        // 65,535 fields.
        ("grey16.tif", set("grey16.tif", 8, &u16::MAX.to_le_bytes())),
    ];
    // A lossy frame of 16,383 × 16,383 on a small canvas.
    let alpha = file("lossy-alpha.webp");
    let size = find(&alpha, b"VP8 ") + 8 + 6;
    found.push(("lossy-alpha.webp", set("lossy-alpha.webp", size, &[0xff, 0x3f, 0xff, 0x3f])));
    // A frame that depends on another one. Its header is seven bytes shorter, so that other bytes are read as numbers.
    let tag = find(&alpha, b"VP8 ") + 8;
    found.push(("lossy-alpha.webp", set("lossy-alpha.webp", tag, &[alpha[tag] | 1])));
    // Partitions of 16 MB each.
    let mut shifted = file("lossy.webp");
    let part = shifted[109..114].to_vec();
    shifted.splice(28..28, part);
    found.push(("lossy.webp", shifted));
    for (name, data) in found {
        let spec = wide_spec();
        let mut out = vec![0; Decoder::new(spec.clone()).pixel_bytes()];
        let mut admitted = None;
        let result = bounded(&data, SLACK, || {
            Decoder::new(spec).decode_into(&mut data.clone(), &mut out, |bytes| admitted = Some(bytes))
        });
        let error = result.unwrap().unwrap_err();
        assert!(matches!(error.reason(), Reason::Corrupt | Reason::Truncated), "{name}: {error}");
        assert_eq!(admitted, None, "{name}");
    }
}
