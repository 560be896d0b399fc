//! JPEG → RGB through zune-jpeg, after a walk over the markers that decides what libjpeg would decide.
//!
//! The walk finds size and colour model before anything is allocated, and whether the image ends: like
//! Pillow, a file without an end-of-image marker is refused, where most decoders would return it half grey.
//! Damage inside the data that leaves the marker in place is tolerated, as Pillow does.

mod markers;
mod source;

use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;
use zune_jpeg::errors::DecodeErrors;

use self::markers::{Header, Model};
use self::source::Source;
use super::colour;
use super::error::DecodeError;
use super::scratch;
use super::sniff::Format;
use super::{Buffers, Limits, Size};

/// libjpeg has no limit, and zune-jpeg a low one; real files stay far below this.
const MAX_SCANS: usize = 500;

pub(super) fn decode(data: &mut [u8], limits: &mut Limits<'_>, buffers: &mut Buffers) -> Result<Size, DecodeError> {
    let header = markers::walk(data)?;
    let size = limits.check(u64::from(header.width), u64::from(header.height))?;
    let pixels = size.pixels();
    limits.admit(size, header.decoder_bytes())?;
    if let Some(transform_at) = header.misread_transform() {
        // zune-jpeg refuses, or takes for CMYK, what libjpeg accepts here: show it a value that it knows.
        if let Some(byte) = data.get_mut(transform_at) {
            *byte = u8::from(header.components == 3);
        }
    }
    let source: &[u8] = data;

    let options = DecoderOptions::default()
        .set_strict_mode(false)
        .set_max_width(usize::from(u16::MAX))
        .set_max_height(usize::from(u16::MAX))
        .jpeg_set_max_scans(MAX_SCANS)
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(Source::new(source), options);
    decoder.decode_headers().map_err(refusal)?;
    if decoder.dimensions() != Some((usize::from(header.width), usize::from(header.height))) {
        return Err(DecodeError::corrupt(Format::Jpeg, "two frame headers disagree"));
    }
    let found = decoder.input_colorspace().unwrap_or(ColorSpace::YCbCr);

    let direct = match header.model {
        Model::Grey => true,
        Model::YCbCr => matches!(found, ColorSpace::YCbCr | ColorSpace::YCCK),
        Model::Rgb => found == ColorSpace::RGB,
        Model::Cmyk | Model::Ycck => false,
    };
    if direct {
        let rgb = scratch::grown(&mut buffers.rgb, pixels * 3);
        fill(decoder, source, rgb, size)?;
        return Ok(size);
    }

    decoder.set_options(options.jpeg_set_out_colorspace(found));
    let channels = usize::from(header.components);
    if found.num_components() != channels {
        return Err(DecodeError::corrupt(Format::Jpeg, "the colour model does not fit the number of components"));
    }
    let raw = scratch::grown(&mut buffers.raw, pixels * channels);
    fill(decoder, source, raw, size)?;
    convert(&header, raw, scratch::grown(&mut buffers.rgb, pixels * 3));
    Ok(size)
}

/// What a row begins and ends with until it is decoded: a colour that no Y, Cb, and Cr are rounded to.
const MARK: [u8; 3] = [254, 1, 127];

/// Decodes into all of `out`, rows of pixels of 3 or 4 bytes, whatever it held: what a damaged file leaves out is grey, as libjpeg leaves it.
///
/// To make all of it grey first would cost a hundredth of the decoding. zune-jpeg writes row after row, and leaves out the last ones: so
/// only where one still has a mark it is made grey, and decoded once more.
fn fill(mut decoder: JpegDecoder<Source<'_>>, source: &[u8], out: &mut [u8], size: Size) -> Result<(), DecodeError> {
    let (row_bytes, options) = (out.len() / size.height as usize, *decoder.options());
    for row in out.chunks_exact_mut(row_bytes) {
        row[..MARK.len()].copy_from_slice(&MARK);
        row[row_bytes - MARK.len()..].copy_from_slice(&MARK);
    }
    decoder.decode_into(out).map_err(refusal)?;
    drop(decoder);
    if out.chunks_exact(row_bytes).any(|row| row.starts_with(&MARK) || row.ends_with(&MARK)) {
        out.fill(128);
        JpegDecoder::new_with_options(Source::new(source), options).decode_into(out).map_err(refusal)?;
    }
    Ok(())
}

/// Component planes as they are stored → RGB.
fn convert(header: &Header, raw: &[u8], rgb: &mut [u8]) {
    let out = rgb.as_chunks_mut::<3>().0.iter_mut();
    match header.model {
        Model::YCbCr => {
            for (to, from) in out.zip(raw.as_chunks::<3>().0) {
                *to = colour::ycbcr(*from);
            }
        }
        // Pillow takes every four-component file for Adobe's, which store inks inverted.
        Model::Cmyk => {
            for (to, from) in out.zip(raw.as_chunks::<4>().0) {
                *to = colour::cmyk(from.map(|value| 255 - value));
            }
        }
        Model::Ycck => {
            for (to, &[y, cb, cr, k]) in out.zip(raw.as_chunks::<4>().0) {
                // libjpeg gives C = 255 - R and so on, and inverting that again leaves R itself.
                let [c, m, y] = colour::ycbcr([y, cb, cr]);
                *to = colour::cmyk([c, m, y, 255 - k]);
            }
        }
        Model::Grey | Model::Rgb => {
            for (to, from) in out.zip(raw.as_chunks::<3>().0) {
                *to = *from;
            }
        }
    }
}

fn refusal(error: DecodeErrors) -> DecodeError {
    match error {
        DecodeErrors::Unsupported(what) => {
            DecodeError::UnsupportedVariant { format: Format::Jpeg, detail: format!("{what:?}") }
        }
        DecodeErrors::ExhaustedData => DecodeError::Truncated { format: Format::Jpeg },
        other => DecodeError::corrupt(Format::Jpeg, other),
    }
}
