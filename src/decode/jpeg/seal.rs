//! A copy of a JPEG in which zune-jpeg cannot miss that data is missing.
//!
//! zune-jpeg continues with zero bits where a scan ends early, and decodes them as if they were data. The copy has
//! one-bits behind each scan. No Huffman code of a plain file consists of ones alone, so reading on is an error.

use super::markers::{Segments, is_refinement_of_dc};

/// One-bits behind a scan, with their stuffed zeros: more than a symbol and its value can take, twice.
const SEAL: [u8; 16] = [0xff, 0, 0xff, 0, 0xff, 0, 0xff, 0, 0xff, 0, 0xff, 0, 0xff, 0, 0xff, 0];

/// Bytes of the seal behind the first scan of a progressive file, where zune-jpeg must find the next marker among the
/// 32 bits that it reads ahead.
const FIRST_SEAL_BYTES: usize = 4;

/// Copies a plain file into `sealed`: tables, frame header and scans, without the segments of applications.
pub(super) fn seal(data: &[u8], sealed: &mut Vec<u8>) {
    sealed.clear();
    sealed.extend([0xff, 0xd8]);
    let (mut progressive, mut scans) = (false, 0);
    for segment in Segments::new(data).flatten() {
        match segment.marker {
            0xc0..=0xc2 => progressive = segment.marker == 0xc2,
            0xc4 | 0xdb | 0xda => {}
            _ => continue,
        }
        sealed.extend([0xff, segment.marker]);
        sealed.extend(&data[segment.body.start - 2..segment.scan_end]);
        if segment.marker == 0xda {
            scans += 1;
            // Corrections of DC coefficients are bare bits: ones would be data, and the zeros of a scan that ends
            // early change nothing.
            let bytes = match (progressive, scans) {
                (true, _) if is_refinement_of_dc(&data[segment.body]) => 0,
                (true, 1) => FIRST_SEAL_BYTES,
                _ => SEAL.len(),
            };
            sealed.extend(&SEAL[..bytes]);
        }
    }
    sealed.extend([0xff, 0xd9]);
}
