//! Fuzz tests of the row parsers: damaged files, cut into random blocks.

use proptest::prelude::*;
use proptest::sample::Index;

use super::*;
use crate::fuzz::{CHEAP_CASES, blocks, bounded, config, damage, damaged};

/// Record limit, small enough that damage exceeds it.
const LIMIT: usize = 300;

fn seed_files() -> Vec<Vec<u8>> {
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

/// Parses a file in blocks of the given sizes. The flag says whether to collect the rows.
type Driver = fn(&[u8], &[usize], bool) -> Vec<String>;

/// One driver per parser. It returns the rows as text, up to the first error.
const PARSERS: [Driver; 4] = [
    |data, sizes, collect| {
        run_parser(ImageRows::new(LIMIT), data, sizes, collect, |rows, emit| {
            while let Some(row) = rows.next() {
                emit(&row);
            }
            Ok(())
        })
    },
    |data, sizes, collect| {
        run_parser(Pairs::new("f", &["en".to_owned()], LIMIT), data, sizes, collect, |rows, emit| {
            while let Some(row) = rows.next()? {
                emit(&row);
            }
            Ok(())
        })
    },
    |data, sizes, collect| {
        run_parser(CaptionList::new("f", LIMIT), data, sizes, collect, |rows, emit| {
            while let Some(row) = rows.next()? {
                emit(&row);
            }
            Ok(())
        })
    },
    |data, sizes, collect| {
        run_parser(TestIds::new("f", LIMIT), data, sizes, collect, |rows, emit| {
            while let Some(row) = rows.next()? {
                emit(&row);
            }
            Ok(())
        })
    },
];

/// Pulls all available rows from a parser and passes each to the callback.
type PullRows<R> = fn(&mut R, &mut dyn FnMut(&dyn std::fmt::Debug)) -> Result<(), CorpusError>;

fn run_parser<R: PushParser>(
    mut parser: R,
    data: &[u8],
    sizes: &[usize],
    collect: bool,
    pull_rows: PullRows<R>,
) -> Vec<String> {
    let mut rows_seen = Vec::new();
    let mut emit = |row: &dyn std::fmt::Debug| {
        if collect {
            rows_seen.push(format!("{row:?}"));
        }
    };
    for block in blocks(data, sizes) {
        parser.feed(block);
        if let Err(error) = pull_rows(&mut parser, &mut emit) {
            emit(&error);
            return rows_seen;
        }
    }
    parser.finish();
    if let Err(error) = pull_rows(&mut parser, &mut emit) {
        emit(&error);
    }
    rows_seen
}

proptest! {
    #![proptest_config(config(CHEAP_CASES))]

    #[test]
    fn rows_are_independent_of_blocks_and_memory_is_bounded(
        which: Index,
        damages in damage(),
        parser in 0..PARSERS.len(),
        sizes in prop::collection::vec(prop_oneof![1usize..8, 1usize..400], 1..6),
    ) {
        let data = damaged(&seed_files(), which, &damages);
        let parse = PARSERS[parser];
        let whole = parse(&data, &[usize::MAX], true);
        prop_assert_eq!(&whole, &parse(&data, &[1], true));
        prop_assert_eq!(&whole, &parse(&data, &sizes, true));
        // Budget: the growing buffer, the field table and error texts; `TestIds` also keeps all ids.
        let block = sizes.iter().max().copied().unwrap_or(1);
        let table = 2 * 24 * 4096;
        let limit = 3 * (LIMIT + block) + table + 16 * 1024 + 16 * data.len();
        bounded(&data, limit as u64, || parse(&data, &sizes, false))?;
    }
}
