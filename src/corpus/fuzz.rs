//! The row readers under damaged files, cut into blocks anyhow.

use proptest::prelude::*;
use proptest::sample::Index;

use super::*;
use crate::fuzz::{CHEAP_CASES, blocks, bounded, config, damage, damaged};

/// Longest record, small so that damage reaches it.
const LIMIT: usize = 300;

fn files() -> Vec<Vec<u8>> {
    let wide = "x".repeat(200);
    [
        "\u{FEFF}https://a/1.jpg\tQUJD\thttps://m/1\nhttps://a/2.jpg\tREVG\tm\r\n\nhttps://a/3.jpg\t\tm\r\"https://a/\"\"4\n\"\t\"QU\nJD\"x\"\tm\nlast\tQQ==".to_owned(),
        format!("{wide}\t{wide}\tm\nu\t{wide}\n\"{wide}\t{wide}\nv\tQQ==\tm\n{wide}"),
        format!(
            "language\timage_url\tcaption_title_and_reference_description\textra\nen\thttps://a/1\tT [SEP] c\tx\nde\t\"https://a/2\"\t\"T \"\"q\"\" [SEP]\n\ttwo lines\"\t{wide}\n\thttps://a/3\t\tx\nen\t\tT\tx\n"
        ),
        "caption_title_and_reference_description\n\"a, b\"\nNA\n\"two\nlines\"\n\"\"\n\nNA\n".to_owned(),
        "id\timage_url\n1\thttps://a/1\n2\thttps://a/1\n\"3\"\t\"https://a/\t2\"\r\n".to_owned(),
    ]
    .map(String::into_bytes)
    .to_vec()
}

/// File, sizes of the blocks, and whether what is read is wanted.
type Read = fn(&[u8], &[usize], bool) -> Vec<String>;

/// The readers by what they make of a file: its rows as text, up to the error that ends it.
const READERS: [Read; 4] = [
    |data, sizes, keep| {
        drive(ImageRows::new(LIMIT), data, sizes, keep, |rows, take| {
            while let Some(row) = rows.next() {
                take(&row);
            }
            Ok(())
        })
    },
    |data, sizes, keep| {
        drive(Pairs::new("f", &["en".to_owned()], LIMIT), data, sizes, keep, |rows, take| {
            while let Some(row) = rows.next()? {
                take(&row);
            }
            Ok(())
        })
    },
    |data, sizes, keep| {
        drive(CaptionList::new("f", LIMIT), data, sizes, keep, |rows, take| {
            while let Some(row) = rows.next()? {
                take(&row);
            }
            Ok(())
        })
    },
    |data, sizes, keep| {
        drive(TestIds::new("f", LIMIT), data, sizes, keep, |rows, take| {
            while let Some(row) = rows.next()? {
                take(&row);
            }
            Ok(())
        })
    },
];

/// Pulls what a reader has; hands on each row.
type Pull<R> = fn(&mut R, &mut dyn FnMut(&dyn std::fmt::Debug)) -> Result<(), CorpusError>;

fn drive<R: PushParser>(mut reader: R, data: &[u8], sizes: &[usize], keep: bool, pull: Pull<R>) -> Vec<String> {
    let mut seen = Vec::new();
    let mut take = |row: &dyn std::fmt::Debug| {
        if keep {
            seen.push(format!("{row:?}"));
        }
    };
    for block in blocks(data, sizes) {
        reader.feed(block);
        if let Err(error) = pull(&mut reader, &mut take) {
            take(&error);
            return seen;
        }
    }
    reader.finish();
    if let Err(error) = pull(&mut reader, &mut take) {
        take(&error);
    }
    seen
}

proptest! {
    #![proptest_config(config(CHEAP_CASES))]

    #[test]
    fn rows_do_not_depend_on_blocks_and_stay_within_the_record_limit(
        which: Index,
        all in damage(),
        reader in 0..READERS.len(),
        sizes in prop::collection::vec(prop_oneof![1usize..8, 1usize..400], 1..6),
    ) {
        let data = damaged(&files(), which, &all);
        let read = READERS[reader];
        let whole = read(&data, &[usize::MAX], true);
        prop_assert_eq!(&whole, &read(&data, &[1], true));
        prop_assert_eq!(&whole, &read(&data, &sizes, true));
        // The buffer while it grows, the table of fields, an error's texts; the ids are kept by their reader.
        let block = sizes.iter().max().copied().unwrap_or(1);
        let table = 2 * 24 * 4096;
        let limit = 3 * (LIMIT + block) + table + 16 * 1024 + 16 * data.len();
        bounded(&data, limit as u64, || read(&data, &sizes, false))?;
    }
}
