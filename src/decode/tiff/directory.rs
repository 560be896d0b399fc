//! Reader for the directory of a TIFF's first page, with limits on every field, and writer of a directory for the decoder.
//!
//! The decoder allocates 32 bytes for each value of a field that it reads, before the image's size is known. Fields of more
//! values than any real picture has are therefore refused first.

use crate::decode::error::DecodeError;
use crate::decode::sniff::Format;

/// Upper bound on the fields of a directory; 10 to 30 are usual.
const MAX_FIELDS: u64 = 4096;
/// Upper bound on strips or tiles.
const MAX_CHUNKS: u64 = 32 << 10;
/// Upper bound on the values of other fields.
const MAX_VALUES: u64 = 8 << 10;
/// Upper bound on samples of a pixel.
const MAX_SAMPLES: u64 = 64;

const TRUNCATED: DecodeError = DecodeError::Truncated { format: Format::Tiff };

fn corrupt(detail: impl std::fmt::Display) -> DecodeError {
    DecodeError::corrupt(Format::Tiff, detail)
}

/// The fields that matter for the pixels.
#[expect(clippy::struct_excessive_bools, reason = "independent properties of a file")]
pub(super) struct Directory {
    pub(super) width: u64,
    pub(super) height: u64,
    /// Bits of a sample, the same for all.
    pub(super) bits: usize,
    pub(super) samples: usize,
    pub(super) compression: u64,
    pub(super) photometric: u64,
    pub(super) sample_format: u64,
    pub(super) orientation: u64,
    /// Meaning of the first sample behind the colours.
    pub(super) extra: Option<u64>,
    /// True if samples of a pixel are stored in planes of their own.
    pub(super) planar: bool,
    /// True if the first pixel of a byte is in its lowest bits.
    pub(super) reversed_bits: bool,
    /// True if Cb and Cr are subsampled.
    pub(super) subsampled: bool,
    /// Size of a tile, or of a strip.
    pub(super) chunk_width: u64,
    pub(super) chunk_height: u64,
    /// Offset and length of each strip or tile, plane after plane.
    pub(super) chunks: Vec<(u64, u64)>,
    pub(super) jpeg_tables: Vec<u8>,
    pub(super) tiled: bool,
    predictor: u64,
    colour_map: Vec<u64>,
    big_endian: bool,
}

/// A strip or tile and the pixels of the image that it holds.
pub(super) struct Place {
    pub(super) number: usize,
    pub(super) plane: usize,
    pub(super) left: u64,
    pub(super) top: u64,
    pub(super) width: u64,
    pub(super) height: u64,
}

impl Directory {
    /// Reads the directory of the first page. The offset of the next page is ignored.
    pub(super) fn read(data: &[u8]) -> Result<Self, DecodeError> {
        let fields = Fields::read(data)?;
        let one = |tag, default| Ok(fields.values(tag, MAX_VALUES)?.first().copied().unwrap_or(default));
        let required = |tag| {
            let value = fields.values(tag, MAX_VALUES)?.first().copied();
            value.ok_or_else(|| corrupt(format!("its field {tag} is missing")))
        };
        let (width, height) = (required(256)?, required(257)?);
        let samples = one(277, 1)?;
        let depths = fields.values(258, MAX_VALUES)?;
        let bits = depths.first().copied().unwrap_or(1);
        if samples == 0 || samples > MAX_SAMPLES || bits == 0 || bits > 64 {
            return Err(corrupt(format!("it has {samples} samples of {bits} bits")));
        }
        if depths.iter().any(|depth| *depth != bits) {
            return Err(DecodeError::variant(Format::Tiff, "TIFF of samples of several depths"));
        }
        let tiled = fields.has(324);
        let (chunk_width, chunk_height) =
            if tiled { (required(322)?, required(323)?) } else { (width, one(278, height)?.min(height)) };
        if width == 0 || height == 0 || chunk_width == 0 || chunk_height == 0 {
            return Err(corrupt("it, or a tile of it, is 0 pixels wide or high"));
        }
        let subsampling = fields.values(530, MAX_VALUES)?;
        let mut directory = Self {
            width,
            height,
            bits: bits as usize,
            samples: samples as usize,
            compression: one(259, 1)?,
            photometric: one(262, 0)?,
            sample_format: one(339, 1)?,
            orientation: one(274, 1)?,
            extra: fields.values(338, MAX_VALUES)?.first().copied(),
            planar: one(284, 1)? == 2 && samples > 1,
            reversed_bits: one(266, 1)? == 2,
            subsampled: subsampling.iter().any(|factor| *factor != 1),
            chunk_width,
            chunk_height,
            chunks: Vec::new(),
            jpeg_tables: fields.values(347, MAX_VALUES)?.into_iter().map(|byte| byte as u8).collect(),
            tiled,
            predictor: one(317, 1)?,
            colour_map: fields.values(320, MAX_VALUES)?,
            big_endian: fields.bytes.big_endian,
        };
        let (offsets, lengths) = if tiled { (324, 325) } else { (273, 279) };
        directory.chunks =
            directory.place_chunks(fields.values(offsets, MAX_CHUNKS)?, fields.values(lengths, MAX_CHUNKS)?)?;
        Ok(directory)
    }

    /// Upper bound on the pixels of a strip or tile that is a JPEG. Some writers complete its last blocks.
    pub(super) fn max_jpeg_px(&self) -> u64 {
        (self.chunk_width + 64) * (self.chunk_height + 64)
    }

    /// Number of strips or tiles of a plane.
    fn chunks_per_plane(&self) -> u64 {
        self.width.div_ceil(self.chunk_width).saturating_mul(self.height.div_ceil(self.chunk_height))
    }

    fn place_chunks(&self, offsets: Vec<u64>, mut lengths: Vec<u64>) -> Result<Vec<(u64, u64)>, DecodeError> {
        let planes = if self.planar { self.samples as u64 } else { 1 };
        let count = self.chunks_per_plane().saturating_mul(planes);
        if count > offsets.len() as u64 {
            return Err(corrupt(format!("it has {} strips or tiles in place of {count}", offsets.len())));
        }
        if lengths.is_empty() && self.compression == 1 {
            let together = if self.planar { 1 } else { self.samples as u64 };
            let row_bytes = self.chunk_width.saturating_mul(self.bits as u64 * together).div_ceil(8);
            lengths = vec![row_bytes.saturating_mul(self.chunk_height); offsets.len()];
        }
        if count > lengths.len() as u64 {
            return Err(corrupt("the lengths of its strips or tiles are missing"));
        }
        Ok(offsets.into_iter().zip(lengths).take(count as usize).collect())
    }

    /// Returns the positions of the strips or tiles, in the order of [`Self::chunks`].
    pub(super) fn places(&self) -> impl Iterator<Item = Place> {
        let (across, per_plane) = (self.width.div_ceil(self.chunk_width), self.chunks_per_plane());
        (0..self.chunks.len()).map(move |number| {
            let within = number as u64 % per_plane;
            let (left, top) = (within % across * self.chunk_width, within / across * self.chunk_height);
            Place {
                number,
                plane: (number as u64 / per_plane) as usize,
                left,
                top,
                width: self.chunk_width.min(self.width - left),
                height: self.chunk_height.min(self.height - top),
            }
        })
    }

    /// Appends a directory that describes one strip or tile as an image of grey samples, `together` in each pixel, to a copy
    /// of the file, and makes the file begin with it.
    pub(super) fn write_chunk(
        &self,
        number: usize,
        height: u64,
        together: usize,
        file: &mut Vec<u8>,
    ) -> Result<(), DecodeError> {
        let (offset, length) = self.chunks[number];
        let fields = [
            (256, self.chunk_width),
            (257, height),
            (258, self.bits as u64),
            (259, self.compression),
            // Black is zero.
            (262, 1),
            (273, offset),
            (277, together as u64),
            (278, height),
            (279, length),
            (284, 1),
            (317, self.predictor),
        ];
        let to_bytes = |value: u64, width: usize| {
            let value = u32::try_from(value).map_err(|_| corrupt("a number is over 32 bits"))?;
            let bytes = if self.big_endian { value.to_be_bytes() } else { value.to_le_bytes() };
            Ok(if self.big_endian { bytes[4 - width..].to_vec() } else { bytes[..width].to_vec() })
        };
        file.resize(file.len().next_multiple_of(2), 0);
        let start = file.len();
        file.extend(to_bytes(fields.len() as u64, 2)?);
        for (tag, value) in fields {
            file.extend(to_bytes(tag, 2)?);
            // One LONG.
            file.extend(to_bytes(4, 2)?);
            file.extend(to_bytes(1, 4)?);
            file.extend(to_bytes(value, 4)?);
        }
        // There is no other page.
        file.extend([0; 4]);
        file[2..4].copy_from_slice(&to_bytes(42, 2)?);
        file[4..8].copy_from_slice(&to_bytes(start as u64, 4)?);
        Ok(())
    }

    /// Returns the RGB of each index, the high bytes of the colour map, as in Pillow.
    pub(super) fn palette(&self) -> Result<Vec<[u8; 3]>, DecodeError> {
        let colours = self.colour_map.len() / 3;
        if colours == 0 {
            return Err(corrupt("its palette is missing"));
        }
        let high = |at: usize| (self.colour_map[at] >> 8) as u8;
        Ok((0..colours).map(|index| [high(index), high(colours + index), high(2 * colours + index)]).collect())
    }
}

struct Bytes<'a> {
    data: &'a [u8],
    big_endian: bool,
}

impl Bytes<'_> {
    /// Reads the number of `width` bytes at `at`.
    fn number(&self, at: u64, width: usize) -> Option<u64> {
        let at = usize::try_from(at).ok()?;
        let bytes = self.data.get(at..at.checked_add(width)?)?;
        let push = |sum: u64, byte: &u8| sum << 8 | u64::from(*byte);
        Some(if self.big_endian { bytes.iter().fold(0, push) } else { bytes.iter().rev().fold(0, push) })
    }
}

struct Field {
    tag: u64,
    /// Bytes of a value.
    width: usize,
    count: u64,
    /// Offset of the values.
    at: u64,
}

/// The fields of the first directory.
struct Fields<'a> {
    bytes: Bytes<'a>,
    fields: Vec<Field>,
}

impl<'a> Fields<'a> {
    fn read(data: &'a [u8]) -> Result<Self, DecodeError> {
        let bytes = Bytes { data, big_endian: data.starts_with(b"MM") };
        // Classic files count in 2 and 4 bytes, big ones in 8.
        let big = bytes.number(2, 2) == Some(43);
        let (start, count_width, field_bytes, width) =
            if big { (bytes.number(8, 8), 8, 20, 8) } else { (bytes.number(4, 4), 2, 12, 4) };
        let start = start.ok_or(TRUNCATED)?;
        let count = bytes.number(start, count_width).ok_or(TRUNCATED)?;
        if count > MAX_FIELDS {
            return Err(corrupt("its directory has too many fields"));
        }
        let mut fields = Vec::with_capacity(count as usize);
        for number in 0..count {
            let at = start.saturating_add(count_width as u64 + number * field_bytes);
            let tag = bytes.number(at, 2).ok_or(TRUNCATED)?;
            let kind = bytes.number(at.saturating_add(2), 2).ok_or(TRUNCATED)?;
            let count = bytes.number(at.saturating_add(4), width).ok_or(TRUNCATED)?;
            let place = at.saturating_add(4 + width as u64);
            let value_width = match kind {
                1 | 2 | 6 | 7 => 1,
                3 | 8 => 2,
                4 | 9 | 11 | 13 => 4,
                _ => 8,
            };
            let within = count.saturating_mul(value_width as u64) <= width as u64;
            let at = if within { place } else { bytes.number(place, width).ok_or(TRUNCATED)? };
            fields.push(Field { tag, width: value_width, count, at });
        }
        Ok(Self { bytes, fields })
    }

    fn has(&self, tag: u64) -> bool {
        self.fields.iter().any(|field| field.tag == tag)
    }

    /// Returns the values of a field; none if it is missing.
    fn values(&self, tag: u64, most: u64) -> Result<Vec<u64>, DecodeError> {
        let Some(field) = self.fields.iter().find(|field| field.tag == tag) else { return Ok(Vec::new()) };
        if field.count > most {
            return Err(corrupt(format!("its field {tag} has {} values", field.count)));
        }
        let value = |number: u64| self.bytes.number(field.at.saturating_add(number * field.width as u64), field.width);
        (0..field.count).map(|number| value(number).ok_or(TRUNCATED)).collect()
    }
}
