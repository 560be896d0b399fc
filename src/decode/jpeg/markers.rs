//! The marker segments of a JPEG (ITU-T T.81, annex B), read far enough to know size, model and end.

use crate::decode::error::DecodeError;
use crate::decode::sniff::Format;

/// How the components make a colour, by libjpeg's rules (`default_decompress_parms` in `jdapimin.c`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Model {
    Grey,
    YCbCr,
    Rgb,
    Cmyk,
    Ycck,
}

/// What the segments say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) width: u16,
    pub(super) height: u16,
    pub(super) components: u8,
    pub(super) model: Model,
    /// Adobe's transform flag and where it stands.
    adobe: Option<(u8, usize)>,
    /// Sampling factors of each component, horizontal and vertical.
    sampling: [(u8, u8); 4],
    /// Whether the components of a pixel may come in several scans, and so have to be kept until the last.
    several_scans: bool,
    /// Whether zune-jpeg is sure to make RGB of the planes itself.
    direct: bool,
    /// Bytes of the segments that applications keep for themselves, profiles for example.
    application_bytes: u64,
}

impl Header {
    /// Bytes that zune-jpeg takes for the image at most, and the planes that it cannot make RGB of.
    pub(super) fn decoder_bytes(&self) -> u64 {
        let (width, height) = (u64::from(self.width), u64::from(self.height));
        let components = self.sampling.iter().take(usize::from(self.components));
        let most =
            |factor: fn(&(u8, u8)) -> u8| components.clone().map(factor).max().map_or(1, |most| u64::from(most.max(1)));
        let (most_across, most_down) = (most(|(across, _)| *across), most(|(_, down)| *down));
        let (units_across, units_down) = (width.div_ceil(8 * most_across), height.div_ceil(8 * most_down));
        // Where no component is coarser than another, zune-jpeg counts units of 8 pixels whatever the factors.
        let blocks: u64 = components.map(|(across, down)| u64::from(*across) * u64::from(*down)).sum();
        let coefficients = 2 * 64 * blocks.max(1) * (units_across + 1) * (units_down + 1);
        // Rows of units on their way to pixels.
        let rows = 2 * 8 * 16 * 4 * (8 * most_across * units_across + 64);
        let planes = if self.direct { 0 } else { width * height * u64::from(self.components) };
        let kept = if self.several_scans { coefficients } else { 0 };
        kept + rows + planes + self.application_bytes + (64 << 10)
    }

    /// Where the Adobe flag stands, if zune-jpeg would make something else of it than libjpeg.
    pub(super) fn misread_transform(&self) -> Option<usize> {
        let (transform, at) = self.adobe?;
        let understood = match (self.components, self.model) {
            (3, Model::Rgb) => false,
            (3, _) => matches!(transform, 1 | 2),
            (4, Model::Cmyk) => transform == 0,
            (4, _) => transform == 2,
            _ => transform <= 2,
        };
        (!understood).then_some(at)
    }
}

fn corrupt(detail: &'static str) -> DecodeError {
    DecodeError::corrupt(Format::Jpeg, detail)
}

const TRUNCATED: DecodeError = DecodeError::Truncated { format: Format::Jpeg };

/// Walks from the start to the end-of-image marker, which must be there.
pub(super) fn walk(data: &[u8]) -> Result<Header, DecodeError> {
    let mut frame: Option<Frame> = None;
    let mut jfif = false;
    let mut adobe = None;
    let mut scanned = false;
    let (mut several_scans, mut application_bytes) = (false, 0);
    let mut at = 2;
    loop {
        let (marker, next) = next_marker(data, at).ok_or(TRUNCATED)?;
        at = next;
        match marker {
            0xd9 if scanned => break,
            0xd9 => return Err(corrupt("it ends before any scan")),
            0xd8 => return Err(corrupt("a second image begins inside the first")),
            // Restart markers and TEM stand alone.
            0x01 | 0xd0..=0xd7 => continue,
            _ => {}
        }
        let length = data.get(at..at + 2).ok_or(TRUNCATED)?;
        let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
        if length < 2 {
            return Err(corrupt("a segment is shorter than its length field"));
        }
        let body = data.get(at + 2..at + length).ok_or(TRUNCATED)?;
        match marker {
            0xc0..=0xc2 if frame.is_some() => return Err(corrupt("there are two frame headers")),
            0xc0..=0xc2 => {
                frame = Some(Frame::read(body)?);
                several_scans |= marker == 0xc2;
            }
            0xc3 | 0xc5..=0xc7 | 0xc9..=0xcb | 0xcd..=0xcf => {
                let detail = if marker >= 0xc9 { "arithmetic coding" } else { "lossless or hierarchical" };
                return Err(DecodeError::UnsupportedVariant { format: Format::Jpeg, detail: detail.to_owned() });
            }
            0xda if frame.is_none() => return Err(corrupt("a scan precedes the frame header")),
            0xda => {
                scanned = true;
                several_scans |= body.first().copied() != frame.as_ref().map(|frame| frame.components);
            }
            0xe0 if body.starts_with(b"JFIF\0") => jfif = true,
            0xee if body.starts_with(b"Adobe") && body.len() >= 12 => {
                adobe = Some((body[11], at + 2 + 11));
            }
            _ => {}
        }
        if matches!(marker, 0xe0..=0xef | 0xfe) {
            application_bytes += length as u64;
        }
        at += length;
    }
    let Some(frame) = frame else {
        return Err(corrupt("it has no frame header"));
    };
    let model = frame.model(jfif, adobe.map(|(transform, _)| transform))?;
    let direct = model == Model::Grey || model == Model::YCbCr && frame.ids != *b"RGB";
    Ok(Header {
        width: frame.width,
        height: frame.height,
        components: frame.components,
        model,
        adobe,
        sampling: frame.sampling,
        several_scans,
        direct,
        application_bytes,
    })
}

/// The next marker code and the offset behind it. Entropy-coded data and stray bytes are skipped alike, as
/// in libjpeg's `next_marker`: a marker is 0xFF, any number of fill bytes 0xFF, and a code that is not 0.
fn next_marker(data: &[u8], mut at: usize) -> Option<(u8, usize)> {
    loop {
        at += memchr::memchr(0xff, data.get(at..)?)? + 1;
        while data.get(at)? == &0xff {
            at += 1;
        }
        let code = *data.get(at)?;
        at += 1;
        if code != 0 {
            return Some((code, at));
        }
    }
}

struct Frame {
    width: u16,
    height: u16,
    components: u8,
    ids: [u8; 3],
    sampling: [(u8, u8); 4],
}

impl Frame {
    fn read(body: &[u8]) -> Result<Self, DecodeError> {
        let &[precision, h1, h0, w1, w0, components, ref rest @ ..] = body else {
            return Err(corrupt("the frame header is too short"));
        };
        if precision != 8 {
            let detail = format!("{precision} bits a sample");
            return Err(DecodeError::UnsupportedVariant { format: Format::Jpeg, detail });
        }
        let (width, height) = (u16::from_be_bytes([w1, w0]), u16::from_be_bytes([h1, h0]));
        if width == 0 || height == 0 {
            return Err(corrupt("it is 0 pixels wide or high"));
        }
        if rest.len() < usize::from(components) * 3 {
            return Err(corrupt("the frame header is too short"));
        }
        let id = |index: usize| rest.get(index * 3).copied().unwrap_or(0);
        let factors = |index: usize| rest.get(index * 3 + 1).map_or((1, 1), |both| (both >> 4, both & 0x0f));
        let sampling = [factors(0), factors(1), factors(2), factors(3)];
        Ok(Self { width, height, components, ids: [id(0), id(1), id(2)], sampling })
    }

    fn model(&self, jfif: bool, adobe: Option<u8>) -> Result<Model, DecodeError> {
        match (self.components, adobe) {
            (1, _) => Ok(Model::Grey),
            (3, _) if jfif => Ok(Model::YCbCr),
            (3, Some(0)) => Ok(Model::Rgb),
            (3, None) if self.ids == *b"RGB" => Ok(Model::Rgb),
            (3, _) => Ok(Model::YCbCr),
            (4, None | Some(0)) => Ok(Model::Cmyk),
            (4, Some(_)) => Ok(Model::Ycck),
            (count, _) => {
                Err(DecodeError::UnsupportedVariant { format: Format::Jpeg, detail: format!("{count} components") })
            }
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
    const SOF4: &[u8] = &[8, 0, 5, 0, 7, 4, 1, 0x11, 0, 2, 0x11, 0, 3, 0x11, 0, 4, 0x11, 0];
    const JFIF: &[u8] = b"JFIF\0\x01\x01\0\0\x01\0\x01\0\0";

    fn adobe(transform: u8) -> Vec<u8> {
        [b"Adobe\0\x64\0\0\0\0".as_slice(), &[transform]].concat()
    }

    #[test]
    fn the_model_follows_libjpeg() {
        let model = |segments: &[(u8, &[u8])]| {
            let all = [segments, &[(0xda, &[])]].concat();
            walk(&file(&all, b"\x12\xff\x00\x34\xff\xd0\x56\xff\xff\xd9trailing")).unwrap().model
        };
        let rgb_ids = [8, 0, 5, 0, 7, 3, b'R', 0x11, 0, b'G', 0x11, 0, b'B', 0x11, 0];
        assert_eq!(model(&[(0xc0, SOF3)]), Model::YCbCr);
        assert_eq!(model(&[(0xc0, &rgb_ids)]), Model::Rgb);
        assert_eq!(model(&[(0xe0, JFIF), (0xc0, &rgb_ids)]), Model::YCbCr);
        assert_eq!(model(&[(0xee, &adobe(0)), (0xc2, SOF3)]), Model::Rgb);
        assert_eq!(model(&[(0xc0, SOF4)]), Model::Cmyk);
        assert_eq!(model(&[(0xee, &adobe(2)), (0xc0, SOF4)]), Model::Ycck);
    }

    #[test]
    fn a_file_without_its_end_is_truncated() {
        let whole = file(&[(0xc0, SOF3), (0xda, &[])], b"\x12\x34\xff\xd9");
        assert_eq!(walk(&whole).unwrap().width, 7);
        for end in 3..whole.len() {
            assert_eq!(walk(&whole[..end]), Err(TRUNCATED), "{end}");
        }
    }

    #[test]
    fn variants_that_are_not_read_are_named() {
        let refused = |marker, body: &[u8]| walk(&file(&[(marker, body), (0xda, &[])], b"\xff\xd9")).unwrap_err();
        assert!(refused(0xc9, SOF3).to_string().contains("arithmetic"));
        assert!(refused(0xc3, SOF3).to_string().contains("lossless"));
        assert!(refused(0xc0, &[12, 0, 5, 0, 7, 1, 1, 0x11, 0]).to_string().contains("12 bits"));
        assert_eq!(refused(0xc0, &[8, 0, 0, 0, 7, 1, 1, 0x11, 0]).reason().as_str(), "corrupt");
    }
}
