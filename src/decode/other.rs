//! WebP, BMP and TIFF → RGB through the decoders of `image`.

use std::io::Cursor;

use image::codecs::bmp::BmpDecoder;
use image::codecs::tiff::TiffDecoder;
use image::codecs::webp::WebPDecoder;
use image::metadata::Orientation;
use image::{ColorType, DynamicImage, ImageBuffer, ImageDecoder, ImageError};

use super::colour::Alpha;
use super::error::DecodeError;
use super::scratch;
use super::sniff::Format;
use super::tiff as directory;
use super::webp;
use super::{Buffers, Limits, Size};

/// Bytes that a decoder takes beside what grows with its image.
const FIXED_BYTES: u64 = 2 << 20;

/// WebP: lossy, lossless, or the first frame of an animation on a transparent canvas.
pub(super) fn webp(
    data: &[u8],
    limits: &mut Limits<'_>,
    alpha: Alpha,
    buffers: &mut Buffers,
) -> Result<Size, DecodeError> {
    let bytes_per_px = webp::walk(data)?;
    let mut decoder = WebPDecoder::new(Cursor::new(data)).map_err(|error| refusal(Format::WebP, error))?;
    if decoder.has_animation() {
        decoder.set_background_color(image::Rgba([0, 0, 0, 0])).map_err(|error| refusal(Format::WebP, error))?;
    }
    read(decoder, |pixels, _| pixels * bytes_per_px, limits, alpha, buffers)
}

/// Windows bitmap.
pub(super) fn bmp(
    data: &[u8],
    limits: &mut Limits<'_>,
    alpha: Alpha,
    buffers: &mut Buffers,
) -> Result<Size, DecodeError> {
    let decoder = BmpDecoder::new(Cursor::new(data)).map_err(|error| refusal(Format::Bmp, error))?;
    read(decoder, |_, _| 0, limits, alpha, buffers)
}

/// The first page of a TIFF, turned as its orientation says: the one format where Pillow does that unasked.
pub(super) fn tiff(
    data: &[u8],
    limits: &mut Limits<'_>,
    alpha: Alpha,
    buffers: &mut Buffers,
) -> Result<Size, DecodeError> {
    directory::walk(data)?;
    let mut decoder = TiffDecoder::new(Cursor::new(data)).map_err(|error| refusal(Format::Tiff, error))?;
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    // Its own copy of the samples (of four inks where it gives three colours), and one strip on its way.
    let held = |_, samples: u64| 3 * samples + data.len() as u64;
    let mut size = read(decoder, held, limits, alpha, buffers)?;
    if orientation != Orientation::NoTransforms {
        let len = size.pixels() * 3;
        let mut pixels = std::mem::take(&mut buffers.rgb);
        pixels.truncate(len);
        let upright = ImageBuffer::from_raw(size.width, size.height, pixels)
            .ok_or_else(|| DecodeError::corrupt(Format::Tiff, "its size changed while it was read"))?;
        let mut upright = DynamicImage::ImageRgb8(upright);
        upright.apply_orientation(orientation);
        size = Size { width: upright.width(), height: upright.height() };
        buffers.rgb = upright.into_bytes();
    }
    Ok(size)
}

/// `held`: bytes that the decoder takes for so many pixels and bytes of samples.
fn read(
    mut decoder: impl ImageDecoder,
    held: impl FnOnce(u64, u64) -> u64,
    limits: &mut Limits<'_>,
    alpha: Alpha,
    buffers: &mut Buffers,
) -> Result<Size, DecodeError> {
    let format = limits.format;
    let (width, height) = decoder.dimensions();
    let size = limits.check(u64::from(width), u64::from(height))?;
    let layout = decoder.color_type();
    let samples = size.pixels() * usize::from(layout.bytes_per_pixel());
    let held = held(size.pixels() as u64, samples as u64) + FIXED_BYTES;
    // RGB goes where it belongs at once.
    let raw_bytes = if layout == ColorType::Rgb8 { 0 } else { samples as u64 };
    limits.admit(size, raw_bytes + held)?;
    let mut bounds = image::Limits::default();
    bounds.max_image_width = Some(width);
    bounds.max_image_height = Some(height);
    bounds.max_alloc = Some(held);
    decoder.set_limits(bounds).map_err(|error| refusal(format, error))?;
    if layout == ColorType::Rgb8 {
        let rgb = scratch::grown(&mut buffers.rgb, samples);
        rgb.fill(0);
        decoder.read_image(rgb).map_err(|error| refusal(format, error))?;
        return Ok(size);
    }
    let raw = scratch::grown(&mut buffers.raw, samples);
    raw.fill(0);
    decoder.read_image(raw).map_err(|error| refusal(format, error))?;
    let rgb = scratch::grown(&mut buffers.rgb, size.pixels() * 3).as_chunks_mut::<3>().0;
    convert(format, layout, raw, alpha, rgb)?;
    Ok(size)
}

/// Samples in the machine's byte order → RGB; 16 bits as [`super::png`] takes them.
fn convert(
    format: Format,
    layout: ColorType,
    raw: &[u8],
    alpha: Alpha,
    rgb: &mut [[u8; 3]],
) -> Result<(), DecodeError> {
    match layout {
        ColorType::L8 => each(rgb, raw, |[grey]| [grey; 3]),
        ColorType::La8 => each(rgb, raw, |[grey, a]| alpha.apply([grey, grey, grey, a])),
        ColorType::Rgba8 => each(rgb, raw, |colour| alpha.apply(colour)),
        ColorType::L16 => each(rgb, raw, |grey: [u8; 2]| [u16::from_ne_bytes(grey).min(255) as u8; 3]),
        ColorType::La16 => each(rgb, raw, |[g1, g0, a1, a0]| {
            let grey = high([g1, g0]);
            alpha.apply([grey, grey, grey, high([a1, a0])])
        }),
        ColorType::Rgb16 => each(rgb, raw, |[r1, r0, g1, g0, b1, b0]| [high([r1, r0]), high([g1, g0]), high([b1, b0])]),
        ColorType::Rgba16 => each(rgb, raw, |[r1, r0, g1, g0, b1, b0, a1, a0]| {
            alpha.apply([high([r1, r0]), high([g1, g0]), high([b1, b0]), high([a1, a0])])
        }),
        other => {
            return Err(DecodeError::UnsupportedVariant { format, detail: format!("`{other:?}` samples") });
        }
    }
    Ok(())
}

fn each<const N: usize>(rgb: &mut [[u8; 3]], raw: &[u8], pixel: impl Fn([u8; N]) -> [u8; 3]) {
    for (to, from) in rgb.iter_mut().zip(raw.as_chunks::<N>().0) {
        *to = pixel(*from);
    }
}

fn high(sample: [u8; 2]) -> u8 {
    (u16::from_ne_bytes(sample) >> 8) as u8
}

fn refusal(format: Format, error: ImageError) -> DecodeError {
    match error {
        ImageError::IoError(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            DecodeError::Truncated { format }
        }
        ImageError::Unsupported(error) => DecodeError::variant(format, error),
        other => DecodeError::corrupt(format, other),
    }
}
