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
        let rows = ImageRows::new("f", ImageColumns::default(), LIMIT);
        run_parser(rows, data, sizes, collect, |rows, emit| {
            while let Some(row) = rows.next()? {
                emit(&row);
            }
            Ok(())
        })
    },
    |data, sizes, collect| {
        run_parser(
            Pairs::new("f", Delimiter::Tab, &PairColumns::default(), &["en".to_owned()], LIMIT),
            data,
            sizes,
            collect,
            |rows, emit| {
                while let Some(row) = rows.next()? {
                    emit(&row);
                }
                Ok(())
            },
        )
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

proptest! {
    #![proptest_config(config(CHEAP_CASES))]

    #[test]
    fn damaged_numbers_are_read_or_refused(which: Index, damages in damage(), count in 1usize..300) {
        let text = (0..256).map(|value| format!("{:?}", f64::from(value as f32 / 7.0))).collect::<Vec<_>>().join(",");
        let data = damaged(&[text.into_bytes()], which, &damages);
        let mut out = vec![0; 4 * count];
        let read = bounded(&data, 4096, || parse_numbers(&data, &mut out))?;
        if read.is_ok() {
            let values = out.as_chunks::<4>().0;
            prop_assert!(values.iter().all(|value| f32::from_le_bytes(*value).is_finite()));
            prop_assert_eq!(data.split(|byte| *byte == b',').count(), count);
        }
    }
}

/// Upper bound on an image in the fuzz targets of containers.
const IMAGE_LIMIT: u64 = 400;
const START: ResumePoint = ResumePoint { byte_offset: 0, number: 0 };

fn json_files() -> Vec<Vec<u8>> {
    let nested = format!("{}1{}", "[{\"a\":".repeat(40), "}]".repeat(40));
    [
        concat!(
            r#"{"image_url": "u", "b64_bytes": "QU\/D", "wit_features": [{"language": "en", "caption_title_and_reference_description": "A"}, {"language": "de"}]}"#,
            "\n{\"url\": 7, \"image\": {\"bytes\": \"QUJD\"}, \"caption\": [\"a\", null, \"b\"]}\r\n\n",
            r#"{"id": "x", "b64_bytes": "QQ==", "wit_features": {"language": ["en", "de"], "caption_title_and_reference_description": ["C", "D\u00e9"]}}"#,
        )
        .to_owned(),
        format!("{{\"url\": \"v\", \"text\": {nested}, \"jpg\": \"QQ==\"}}\n{{}}\n[1]\n"),
    ]
    .map(String::into_bytes)
    .to_vec()
}

fn tar_files() -> Vec<Vec<u8>> {
    let long = format!("{}/1.jpg", "folder".repeat(30));
    let files: [(&str, &[u8]); 8] = [
        ("a/0.jpg", &[1; 300]),
        ("a/0.txt", b"caption"),
        ("a/0.json", br#"{"url": "http://0", "caption": "json"}"#),
        ("b.png", &[2; 512]),
        (&long, &[3; 20]),
        ("c.webp", &[4; 900]),
        ("c.json", b"{"),
        ("d.txt", b""),
    ];
    let pack = |make: fn() -> ::tar::Header, mode: u8| {
        let mut builder = ::tar::Builder::new(Vec::new());
        for (name, content) in files {
            if mode == 1 {
                builder.append_pax_extensions([("path", name.as_bytes()), ("comment", b"x")]).unwrap();
            }
            let mut header = make();
            header.set_size(content.len() as u64);
            builder.append_data(&mut header, name, content).unwrap();
        }
        builder.into_inner().unwrap()
    };
    vec![pack(::tar::Header::new_gnu, 0), pack(::tar::Header::new_gnu, 1)]
}

/// One driver for images and one for captions of each container format that is fed as a stream.
const CONTAINERS: [Driver; 4] = [
    |data, sizes, collect| {
        let rows = JsonImageRows::new("f", "f", &ImageColumns::default(), LIMIT, START);
        run_parser(rows, data, sizes, collect, |rows, emit| {
            while let Some(row) = rows.next()? {
                emit(&row);
            }
            Ok(())
        })
    },
    |data, sizes, collect| {
        let pairs = JsonPairs::new(("f", "f"), &PairColumns::default(), &[], LIMIT, (START, PairCounts::default()));
        run_parser(pairs, data, sizes, collect, |rows, emit| {
            while let Some(row) = rows.next()? {
                emit(&row);
            }
            Ok(())
        })
    },
    |data, sizes, collect| {
        let rows = WebDatasetImages::new("f", "f", &ImageColumns::default(), IMAGE_LIMIT, START);
        run_parser(rows, data, sizes, collect, |rows, emit| {
            while let Some(row) = rows.next()? {
                emit(&row);
            }
            Ok(())
        })
    },
    |data, sizes, collect| {
        let pairs = WebDatasetPairs::new(("f", "f"), &PairColumns::default(), &[], (START, PairCounts::default()));
        run_parser(pairs, data, sizes, collect, |rows, emit| {
            while let Some(row) = rows.next()? {
                emit(&row);
            }
            Ok(())
        })
    },
];

proptest! {
    #![proptest_config(config(CHEAP_CASES))]

    #[test]
    fn containers_are_independent_of_blocks_and_memory_is_bounded(
        which: Index,
        damages in damage(),
        parser in 0..CONTAINERS.len(),
        sizes in prop::collection::vec(prop_oneof![1usize..8, 1usize..2000], 1..6),
    ) {
        let files = if parser < 2 { json_files() } else { tar_files() };
        let data = damaged(&files, which, &damages);
        let parse = CONTAINERS[parser];
        let whole = parse(&data, &[usize::MAX], true);
        prop_assert_eq!(&whole, &parse(&data, &[1], true));
        prop_assert_eq!(&whole, &parse(&data, &sizes, true));
        // The file itself is the block in the worst case. A header may announce 1 MiB of names, whose room is reserved.
        let limit = 16 * data.len() as u64 + (2 << 20);
        bounded(&data, limit, || parse(&data, &sizes, false))?;
    }
}

/// Page limit of the fuzz target of Parquet.
const PAGE_LIMIT: u64 = 1 << 20;

fn parquet_files() -> &'static [Vec<u8>] {
    static FILES: std::sync::OnceLock<Vec<Vec<u8>>> = std::sync::OnceLock::new();
    FILES.get_or_init(|| parquet::tests::properties().into_iter().map(parquet::tests::sample).collect())
}

fn read_parquet(data: &[u8]) -> Result<usize, CorpusError> {
    let file = parquet::tests::open(data)?;
    let images = file.image_columns(&ImageColumns::default())?.columns;
    let pairs = file.pair_columns(&PairColumns::default())?.columns;
    let rows = parquet::tests::read_rows(&file, data, &images, 0, PAGE_LIMIT)?.len();
    Ok(rows + parquet::tests::read_rows(&file, data, &pairs, 7.min(file.rows()), PAGE_LIMIT)?.len())
}

proptest! {
    #![proptest_config(config(CHEAP_CASES / 2))]

    #[test]
    fn damaged_parquet_is_read_or_refused(which: Index, damages in damage()) {
        let data = damaged(parquet_files(), which, &damages);
        // A copy of the file, the metadata, and for each of three columns a page with its values.
        bounded(&data, 16 * PAGE_LIMIT, || read_parquet(&data).ok())?;
    }
}
