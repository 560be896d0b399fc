//! Frame and scan headers of a JPEG, and the order of the scans of a progressive file.

use super::{corrupt, variant};
use crate::decode::error::DecodeError;

/// A scan header.
pub(super) struct Scan<'a> {
    /// Two bytes a component: identifier and tables.
    components: &'a [u8],
    /// First and last coefficient, in zigzag order.
    pub(super) first: u8,
    last: u8,
    /// Bit position of the coefficients before this scan (0: none were sent) and after it.
    pub(super) high: u8,
    low: u8,
}

impl<'a> Scan<'a> {
    pub(super) fn read(body: &'a [u8]) -> Option<Self> {
        let (count, rest) = body.split_first()?;
        let (components, rest) = rest.split_at_checked(2 * usize::from(*count))?;
        let &[first, last, bits] = rest else { return None };
        Some(Self { components, first, last, high: bits >> 4, low: bits & 0x0f })
    }
}

/// Progress of a file: for each coefficient of three components one more than its bit position, 0 before its first scan.
pub(super) struct Progress([[u8; 64]; 3]);

impl Default for Progress {
    fn default() -> Self {
        Self([[0; 64]; 3])
    }
}

impl Progress {
    /// Adds a scan. Returns false if it does not continue the ones before in the order that the specification demands.
    pub(super) fn add(&mut self, frame: &Frame, scan: &Scan<'_>) -> bool {
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
    pub(super) fn is_complete(&self, frame: &Frame) -> bool {
        self.0.iter().take(usize::from(frame.components)).flatten().all(|bit| *bit == 1)
    }
}

pub(super) struct Frame {
    pub(super) width: u16,
    pub(super) height: u16,
    pub(super) components: u8,
    progressive: bool,
    ids: [u8; 4],
    pub(super) sampling: [(u8, u8); 4],
}

impl Frame {
    pub(super) fn read(body: &[u8], progressive: bool) -> Result<Self, DecodeError> {
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
    pub(super) fn is_plain(&self, jfif: bool, adobe: Option<u8>) -> bool {
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
