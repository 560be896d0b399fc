//! Thumbnails of the pixels that a model receives, for reports.

use image::codecs::jpeg::JpegEncoder;
use image::imageops::thumbnail;
use image::{ExtendedColorType, RgbImage};

/// Upper bound on the side of a thumbnail, in pixels.
const SIDE_PX: u32 = 96;
/// JPEG quality of a thumbnail.
const QUALITY: u8 = 80;

/// Encodes a square of `side_px` × `side_px` RGB pixels as a small JPEG. Returns `None` if the length does not fit.
pub fn jpeg_thumbnail(pixels: &[u8], side_px: u32) -> Option<Vec<u8>> {
    let image = RgbImage::from_raw(side_px, side_px, pixels.to_vec()).filter(|_| side_px > 0)?;
    let side = SIDE_PX.min(side_px);
    let small = thumbnail(&image, side, side);
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, QUALITY).encode(&small, side, side, ExtendedColorType::Rgb8).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thumbnail_is_a_small_jpeg() {
        let pixels: Vec<u8> =
            (0..224 * 224).flat_map(|at| if at % 224 < 112 { [250, 10, 10] } else { [10, 10, 250] }).collect();
        let bytes = jpeg_thumbnail(&pixels, 224).unwrap();
        let decoder = image::codecs::jpeg::JpegDecoder::new(std::io::Cursor::new(&bytes)).unwrap();
        let back = image::DynamicImage::from_decoder(decoder).unwrap().to_rgb8();
        assert_eq!(back.dimensions(), (96, 96));
        assert!(back.get_pixel(5, 50)[0] > 200 && back.get_pixel(90, 50)[2] > 200);
        assert_eq!(jpeg_thumbnail(&pixels, 224), Some(bytes));
        assert_eq!(jpeg_thumbnail(&pixels[..30], 224), None);
        assert!(jpeg_thumbnail(&[1, 2, 3], 1).is_some());
    }
}
