//! Fuzz tests of the gzip reader.

use std::io::{ErrorKind, Read as _, Write as _};

use flate2::{Compression, GzBuilder};
use proptest::prelude::*;
use proptest::sample::Index;
use tokio::io::{AsyncReadExt as _, BufReader};

use super::gzip::GzipReader;
use crate::fuzz::{CHEAP_CASES, bounded, config, damage, damaged};

/// Upper bound on decompressed bytes; damage may make a file endless.
const LIMIT: usize = 1 << 20;
const BLOCK: usize = 16 << 10;

fn files() -> Vec<Vec<u8>> {
    let pack = |builder: GzBuilder, data: &[u8], level| {
        let mut packer = builder.write(Vec::new(), Compression::new(level));
        packer.write_all(data).unwrap();
        packer.finish().unwrap()
    };
    let rows: Vec<u8> =
        (0..400).flat_map(|row| format!("https://a/{row}.jpg\tQUJDREVG{row:x}\n").into_bytes()).collect();
    let named = || GzBuilder::new().filename("part-0.tsv").comment("c").extra(vec![1, 2, 3]);
    vec![
        pack(named(), &rows, 6),
        pack(GzBuilder::new(), &rows, 0),
        pack(GzBuilder::new(), b"short", 9),
        [pack(GzBuilder::new(), &rows[..5000], 1), pack(named(), b"", 6), pack(GzBuilder::new(), &rows[5000..], 6)]
            .concat(),
        pack(GzBuilder::new(), &vec![7; 300_000], 6),
    ]
}

fn unpack(packed: &[u8], piece: usize) -> Result<Vec<u8>, ErrorKind> {
    let mut unpacked = Vec::with_capacity(LIMIT);
    let mut reader = GzipReader::new(BufReader::with_capacity(piece, packed), BLOCK).take(LIMIT as u64);
    futures::executor::block_on(reader.read_to_end(&mut unpacked)).map_err(|error| error.kind())?;
    Ok(unpacked)
}

#[test]
fn gzip_decompresses_in_pieces_of_any_size() {
    for packed in files() {
        let whole = unpack(&packed, packed.len()).unwrap();
        for piece in 1..100 {
            assert!(unpack(&packed, piece).unwrap() == whole, "pieces of {piece}");
        }
    }
}

/// Decompresses member by member with `flate2`, up to its first error. Zero bytes after a member are padding.
fn unpack_with_flate2(packed: &[u8]) -> (Vec<u8>, Option<ErrorKind>) {
    let (mut unpacked, mut rest) = (Vec::new(), packed);
    loop {
        let mut decoder = flate2::bufread::GzDecoder::new(rest);
        let room = (LIMIT - unpacked.len()) as u64;
        if let Err(error) = (&mut decoder).take(room).read_to_end(&mut unpacked) {
            return (unpacked, Some(error.kind()));
        }
        if unpacked.len() == LIMIT {
            return (unpacked, None);
        }
        rest = decoder.into_inner();
        while let [0, tail @ ..] = rest {
            rest = tail;
        }
        if rest.is_empty() {
            return (unpacked, None);
        }
    }
}

proptest! {
    #![proptest_config(config(CHEAP_CASES))]

    #[test]
    fn damaged_gzip_decompresses_as_with_flate2_or_fails(which: Index, all in damage(), piece in 1usize..3000) {
        let packed = damaged(&files(), which, &all);
        // Without the magic bytes it counts as a plain file.
        if !packed.starts_with(&[0x1f, 0x8b]) {
            return Ok(());
        }
        match bounded(&packed, (LIMIT + BLOCK) as u64 + (2 << 20), || unpack(&packed, piece))? {
            Ok(unpacked) => {
                let (expected, error) = unpack_with_flate2(&packed);
                match error {
                    None => prop_assert!(unpacked == expected),
                    // The last zeros of an empty member may be missing.
                    Some(ErrorKind::UnexpectedEof) => {
                        let whole = |zeros| [packed.as_slice(), &vec![0; zeros]].concat();
                        let mut read = (1..4).map(|zeros| unpack_with_flate2(&whole(zeros)));
                        prop_assert!(read.any(|(expected, error)| error.is_none() && unpacked == expected));
                    }
                    // Up to three bytes before a correct trailer are ignored.
                    Some(_) => prop_assert!(unpacked.starts_with(&expected)),
                }
            }
            Err(kind) => prop_assert!(matches!(kind, ErrorKind::InvalidData | ErrorKind::UnexpectedEof), "{kind}"),
        }
    }
}
