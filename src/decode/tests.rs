//! The module against Pillow, against damaged files, and against limits.

use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::*;

fn folder() -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/reference/decode")).to_owned()
}

pub(super) fn file(name: &str) -> Vec<u8> {
    std::fs::read(folder().join(name)).unwrap()
}

pub(super) fn spec(size_px: u32) -> ImageSpec {
    ImageSpec {
        geometry: Geometry::Squash { size_px },
        resample: Resample::Bilinear,
        alpha: Alpha::White,
        max_encoded_bytes: 1 << 20,
        max_pixels: 100_000,
        crops: false,
    }
}

fn run(spec: &ImageSpec, data: &[u8]) -> Result<(ImageInfo, Vec<u8>), DecodeError> {
    let mut decoder = Decoder::new(spec.clone());
    let mut out = vec![0x5a; decoder.pixel_bytes()];
    decoder.decode_into(&mut data.to_vec(), &mut out, |_| ()).map(|source| (source, out))
}

fn reason(spec: &ImageSpec, data: &[u8]) -> Reason {
    run(spec, data).unwrap_err().reason()
}

#[test]
fn views_share_one_decoding() {
    let mut decoder = Decoder::new(ImageSpec { crops: true, ..spec(8) });
    let (image, seeds) = (file("rgb8.png"), [View::random(1, 2, 1), View::random(1, 2, 2)]);
    let views = [View::Plain, seeds[0], seeds[1], seeds[0]];
    let size = decoder.pixel_bytes();
    let mut out = vec![0; 4 * size];
    decoder.decode_views(&mut image.clone(), &views, &mut out, |_| ()).unwrap();
    let views_found: Vec<&[u8]> = out.chunks(size).collect();
    assert_eq!(views_found[0], run(&spec(8), &image).unwrap().1);
    assert_eq!(views_found[1], views_found[3]);
    assert!(views_found[1] != views_found[2] && views_found[0] != views_found[1]);
    let error = decoder.decode_views(&mut image.clone(), &views, &mut out[..size], |_| ()).unwrap_err();
    assert!(matches!(error, DecodeError::OutputSize { .. }));
}

/// Counts the allocations of `work`, and its largest number of allocated bytes at any time.
fn count_allocations(work: impl FnOnce()) -> (u64, u64) {
    let counted = allocation_counter::measure(work);
    (counted.count_total, counted.bytes_max)
}

#[test]
fn later_images_allocate_nothing_of_ours() {
    let picture =
        |width, height| image::RgbImage::from_fn(width, height, |x, y| image::Rgb([x as u8, y as u8, (x * y) as u8]));
    // The sizes of thumbnails that are 300 pixels wide, landscapes and portraits.
    let sizes = [(300, 200), (300, 225), (300, 450), (200, 300), (300, 169)];
    let mut jpegs = Vec::new();
    for (width, height) in sizes {
        let mut jpeg = std::io::Cursor::new(Vec::new());
        picture(width, height).write_to(&mut jpeg, image::ImageFormat::Jpeg).unwrap();
        jpegs.push(jpeg.into_inner());
    }
    let mut decoder = Decoder::new(ImageSpec { max_pixels: 1_000_000, ..spec(224) });
    let mut out = vec![0; decoder.pixel_bytes()];
    for round in 0..3 {
        for (jpeg, (width, height)) in jpegs.iter().zip(sizes) {
            let mut text = base64_simd::STANDARD.encode_to_string(jpeg).into_bytes();
            let (times, bytes) =
                count_allocations(|| assert!(decoder.decode_base64_into(&mut text, &mut out, |_| ()).is_ok()));
            // Allocations of the JPEG decoder itself: tables, and rows of blocks.
            let mut rgb = vec![0; (width * height * 3) as usize];
            let (own_times, own_bytes) = count_allocations(|| {
                let options = zune_core::options::DecoderOptions::default().set_strict_mode(false);
                let source = zune_core::bytestream::ZCursor::new(&jpeg[..]);
                zune_jpeg::JpegDecoder::new_with_options(source, options).decode_into(&mut rgb).unwrap();
            });
            if round > 0 {
                assert!(times <= own_times, "{width} x {height}: {times} allocations, {own_times} are the decoder's");
                assert!(bytes <= own_bytes, "{width} x {height}: {bytes} bytes, {own_bytes} are the decoder's");
                assert!(bytes < u64::from(width * height), "{width} x {height}: {bytes} bytes are an image's");
            }
        }
    }
}

#[test]
fn usual_images_agree_with_pillow() {
    let cases = String::from_utf8(file("cases.tsv")).unwrap();
    let expected = file("expected.bin");
    let mut wrong = Vec::new();
    for case in cases.lines() {
        let fields: Vec<&str> = case.split('\t').collect();
        let [name, spec, largest, mean, offset, refused] = fields[..] else { panic!("{case}") };
        let result = run(&serde_json::from_str(spec).unwrap(), &file(name));
        if refused != "-" {
            match result {
                Err(error) if error.reason().as_str() == refused => {}
                other => wrong.push(format!("{name}: {refused} expected, not {:?}", other.map(|(source, _)| source))),
            }
            continue;
        }
        let found = match result {
            Ok((_, found)) => found,
            Err(error) => {
                wrong.push(format!("{name}: {error}"));
                continue;
            }
        };
        let offset: usize = offset.parse().unwrap();
        let (max, average) = difference(&found, &expected[offset..offset + found.len()]);
        if max > largest.parse().unwrap() || average > mean.parse().unwrap() {
            wrong.push(format!("{name}: up to {max}, {average:.3} in the mean, with {spec}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Unusual and damaged files, with the differences that other inverse DCTs and upsamplings make allowed for JPEG alone.
#[test]
fn unusual_images_agree_with_pillow() {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/reference/images"));
    let mut names: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.retain(|path| path.is_file());
    names.sort();
    assert!(names.len() >= 53);
    let mut wrong = Vec::new();
    for path in names {
        let name = path.file_stem().unwrap().to_str().unwrap();
        for alpha in [Alpha::White, Alpha::Drop] {
            let spec = ImageSpec { alpha, ..spec(64) };
            let drop = folder.join(format!("expected/{name}-drop.png"));
            let expected =
                if alpha == Alpha::Drop && drop.exists() { drop } else { folder.join(format!("expected/{name}.png")) };
            let (_, expected) = run(&spec, &std::fs::read(expected).unwrap()).unwrap();
            match run(&spec, &std::fs::read(&path).unwrap()) {
                Ok((_, found)) => {
                    let (largest, mean) = difference(&found, &expected);
                    let allowed = if name.contains("jpeg") { (24, 2.0) } else { (1, 1.0) };
                    if largest > allowed.0 || mean > allowed.1 {
                        wrong.push(format!("{name} ({alpha:?}): up to {largest}, {mean:.3} in the mean"));
                    }
                }
                Err(error) => wrong.push(format!("{name} ({alpha:?}): {error}")),
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn difference(found: &[u8], expected: &[u8]) -> (u8, f64) {
    assert_eq!(found.len(), expected.len());
    let levels = found.iter().zip(expected).map(|(a, b)| a.abs_diff(*b));
    let sum: u64 = levels.clone().map(u64::from).sum();
    (levels.max().unwrap_or(0), sum as f64 / found.len() as f64)
}

#[test]
fn reused_decoder_gives_the_same_pixels() {
    let mut reused = Decoder::new(spec(24));
    let mut out = vec![0; reused.pixel_bytes()];
    for round in 0..2 {
        for name in samples() {
            let fresh = run(&spec(24), &file(&name));
            let again = reused.decode_into(&mut file(&name), &mut out, |_| ()).map(|source| (source, out.clone()));
            assert_eq!(fresh, again, "{name} in round {round}");
        }
    }
}

#[test]
fn base64_and_bytes_give_the_same_pixels() {
    let data = file("baseline-420.jpg");
    let text = base64_simd::STANDARD.encode_to_string(&data);
    let mut decoder = Decoder::new(spec(24));
    let mut out = vec![0; decoder.pixel_bytes()];
    let source = decoder.decode_base64_into(&mut format!("{text}\r\n").into_bytes(), &mut out, |_| ()).unwrap();
    assert_eq!(source, ImageInfo { format: Format::Jpeg, width_px: 47, height_px: 39 });
    assert_eq!(out, run(&spec(24), &data).unwrap().1);
    let error = decoder.decode_base64_into(&mut text.as_bytes()[1..].to_vec(), &mut out, |_| ()).unwrap_err();
    assert_eq!(error.reason(), Reason::InvalidBase64);
}

#[test]
fn huge_sizes_are_refused() {
    let mut png = file("rgb8.png");
    png[16..24].copy_from_slice(&[0, 1, 0, 0, 0, 1, 0, 0]);
    let crc = crc(&png[12..29]);
    png[29..33].copy_from_slice(&crc.to_be_bytes());
    let mut gif = file("plain.gif");
    gif[6..10].fill(0xff);
    let mut jpeg = file("baseline-444.jpg");
    let frame = jpeg.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
    jpeg[frame + 5..frame + 9].fill(0xff);
    let mut bmp = file("rgb.bmp");
    bmp[18..26].copy_from_slice(&[0xff, 0xff, 0, 0, 0xff, 0xff, 0, 0]);
    for data in [&png, &gif, &jpeg, &bmp] {
        let error = run(&spec(24), data).unwrap_err();
        assert_eq!(error.reason(), Reason::TooManyPixels, "{error}");
    }
    let error = run(&spec(24), &jpeg).unwrap_err();
    assert_eq!(error.to_string(), "65535 × 65535 pixels is over the limit of 100000 (`preprocess.max_pixels`)");
}

fn crc(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

#[test]
fn limits_are_inclusive() {
    let data = file("rgb8.png");
    let mut exact = spec(8);
    (exact.max_pixels, exact.max_encoded_bytes) = (47 * 39, data.len() as u64);
    assert!(run(&exact, &data).is_ok());
    let fewer = ImageSpec { max_pixels: 47 * 39 - 1, ..exact.clone() };
    assert_eq!(reason(&fewer, &data), Reason::TooManyPixels);
    let shorter = ImageSpec { max_encoded_bytes: data.len() as u64 - 1, ..exact };
    assert_eq!(reason(&shorter, &data), Reason::TooLarge);
}

#[test]
fn wrong_buffer_length_is_an_error() {
    let mut decoder = Decoder::new(spec(24));
    let error = decoder.decode_into(&mut file("rgb8.png"), &mut [0; 10], |_| ()).unwrap_err();
    assert_eq!(error, DecodeError::OutputSize { expected: 1728, found: 10 });
}

#[test]
fn failure_leaves_output_unchanged() {
    let mut decoder = Decoder::new(spec(8));
    let mut out = vec![7; decoder.pixel_bytes()];
    for name in ["cut.jpg", "cut.png", "cut.gif", "cut.webp", "cut.bmp"] {
        decoder.decode_into(&mut file(name), &mut out, |_| ()).unwrap_err();
        assert!(out.iter().all(|&byte| byte == 7), "{name}");
    }
}

#[test]
fn slivers_are_resized() {
    // 1 × 90,000 grey pixels in a PNG of 150 bytes; a naive resize of the shorter edge would need 13 GB.
    let mut data = Vec::new();
    let mut encoder = ::png::Encoder::new(&mut data, 90_000, 1);
    encoder.set_color(::png::ColorType::Grayscale);
    encoder.write_header().unwrap().write_image_data(&vec![200; 90_000]).unwrap();
    let mut tall = Vec::new();
    let mut encoder = ::png::Encoder::new(&mut tall, 1, 90_000);
    encoder.set_color(::png::ColorType::Grayscale);
    encoder.write_header().unwrap().write_image_data(&vec![200; 90_000]).unwrap();
    for resample in [Resample::Nearest, Resample::Bilinear, Resample::Lanczos] {
        for geometry in [Geometry::ShortestEdge { edge_px: 256, crop_px: 224 }, Geometry::Squash { size_px: 224 }] {
            for image in [&data, &tall] {
                let (_, out) = run(&ImageSpec { geometry, resample, ..spec(8) }, image).unwrap();
                assert!(out.iter().all(|&byte| byte == 200));
            }
        }
    }
}

#[test]
fn spec_has_config_names() {
    let json = serde_json::to_value(spec(224)).unwrap();
    assert_eq!(json["resample"], "bilinear");
    assert_eq!(json["alpha"], "white");
    assert_eq!(Resample::from_pillow(3), Some(Resample::Bicubic));
    assert_eq!(Resample::from_pillow(6), None);
}

pub(super) fn samples() -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.starts_with("cases") && !name.starts_with("expected"))
        .collect();
    names.sort();
    names
}

#[derive(Clone, Debug)]
enum Damage {
    Cut(f64),
    Set(f64, u8),
    Insert(f64, Vec<u8>),
    Remove(f64, usize),
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        (0.0..1.0).prop_map(Damage::Cut),
        (0.0..1.0, any::<u8>()).prop_map(|(at, byte)| Damage::Set(at, byte)),
        (0.0..0.1, any::<u8>()).prop_map(|(at, byte)| Damage::Set(at, byte)),
        (0.0..1.0, prop::collection::vec(any::<u8>(), 1..9)).prop_map(|(at, bytes)| Damage::Insert(at, bytes)),
        (0.0..1.0, 1usize..9).prop_map(|(at, count)| Damage::Remove(at, count)),
    ]
}

#[expect(clippy::cast_sign_loss, reason = "fractions are not negative")]
fn apply_damage(mut data: Vec<u8>, all: &[Damage]) -> Vec<u8> {
    for one in all {
        let place = |at: f64| (at * data.len() as f64) as usize;
        match one {
            Damage::Cut(at) => data.truncate(place(*at)),
            Damage::Set(at, byte) => {
                let at = place(*at);
                if let Some(place) = data.get_mut(at) {
                    *place = *byte;
                }
            }
            Damage::Insert(at, bytes) => {
                let at = place(*at);
                data.splice(at..at, bytes.iter().copied());
            }
            Damage::Remove(at, count) => {
                let at = place(*at);
                data.drain(at..(at + count).min(data.len()));
            }
        }
    }
    data
}

/// Decodes any data: without a panic, with output only on success, and with the same result the second time.
fn check_any_data(data: &[u8]) -> Result<(), TestCaseError> {
    let mut decoder = Decoder::new(spec(8));
    let mut out = vec![7; decoder.pixel_bytes()];
    let first = decoder.decode_into(&mut data.to_vec(), &mut out, |_| ());
    match &first {
        Ok(source) => {
            prop_assert!(u64::from(source.width_px) * u64::from(source.height_px) <= 100_000);
        }
        Err(_) => prop_assert!(out.iter().all(|&byte| byte == 7)),
    }
    let first_out = out.clone();
    prop_assert_eq!(first, decoder.decode_into(&mut data.to_vec(), &mut out, |_| ()));
    prop_assert_eq!(first_out, out);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(3000)))]

    #[test]
    fn any_bytes_are_decoded_or_refused(data in prop::collection::vec(any::<u8>(), 0..400)) {
        check_any_data(&data)?;
    }

    #[test]
    fn any_bytes_behind_a_signature_are_decoded_or_refused(
        magic in prop::sample::select(vec![
            &b"\xff\xd8\xff"[..], b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR", b"GIF89a", b"RIFF\x40\0\0\0WEBPVP8L", b"RIFF\x40\0\0\0WEBPVP8 ",
            b"RIFF\x40\0\0\0WEBPVP8X\x0a\0\0\0", b"BM\0\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0", b"II*\0\x08\0\0\0", b"\x1f\x8b\x08\0", b"<",
        ]),
        tail in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        check_any_data(&[magic, &tail].concat())?;
    }

    #[test]
    fn damaged_files_are_decoded_or_refused(
        name in prop::sample::select(samples()),
        all in prop::collection::vec(damage(), 1..6),
    ) {
        check_any_data(&apply_damage(file(&name), &all))?;
    }
}
