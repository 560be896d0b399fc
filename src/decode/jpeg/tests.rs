//! Random JPEG layouts, compared with the source image, with the crate `jpeg-decoder`, and with libjpeg.

mod writer;

use proptest::prelude::*;

use self::writer::{Layout, Scan};
use super::super::tests::spec;
use super::super::{Decoder, Size};
use super::{libjpeg, markers};

/// Decodes at the stored size.
fn decode(data: &[u8]) -> Result<Vec<u8>, String> {
    let mut decoder = Decoder::new(spec(8));
    let mut out = vec![0; decoder.pixel_bytes()];
    let source = decoder.decode_into(&mut data.to_vec(), &mut out, |_| ()).map_err(|error| error.to_string())?;
    Ok(decoder.buffers.rgb[..3 * source.width_px as usize * source.height_px as usize].to_vec())
}

/// Returns the largest and the mean difference.
fn difference(found: &[u8], expected: &[u8]) -> (u8, f64) {
    assert_eq!(found.len(), expected.len());
    let levels = found.iter().zip(expected).map(|(a, b)| a.abs_diff(*b));
    let sum: u64 = levels.clone().map(u64::from).sum();
    (levels.max().unwrap_or(0), sum as f64 / found.len() as f64)
}

fn sampling() -> impl Strategy<Value = Vec<(usize, usize)>> {
    let grey = Just(vec![(1, 1)]);
    let usual = prop::sample::select(vec![(1, 1), (2, 1), (1, 2), (2, 2)]).prop_map(|luma| vec![luma, (1, 1), (1, 1)]);
    let unusual = prop::sample::select(vec![
        [(4, 1), (1, 1), (1, 1)],
        [(3, 1), (1, 1), (1, 1)],
        [(2, 2), (2, 1), (1, 2)],
        [(2, 2), (2, 1), (2, 1)],
        [(1, 1), (2, 1), (2, 1)],
        [(1, 1), (1, 2), (1, 2)],
        [(1, 1), (2, 2), (2, 2)],
        [(2, 1), (1, 2), (1, 1)],
        [(1, 4), (1, 1), (1, 1)],
    ]);
    prop_oneof![1 => grey, 3 => usual, 3 => unusual.prop_map(Vec::from)]
}

/// Scans of a baseline file: all components together, each alone, or two together, in any order.
fn baseline(components: usize) -> impl Strategy<Value = Vec<Scan>> {
    let scan = |components: &[usize]| Scan { components: components.to_vec(), first: 0, last: 63, high: 0, low: 0 };
    let groups = if components == 1 {
        vec![vec![vec![0]]]
    } else {
        vec![
            vec![vec![0, 1, 2]],
            vec![vec![0], vec![1], vec![2]],
            vec![vec![2], vec![1], vec![0]],
            vec![vec![1], vec![2], vec![0]],
            vec![vec![0], vec![1, 2]],
            vec![vec![1, 2], vec![0]],
            vec![vec![0, 1], vec![2]],
        ]
    };
    prop::sample::select(groups).prop_map(move |groups| groups.iter().map(|group| scan(group)).collect())
}

/// Scans of a complete progressive file.
fn progressive(components: usize) -> impl Strategy<Value = Vec<Scan>> {
    (any::<bool>(), 0u32..3, 0u32..3, prop::sample::select(vec![63, 1, 5, 30])).prop_map(
        move |(together, dc_low, ac_low, split)| {
            let mut scans = Vec::new();
            let mut dc = |high, low| {
                let all: Vec<usize> = (0..components).collect();
                let groups = if together { vec![all] } else { all.into_iter().map(|one| vec![one]).collect() };
                scans.extend(groups.into_iter().map(|components| Scan { components, first: 0, last: 0, high, low }));
            };
            dc(0, dc_low);
            for low in (0..dc_low).rev() {
                dc(low + 1, low);
            }
            for (high, low) in std::iter::once((0, ac_low)).chain((0..ac_low).rev().map(|low| (low + 1, low))) {
                for component in 0..components {
                    for (first, last) in [(1, split), (split + 1, 63)] {
                        if first <= last {
                            scans.push(Scan { components: vec![component], first, last, high, low });
                        }
                    }
                }
            }
            scans
        },
    )
}

fn layout() -> impl Strategy<Value = Layout> {
    let scans = |sampling: Vec<(usize, usize)>, progression: bool| {
        let count = sampling.len();
        let scans = if progression { progressive(count).boxed() } else { baseline(count).boxed() };
        (Just(sampling), Just(progression), scans)
    };
    let restart = prop_oneof![2 => Just(0), 1 => 1usize..9];
    (
        (sampling(), any::<bool>()).prop_flat_map(move |(sampling, progression)| scans(sampling, progression)),
        restart,
        40usize..100,
        40usize..80,
    )
        .prop_map(|((sampling, progressive, scans), restart, width, height)| {
            let ids = (1..=sampling.len() as u8).collect();
            Layout { width, height, sampling, progressive, scans, restart, ids }
        })
}

proptest! {
    #![proptest_config(crate::fuzz::config(300))]

    #[test]
    fn every_layout_is_decoded(layout in layout()) {
        let (data, _) = layout.write();
        let found = decode(&data).map_err(TestCaseError::fail)?;
        let (largest, mean) = difference(&found, &layout.pixels());
        prop_assert!(largest <= 24 && mean <= 4.0, "up to {largest}, {mean:.2} in the mean, from the source image");
        // It does not support every layout.
        let mut other = jpeg_decoder::Decoder::new(data.as_slice());
        if let Ok(pixels) = other.decode() {
            let grey = layout.sampling.len() == 1;
            let expected = if grey { pixels.iter().flat_map(|grey| [*grey; 3]).collect() } else { pixels };
            let (largest, mean) = difference(&found, &expected);
            prop_assert!(largest <= 24 && mean <= 2.0, "up to {largest}, {mean:.2} in the mean, from `jpeg-decoder`");
        }
    }

    /// Whichever decoder is chosen, a scan that ends early gives the pixels of libjpeg.
    #[test]
    fn truncated_scans_equal_libjpeg(layout in layout(), share in 0.0..1.0) {
        let (mut data, (start, length)) = layout.write();
        data.truncate(start + (share * length as f64) as usize);
        if data.last() == Some(&0xff) {
            data.pop();
        }
        data.extend([0xff, 0xd9]);
        let found = decode(&data).map_err(TestCaseError::fail)?;
        let mut expected = vec![0; found.len()];
        let size = Size { width: layout.width as u32, height: layout.height as u32 };
        libjpeg::decode(&data, size, layout.sampling.len() as u8, &mut expected).unwrap();
        let (largest, mean) = difference(&found, &expected);
        prop_assert!(largest <= 24 && mean <= 2.0, "up to {largest}, {mean:.2} in the mean");
    }
}

#[test]
fn usual_layouts_are_plain() {
    for luma in [(1, 1), (2, 1), (2, 2)] {
        for progressive in [false, true] {
            let image = image::RgbImage::from_fn(70, 50, |x, y| image::Rgb([x as u8, y as u8, (x * y) as u8]));
            let scan = |components: Vec<usize>, first, last| Scan { components, first, last, high: 0, low: 0 };
            let scans = if progressive {
                std::iter::once(scan(vec![0, 1, 2], 0, 0)).chain((0..3).map(|one| scan(vec![one], 1, 63))).collect()
            } else {
                vec![scan(vec![0, 1, 2], 0, 63)]
            };
            let sampling = vec![luma, (1, 1), (1, 1)];
            let layout = Layout { width: 70, height: 50, sampling, progressive, scans, restart: 0, ids: vec![1, 2, 3] };
            let header = markers::read_header(&layout.write().0).unwrap();
            assert!(header.plain, "{luma:?}, {progressive}");
            // So are files of the encoder in `image`.
            let mut jpeg = std::io::Cursor::new(Vec::new());
            image.write_to(&mut jpeg, image::ImageFormat::Jpeg).unwrap();
            assert!(markers::read_header(jpeg.get_ref()).unwrap().plain);
        }
    }
}

#[test]
fn repeated_component_identifiers_are_decoded() {
    let scans = vec![Scan { components: vec![0, 1, 2], first: 0, last: 63, high: 0, low: 0 }];
    let sampling = vec![(2, 2), (1, 1), (1, 1)];
    let layout = Layout { width: 50, height: 40, sampling, progressive: false, scans, restart: 0, ids: vec![1, 1, 1] };
    let (largest, mean) = difference(&decode(&layout.write().0).unwrap(), &layout.pixels());
    assert!(largest <= 24 && mean <= 2.0, "up to {largest}, {mean:.2} in the mean");
}
