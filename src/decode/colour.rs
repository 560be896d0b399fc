//! Pixels of other layouts → RGB, with the integer arithmetic of Pillow and libjpeg.

pub use crate::types::Alpha;

/// Bytes of an RGB pixel.
pub(super) const CHANNELS: usize = 3;

impl Alpha {
    /// Converts one pixel.
    pub(super) fn apply(self, [r, g, b, a]: [u8; 4]) -> [u8; 3] {
        match self {
            Self::Drop => [r, g, b],
            Self::White => [on_white(r, a), on_white(g, a), on_white(b, a)],
        }
    }
}

/// Composites a sample on white as `ImagingAlphaComposite` (`src/libImaging/AlphaComposite.c`) does: with 7 extra bits, and
/// shifts in place of the division by 255.
fn on_white(colour: u8, alpha: u8) -> u8 {
    let (colour, alpha) = (u32::from(colour), u32::from(alpha));
    let sum = (colour * alpha + 255 * (255 - alpha) + 128) << 7;
    ((((sum >> 8) + sum) >> 8) >> 7) as u8
}

/// Converts CMYK as Pillow's `cmyk2rgb` (`src/libImaging/Convert.c`) does: white minus ink, without a colour profile.
pub(super) fn cmyk([c, m, y, k]: [u8; 4]) -> [u8; 3] {
    let white = 255 - k;
    [c, m, y].map(|ink| white - mul_div_255(ink, white))
}

/// Rounded product of two fractions of 255 (`MULDIV255` in Pillow).
fn mul_div_255(a: u8, b: u8) -> u8 {
    let product = u32::from(a) * u32::from(b) + 128;
    (((product >> 8) + product) >> 8) as u8
}

/// Converts JFIF's YCbCr in libjpeg's 16-bit fixed point (`build_ycc_rgb_table` in `jdcolor.c`).
pub(super) fn ycbcr([y, cb, cr]: [u8; 3]) -> [u8; 3] {
    const HALF: i32 = 1 << 15;
    let (y, cb, cr) = (i32::from(y), i32::from(cb) - 128, i32::from(cr) - 128);
    let red = (91_881 * cr + HALF) >> 16;
    let green = (-22_554 * cb - 46_802 * cr + HALF) >> 16;
    let blue = (116_130 * cb + HALF) >> 16;
    [y + red, y + green, y + blue].map(|value| value.clamp(0, 255).cast_unsigned() as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compositing_matches_pillow() {
        // From Pillow 13: alpha_composite of one RGBA pixel over opaque white.
        for (pixel, expected) in [
            ([10, 20, 30, 0], [255, 255, 255]),
            ([10, 20, 30, 77], [181, 184, 187]),
            ([200, 100, 50, 200], [212, 133, 94]),
            ([40, 50, 60, 128], [147, 152, 157]),
            ([0, 1, 1, 1], [254, 254, 254]),
            ([9, 8, 7, 255], [9, 8, 7]),
        ] {
            assert_eq!(Alpha::White.apply(pixel), expected);
        }
        assert_eq!(Alpha::Drop.apply([10, 20, 30, 0]), [10, 20, 30]);
    }

    #[test]
    fn white_stays_white_under_any_alpha() {
        assert!((0..=255).all(|alpha| on_white(255, alpha) == 255));
    }

    #[test]
    fn grey_has_no_colour_in_ycbcr() {
        assert!((0..=255).all(|y| ycbcr([y, 128, 128]) == [y, y, y]));
        assert_eq!(ycbcr([76, 85, 255]), [254, 0, 0]);
    }
}
