//! Marker segments of a JPEG (ITU-T T.81, annex B): size, memory, and the choice of the decoder.

use std::ops::Range;

use crate::decode::error::DecodeError;
use crate::decode::sniff::Format;

use super::MAX_SCANS;

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

/// A marker segment, and the entropy-coded data behind it if it starts a scan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) marker: u8,
    /// Content, without the length.
    pub(super) body: Range<usize>,
    /// End of the entropy-coded data; the end of the body where there is none.
    pub(super) scan_end: usize,
    /// True if there are restart markers, stray bytes or meaningless markers before the segment or in its scan.
    irregular: bool,
}

/// The segments of a file, up to the end-of-image marker.
pub(super) struct Segments<'a> {
    data: &'a [u8],
    at: usize,
    ended: bool,
}

impl<'a> Segments<'a> {
    pub(super) fn new(data: &'a [u8]) -> Self {
        Self { data, at: 2, ended: false }
    }

    fn read_segment(&mut self) -> Result<Segment, DecodeError> {
        let mut irregular = false;
        let marker = loop {
            let marker = next_marker(self.data, self.at).ok_or(TRUNCATED)?;
            irregular |= marker.start != self.at;
            self.at = marker.end;
            if !stands_alone(marker.code) {
                break marker.code;
            }
            irregular = true;
        };
        if marker == 0xd9 || marker == 0xd8 {
            self.ended = true;
            return Ok(Segment { marker, body: self.at..self.at, scan_end: self.at, irregular });
        }
        let length = self.data.get(self.at..self.at + 2).ok_or(TRUNCATED)?;
        let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
        if length < 2 {
            return Err(corrupt("a segment is shorter than its length field"));
        }
        let body = self.at + 2..self.at + length;
        if body.end > self.data.len() {
            return Err(TRUNCATED);
        }
        self.at = body.end;
        if marker == 0xda {
            loop {
                let next = next_marker(self.data, self.at).ok_or(TRUNCATED)?;
                if !stands_alone(next.code) {
                    self.at = next.start;
                    break;
                }
                self.at = next.end;
                irregular = true;
            }
        }
        Ok(Segment { marker, scan_end: self.at, body, irregular })
    }
}

impl Iterator for Segments<'_> {
    type Item = Result<Segment, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let segment = self.read_segment();
        self.ended |= segment.is_err();
        Some(segment)
    }
}

/// True for markers without a length: TEM, restart markers, and reserved codes, which libjpeg skips as damage.
fn stands_alone(code: u8) -> bool {
    matches!(code, 0x01..=0xbf | 0xd0..=0xd7 | 0xf0..=0xfd)
}

/// A marker: offsets of its 0xFF and behind its code.
struct Marker {
    code: u8,
    start: usize,
    end: usize,
}

/// Finds the next marker as libjpeg's `next_marker` does, with entropy-coded data and stray bytes skipped alike: 0xFF, any
/// number of fill bytes 0xFF, and a code that is not 0.
fn next_marker(data: &[u8], mut at: usize) -> Option<Marker> {
    loop {
        let start = at + memchr::memchr(0xff, data.get(at..)?)?;
        at = start + 1;
        while data.get(at)? == &0xff {
            at += 1;
        }
        let code = *data.get(at)?;
        at += 1;
        if code != 0 {
            return Some(Marker { code, start, end: at });
        }
    }
}

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

/// A scan header.
struct Scan<'a> {
    /// Two bytes a component: identifier and tables.
    components: &'a [u8],
    /// First and last coefficient, in zigzag order.
    first: u8,
    last: u8,
    /// Bit position of the coefficients before this scan (0: none were sent) and after it.
    high: u8,
    low: u8,
}

impl<'a> Scan<'a> {
    fn read(body: &'a [u8]) -> Option<Self> {
        let (count, rest) = body.split_first()?;
        let (components, rest) = rest.split_at_checked(2 * usize::from(*count))?;
        let &[first, last, bits] = rest else { return None };
        Some(Self { components, first, last, high: bits >> 4, low: bits & 0x0f })
    }
}

/// Progress of a file: for each coefficient of three components one more than its bit position, 0 before its first scan.
struct Progress([[u8; 64]; 3]);

impl Default for Progress {
    fn default() -> Self {
        Self([[0; 64]; 3])
    }
}

impl Progress {
    /// Adds a scan. Returns false if it does not continue the ones before in the order that the specification demands.
    fn add(&mut self, frame: &Frame, scan: &Scan<'_>) -> bool {
        let (first, last) = (usize::from(scan.first), usize::from(scan.last));
        let range_is_sound = if frame.progressive {
            last < 64 && if first == 0 { last == 0 } else { first <= last && scan.components.len() == 2 }
        } else {
            // All components in the order of the frame.
            let ids = scan.components.iter().step_by(2);
            (first, last, scan.high, scan.low) == (0, 63, 0, 0) && ids.eq(&frame.ids[..usize::from(frame.components)])
        };
        let steps_by_one = scan.high == 0 || scan.high == scan.low + 1;
        if !range_is_sound || !steps_by_one || scan.low > 13 {
            return false;
        }
        scan.components.chunks_exact(2).all(|component| {
            let Some(component) = frame.ids.iter().position(|id| *id == component[0]) else { return false };
            let Some(bits) = self.0.get_mut(component) else { return false };
            // The DC coefficient of a component comes first.
            let in_order = first == 0 || bits[0] > 0;
            let expected = if scan.high == 0 { 0 } else { scan.high + 1 };
            let continues = bits[first..=last].iter().all(|bit| *bit == expected);
            bits[first..=last].fill(scan.low + 1);
            in_order && continues
        })
    }

    /// True if every coefficient was sent to its last bit. libjpeg smooths an image whose coefficients are missing.
    fn is_complete(&self, frame: &Frame) -> bool {
        self.0.iter().take(usize::from(frame.components)).flatten().all(|bit| *bit == 1)
    }
}

struct Frame {
    width: u16,
    height: u16,
    components: u8,
    progressive: bool,
    ids: [u8; 4],
    sampling: [(u8, u8); 4],
}

impl Frame {
    fn read(body: &[u8], progressive: bool) -> Result<Self, DecodeError> {
        let &[precision, h1, h0, w1, w0, components, ref rest @ ..] = body else {
            return Err(corrupt("the frame header is too short"));
        };
        if precision != 8 {
            return Err(variant(format!("{precision} bits a sample")));
        }
        if !matches!(components, 1 | 3 | 4) {
            return Err(variant(format!("{components} components")));
        }
        let (width, height) = (u16::from_be_bytes([w1, w0]), u16::from_be_bytes([h1, h0]));
        if width == 0 {
            return Err(corrupt("it is 0 pixels wide"));
        }
        if rest.len() < usize::from(components) * 3 {
            return Err(corrupt("the frame header is too short"));
        }
        let id = |index: usize| rest.get(index * 3).copied().unwrap_or(0);
        let factors = |index: usize| rest.get(index * 3 + 1).map_or((1, 1), |both| (both >> 4, both & 0x0f));
        let sampling = [factors(0), factors(1), factors(2), factors(3)];
        Ok(Self { width, height, components, progressive, ids: [id(0), id(1), id(2), id(3)], sampling })
    }

    /// True for the layouts of grey and YCbCr that zune-jpeg is trusted with.
    fn is_plain(&self, jfif: bool, adobe: Option<u8>) -> bool {
        let [luma, cb, cr, _] = self.sampling;
        match self.components {
            1 => luma == (1, 1),
            3 => {
                let [a, b, c, _] = self.ids;
                // libjpeg's `default_decompress_parms` takes files with these identifiers or this flag for RGB.
                let is_rgb = self.ids.starts_with(b"RGB") || !jfif && adobe == Some(0);
                let distinct = a != b && b != c && a != c;
                let sampled = matches!(luma, (1 | 2, 1 | 2)) && (cb, cr) == ((1, 1), (1, 1));
                // libjpeg repeats samples where a row has fewer than three of them; zune-jpeg interpolates.
                let wide = luma.0 == 1 || self.width > 4;
                !is_rgb && distinct && sampled && wide
            }
            _ => false,
        }
    }
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
