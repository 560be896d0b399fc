//! Exact search over 1 million vectors of 384 bf16 values, as for a corpus of 1 million images and a text head: 768 MB in a
//! file without a name below the folder of temporary files. `cargo bench --bench search` runs it; it needs 1 GB of disk.
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on fails")]

use std::sync::OnceLock;

use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use wikicap_pipeline::search::{VectorFile, VectorWriter};
use wikicap_pipeline::types::Precision;

const ROWS: u32 = 1_000_000;
const DIM: usize = 384;
/// Languages of the captions.
const GROUPS: u32 = 100;

fn main() {
    divan::main();
}

/// Returns a value from -0.5 to 0.5 by a hash of its position.
fn value(at: u64) -> f32 {
    let mixed = (at ^ (at >> 31)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 40) as f32 / (1_u32 << 24) as f32 - 0.5
}

fn vector(row: u64) -> Vec<f32> {
    (0..DIM as u64).map(|at| value(row * DIM as u64 + at)).collect()
}

fn file() -> &'static VectorFile {
    static FILE: OnceLock<VectorFile> = OnceLock::new();
    FILE.get_or_init(|| {
        let mut writer = VectorWriter::create(&std::env::temp_dir(), DIM, Precision::Bf16).unwrap();
        for row in 0..ROWS {
            writer.push(&vector(u64::from(row)), (row % GROUPS) as u16, b"").unwrap();
        }
        writer.finish().unwrap()
    })
}

/// The best 20 of all rows.
#[divan::bench(sample_count = 20)]
fn best_rows(bencher: Bencher<'_, '_>) {
    let (file, query) = (file(), vector(u64::MAX / DIM as u64 / 2));
    bencher.counter(ItemsCount::new(ROWS)).bench(|| black_box(file.search(&query, 20).unwrap()));
}

/// The best 5 rows of each of 100 languages.
#[divan::bench(sample_count = 20)]
fn best_rows_of_each_language(bencher: Bencher<'_, '_>) {
    let (file, query) = (file(), vector(u64::MAX / DIM as u64 / 2));
    bencher.counter(ItemsCount::new(ROWS)).bench(|| black_box(file.search_groups(&query, 5).unwrap()));
}
