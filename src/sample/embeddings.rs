//! Features of the synthetic images as text, in the layout of the published `resnet_embeddings`.
//!
//! No ResNet computes them. The mean colours of a grid over the picture are mapped to 2,048 values by fixed random signs, and
//! negative values become 0, as after a ReLU. Similar pictures thus have similar features, which a head can learn.

use super::SampleError;
use super::contents::Payload;
use super::contents::ShardRow;
use super::encode::UNUSABLE_KINDS;
use super::encode::Unusable;
use super::render::RenderedImage;
use super::render::WIDTH_PX;
use super::rng::SampleRng;
use super::rng::Stream;
use super::scenes::SCENE_COUNT;
use super::scenes::Scene;

/// Values of a feature.
pub(super) const DIM: usize = 2048;
/// Cells of the grid along each side.
const GRID: usize = 8;
/// Mean colours of a picture.
const COLOURS: usize = 3 * GRID * GRID;

/// Map from the colours of a picture to its feature.
pub(super) struct Embedder {
    /// Signs, `[DIM, COLOURS]`.
    signs: Vec<f32>,
}

impl Embedder {
    /// Creates the map, which is the same for every corpus.
    pub(super) fn new() -> Self {
        let sign = |index: usize| if mix(index as u64) & 1 == 0 { 1.0 } else { -1.0 };
        Self { signs: (0..DIM * COLOURS).map(sign).collect() }
    }

    /// Returns the line `url TAB numbers` of a row, altered if the row is unusable.
    #[expect(clippy::unnecessary_wraps, reason = "the encoder of images fails")]
    pub(super) fn encode_row(&self, row: &ShardRow, seed: u64) -> Result<Vec<u8>, SampleError> {
        let mut url = row.url.clone().into_bytes();
        let fields = match row.payload {
            Payload::Image { stream, scene } => {
                let mut rng = SampleRng::new(seed, stream);
                vec![to_text(&self.embed(&RenderedImage::render(Scene::from_number(scene), &mut rng)))]
            }
            Payload::Unusable { kind, number } => {
                let mut rng = SampleRng::new(seed, Stream::Unusable(number));
                let image = RenderedImage::render(Scene::from_number(rng.below(SCENE_COUNT)), &mut rng);
                if kind == Unusable::UrlBytes {
                    url.extend_from_slice(b"?\xff\xfe");
                }
                let odd = (number / UNUSABLE_KINDS.len() as u32) % 2 == 1;
                damage(kind, odd, self.embed(&image))
            }
        };
        let mut line = url;
        for field in fields {
            line.push(b'\t');
            line.extend_from_slice(field.as_bytes());
        }
        line.push(b'\n');
        Ok(line)
    }

    /// Returns the feature of a picture.
    fn embed(&self, image: &RenderedImage) -> Vec<f32> {
        let colours = mean_colours(image);
        let value = |signs: &[f32]| {
            let sum: f32 = signs.iter().zip(&colours).map(|(sign, colour)| sign * colour).sum();
            (sum / 4.0).max(0.0)
        };
        self.signs.chunks_exact(COLOURS).map(value).collect()
    }
}

/// Returns the fields of an unusable row after its URL.
fn damage(kind: Unusable, odd: bool, mut values: Vec<f32>) -> Vec<String> {
    match kind {
        Unusable::Svg => values[7] = f32::NAN,
        Unusable::Html => values[DIM - 1] = f32::INFINITY,
        Unusable::Truncated => values.truncate(DIM - 1),
        Unusable::Bomb => values.resize(2 * DIM, 0.0),
        Unusable::Base64 => return vec![format!("none,{}", to_text(&values[1..]))],
        Unusable::Empty => return vec![String::new()],
        Unusable::Fields if odd => return vec![to_text(&values), String::new(), "a fourth field".to_owned()],
        Unusable::Fields => return Vec::new(),
        Unusable::UrlBytes => {}
    }
    vec![to_text(&values)]
}

/// Returns the numbers as Python prints them: each f32 with the digits of the same f64.
fn to_text(values: &[f32]) -> String {
    values.iter().map(|value| format!("{:?}", f64::from(*value))).collect::<Vec<_>>().join(",")
}

/// Returns the mean colours of the cells of a picture, from -0.5 to 0.5.
fn mean_colours(image: &RenderedImage) -> Vec<f32> {
    let (pixels, width, height) = (image.rgb(false), WIDTH_PX as usize, image.height_px as usize);
    let (mut sums, mut counts) = (vec![0u32; COLOURS], vec![0u32; COLOURS]);
    for (index, pixel) in pixels.chunks_exact(3).enumerate() {
        let (row, column) = (index / width * GRID / height, index % width * GRID / width);
        for (channel, value) in pixel.iter().enumerate() {
            let cell = 3 * (row * GRID + column) + channel;
            sums[cell] += u32::from(*value);
            counts[cell] += 1;
        }
    }
    sums.iter().zip(counts).map(|(sum, count)| *sum as f32 / count.max(1) as f32 / 255.0 - 0.5).collect()
}

/// Mixes the bits of a number (`SplitMix64`).
fn mix(number: u64) -> u64 {
    let mut bits = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_of_one_scene_are_closer_than_those_of_another() {
        let embedder = Embedder::new();
        let embed = |scene: usize, number: u32| {
            let mut rng = SampleRng::new(1, Stream::Unusable(number));
            embedder.embed(&RenderedImage::render(Scene::from_number(scene), &mut rng))
        };
        let distance = |one: &[f32], other: &[f32]| -> f32 {
            one.iter().zip(other).map(|(one, other)| (one - other).powi(2)).sum::<f32>()
        };
        let (first, second, other) = (embed(0, 1), embed(0, 2), embed(21, 3));
        assert_eq!(first.len(), DIM);
        assert!(distance(&first, &second) < distance(&first, &other));
    }

    #[test]
    fn every_kind_of_damage_is_told_apart() {
        let fields = |kind| damage(kind, false, vec![0.5; DIM]);
        assert_eq!(fields(Unusable::Truncated)[0].matches(',').count(), DIM - 2);
        assert!(fields(Unusable::Svg)[0].contains("NaN") && fields(Unusable::Html)[0].ends_with("inf"));
        assert!(fields(Unusable::Base64)[0].starts_with("none,"));
        assert_eq!((fields(Unusable::Empty), fields(Unusable::Fields)), (vec![String::new()], Vec::new()));
        assert_eq!(to_text(&[0.0, 0.1, 3.5]), "0.0,0.10000000149011612,3.5");
    }
}
