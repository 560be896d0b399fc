//! The splitter against Python's csv module, the `csv` crate, and itself under every cut into blocks.

use super::*;

use proptest::prelude::*;

/// Number, offset, and fields; no fields stand for an oversized record, whose head follows as `Err`.
type Seen = (u64, u64, Result<Vec<Vec<u8>>, Vec<u8>>);

fn pull(splitter: &mut RowSplitter, seen: &mut Vec<Seen>) {
    while let Some(record) = splitter.next() {
        let kind = match record.kind {
            Kind::Ok(fields) => {
                assert_eq!(fields.len(), fields.iter().count());
                Ok(fields.iter().map(<[u8]>::to_vec).collect())
            }
            Kind::Oversized { head } => Err(head.to_vec()),
        };
        seen.push((record.number, record.byte_offset, kind));
    }
}

fn split(text: &[u8], delimiter: Delimiter, limit: usize, cuts: &[usize]) -> Vec<Seen> {
    let mut splitter = RowSplitter::new(delimiter, limit);
    let mut seen = Vec::new();
    let mut rest = text;
    for &cut in cuts.iter().cycle().take_while(|_| !cuts.is_empty()) {
        if rest.is_empty() {
            break;
        }
        let (block, later) = rest.split_at(cut.clamp(1, rest.len()));
        splitter.feed(block);
        pull(&mut splitter, &mut seen);
        // What may become a byte order mark is kept whatever the limit.
        let most = limit.max(BYTE_ORDER_MARK.len() - 1);
        assert!(splitter.buffered_bytes() <= most, "more than one record is kept");
        rest = later;
    }
    splitter.feed(rest);
    splitter.finish();
    pull(&mut splitter, &mut seen);
    assert_eq!(splitter.buffered_bytes(), 0);
    seen
}

fn fields(text: &[u8], delimiter: Delimiter) -> Vec<Vec<Vec<u8>>> {
    split(text, delimiter, usize::MAX, &[]).into_iter().filter_map(|(_, _, fields)| fields.ok()).collect()
}

fn latin1(value: &serde_json::Value) -> Vec<u8> {
    value.as_str().unwrap().chars().map(|char| u8::try_from(u32::from(char)).unwrap()).collect()
}

#[test]
fn records_are_those_of_pythons_csv_module() {
    let reference =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/reference/rows.jsonl")).unwrap();
    let mut compared = 0;
    for line in reference.lines() {
        let case: serde_json::Value = serde_json::from_str(line).unwrap();
        let delimiter = if case["delimiter"] == "," { Delimiter::Comma } else { Delimiter::Tab };
        let expected: Vec<Vec<Vec<u8>>> = case["records"]
            .as_array()
            .unwrap()
            .iter()
            .map(|record| record.as_array().unwrap().iter().map(latin1).collect())
            .collect();
        assert_eq!(fields(&latin1(&case["text"]), delimiter), expected, "{line}");
        compared += 1;
    }
    assert!(compared > 400);
}

#[test]
fn a_byte_order_mark_is_skipped_at_the_start_alone() {
    let text = b"\xEF\xBB\xBFa\n\xEF\xBB\xBFb";
    for cut in 1..text.len() {
        let seen = split(text, Delimiter::Tab, 100, &[cut]);
        assert_eq!(seen, [(0, 3, Ok(vec![b"a".to_vec()])), (1, 5, Ok(vec![b"\xEF\xBB\xBFb".to_vec()]))]);
    }
    assert_eq!(fields(b"\xEF\xBB", Delimiter::Tab), [[b"\xEF\xBB".to_vec()]]);
    assert_eq!(split(b"\xEF", Delimiter::Tab, 0, &[1]).len(), 1, "a limit of nothing");
    assert_eq!(fields(b"\xEF\xBB\xBF\"a\nb\"", Delimiter::Tab), [[b"a\nb".to_vec()]]);
}

#[test]
fn an_unclosed_quote_costs_one_line() {
    let text = b"a\tb\nc\t\"open\nd\te\nf\tg\nlast\tline\n";
    let seen = split(text, Delimiter::Tab, 12, &[3]);
    let row = |left: &str, right: &str| Ok(vec![left.into(), right.into()]);
    assert_eq!(
        seen,
        [
            (0, 0, row("a", "b")),
            (1, 4, Err(b"c\t\"open".to_vec())),
            (2, 12, row("d", "e")),
            (3, 16, row("f", "g")),
            (4, 20, row("last", "line")),
        ]
    );
}

#[test]
fn an_endless_line_is_dropped_without_being_buffered() {
    let mut splitter = RowSplitter::new(Delimiter::Tab, 1000);
    let mut seen = Vec::new();
    for _ in 0..1000 {
        splitter.feed(&[b'x'; 500]);
        pull(&mut splitter, &mut seen);
        assert!(splitter.buffered_bytes() <= 1000 && splitter.buffer.capacity() <= 1500);
    }
    splitter.feed(b"\nnext\tline\n");
    pull(&mut splitter, &mut seen);
    assert_eq!(seen, [(0, 0, Err(vec![b'x'; 1000])), (1, 500_001, Ok(vec![b"next".to_vec(), b"line".to_vec()]))]);
}

#[test]
fn a_record_of_just_the_limit_is_given_out() {
    for limit in [4, 5] {
        let seen = split(b"abcd\nabcde\nabcdef\n", Delimiter::Tab, limit, &[1]);
        let oversized: Vec<_> = seen.iter().map(|(_, _, fields)| fields.is_err()).collect();
        assert_eq!(oversized, [false, limit == 4, true]);
    }
}

#[test]
fn fields_beyond_the_kept_ones_are_counted() {
    let mut splitter = RowSplitter::new(Delimiter::Comma, 1 << 20);
    for text in [",".repeat(10_000), format!("\"\"{}", ",".repeat(10_000))] {
        splitter.feed(text.as_bytes());
        splitter.feed(b"\n");
        let record = splitter.next().unwrap();
        assert_eq!(record.len(), 10_001);
        assert_eq!((record.field(4095), record.field(4096)), (Some(&b""[..]), None));
    }
}

#[test]
fn a_reader_is_followed_to_its_end() {
    let mut splitter = RowSplitter::new(Delimiter::Comma, 100);
    let mut reader = &b"a,b\nc,d"[..];
    let mut block = [0; 3];
    let mut seen = Vec::new();
    while fill_from(&mut splitter, &mut reader, &mut block).unwrap() {
        pull(&mut splitter, &mut seen);
    }
    pull(&mut splitter, &mut seen);
    assert_eq!(seen.len(), 2);
}

fn nasty() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![
        4 => prop::sample::select(b"ab\t,\"\"\n\r".to_vec()),
        1 => any::<u8>(),
    ];
    prop::collection::vec(byte, 0..200)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn blocks_make_no_difference(text in nasty(), limit in 0_usize..60, cuts in prop::collection::vec(1_usize..40, 1..6)) {
        for limit in [limit, usize::MAX] {
            let whole = split(&text, Delimiter::Tab, limit, &[]);
            prop_assert_eq!(&split(&text, Delimiter::Tab, limit, &cuts), &whole);
            prop_assert_eq!(&split(&text, Delimiter::Tab, limit, &[1]), &whole);
        }
    }

    #[test]
    fn offsets_and_numbers_rise(text in nasty(), limit in 0_usize..60) {
        let seen = split(&text, Delimiter::Comma, limit, &[]);
        for (index, (number, offset, _)) in seen.iter().enumerate() {
            prop_assert_eq!(*number, index as u64);
            prop_assert!((*offset as usize) < text.len());
            let next = seen.get(index + 1).map_or(u64::MAX, |(_, next, _)| *next);
            prop_assert!(next > *offset);
        }
    }

    #[test]
    fn written_fields_come_back(rows in prop::collection::vec(prop::collection::vec(nasty(), 1..6), 0..6)) {
        let mut writer = csv::WriterBuilder::new().delimiter(b'\t').flexible(true).from_writer(Vec::new());
        for row in &rows {
            writer.write_record(row).unwrap();
        }
        let text = writer.into_inner().unwrap();
        // The writer does not quote a byte order mark, which is then one of the file.
        prop_assume!(!text.starts_with(BYTE_ORDER_MARK));
        prop_assert_eq!(fields(&text, Delimiter::Tab), rows);
    }

    #[test]
    fn records_are_those_of_the_csv_crate(text in nasty()) {
        let mut reader = csv::ReaderBuilder::new()
            .delimiter(b',').has_headers(false).flexible(true).from_reader(&text[..]);
        let expected: Vec<Vec<Vec<u8>>> = reader
            .byte_records()
            .map(|record| record.unwrap().iter().map(<[u8]>::to_vec).collect())
            .collect();
        prop_assert_eq!(fields(&text, Delimiter::Comma), expected);
    }
}
