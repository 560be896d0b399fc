//! Event files of TensorBoard: scalars by tag and step.
//!
//! A file is a sequence of TFRecords: the length (u64, little-endian), its checksum, the data, its checksum; each checksum is
//! the masked CRC-32C of the bytes before it (`tensorflow/core/lib/io/record_writer.h` and `core/lib/hash/crc32c.h`). The data
//! of a record is a protocol buffer `Event` (`tensorflow/core/util/event.proto`): `wall_time` 1, `step` 2, `file_version` 3,
//! `summary` 5, whose `value` 1 has `tag` 1 and `simple_value` 2 (`core/framework/summary.proto`).

/// Version that every reader knows.
const FILE_VERSION: &str = "brain.Event:2";
/// Reversed polynomial of CRC-32C (Castagnoli).
const POLYNOMIAL: u32 = 0x82f6_3b78;
/// Summand of a masked checksum.
const MASK_DELTA: u32 = 0xa282_ead8;

/// Wire types of a protocol buffer.
const VARINT: u64 = 0;
const FIXED_64: u64 = 1;
const BYTES: u64 = 2;
const FIXED_32: u64 = 5;

/// A scalar of an event file.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scalar<'a> {
    /// Name of the chart.
    pub tag: &'a str,
    /// Number of updates.
    pub step: u64,
    /// The value.
    pub value: f64,
}

/// Encodes the first record of a file. `wall_time` is in seconds since 1970.
pub fn encode_header(wall_time: f64) -> Vec<u8> {
    let mut event = Vec::new();
    put_wall_time(&mut event, wall_time);
    put_bytes(&mut event, 3, FILE_VERSION.as_bytes());
    record(&event)
}

/// Encodes the record of a scalar. `wall_time` is in seconds since 1970.
pub fn encode_scalar(wall_time: f64, scalar: Scalar<'_>) -> Vec<u8> {
    let (mut value, mut summary, mut event) = (Vec::new(), Vec::new(), Vec::new());
    put_bytes(&mut value, 1, scalar.tag.as_bytes());
    put_varint(&mut value, 2 << 3 | FIXED_32);
    value.extend_from_slice(&(scalar.value as f32).to_le_bytes());
    put_bytes(&mut summary, 1, &value);
    put_wall_time(&mut event, wall_time);
    put_varint(&mut event, 2 << 3 | VARINT);
    put_varint(&mut event, scalar.step);
    put_bytes(&mut event, 5, &summary);
    record(&event)
}

fn put_wall_time(event: &mut Vec<u8>, seconds: f64) {
    put_varint(event, 1 << 3 | FIXED_64);
    event.extend_from_slice(&seconds.to_le_bytes());
}

fn put_bytes(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    put_varint(out, field << 3 | BYTES);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Frames the data of a record.
fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut out = Vec::with_capacity(data.len() + 16);
    out.extend_from_slice(&length);
    out.extend_from_slice(&masked_crc(&length).to_le_bytes());
    out.extend_from_slice(data);
    out.extend_from_slice(&masked_crc(data).to_le_bytes());
    out
}

/// Returns the masked CRC-32C, bit by bit: records are short and few.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(MASK_DELTA)
}

fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ POLYNOMIAL } else { crc >> 1 })
    };
    !bytes.iter().fold(!0, step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_is_crc32c() {
        // RFC 3720, section B.4, and the check value of the algorithm.
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
    }

    #[test]
    fn records_have_the_bytes_of_tensorboard() {
        // By `RecordWriter` of tensorboard 2.21.0, with these wall times.
        let header = "1800000000000000a37f4b2209000000000014d8411a0d627261696e2e4576656e743a324574595b";
        assert_eq!(hex(&encode_header(1_615_855_616.0)), header);
        let scalar = Scalar { tag: "loss/train", step: 300, value: 0.25 };
        let record =
            "2100000000000000017becf609000000000014d84110ac022a130a110a0a6c6f73732f747261696e150000803e18277d2d";
        assert_eq!(hex(&encode_scalar(1_615_855_616.0, scalar)), record);
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
    }
}
