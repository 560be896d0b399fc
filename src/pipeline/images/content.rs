//! Content of the rows of an image stream: image files, or the numbers of published features.

use std::fmt;
use std::fs::File;
use std::path::Path;

use crate::chunk::features::FeatureWriter;
use crate::chunk::pixels::PixelWriter;
use crate::chunk::{Checksum, ChunkError, RowMeta};
use crate::config::bytes::StreamBytes;
use crate::corpus::{EncodedImage, MAX_NUMBER_BYTES, NumbersProblem, parse_numbers};
use crate::decode::{DecodeError, Decoder, HEADER_BYTES, ImageSpec, RETAINED_BYTES, View};
use crate::types::{Compression, Precision};

/// Bytes of a row of numbers beside the numbers: its URL.
const BESIDE_BYTES: u64 = 64 << 10;

/// Content of the rows of a stream, and what it becomes.
#[derive(Debug, Clone)]
pub(crate) enum RowContent {
    /// Image files, which become squares of pixels.
    Images(ImageSpec),
    /// Published features as text.
    Numbers(NumberSpec),
}

/// Shape of a published feature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NumberSpec {
    /// Values of a feature.
    pub(crate) dim: u32,
    /// Format in which they are stored.
    pub(crate) precision: Precision,
}

impl NumberSpec {
    /// Returns the longest row of text.
    fn record_bytes(self) -> u64 {
        u64::from(self.dim) * (MAX_NUMBER_BYTES as u64 + 1) + BESIDE_BYTES
    }
}

impl RowContent {
    /// Returns the bytes of a decoded row: pixels, or values as f32.
    pub(crate) fn decoded_bytes(&self) -> u64 {
        match self {
            Self::Images(spec) => spec.pixel_bytes(),
            Self::Numbers(spec) => 4 * u64::from(spec.dim),
        }
    }

    /// Returns the largest encoded image, or text of numbers.
    pub(crate) fn max_encoded_bytes(&self) -> u64 {
        match self {
            Self::Images(spec) => spec.max_encoded_bytes,
            Self::Numbers(spec) => spec.record_bytes(),
        }
    }

    /// Returns the longest row of text.
    pub(super) fn max_record_bytes(&self) -> usize {
        let bytes = match self {
            Self::Images(spec) => (spec.max_encoded_bytes / 3).saturating_mul(4).saturating_add(BESIDE_BYTES),
            Self::Numbers(spec) => spec.record_bytes(),
        };
        usize::try_from(bytes).unwrap_or(usize::MAX / 2)
    }

    /// Returns the bytes that decoding may allocate, all threads together.
    pub(super) fn decode_bytes(&self) -> u64 {
        match self {
            Self::Images(spec) => spec.decode_bytes(),
            Self::Numbers(_) => 0,
        }
    }

    /// Returns the bytes of `limits.memory` that each part of a stream takes.
    pub(crate) fn stream_bytes(&self, threads: usize, chunk_rows: u64) -> StreamBytes {
        match self {
            Self::Images(spec) => {
                let decoders = spec.decode_bytes() + threads as u64 * (RETAINED_BYTES + HEADER_BYTES);
                StreamBytes::new(spec.geometry.output_px(), spec.max_encoded_bytes, decoders, chunk_rows)
            }
            Self::Numbers(spec) => StreamBytes::of_numbers(spec.dim, spec.record_bytes(), chunk_rows),
        }
    }

    /// Returns the side of the squares in pixels; 0 for features.
    pub(crate) fn size_px(&self) -> u32 {
        match self {
            Self::Images(spec) => spec.geometry.output_px(),
            Self::Numbers(_) => 0,
        }
    }
}

/// Decoder of rows, with buffers that are reused.
pub(crate) enum RowDecoder {
    /// Decoder of image files.
    Image(Box<Decoder>),
    /// Decoder of numbers.
    Numbers,
}

/// Reason why a row cannot be decoded.
#[derive(Debug)]
pub(crate) enum RowError {
    /// The image cannot be decoded.
    Image(DecodeError),
    /// The text is not a feature.
    Numbers(NumbersProblem),
}

impl RowError {
    /// Returns the name used in counts and quarantine files.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Image(error) => error.reason().as_str(),
            Self::Numbers(problem) => problem.as_str(),
        }
    }
}

impl fmt::Display for RowError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Image(error) => error.fmt(out),
            Self::Numbers(problem) => problem.fmt(out),
        }
    }
}

impl RowDecoder {
    /// Creates a decoder.
    pub(crate) fn new(content: &RowContent) -> Self {
        match content {
            RowContent::Images(spec) => Self::Image(Box::new(Decoder::new(spec.clone()))),
            RowContent::Numbers(_) => Self::Numbers,
        }
    }

    /// Decodes a row and writes its views to `out`, one after the other. `admit` reserves the memory that the row takes.
    ///
    /// # Errors
    /// The reason why the row cannot be used.
    pub(crate) fn decode<G>(
        &mut self,
        (encoded, is_base64): (&mut [u8], bool),
        views: &[View],
        out: &mut [u8],
        admit: impl FnOnce(u64) -> G,
    ) -> Result<(), RowError> {
        match self {
            Self::Image(decoder) if is_base64 => decoder.decode_base64_views(encoded, views, out, admit),
            Self::Image(decoder) => decoder.decode_views(encoded, views, out, admit),
            Self::Numbers => return parse_numbers(encoded, out).map_err(RowError::Numbers),
        }
        .map(|_| ())
        .map_err(RowError::Image)
    }

    /// Decodes a whole image, or a feature, to a buffer of its size.
    ///
    /// # Errors
    /// The reason why the row cannot be used.
    pub(crate) fn decode_whole(&mut self, image: EncodedImage<'_>, out: &mut [u8]) -> Result<(), RowError> {
        let is_base64 = matches!(image, EncodedImage::Base64(_));
        self.decode((&mut image.bytes().to_vec(), is_base64), &[View::Plain], out, |_| ())
    }
}

/// Writer of one chunk of rows.
pub(super) enum RowWriter {
    /// Writer of squares of pixels.
    Pixels(PixelWriter),
    /// Writer of features.
    Features(Box<FeatureWriter>),
}

impl RowWriter {
    /// Creates the file at `path`. Features are never compressed.
    pub(super) fn create(
        path: &Path,
        content: &RowContent,
        compression: Compression,
        generation: &str,
    ) -> Result<Self, ChunkError> {
        match content {
            RowContent::Images(spec) => {
                PixelWriter::create(path, spec.geometry.output_px(), compression, generation).map(Self::Pixels)
            }
            RowContent::Numbers(NumberSpec { dim, precision }) => {
                let writer = FeatureWriter::create(path, *dim as usize, *precision, generation)?;
                Ok(Self::Features(Box::new(writer)))
            }
        }
    }

    /// Appends decoded rows.
    pub(super) fn write(&mut self, rows: &RowMeta, decoded: &[u8]) -> Result<(), ChunkError> {
        match self {
            Self::Pixels(writer) => writer.write(rows, decoded),
            Self::Features(writer) => {
                let values: Vec<f32> =
                    decoded.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
                writer.write(rows, &values, &[])
            }
        }
    }

    /// Returns a handle of the unfinished file, if it is worth writing out early.
    pub(super) fn handle(&self) -> Option<File> {
        match self {
            Self::Pixels(writer) => writer.handle(),
            Self::Features(_) => None,
        }
    }

    /// Completes the file.
    pub(super) fn finish(self) -> Result<Checksum, ChunkError> {
        match self {
            Self::Pixels(writer) => writer.finish(),
            Self::Features(writer) => writer.finish(),
        }
    }
}
