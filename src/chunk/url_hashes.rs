//! URL hashes of a chunk's rows, 8 bytes each, in a small file beside the journal entry.
//!
//! Two readers need them and neither reads a chunk: a resumed stream, which drops later rows of a shard with the same
//! URL, and the search for [duplicates](super::duplicates) across shards. A file holds the hashes little-endian,
//! followed by their XXH3.

use twox_hash::XxHash3_64;

/// URL hashes of one chunk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UrlHashes {
    /// Kept images, in order.
    pub kept: Vec<u64>,
    /// Quarantined rows that count as the first row of their URL.
    pub quarantined: Vec<u64>,
}

impl UrlHashes {
    /// Returns the content of the file.
    pub fn encode(&self) -> Vec<u8> {
        let hashes = self.kept.iter().chain(&self.quarantined);
        let mut bytes: Vec<u8> = hashes.flat_map(|hash| hash.to_le_bytes()).collect();
        bytes.extend(XxHash3_64::oneshot(&bytes).to_le_bytes());
        bytes
    }

    /// Parses the content of the file of a chunk with `kept` images; `None` if it is damaged.
    pub fn decode(bytes: &[u8], kept: u64) -> Option<Self> {
        let (hashes, rest) = bytes.as_chunks::<8>();
        let (sum, hashes) = hashes.split_last()?;
        let content = &bytes[..8 * hashes.len()];
        if !rest.is_empty() || u64::from_le_bytes(*sum) != XxHash3_64::oneshot(content) {
            return None;
        }
        let (kept, quarantined) = hashes.split_at_checked(usize::try_from(kept).ok()?)?;
        let parse = |hashes: &[[u8; 8]]| hashes.iter().map(|hash| u64::from_le_bytes(*hash)).collect();
        Some(Self { kept: parse(kept), quarantined: parse(quarantined) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_round_trip_and_damage_is_noticed() {
        let hashes = UrlHashes { kept: vec![7, u64::MAX, 0], quarantined: vec![9] };
        let bytes = hashes.encode();
        assert_eq!(bytes.len(), 5 * 8);
        assert_eq!(UrlHashes::decode(&bytes, 3), Some(hashes));
        assert_eq!(UrlHashes::decode(&bytes, 5), None);
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert_eq!(UrlHashes::decode(&damaged, 3), None, "byte {at}");
            assert_eq!(UrlHashes::decode(&bytes[..at], 3), None, "{at} bytes");
        }
        assert_eq!(UrlHashes::decode(&UrlHashes::default().encode(), 0), Some(UrlHashes::default()));
    }
}
