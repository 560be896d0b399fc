//! A copy of a JPEG for zune-jpeg, in which a scan that ends early is an error.
//!
//! After the end of a scan, zune-jpeg decodes zero bits as if they were data. The copy has one-bits there. No Huffman code
//! of a plain file consists of ones alone, so the first symbol after the end is an error.

use super::MAX_SCANS;
use super::markers::{Segments, is_refinement_of_dc};

/// 64 one-bits, with their stuffed zeros: more than two symbols and their values.
const SEAL: [u8; 16] = [0xff, 0, 0xff, 0, 0xff, 0, 0xff, 0, 0xff, 0, 0xff, 0, 0xff, 0, 0xff, 0];

/// Bytes of the seal behind the first scan of a progressive file. There zune-jpeg must find the next marker among the 32 bits
/// that it reads ahead.
const FIRST_SEAL_BYTES: usize = 4;

/// Upper bound on the bytes of all seals.
pub(super) const MAX_BYTES: u64 = (SEAL.len() * MAX_SCANS) as u64;

/// Copies a plain file into `sealed`: tables, frame header and scans, without the segments of applications.
pub(super) fn seal(data: &[u8], sealed: &mut Vec<u8>) {
    sealed.clear();
    sealed.reserve_exact(data.len() + MAX_BYTES as usize);
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
            // Corrections of DC coefficients have no Huffman codes. Zeros change nothing, as in libjpeg.
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
