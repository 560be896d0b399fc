//! Renders images of a scene as coverage and RGB rows.
//!
//! An image is 300 px wide, like the published thumbnails. Height, position and size of the shape, shades and noise are
//! random. Sizes are in pixels, colours in sRGB bytes.

use super::rng::SampleRng;
use super::scenes::COLOURS;
use super::scenes::SHAPES;
use super::scenes::Scene;
use super::scenes::Shape;

/// Width of every image, in pixels.
pub(super) const WIDTH_PX: u32 = 300;

/// Rendered image before it is encoded.
pub(super) struct RenderedImage {
    pub(super) scene: Scene,
    pub(super) height_px: u32,
    /// Coverage of each pixel by the shape, row by row: 0 to [`FULL`].
    pub(super) coverage: Vec<u8>,
    /// Colour of the shape.
    pub(super) foreground: [u8; 3],
    /// Colour of the background.
    pub(super) background: [u8; 3],
    /// Change of brightness across and down the image, in byte values.
    slope: [f32; 2],
    noise_seed: u64,
}

/// Coverage of a pixel that lies entirely in the shape.
pub(super) const FULL: u8 = 4;

impl RenderedImage {
    /// Renders a random image of `scene`.
    pub(super) fn render(scene: Scene, rng: &mut SampleRng) -> Self {
        let height_px = 180 + rng.below(221) as u32;
        let outline = Outline::new(SHAPES[scene.shape], height_px, rng);
        let coverage = compute_coverage(&outline, height_px);
        Self {
            scene,
            height_px,
            coverage,
            foreground: vary_colour(COLOURS[scene.foreground], scene, rng),
            background: vary_colour(COLOURS[scene.background], scene, rng),
            slope: [rng.between(-15.0, 15.0), rng.between(-15.0, 15.0)],
            noise_seed: rng.next_bits() | 1,
        }
    }

    /// Returns RGB bytes row by row, with the change of brightness and, if `with_grain`, noise of ±7 in every byte.
    pub(super) fn rgb(&self, with_grain: bool) -> Vec<u8> {
        let mut noise = self.noise_seed;
        let mut bytes = Vec::with_capacity(self.coverage.len() * 3);
        let across = self.slope[0] / (WIDTH_PX as f32 / 2.0);
        let down = self.slope[1] / (self.height_px as f32 / 2.0);
        let palette: [[i32; 3]; FULL as usize + 1] =
            std::array::from_fn(|coverage| self.blend(coverage as u8).map(i32::from));
        for (row, pixels) in self.coverage.chunks(WIDTH_PX as usize).enumerate() {
            let row_light = down * row as f32 - self.slope[1] - self.slope[0];
            for (column, &coverage) in pixels.iter().enumerate() {
                let light = (row_light + across * column as f32) as i32;
                // Marsaglia's xorshift: fast, and good enough for noise.
                noise ^= noise << 13;
                noise ^= noise >> 7;
                noise ^= noise << 17;
                let colour = palette[usize::from(coverage.min(FULL))];
                let noise_values = if with_grain {
                    [noise_value(noise), noise_value(noise >> 16), noise_value(noise >> 32)]
                } else {
                    [0; 3]
                };
                bytes.extend_from_slice(
                    &[0, 1, 2].map(|channel| clamp_to_byte(colour[channel] + light + noise_values[channel])),
                );
            }
        }
        bytes
    }

    /// Returns the colour of a pixel with this coverage, before brightness and noise.
    pub(super) fn blend(&self, coverage: u8) -> [u8; 3] {
        let mix = |foreground: u8, background: u8| {
            let (foreground, background, coverage, full) =
                (u32::from(foreground), u32::from(background), u32::from(coverage), u32::from(FULL));
            ((foreground * coverage + background * full.saturating_sub(coverage)) / full) as u8
        };
        [0, 1, 2].map(|channel| mix(self.foreground[channel], self.background[channel]))
    }
}

/// Returns the centred sum of two three-bit numbers in `bits`: −7 to 7, small values being more frequent.
fn noise_value(bits: u64) -> i32 {
    (bits & 7) as i32 + ((bits >> 3) & 7) as i32 - 7
}

/// Clamps a value to a byte.
fn clamp_to_byte(value: i32) -> u8 {
    u8::try_from(value.clamp(0, 255)).unwrap_or(u8::MAX)
}

/// Varies a colour slightly. All three channels change alike if the scene has no hue.
fn vary_colour(colour: [u8; 3], scene: Scene, rng: &mut SampleRng) -> [u8; 3] {
    let common = rng.between(-10.0, 10.0);
    colour.map(|value| {
        let individual = rng.between(-10.0, 10.0);
        let change = if scene.is_grey() { common } else { individual };
        clamp_to_byte(i32::from(value) + change as i32)
    })
}

/// Returns the coverage of each pixel. If all four corners of a pixel agree, so does the whole pixel. Only pixels on an
/// edge are sampled at four more points, which is four times faster than sampling all.
fn compute_coverage(outline: &Outline, height_px: u32) -> Vec<u8> {
    let corners =
        |row: u32| -> Vec<bool> { (0..=WIDTH_PX).map(|column| outline.contains(column as f32, row as f32)).collect() };
    let mut coverage = Vec::with_capacity((WIDTH_PX * height_px) as usize);
    let mut above = corners(0);
    for row in 0..height_px {
        let below = corners(row + 1);
        for (column, (upper, lower)) in above.windows(2).zip(below.windows(2)).enumerate() {
            let inside = upper.iter().chain(lower).filter(|corner| **corner).count();
            coverage.push(match inside {
                0 => 0,
                4 => FULL,
                _ => [(0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75)]
                    .into_iter()
                    .map(|(x, y)| u8::from(outline.contains(column as f32 + x, row as f32 + y)))
                    .sum(),
            });
        }
        above = below;
    }
    coverage
}

/// Shape with position and size, in pixels.
struct Outline {
    shape: Shape,
    centre: [f32; 2],
    radius: f32,
    /// Period of the stripes along x and y.
    period: [f32; 2],
    /// Phase of the first stripe along x and y.
    phase: [f32; 2],
}

impl Outline {
    fn new(shape: Shape, height_px: u32, rng: &mut SampleRng) -> Self {
        let (width, height) = (WIDTH_PX as f32, height_px as f32);
        let stripes = 4.0 + rng.below(2) as f32;
        Self {
            shape,
            centre: [width * rng.between(0.42, 0.58), height * rng.between(0.42, 0.58)],
            radius: width.min(height) * rng.between(0.32, 0.44),
            period: [width / stripes, height / stripes],
            phase: [rng.between(0.0, 1.0), rng.between(0.0, 1.0)],
        }
    }

    fn contains(&self, x_px: f32, y_px: f32) -> bool {
        let x = (x_px - self.centre[0]) / self.radius;
        let y = (y_px - self.centre[1]) / self.radius;
        let in_stripe = |position: f32, axis: usize| (position / self.period[axis] + self.phase[axis]).fract() < 0.5;
        match self.shape {
            Shape::Circle => x * x + y * y < 1.0,
            Shape::Square => x.abs().max(y.abs()) < 0.9,
            Shape::Triangle => y < 0.8 && y > -0.9 && x.abs() < (y + 0.9) * 0.62,
            Shape::Star => in_star(x / 1.2, y / 1.2),
            Shape::Ring => (0.3..1.2).contains(&(x * x + y * y)),
            Shape::Cross => (x.abs() < 0.38 && y.abs() < 1.05) || (y.abs() < 0.38 && x.abs() < 1.05),
            Shape::HorizontalStripes => in_stripe(y_px, 1),
            Shape::VerticalStripes => in_stripe(x_px, 0),
            Shape::Chequerboard => in_stripe(x_px, 0) != in_stripe(y_px, 1),
            Shape::Rhombus => x.abs() + y.abs() < 1.2,
        }
    }
}

/// Returns whether the point lies in a five-pointed star in the unit circle, with one point at the top.
///
/// The five lines through its points bound a pentagon. A point lies in the star if and only if at most one line
/// separates it from the centre.
fn in_star(x: f32, y: f32) -> bool {
    // Each line is opposite a point of the star: its normal is (sin, −cos) of 0°, 72°, … with y downwards, and its
    // distance is cos 72°.
    const NORMALS: [(f32, f32); 5] = [
        (0.0, -1.0),
        (0.951_056_5, -0.309_017),
        (0.587_785_25, 0.809_017),
        (-0.587_785_25, 0.809_017),
        (-0.951_056_5, -0.309_017),
    ];
    NORMALS.iter().filter(|(right, down)| x * right + y * down > 0.309_017).count() <= 1
}

#[cfg(test)]
mod tests {
    use super::super::rng::Stream;
    use super::super::scenes::SCENE_COUNT;
    use super::*;

    fn render_scene(number: usize, seed: u64) -> RenderedImage {
        RenderedImage::render(Scene::from_number(number), &mut SampleRng::new(seed, Stream::TrainImage(number as u32)))
    }

    #[test]
    fn shapes_cover_part_of_the_image() {
        for number in 0..SCENE_COUNT {
            let image = render_scene(number, 5);
            let covered = image.coverage.iter().map(|&hits| f64::from(hits)).sum::<f64>()
                / (image.coverage.len() as f64 * f64::from(FULL));
            assert!((0.08..0.75).contains(&covered), "{:?} covers {covered}", SHAPES[image.scene.shape]);
            assert_eq!(image.rgb(true).len(), (WIDTH_PX * image.height_px * 3) as usize);
        }
    }

    #[test]
    fn star_contains_centre_and_points_but_not_gaps() {
        assert!(in_star(0.0, 0.0));
        assert!(in_star(0.0, -0.95));
        assert!(in_star(0.9, -0.29));
        assert!(!in_star(0.0, 0.5));
        assert!(!in_star(0.5, -0.6));
        assert!(!in_star(2.0, 2.0));
        assert!(!in_star(0.0, -1.1));
    }

    #[test]
    fn grey_scenes_have_no_hue() {
        for number in (0..SCENE_COUNT).filter(|&number| Scene::from_number(number).is_grey()) {
            let image = render_scene(number, 9);
            for colour in [image.foreground, image.background] {
                assert!(colour[0] == colour[1] && colour[1] == colour[2], "{colour:?}");
            }
        }
    }
}
