//! Pictures of a concept: numbers in, coverage and RGB rows out. Pure.
//!
//! A picture is 300 px wide like the published thumbnails; its height, the place and size of the shape, the shades and the
//! noise vary with the dice. Sizes are in pixels, colours in sRGB bytes.

use super::concepts::COLOURS;
use super::concepts::Concept;
use super::concepts::SHAPES;
use super::concepts::Shape;
use super::rng::SampleRng;

/// Width of every picture, in pixels.
pub(super) const WIDTH_PX: u32 = 300;

/// One picture before it is encoded.
pub(super) struct Picture {
    pub(super) concept: Concept,
    pub(super) height_px: u32,
    /// How much of each pixel the shape covers, row by row: 0 to [`FULL`].
    pub(super) coverage: Vec<u8>,
    /// Colour of the shape.
    pub(super) front: [u8; 3],
    /// Colour behind it.
    pub(super) back: [u8; 3],
    /// Change of brightness across and down the picture, in steps of a byte.
    slope: [f32; 2],
    noise_seed: u64,
}

/// Coverage of a pixel that lies in the shape altogether.
pub(super) const FULL: u8 = 4;

impl Picture {
    /// Draws the next picture of `concept` that `dice` give.
    pub(super) fn draw(concept: Concept, rng: &mut SampleRng) -> Self {
        let height_px = 180 + rng.below(221) as u32;
        let outline = Outline::new(SHAPES[concept.shape], height_px, rng);
        let coverage = covered(&outline, height_px);
        Self {
            concept,
            height_px,
            coverage,
            front: shade(COLOURS[concept.front], concept, rng),
            back: shade(COLOURS[concept.back], concept, rng),
            slope: [rng.between(-15.0, 15.0), rng.between(-15.0, 15.0)],
            noise_seed: rng.bits() | 1,
        }
    }

    /// RGB bytes, row by row, with the change of brightness and, where `with_grain`, noise of ±7 in every byte.
    pub(super) fn rgb(&self, with_grain: bool) -> Vec<u8> {
        let mut noise = self.noise_seed;
        let mut bytes = Vec::with_capacity(self.coverage.len() * 3);
        let across = self.slope[0] / (WIDTH_PX as f32 / 2.0);
        let down = self.slope[1] / (self.height_px as f32 / 2.0);
        let palette: [[i32; 3]; FULL as usize + 1] =
            std::array::from_fn(|coverage| self.mixed(coverage as u8).map(i32::from));
        for (row, pixels) in self.coverage.chunks(WIDTH_PX as usize).enumerate() {
            let row_light = down * row as f32 - self.slope[1] - self.slope[0];
            for (column, &coverage) in pixels.iter().enumerate() {
                let light = (row_light + across * column as f32) as i32;
                // Marsaglia's xorshift: noise needs speed, not quality.
                noise ^= noise << 13;
                noise ^= noise >> 7;
                noise ^= noise << 17;
                let colour = palette[usize::from(coverage.min(FULL))];
                let grains = if with_grain { [grain(noise), grain(noise >> 16), grain(noise >> 32)] } else { [0; 3] };
                bytes.extend_from_slice(&[0, 1, 2].map(|channel| byte(colour[channel] + light + grains[channel])));
            }
        }
        bytes
    }

    /// The colour of a pixel with this coverage, before light and noise.
    pub(super) fn mixed(&self, coverage: u8) -> [u8; 3] {
        let mix = |front: u8, back: u8| {
            let (front, back, coverage, full) =
                (u32::from(front), u32::from(back), u32::from(coverage), u32::from(FULL));
            ((front * coverage + back * full.saturating_sub(coverage)) / full) as u8
        };
        [0, 1, 2].map(|channel| mix(self.front[channel], self.back[channel]))
    }
}

/// The sum of two of the three-bit numbers in `bits`, centred: −7 to 7, small ones more often.
fn grain(bits: u64) -> i32 {
    (bits & 7) as i32 + ((bits >> 3) & 7) as i32 - 7
}

/// The nearest byte.
fn byte(value: i32) -> u8 {
    u8::try_from(value.clamp(0, 255)).unwrap_or(u8::MAX)
}

/// The colour, a little changed: all three channels alike where the concept has no hue.
fn shade(colour: [u8; 3], concept: Concept, rng: &mut SampleRng) -> [u8; 3] {
    let common = rng.between(-10.0, 10.0);
    colour.map(|value| {
        let own = rng.between(-10.0, 10.0);
        let change = if concept.is_grey() { common } else { own };
        byte(i32::from(value) + change as i32)
    })
}

/// How much of each pixel lies in the outline. Where its four corners agree, so does all of it: only pixels on an edge are
/// looked at in four more places, which is four times faster than looking so at all.
fn covered(outline: &Outline, height_px: u32) -> Vec<u8> {
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

/// A shape at a place, in pixels.
struct Outline {
    shape: Shape,
    centre: [f32; 2],
    radius: f32,
    /// Stripes across the picture, and where the first begins.
    period: [f32; 2],
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
        let in_stripe = |at: f32, axis: usize| (at / self.period[axis] + self.phase[axis]).fract() < 0.5;
        match self.shape {
            Shape::Circle => x * x + y * y < 1.0,
            Shape::Square => x.abs().max(y.abs()) < 0.9,
            Shape::Triangle => y < 0.8 && y > -0.9 && x.abs() < (y + 0.9) * 0.62,
            Shape::Star => in_star(x / 1.2, y / 1.2),
            Shape::Spool => (0.3..1.2).contains(&(x * x + y * y)),
            Shape::Cross => (x.abs() < 0.38 && y.abs() < 1.05) || (y.abs() < 0.38 && x.abs() < 1.05),
            Shape::HorizontalStripes => in_stripe(y_px, 1),
            Shape::VerticalStripes => in_stripe(x_px, 0),
            Shape::Chequerboard => in_stripe(x_px, 0) != in_stripe(y_px, 1),
            Shape::Rhombus => x.abs() + y.abs() < 1.2,
        }
    }
}

/// Whether the point lies in the five-pointed star in the unit circle, one point up.
///
/// The five lines through its points bound a pentagon; a point lies in the star if and only if at most one of the lines
/// separates it from the centre.
fn in_star(x: f32, y: f32) -> bool {
    // Each line faces a point of the star: its normal is (sin, −cos) of 0°, 72°, … with y downwards, its distance cos 72°.
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
    use super::super::concepts::CONCEPTS;
    use super::super::rng::Purpose;
    use super::*;

    fn drawn(number: usize, seed: u64) -> Picture {
        Picture::draw(Concept::of(number), &mut SampleRng::new(seed, Purpose::TrainImage(number as u32)))
    }

    #[test]
    fn every_shape_covers_a_good_part_of_the_picture_and_never_all() {
        for number in 0..CONCEPTS {
            let picture = drawn(number, 5);
            let covered = picture.coverage.iter().map(|&hits| f64::from(hits)).sum::<f64>()
                / (picture.coverage.len() as f64 * f64::from(FULL));
            assert!((0.08..0.75).contains(&covered), "{:?} covers {covered}", SHAPES[picture.concept.shape]);
            assert_eq!(picture.rgb(true).len(), (WIDTH_PX * picture.height_px * 3) as usize);
        }
    }

    #[test]
    fn the_star_has_its_centre_and_points_and_not_the_gaps() {
        assert!(in_star(0.0, 0.0));
        assert!(in_star(0.0, -0.95));
        assert!(in_star(0.9, -0.29));
        assert!(!in_star(0.0, 0.5));
        assert!(!in_star(0.5, -0.6));
        assert!(!in_star(2.0, 2.0));
        assert!(!in_star(0.0, -1.1));
    }

    #[test]
    fn grey_concepts_have_no_hue() {
        for number in (0..CONCEPTS).filter(|&number| Concept::of(number).is_grey()) {
            let picture = drawn(number, 9);
            for colour in [picture.front, picture.back] {
                assert!(colour[0] == colour[1] && colour[1] == colour[2], "{colour:?}");
            }
        }
    }
}
