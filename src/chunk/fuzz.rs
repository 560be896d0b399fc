//! Fuzz tests of everything that a run reads back: Parquet files of every kind, entries of the journal and of the
//! spool.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::OnceLock;

use proptest::prelude::*;
use proptest::sample::Index;

use super::journal::{Journal, Layout};
use super::pixels::{PixelReader, PixelWriter};
use super::quarantine::{self, Quarantined};
use super::spool::{Spool, SpoolEntry};
use super::{ChunkError, ChunkId, JournalEntry, RowMeta, Tally, features, tables};
use crate::fuzz::{CHEAP_CASES, bounded, config, damage, damaged};
use crate::run_dir::{Directory, LocalDirectory};
use crate::types::{Compression, Part, Precision};

/// Memory limit for reading a small file: buffers of the file system and of Parquet pages. It depends on the size of
/// the file, not on what the file claims.
const LIMIT: u64 = 8 << 20;

fn row_meta(rows: u32) -> RowMeta {
    let mut row_meta = RowMeta::default();
    for row in 0..rows {
        row_meta.push(&format!("https://x/{row}/é.jpg"), 0..row % 5);
    }
    row_meta
}

fn quarantined_rows(rows: u64) -> Vec<Quarantined> {
    (0..rows)
        .map(|row| Quarantined {
            row,
            image_url: (row % 3 > 0).then(|| format!("https://x/{row}")),
            reason: "corrupt".to_owned(),
            detail: "the `PNG` data is corrupt".to_owned(),
        })
        .collect()
}

/// Returns a valid file of every kind that a run writes.
fn seed_files() -> &'static Vec<Vec<u8>> {
    static FILES: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    FILES.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let mut files = Vec::new();
        for compression in [Compression::None, Compression::Lz4, Compression::Zstd] {
            let mut writer = PixelWriter::create(&path, 8, compression, "g").unwrap();
            let pixels: Vec<u8> = (0..20 * 192u32).map(|at| (at / 50) as u8).collect();
            writer.write(&row_meta(20), &pixels).unwrap();
            writer.finish().unwrap();
            files.push(std::fs::read(&path).unwrap());
        }
        for precision in [Precision::Bf16, Precision::F32] {
            let mut writer = features::FeatureWriter::create(&path, 5, precision, "g").unwrap();
            writer.write(&row_meta(30), &[0.5; 150], &[]).unwrap();
            writer.finish().unwrap();
            files.push(std::fs::read(&path).unwrap());
        }
        quarantine::write(&path, "shard", &quarantined_rows(9)).unwrap();
        files.push(std::fs::read(&path).unwrap());
        let captions: Vec<String> = (0..50).map(|class| format!("Title {class} [SEP] caption")).collect();
        tables::write_classes(&path, captions.iter().map(String::as_str), &[1, 2, 3], |_| "de").unwrap();
        files.push(std::fs::read(&path).unwrap());
        tables::write_labels(&path, &[[1, 2, 3], [4, 5, 6], [7, 8, 9]]).unwrap();
        files.push(std::fs::read(&path).unwrap());
        files
    })
}

/// Reads a whole file as a pixel chunk.
fn read_pixels(path: &Path) -> Result<(), ChunkError> {
    let mut reader = PixelReader::open(path, 7)?;
    let mut pixels = Vec::new();
    while reader.next_batch(&mut pixels)?.is_some() {}
    Ok(())
}

/// Reads a file as each kind of chunk and returns the errors.
fn read_all(path: &Path) -> Vec<ChunkError> {
    let mut errors = Vec::new();
    errors.extend(read_pixels(path).err());
    errors.extend(features::read(path).err());
    errors.extend(features::read_row_meta(path).err());
    errors.extend(quarantine::read(path).err());
    errors.extend(tables::read_classes(path, |_| ()).err());
    errors.extend(tables::read_labels(path).err());
    errors
}

proptest! {
    #![proptest_config(config(CHEAP_CASES))]

    #[test]
    fn damaged_parquet_is_read_or_named_in_the_error(which: Index, damages in damage()) {
        let data = damaged(seed_files(), which, &damages);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chunk.parquet");
        std::fs::write(&path, &data).unwrap();
        let errors = bounded(&data, LIMIT, || read_all(&path))?;
        for error in errors {
            let text = error.to_string();
            prop_assert!(text.contains("chunk.parquet") && text.contains("remove it and run again"), "{}", text);
        }
    }
}

proptest! {
    // Each case syncs a dozen files.
    #![proptest_config(config(150))]

    #[test]
    fn damaged_journal_entry_ends_the_prefix(which: Index, damages in damage(), at in 0usize..4) {
        let dir = tempfile::tempdir().unwrap();
        let directory: Directory = LocalDirectory::create(dir.path()).unwrap().into();
        let layout = Layout::train("features");
        let mut texts = Vec::new();
        for row in 0..4u64 {
            let id = ChunkId { shard: 0, row: row * 10 };
            let name = layout.chunk(id);
            directory.write(&name, b"chunk").unwrap();
            directory.write(&layout.url_hashes(id), b"hashes").unwrap();
            let skipped = BTreeMap::from([("no_label".to_owned(), 7)]);
            let entry = JournalEntry {
                generation: "g".to_owned(),
                last: row == 3,
                next_offset: (row == 1).then_some(77),
                tally: Tally { rows: 10, kept: 3, skipped, quarantined: BTreeMap::new() },
                labels: 5,
                files: BTreeMap::from([(name, 5), (layout.url_hashes(id), 6)]),
                checksums: BTreeMap::new(),
            };
            let text = serde_json::to_vec(&entry).unwrap();
            directory.write(&format!("journal/features/{id}.json"), &text).unwrap();
            texts.push(text);
        }
        let data = damaged(&texts, which, &damages);
        directory.write(&format!("journal/features/{}.json", ChunkId { shard: 0, row: at as u64 * 10 }), &data).unwrap();
        let journal = bounded(&data, LIMIT, || Journal::open(directory.clone(), layout, "g", Part::WHOLE))?.unwrap();
        prop_assert!(journal.entries().len() >= at, "a valid entry before the damaged one is lost");
        prop_assert!(journal.tally().adds_up());
        // Reopening gives the same result.
        let next = journal.pending(1);
        let reopened = Journal::open(directory.clone(), Layout::train("features"), "g", Part::WHOLE).unwrap();
        prop_assert_eq!(reopened.pending(1), next);
        prop_assert_eq!(directory.list("features").unwrap().len(), reopened.entries().len());
    }

    #[test]
    fn damaged_spool_entry_ends_the_prefix(which: Index, damages in damage(), at in 0usize..4) {
        let dir = tempfile::tempdir().unwrap();
        let directory = LocalDirectory::create(dir.path()).unwrap();
        let mut texts = Vec::new();
        for row in 0..4u64 {
            let id = ChunkId { shard: 0, row: row * 10 };
            directory.write(&format!("{id}.parquet"), b"pixels").unwrap();
            let quarantined = BTreeMap::from([("corrupt".to_owned(), 4)]);
            let entry = SpoolEntry {
                id,
                generation: "g".to_owned(),
                last: row == 3,
                next_offset: (row == 1).then_some(77),
                tally: Tally { rows: 10, kept: 6, skipped: BTreeMap::new(), quarantined },
                labels: 5,
                quarantined: quarantined_rows(4),
                bytes: 6,
                checksum: None,
                boot: crate::run_dir::boot_id(),
            };
            let text = serde_json::to_vec(&entry).unwrap();
            directory.write(&format!("{id}.json"), &text).unwrap();
            texts.push(text);
        }
        let data = damaged(&texts, which, &damages);
        directory.write(&format!("{}.json", ChunkId { shard: 0, row: at as u64 * 10 }), &data).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let opened = bounded(&data, LIMIT, || {
            let mut start = vec![ChunkId { shard: 0, row: 0 }];
            runtime.block_on(async {
                let opening = Spool::open(directory.clone(), 1 << 20, "g", &mut start);
                tokio::time::timeout(std::time::Duration::from_secs(5), opening).await
            })
        })?;
        let (_, chunks) = opened.unwrap().unwrap();
        prop_assert!(chunks.len() >= at, "a valid chunk before the damaged one is lost");
        for chunk in &chunks {
            prop_assert!(chunk.entry.tally.adds_up());
            prop_assert!(chunk.read_entry().is_ok());
        }
    }
}

/// Regression: a page header claims a list of two thousand million numbers, none of which exists.
#[test]
fn list_beyond_the_end_of_the_file_is_refused() {
    let mut data = seed_files()[1].clone();
    // Type and sizes of the page; then field 9, a list (9) of doubles (7), and its length.
    let header = [0x15, 0x00, 0x15, 0x02, 0x15, 0x02, 0x69, 0xf7, 0xff, 0xff, 0xff, 0xff, 0x07];
    data[4..4 + header.len()].copy_from_slice(&header);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("chunk.parquet");
    std::fs::write(&path, &data).unwrap();
    let started = std::time::Instant::now();
    assert!(read_pixels(&path).is_err());
    assert!(started.elapsed().as_secs() < 5, "{:?}", started.elapsed());
}

/// Regression: a page that claims to be larger than its column made the reader allocate its size.
#[test]
fn oversized_page_is_refused_without_allocation() {
    for which in 0..3 {
        let mut data = seed_files()[which].clone();
        // Type, and the size after decompression.
        data[4..12].copy_from_slice(&[0x15, 0x00, 0x15, 0xfe, 0xff, 0xff, 0xff, 0x0f]);
        data[12..14].copy_from_slice(&[0x15, 0x02]);
        data[14] = 0;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chunk.parquet");
        std::fs::write(&path, &data).unwrap();
        let error = bounded(&data, LIMIT, || read_pixels(&path).err()).unwrap().unwrap();
        assert!(error.to_string().contains("a page of 2147483647 bytes"), "{error}");
    }
}

/// Regression: a negative number of rows made the reader allocate a whole batch.
#[test]
fn negative_row_count_is_refused() {
    let mut data = seed_files()[2].clone();
    // The footer's third field: 20 rows, as a zigzag varint.
    let rows = memchr::memmem::rfind(&data, b"pixels\x00\x16\x28\x19").unwrap() + 8;
    data[rows] = 0x2f;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("chunk.parquet");
    std::fs::write(&path, &data).unwrap();
    let error = bounded(&data, LIMIT, || quarantine::read(&path).err()).unwrap().unwrap();
    assert!(error.to_string().contains("-24 rows"), "{error}");
}
