//! Marker segments of a JPEG (ITU-T T.81, annex B): size, memory, and the choice of the decoder.

mod frame;
mod segments;

use crate::decode::error::DecodeError;
use crate::decode::sniff::Format;

use super::MAX_SCANS;
use frame::{Frame, Progress, Scan};
pub(super) use segments::{Segment, Segments};

/// Properties of a file that its segments determine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) width: u16,
    pub(super) height: u16,
    pub(super) components: u8,
    /// Offset of a height of 0 in the frame header, and the height that a DNL segment gives instead.
    pub(super) missing_height: Option<(usize, u16)>,
    /// True if zune-jpeg decodes this layout as libjpeg does.
    pub(super) plain: bool,
    /// Sampling factors of each component, horizontal and vertical.
    sampling: [(u8, u8); 4],
    /// True if coefficients have to be kept until the last scan.
    several_scans: bool,
}

impl Header {
    /// Upper bound on the bytes that either decoder allocates, with the inks of an image of four components.
    pub(super) fn decoder_bytes(&self) -> u64 {
        let (width, height) = (u64::from(self.width), u64::from(self.height));
        let components = self.sampling.iter().take(usize::from(self.components));
        let most =
            |factor: fn(&(u8, u8)) -> u8| components.clone().map(factor).max().map_or(1, |most| u64::from(most.max(1)));
        let (most_across, most_down) = (most(|(across, _)| *across), most(|(_, down)| *down));
        let (units_across, units_down) = (width.div_ceil(8 * most_across), height.div_ceil(8 * most_down));
        let blocks: u64 = components.map(|(across, down)| u64::from(*across) * u64::from(*down)).sum();
        let coefficients = 2 * 64 * blocks.max(1) * (units_across + 1) * (units_down + 1);
        // Rows of units between coefficients and pixels.
        let rows = 2 * 8 * 16 * 4 * (8 * most_across * units_across + 64);
        let inks = if self.components == 4 { 4 * width * height } else { 0 };
        let coefficients = if self.several_scans { coefficients } else { 0 };
        coefficients + rows + inks + (64 << 10)
    }
}

fn corrupt(detail: &'static str) -> DecodeError {
    DecodeError::corrupt(Format::Jpeg, detail)
}

fn variant(detail: impl std::fmt::Display) -> DecodeError {
    DecodeError::variant(Format::Jpeg, detail)
}

const TRUNCATED: DecodeError = DecodeError::Truncated { format: Format::Jpeg };

/// True for the header of a scan that corrects DC coefficients of a progressive file.
pub(super) fn is_refinement_of_dc(scan: &[u8]) -> bool {
    Scan::read(scan).is_some_and(|scan| scan.first == 0 && scan.high > 0)
}

/// Reads all segments, up to the end-of-image marker, which must be there.
pub(super) fn read_header(data: &[u8]) -> Result<Header, DecodeError> {
    let mut frame: Option<Frame> = None;
    let (mut jfif, mut adobe, mut scans) = (false, None, 0);
    let (mut plain, mut several_scans) = (true, false);
    let mut missing_height = None;
    let mut progress = Progress::default();
    // End of the header of a scan that holds the whole image.
    let mut only_scan = None;
    let mut ended = false;
    for segment in Segments::new(data) {
        let Segment { marker, body: at, irregular, .. } = match segment {
            Ok(segment) => segment,
            // Damage that looks like a segment. libjpeg needs nothing behind the only scan, and Pillow no sound end.
            Err(TRUNCATED)
                if only_scan.is_some_and(|end| memchr::memmem::find(&data[end..], b"\xff\xd9").is_some()) =>
            {
                (plain, ended) = (false, true);
                break;
            }
            Err(error) => return Err(error),
        };
        let body = &data[at.clone()];
        plain &= !irregular;
        match marker {
            0xd9 if scans > 0 => {
                ended = true;
                break;
            }
            0xd9 => return Err(corrupt("it ends before any scan")),
            0xd8 => return Err(corrupt("a second image begins inside the first")),
            0xc0..=0xc2 if frame.is_some() => return Err(corrupt("there are two frame headers")),
            0xc0..=0xc2 => {
                frame = Some(Frame::read(body, marker == 0xc2)?);
                several_scans |= marker == 0xc2;
            }
            0xc3 | 0xc5..=0xc7 | 0xc9..=0xcb | 0xcd..=0xcf => {
                return Err(variant(if marker >= 0xc9 { "arithmetic coding" } else { "lossless or hierarchical" }));
            }
            0xda => {
                let Some(frame) = &frame else { return Err(corrupt("a scan precedes the frame header")) };
                scans += 1;
                if scans > MAX_SCANS {
                    return Err(variant("more than 500 scans"));
                }
                several_scans |= body.first().copied() != Some(frame.components);
                only_scan = (scans == 1 && !several_scans).then_some(at.end);
                plain &= Scan::read(body).is_some_and(|scan| progress.add(frame, &scan));
            }
            0xc4 => plain &= codes_leave_ones_free(body),
            // Tables of a later scan may replace those of an earlier one, which only libjpeg keeps apart.
            0xdb => plain &= scans == 0,
            0xdc => {
                plain = false;
                if let (Some(frame), &[high, low]) = (&mut frame, body)
                    && frame.height == 0
                {
                    frame.height = u16::from_be_bytes([high, low]);
                    missing_height = Some((frame_height_offset(data), frame.height));
                }
            }
            // A restart interval of 0 is none.
            0xdd => plain &= body == [0, 0],
            0xe0 if body.starts_with(b"JFIF\0") => jfif = true,
            0xee if body.starts_with(b"Adobe") && body.len() >= 12 => adobe = Some(body[11]),
            0xe0..=0xef | 0xfe => {}
            _ => plain = false,
        }
    }
    let Some(frame) = frame.filter(|_| ended) else { return Err(TRUNCATED) };
    if frame.height == 0 {
        return Err(corrupt("it is 0 pixels high"));
    }
    plain &= frame.is_plain(jfif, adobe) && progress.is_complete(&frame);
    let Frame { width, height, components, sampling, .. } = frame;
    Ok(Header { width, height, components, missing_height, plain, sampling, several_scans })
}

/// Offset of the height in the frame header.
fn frame_height_offset(data: &[u8]) -> usize {
    let frame = Segments::new(data).flatten().find(|segment| matches!(segment.marker, 0xc0..=0xc2));
    frame.map_or(0, |segment| segment.body.start + 1)
}

/// True if no Huffman code of the tables consists of ones alone, as the specification demands (annex C).
fn codes_leave_ones_free(mut tables: &[u8]) -> bool {
    while let Some((counts, rest)) = tables.split_first_chunk::<17>() {
        let counts = &counts[1..];
        let used: u32 = counts.iter().zip(0..).map(|(count, length)| u32::from(*count) << (15 - length)).sum();
        let values: usize = counts.iter().map(|count| usize::from(*count)).sum();
        if used >= 1 << 16 || values > rest.len() {
            return false;
        }
        tables = &rest[values..];
    }
    tables.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(segments: &[(u8, &[u8])], tail: &[u8]) -> Vec<u8> {
        let mut data = vec![0xff, 0xd8];
        for (marker, body) in segments {
            data.extend([0xff, *marker]);
            data.extend(u16::try_from(body.len() + 2).unwrap().to_be_bytes());
            data.extend(*body);
        }
        data.extend(tail);
        data
    }

    const SOF3: &[u8] = &[8, 0, 5, 0, 7, 3, 1, 0x11, 0, 2, 0x11, 0, 3, 0x11, 0];
    const SOS3: &[u8] = &[3, 1, 0, 2, 0x11, 3, 0x11, 0, 63, 0];
    const JFIF: &[u8] = b"JFIF\0\x01\x01\0\0\x01\0\x01\0\0";

    fn is_plain(segments: &[(u8, &[u8])]) -> bool {
        read_header(&file(segments, b"\x12\xff\x00\x34\xff\xd9trailing")).unwrap().plain
    }

    #[test]
    fn plain_layouts_are_recognised() {
        let adobe = b"Adobe\0\x64\0\0\0\0\0";
        let rgb_ids = [8, 0, 5, 0, 7, 3, b'R', 0x11, 0, b'G', 0x11, 0, b'B', 0x11, 0];
        let rgb_scan = [3, b'R', 0, b'G', 0, b'B', 0, 0, 63, 0];
        assert!(is_plain(&[(0xc0, SOF3), (0xda, SOS3)]));
        assert!(is_plain(&[(0xe0, JFIF), (0xee, adobe), (0xc0, SOF3), (0xda, SOS3)]));
        assert!(is_plain(&[(0xdd, &[0, 0]), (0xc0, SOF3), (0xda, SOS3)]));
        for segments in [
            [(0xc0, &rgb_ids[..]), (0xda, &rgb_scan[..])],
            [(0xc0, SOF3), (0xda, &[1, 1, 0, 0, 63, 0])],
            [(0xc0, SOF3), (0xda, &[3, 2, 0, 1, 0, 3, 0, 0, 63, 0])],
            [(0xc0, &[8, 0, 5, 0, 7, 3, 1, 0x11, 0, 2, 0x12, 0, 3, 0x12, 0]), (0xda, SOS3)],
            [(0xc0, &[8, 0, 5, 0, 4, 3, 1, 0x22, 0, 2, 0x11, 0, 3, 0x11, 0]), (0xda, SOS3)],
            // The coefficients of a progressive file, but for DC, are missing.
            [(0xc2, SOF3), (0xda, &[3, 1, 0, 2, 0, 3, 0, 0, 0, 0])],
        ] {
            assert!(!is_plain(&segments), "{segments:?}");
        }
        assert!(!is_plain(&[(0xee, adobe), (0xc0, SOF3), (0xda, SOS3)]));
        assert!(!is_plain(&[(0xdd, &[0, 4]), (0xc0, SOF3), (0xda, SOS3)]));
        assert!(!is_plain(&[(0xc0, SOF3), (0xda, SOS3), (0xdb, &[])]));
        assert!(!is_plain(&[(0xc4, &[&[0, 2][..], &[0; 15], &[0, 1]].concat()), (0xc0, SOF3), (0xda, SOS3)]));
    }

    #[test]
    fn markers_inside_a_scan_are_skipped_and_not_plain() {
        for stray in [0x35, 0x01, 0xd0, 0xf5] {
            let data = file(&[(0xc0, SOF3), (0xda, SOS3)], &[0x12, 0xff, stray, 0x34, 0xff, 0xd9]);
            let header = read_header(&data).unwrap();
            assert!(!header.plain && header.width == 7, "{stray:#x}");
        }
    }

    #[test]
    fn damage_that_looks_like_a_segment_is_not_plain() {
        let data = file(&[(0xc0, SOF3), (0xda, SOS3)], &[0x12, 0xff, 0xe1, 0x7f, 0xff, 0x34, 0xff, 0xd9]);
        assert!(!read_header(&data).unwrap().plain);
        let two_scans =
            file(&[(0xc0, SOF3), (0xda, &[1, 1, 0, 0, 63, 0])], &[0x12, 0xff, 0xe1, 0x7f, 0xff, 0xff, 0xd9]);
        assert_eq!(read_header(&two_scans), Err(TRUNCATED));
    }

    #[test]
    fn dnl_segment_gives_a_missing_height() {
        let frame = [8, 0, 0, 0, 7, 1, 1, 0x11, 0];
        let data = file(&[(0xc0, &frame), (0xda, &[1, 1, 0, 0, 63, 0])], b"\x12\xff\xdc\0\x04\0\x09\xff\xd9");
        let header = read_header(&data).unwrap();
        assert_eq!((header.height, header.missing_height), (9, Some((7, 9))));
    }

    #[test]
    fn a_file_without_its_end_is_truncated() {
        let whole = file(&[(0xc0, SOF3), (0xda, SOS3)], b"\x12\x34\xff\xd9");
        assert_eq!(read_header(&whole).unwrap().width, 7);
        for end in 3..whole.len() {
            assert_eq!(read_header(&whole[..end]), Err(TRUNCATED), "{end}");
        }
    }

    #[test]
    fn unsupported_variants_are_named() {
        let refuse = |marker, body: &[u8]| read_header(&file(&[(marker, body), (0xda, &[])], b"\xff\xd9")).unwrap_err();
        assert!(refuse(0xc9, SOF3).to_string().contains("arithmetic"));
        assert!(refuse(0xc3, SOF3).to_string().contains("lossless"));
        assert!(refuse(0xc0, &[12, 0, 5, 0, 7, 1, 1, 0x11, 0]).to_string().contains("12 bits"));
        assert!(refuse(0xc0, &[8, 0, 5, 0, 7, 2, 1, 0x11, 0, 2, 0x11, 0]).to_string().contains("2 components"));
        assert_eq!(refuse(0xc0, &[8, 0, 0, 0, 7, 1, 1, 0x11, 0]).reason().as_str(), "corrupt");
    }
}
