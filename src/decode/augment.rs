//! Random crops of an image for training, as torchvision draws them.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// Range of the share of the area that a crop covers: the default of torchvision's `RandomResizedCrop`.
const SCALE: (f64, f64) = (0.08, 1.0);
/// Range of the aspect (width / height) of a crop: the default of torchvision's `RandomResizedCrop`.
const RATIO: (f64, f64) = (3.0 / 4.0, 4.0 / 3.0);

/// Draws of a crop before the centre is used.
const TRIES: usize = 10;

/// View of an image that becomes a square.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum View {
    /// The whole image, resized by the geometry.
    Plain,
    /// A random crop, resized to the square and mirrored half of the time. It depends on the seed alone.
    Random([u8; 32]),
}

impl View {
    /// Returns random view `number` of the image with the key `image`.
    pub fn random(seed: u64, image: u64, number: u8) -> Self {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        bytes[8..16].copy_from_slice(&image.to_le_bytes());
        bytes[16] = number;
        // Separates this use of a run's seed from all others.
        bytes[24..].copy_from_slice(b"wc-views");
        Self::Random(bytes)
    }
}

/// A crop of an image, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Crop {
    pub(super) left: u32,
    pub(super) top: u32,
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) mirrored: bool,
}

impl Crop {
    /// Draws a crop of an image of this size.
    pub(super) fn from_seed(seed: [u8; 32], width: u32, height: u32) -> Self {
        let mut random = ChaCha8Rng::from_seed(seed);
        Self::draw(width, height, || (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64)
    }

    /// Draws a crop of at least one pixel from numbers in [0, 1), as torchvision's `RandomResizedCrop.get_params` and
    /// `RandomHorizontalFlip` do.
    ///
    /// Steps that are in single precision there are so here, because their results are rounded to pixels.
    fn draw(width: u32, height: u32, mut uniform: impl FnMut() -> f64) -> Self {
        let area = f64::from(width) * f64::from(height);
        let log_ratio = [RATIO.0, RATIO.1].map(|ratio| f64::from((ratio as f32).ln()));
        let between = |low: f64, high: f64, share: f64| (low + (high - low) * share) as f32;
        let mut place = None;
        for _ in 0..TRIES {
            let target = area * f64::from(between(SCALE.0, SCALE.1, uniform()));
            let aspect = f64::from(between(log_ratio[0], log_ratio[1], uniform()).exp());
            // Python rounds halves to even.
            let (w, h) = ((target * aspect).sqrt().round_ties_even(), (target / aspect).sqrt().round_ties_even());
            if (1.0..=f64::from(width)).contains(&w) && (1.0..=f64::from(height)).contains(&h) {
                let (w, h) = (to_pixels(w), to_pixels(h));
                let top = to_pixels((uniform() * f64::from(height - h + 1)).floor());
                let left = to_pixels((uniform() * f64::from(width - w + 1)).floor());
                place = Some((left, top, w, h));
                break;
            }
        }
        let (left, top, width, height) = place.unwrap_or_else(|| {
            let ratio = f64::from(width) / f64::from(height);
            let (w, h) = if ratio < RATIO.0 {
                (width, to_pixels((f64::from(width) / RATIO.0).round_ties_even()).clamp(1, height))
            } else if ratio > RATIO.1 {
                (to_pixels((f64::from(height) * RATIO.1).round_ties_even()).clamp(1, width), height)
            } else {
                (width, height)
            };
            ((width - w) / 2, (height - h) / 2, w, h)
        });
        Self { left, top, width, height, mirrored: uniform() < 0.5 }
    }

    /// Copies the crop out of an image of this width.
    pub(super) fn copy_pixels(self, rgb: &[u8], width: u32, out: &mut [u8]) {
        let (stride, row) = (3 * width as usize, 3 * self.width as usize);
        let lines = rgb.chunks_exact(stride).skip(self.top as usize);
        for (line, out) in lines.zip(out.chunks_exact_mut(row)) {
            out.copy_from_slice(&line[3 * self.left as usize..][..row]);
        }
    }
}

/// Converts a number of pixels.
#[expect(clippy::cast_sign_loss, reason = "lengths and positions in an image")]
fn to_pixels(value: f64) -> u32 {
    value as u32
}

/// Mirrors the rows of a square.
pub(super) fn mirror_rows(rgb: &mut [u8], size_px: u32) {
    for row in rgb.chunks_exact_mut(3 * size_px as usize) {
        row.as_chunks_mut::<3>().0.reverse();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::decode::geometry::Geometry;
    use crate::decode::resize::{Resample, Resizer};

    #[derive(serde::Deserialize)]
    struct Reference {
        drawn: Vec<Drawn>,
        pixels: Vec<Pixels>,
    }

    #[derive(serde::Deserialize)]
    struct Drawn {
        width: u32,
        height: u32,
        numbers: Vec<f64>,
        /// Top, left, height, width.
        crop: [u32; 4],
        mirrored: bool,
    }

    #[derive(serde::Deserialize)]
    struct Pixels {
        crop: [u32; 4],
        mirrored: bool,
        rgb: String,
    }

    /// Loads the output of `tests/reference/views.py`.
    fn load_reference() -> Reference {
        serde_json::from_str(include_str!("../../tests/reference/views.json")).unwrap()
    }

    #[test]
    fn crops_are_those_of_torchvision() {
        let drawn = load_reference().drawn;
        assert!(drawn.len() >= 200);
        for Drawn { width, height, numbers, crop: [top, left, h, w], mirrored } in drawn {
            let mut rest = numbers.iter();
            let found = Crop::draw(width, height, || *rest.next().unwrap());
            let expected = Crop { left, top, width: w, height: h, mirrored };
            assert_eq!(found, expected, "{width} × {height}");
            assert!(rest.next().is_none());
        }
    }

    #[test]
    fn crop_pixels_are_those_of_torchvision() {
        let (width, height, size_px) = (60_usize, 40, 8);
        let cells = (0..height * width * 3).map(|at| (at / 3 / width, at / 3 % width, at % 3));
        let image: Vec<u8> = cells.map(|(y, x, c)| ((31 * y + 17 * x + 101 * c + x * y) % 256) as u8).collect();
        for Pixels { crop: [top, left, h, w], mirrored, rgb } in load_reference().pixels {
            let crop = Crop { left, top, width: w, height: h, mirrored };
            let mut resizer = Resizer::new(Geometry::ShortestEdge { edge_px: 9, crop_px: size_px }, Resample::Bilinear);
            let mut out = vec![0; 3 * (size_px * size_px) as usize];
            resizer.resize_crop(&image, width as u32, crop, &mut out);
            let expected: Vec<u8> = rgb
                .as_bytes()
                .chunks(2)
                .map(|two| u8::from_str_radix(std::str::from_utf8(two).unwrap(), 16).unwrap())
                .collect();
            assert_eq!(out, expected, "{crop:?}");
        }
    }

    proptest! {
        #[test]
        fn crop_lies_in_its_image(width in 1u32..5000, height in 1u32..5000, seed: u64, image: u64, number: u8) {
            let View::Random(bytes) = View::random(seed, image, number) else { unreachable!() };
            let crop = Crop::from_seed(bytes, width, height);
            prop_assert!(crop.width >= 1 && crop.height >= 1);
            prop_assert!(crop.left + crop.width <= width && crop.top + crop.height <= height);
            prop_assert_eq!(crop, Crop::from_seed(bytes, width, height));
        }
    }

    #[test]
    fn mirroring_reverses_rows_only() {
        let mut square: Vec<u8> = (0..12).collect();
        mirror_rows(&mut square, 2);
        assert_eq!(square, [3, 4, 5, 0, 1, 2, 9, 10, 11, 6, 7, 8]);
    }
}
