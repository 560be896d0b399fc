//! JPEG → RGB through two decoders: zune-jpeg for the usual layouts, libjpeg-turbo for all others.
//!
//! zune-jpeg is 2.5 times as fast as libjpeg-turbo without its assembler, which would need `nasm` to build, but it
//! returns wrong pixels without an error for several layouts and for data that end early. [`markers`] therefore reads
//! all segments first and sends only [plain](Header::plain) files to it, as a [sealed](seal) copy in which missing
//! data is an error. Every other file, and every file that zune-jpeg refuses, goes to libjpeg-turbo (as built by
//! `mozjpeg-sys`), which is what Pillow uses. It alone decides which damaged files are decoded.
//!
//! A file without an end-of-image marker is refused, as Pillow does.

mod libjpeg;
mod markers;
mod seal;
mod source;
#[cfg(test)]
mod tests;

use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;
use zune_jpeg::errors::DecodeErrors;

use self::markers::Header;
use self::source::Source;
use super::colour;
use super::error::DecodeError;
use super::scratch;
use super::{Buffers, Limits, Size};

pub(super) use self::libjpeg::{StripRows, decode_strip};

/// Upper bound on the scans of one file. Every scan costs time for all pixels; real files have at most a dozen.
const MAX_SCANS: usize = 500;

/// Value of a sample without data, as in libjpeg.
const GREY: u8 = 128;

pub(super) fn decode(data: &mut [u8], limits: &mut Limits<'_>, buffers: &mut Buffers) -> Result<Size, DecodeError> {
    let header = markers::read_header(data)?;
    let size = limits.check(u64::from(header.width), u64::from(header.height))?;
    // A large file may leave no memory for a copy; libjpeg needs none.
    let (decoder_bytes, sealed_bytes) = (header.decoder_bytes(), data.len() as u64 + seal::MAX_BYTES);
    let plain = header.plain && limits.allows(size, decoder_bytes + sealed_bytes);
    limits.admit(size, decoder_bytes + if plain { sealed_bytes } else { 0 })?;
    if let Some((at, height)) = header.missing_height {
        data[at..at + 2].copy_from_slice(&height.to_be_bytes());
    }
    let rgb = scratch::grow(&mut buffers.rgb, size.pixels() * 3);
    if plain {
        rgb.fill(GREY);
        seal::seal(data, &mut buffers.raw);
        if decode_plain(&buffers.raw, &header, rgb).is_ok() {
            return Ok(size);
        }
    }
    if header.components == 4 {
        let inks = scratch::grow(&mut buffers.raw, size.pixels() * 4);
        libjpeg::decode(data, size, header.components, inks)?;
        for (to, from) in rgb.as_chunks_mut::<3>().0.iter_mut().zip(inks.as_chunks::<4>().0) {
            // Pillow treats every file of four components as Adobe's, which store inks inverted.
            *to = colour::cmyk(from.map(|ink| 255 - ink));
        }
    } else {
        libjpeg::decode(data, size, header.components, rgb)?;
    }
    Ok(size)
}

/// Decodes a sealed file through zune-jpeg. After an error `rgb` may hold anything.
fn decode_plain(sealed: &[u8], header: &Header, rgb: &mut [u8]) -> Result<(), DecodeErrors> {
    let options = DecoderOptions::default()
        .set_strict_mode(true)
        .set_max_width(usize::from(u16::MAX))
        .set_max_height(usize::from(u16::MAX))
        .jpeg_set_max_scans(MAX_SCANS)
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(Source::new(sealed), options);
    decoder.decode_headers()?;
    if decoder.dimensions() != Some((usize::from(header.width), usize::from(header.height))) {
        return Err(DecodeErrors::FormatStatic("the size differs from the frame header"));
    }
    decoder.decode_into(rgb)
}
