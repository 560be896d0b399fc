//! Benchmarks of each stage of ingestion on one core, in images/s and MB/s, with generated images and rows.
//!
//! `cargo bench` runs all, `cargo bench -- decode` those of decoding. `wikicap-pipeline bench --config …` measures the same
//! stages on a user's own input. `tests/peers/ingest.py` is the torchvision program that whole runs are compared with.
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on fails")]

use std::io::{Cursor, Write as _};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use image::{ExtendedColorType, ImageEncoder as _, ImageFormat, RgbImage};
use tokio::io::AsyncReadExt as _;
use wikicap_pipeline::catalog::{ClassSource, Classes, JoinIndexBuilder, url_hash};
use wikicap_pipeline::chunk::RowMeta;
use wikicap_pipeline::chunk::pixels::{PixelReader, PixelWriter, image_bytes};
use wikicap_pipeline::config::bytes::block_images;
use wikicap_pipeline::corpus::{
    Delimiter, EncodedImage, ImageColumns, ImageRow, ImageRows, PairColumns, PairRow, Pairs, PushParser as _,
};
use wikicap_pipeline::decode::{Alpha, Decoder, Geometry, ImageSpec, Resample};
use wikicap_pipeline::objects::Store;
use wikicap_pipeline::types::Compression;
use wikicap_pipeline::types::MatchRule;

fn main() {
    divan::main();
}

/// Images of one shard.
const IMAGES: usize = 256;
/// Rows of the pairs, and of the join index.
const PAIRS: usize = 4000;
const JOINED: usize = 10_000_000;
/// Bytes handed to a parser at a time, as the reader does.
const FEED: usize = 256 << 10;
const SIDE_PX: u32 = 224;

/// A picture with edges, gradients and noise, about as hard to compress as a photo.
fn picture(width: u32, height: u32, seed: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        let noise = (x.wrapping_mul(73_856_093) ^ y.wrapping_mul(19_349_663) ^ seed).wrapping_mul(0x9E37_79B1) >> 27;
        let wave = (f64::from(x + seed % 50) * 0.07).sin() * (f64::from(y) * 0.05).cos();
        let edge = if (x / 40 + y / 30 + seed).is_multiple_of(3) { 60.0 } else { 0.0 };
        let value =
            |shift: f64| (110.0 + 70.0 * (wave + shift).sin() + edge + f64::from(noise)).clamp(0.0, 255.0) as u8;
        image::Rgb([value(0.0), value(0.8), value(1.9)])
    })
}

fn encoded(format: ImageFormat, width: u32, height: u32, seed: u32) -> Vec<u8> {
    let image = picture(width, height, seed);
    let mut bytes = Vec::new();
    match format {
        ImageFormat::Jpeg => image::codecs::jpeg::JpegEncoder::new_with_quality(&mut bytes, 85)
            .write_image(&image, width, height, ExtendedColorType::Rgb8)
            .unwrap(),
        other => image.write_to(&mut Cursor::new(&mut bytes), other).unwrap(),
    }
    bytes
}

/// A shard's rows, unpacked.
fn shard() -> &'static [u8] {
    static SHARD: OnceLock<Vec<u8>> = OnceLock::new();
    SHARD.get_or_init(|| {
        let mut text = Vec::new();
        for row in 0..IMAGES {
            let jpeg = encoded(ImageFormat::Jpeg, 300, 200 + row as u32 % 7 * 20, row as u32);
            let base64 = base64_simd::STANDARD.encode_to_string(jpeg);
            text.extend_from_slice(
                format!("https://upload.wikimedia.org/x/{row}.jpg\t{base64}\thttps://m/{row}\n").as_bytes(),
            );
        }
        text
    })
}

/// A file of this process, gzipped where its name says so.
fn file(name: &str, content: &[u8]) -> PathBuf {
    static DIR: OnceLock<tempfile::TempDir> = OnceLock::new();
    let path = DIR.get_or_init(|| tempfile::tempdir().unwrap()).path().join(name);
    let packed = std::path::Path::new(name).extension().is_some_and(|ending| ending == "gz");
    if packed {
        let mut encoder =
            flate2::write::GzEncoder::new(std::fs::File::create(&path).unwrap(), flate2::Compression::default());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap();
    } else {
        std::fs::write(&path, content).unwrap();
    }
    path
}

/// Reads a file as the pipeline does, and counts what is unpacked.
async fn read(path: &std::path::Path, mut take: impl FnMut(&[u8])) {
    let store = Store::default();
    let object = store.find(&path.display().to_string()).await.unwrap();
    let mut reader = store.open(&object, Arc::default()).await.unwrap();
    let mut buffer = vec![0; FEED];
    loop {
        match reader.read(&mut buffer).await.unwrap() {
            0 => return,
            read => take(&buffer[..read]),
        }
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

#[divan::bench]
fn gunzip(bencher: Bencher<'_, '_>) {
    let (path, runtime) = (file("shard.csv.gz", shard()), runtime());
    bencher.counter(BytesCount::new(shard().len())).counter(ItemsCount::new(IMAGES)).bench_local(|| {
        let mut bytes = 0;
        runtime.block_on(read(&path, |block| bytes += block.len()));
        bytes
    });
}

#[divan::bench]
fn split_rows(bencher: Bencher<'_, '_>) {
    bencher.counter(BytesCount::new(shard().len())).counter(ItemsCount::new(IMAGES)).bench_local(|| {
        let (mut rows, mut bytes) = (ImageRows::new("shard", ImageColumns::default(), 64 << 20), 0);
        for block in shard().chunks(FEED) {
            rows.feed(block);
            while let Some(row) = rows.next().unwrap() {
                let ImageRow::Ok { image: EncodedImage::Base64(base64), .. } = row else { panic!("a bad row") };
                bytes += base64.len();
            }
        }
        bytes
    });
}

#[divan::bench]
fn base64(bencher: Bencher<'_, '_>) {
    let text = base64_simd::STANDARD.encode_to_string(encoded(ImageFormat::Jpeg, 300, 220, 1)).into_bytes();
    bencher
        .counter(BytesCount::new(text.len()))
        .counter(ItemsCount::new(1usize))
        .with_inputs(|| text.clone())
        .bench_local_refs(|text| base64_simd::STANDARD.decode_inplace(text).unwrap().len());
}

fn spec(resample: Resample) -> ImageSpec {
    ImageSpec {
        geometry: Geometry::Squash { size_px: SIDE_PX },
        resample,
        alpha: Alpha::White,
        max_encoded_bytes: 32 << 20,
        max_pixels: 40_000_000,
        crops: false,
    }
}

/// Decodes and resizes. A BMP needs almost no decoding and so measures the resizing.
#[divan::bench(args = [
    (ImageFormat::Jpeg, 300, 200), (ImageFormat::Jpeg, 1200, 800), (ImageFormat::Png, 300, 200), (ImageFormat::WebP, 300, 200),
    (ImageFormat::Gif, 300, 200), (ImageFormat::Bmp, 300, 200), (ImageFormat::Bmp, 1200, 800),
])]
fn decode(bencher: Bencher<'_, '_>, (format, width, height): (ImageFormat, u32, u32)) {
    let bytes = encoded(format, width, height, 3);
    let mut decoder = Decoder::new(spec(Resample::Bilinear));
    let mut out = vec![0; decoder.pixel_bytes()];
    bencher
        .counter(BytesCount::new(bytes.len()))
        .counter(ItemsCount::new(1usize))
        .with_inputs(|| bytes.clone())
        .bench_local_refs(|bytes| decoder.decode_into(bytes, &mut out, |_| ()).unwrap());
}

#[divan::bench(args = [Resample::Bilinear, Resample::Bicubic, Resample::Lanczos])]
fn resize(bencher: Bencher<'_, '_>, resample: Resample) {
    let bytes = encoded(ImageFormat::Bmp, 300, 200, 3);
    let mut decoder = Decoder::new(spec(resample));
    let mut out = vec![0; decoder.pixel_bytes()];
    bencher
        .counter(ItemsCount::new(1usize))
        .with_inputs(|| bytes.clone())
        .bench_local_refs(|bytes| decoder.decode_into(bytes, &mut out, |_| ()).unwrap());
}

fn heads(images: usize) -> RowMeta {
    let mut heads = RowMeta::default();
    (0..images as u32).for_each(|row| heads.push(&format!("https://upload.wikimedia.org/x/{row}.jpg"), [row, row + 7]));
    heads
}

#[divan::bench(sample_count = 20)]
fn chunk_write(bencher: Bencher<'_, '_>) {
    let block = block_images(image_bytes(SIDE_PX) as u64);
    let (path, heads) = (file("written.parquet", b""), heads(block));
    let pixels = vec![7; block * image_bytes(SIDE_PX)];
    let (blocks, images) = (IMAGES / block, IMAGES / block * block);
    let bytes = BytesCount::new(images * image_bytes(SIDE_PX));
    bencher.counter(bytes).counter(ItemsCount::new(images)).bench_local(|| {
        let mut writer = PixelWriter::create(&path, SIDE_PX, Compression::None, "g").unwrap();
        for _ in 0..blocks {
            writer.write(&heads, &pixels).unwrap();
        }
        writer.finish().unwrap()
    });
}

#[divan::bench(sample_count = 20)]
fn chunk_read(bencher: Bencher<'_, '_>) {
    let path = file("read.parquet", b"");
    let mut writer = PixelWriter::create(&path, SIDE_PX, Compression::None, "g").unwrap();
    writer.write(&heads(IMAGES), &vec![7; IMAGES * image_bytes(SIDE_PX)]).unwrap();
    writer.finish().unwrap();
    let mut pixels = Vec::new();
    bencher.counter(BytesCount::new(IMAGES * image_bytes(SIDE_PX))).counter(ItemsCount::new(IMAGES)).bench_local(
        || {
            let mut reader = PixelReader::open(&path, 128).unwrap();
            let mut rows = 0;
            while let Some(heads) = reader.next_batch(&mut pixels).unwrap() {
                rows += heads.len();
            }
            rows
        },
    );
}

fn joined() -> (Classes, JoinIndexBuilder) {
    let mut classes = Classes::new(ClassSource::Train, MatchRule::Trimmed);
    let mut builder = JoinIndexBuilder::new();
    let groups: Vec<_> = (0..1000).map(|class| classes.add(&format!("caption {class}")).unwrap()).collect();
    for row in 0..JOINED as u64 {
        let url = row.wrapping_mul(0x9E37_79B9_7F4A_7C15) % (JOINED as u64 / 2);
        builder.add(url_hash(&format!("https://x/{url}")), groups[(row % 1000) as usize]).unwrap();
    }
    (classes, builder)
}

#[divan::bench(sample_count = 3)]
fn join_build(bencher: Bencher<'_, '_>) {
    bencher
        .counter(ItemsCount::new(JOINED))
        .with_inputs(joined)
        .bench_local_values(|(classes, builder)| builder.build(&classes).unwrap());
}

#[divan::bench]
fn join_lookup(bencher: Bencher<'_, '_>) {
    let (classes, builder) = joined();
    let index = builder.build(&classes).unwrap();
    let hashes: Vec<u64> = (0..10_000).map(|url| url_hash(&format!("https://x/{}", url * 97))).collect();
    bencher
        .counter(ItemsCount::new(hashes.len()))
        .bench_local(|| hashes.iter().map(|hash| index.lookup(*hash).count()).sum::<usize>());
}

/// Words of a vocabulary, the first of them often and the last seldom, so that it packs about as text does.
fn prose(seed: u64, words: usize) -> String {
    const SYLLABLES: [&str; 16] =
        ["ka", "ri", "ten", "vol", "mar", "es", "tu", "len", "do", "pra", "sil", "on", "ge", "wa", "nor", "is"];
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut text = String::new();
    for _ in 0..words {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let share = (state >> 40) as f64 / f64::from(1 << 24);
        let word = (share * share * share * 20_000.0) as usize;
        let syllables = [word % 16, word / 16 % 16, word / 256 % 16, word / 4096];
        syllables[..=(word.max(1).ilog(8).min(3) as usize)].iter().for_each(|part| text.push_str(SYLLABLES[*part]));
        text.push(' ');
    }
    text
}

/// A pairs file: 18 columns, of which context takes most; every tenth row has a quoted field with line ends.
fn pairs() -> &'static [u8] {
    static TEXT: OnceLock<Vec<u8>> = OnceLock::new();
    TEXT.get_or_init(|| {
        let mut text = String::from(
            "language\tpage_url\timage_url\tpage_title\tsection_title\thierarchical_section_title\tcaption_reference_description\t\
             caption_attribution_description\tcaption_alt_text_description\tmime_type\toriginal_height\toriginal_width\tis_main_image\t\
             attribution_passes_lang_id\tpage_changed_recently\tcontext_page_description\tcontext_section_description\t\
             caption_title_and_reference_description\n",
        );
        for row in 0..PAIRS {
            let context = prose(row as u64, 160);
            let section = if row % 10 == 0 { format!("\"{context}\nHe said \"\"no\"\" twice\t.\"") } else { context.clone() };
            text.push_str(&format!(
                "en\thttps://en.wikipedia.org/wiki/River_{row}\thttps://upload.wikimedia.org/wikipedia/commons/a/ab/River_{row}.jpg\tRiver {row}\t\
                 Course\tRiver {row} / Course\tThe river at dusk\t\t\timage/jpeg\t2000\t3000\ttrue\ttrue\tfalse\t{context}\t{section}\t\
                 River {row} [SEP] The river at dusk\n"
            ));
        }
        text.into_bytes()
    })
}

fn count_pairs(pairs: &mut Pairs) -> usize {
    let mut found = 0;
    while let Some(row) = pairs.next().unwrap() {
        let PairRow::Pair(pair) = row else { panic!("a bad row") };
        found += black_box(pair.target.len());
    }
    found
}

#[divan::bench]
fn pairs_plain(bencher: Bencher<'_, '_>) {
    bencher.counter(BytesCount::new(pairs().len())).counter(ItemsCount::new(PAIRS)).bench_local(|| {
        let (mut reader, mut found) = (Pairs::new("pairs", Delimiter::Tab, &PairColumns::default(), &[], 64 << 20), 0);
        for block in pairs().chunks(FEED) {
            reader.feed(block);
            found += count_pairs(&mut reader);
        }
        found
    });
}

#[divan::bench]
fn pairs_gzipped(bencher: Bencher<'_, '_>) {
    let (path, runtime) = (file("pairs.tsv.gz", pairs()), runtime());
    bencher.counter(BytesCount::new(pairs().len())).counter(ItemsCount::new(PAIRS)).bench_local(|| {
        let (mut reader, mut found) = (Pairs::new("pairs", Delimiter::Tab, &PairColumns::default(), &[], 64 << 20), 0);
        runtime.block_on(read(&path, |block| {
            reader.feed(block);
            found += count_pairs(&mut reader);
        }));
        found
    });
}
