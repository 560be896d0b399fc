//! Memory and disk limits under adversarial input, measured from outside.

use std::path::Path;

use crate::resource_limits::{machine, watched, watched_to_any_end};
use crate::support::{artefacts, corpus, differences, run, stderr_of};

/// Memory of the process beyond `limits.memory`: code, threads, the tiny model and allocator overhead.
const BASE_BYTES: u64 = 64 << 20;

/// Returns an image of noise (incompressible) or of one colour, in base64.
fn image(width: u32, height: u32, noise: bool) -> String {
    let mut png = Vec::new();
    let mut encoder = png::Encoder::new(&mut png, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_compression(png::Compression::Fast);
    let mut state = 0x9e37_79b9_u32;
    let mut pixels = vec![200; 3 * width as usize * height as usize];
    if noise {
        for byte in &mut pixels {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            *byte = (state >> 24) as u8;
        }
    }
    encoder.write_header().unwrap().write_image_data(&pixels).unwrap();
    base64_simd::STANDARD.encode_to_string(png)
}

/// Writes a pipeline over `shard.csv` with a model whose input is 64 px wide.
fn pipeline(dir: &Path, run: &str, rows: u32, more: &str) -> String {
    let text = format!(
        "[run]\ndir = '{0}/{run}'\n[images]\nshards = ['{0}/shard*.csv']\n[chunks]\nrows = {rows}\n[model]\ncheckpoint = '{1}/models/vit-tiny'\n{more}",
        dir.display(),
        corpus().display()
    );
    let path = dir.join(format!("{run}.toml"));
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

/// Returns the smallest accepted `limits.memory`, read from the refusal of a smaller one.
fn floor(dir: &Path, config: &str, limits: &str) -> u64 {
    let out = run(&["run", "--config", config, "--machine", &machine(dir, &format!("memory = '1 MiB'\n{limits}"))]);
    let text = stderr_of(&out);
    assert_eq!(out.status.code(), Some(2), "{text}");
    text.split(" bytes)").next().unwrap().rsplit('(').next().unwrap().parse().unwrap()
}

/// Returns the smallest accepted `limits.disk`: two chunks in the spool, as the config check computes them, and the features of one.
fn least_disk(rows: u32) -> u64 {
    const DIM: u64 = 64;
    2 * (u64::from(rows) * (3 * 64 * 64 + 1024) + (1 << 20)) + u64::from(rows) * (4 * DIM + 24)
}

#[test]
fn minimum_limits_hold_for_largest_images_and_many_workers() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (huge, heavy, small) = (image(6600, 6000, false), image(830, 820, true), image(40, 30, true));
    let mut shard = String::new();
    for row in 0..60 {
        let data = match row % 5 {
            0 | 1 => &huge,
            2 => &heavy,
            _ => &small,
        };
        shard.push_str(&format!("https://x/{row}\t{data}\tm\n"));
    }
    std::fs::write(dir.join("shard.csv"), shard).unwrap();
    let config = pipeline(dir, "run", 10, "[preprocess]\nmax_encoded = '2 MiB'\n");
    let mut made = Vec::new();
    for workers in [8, 1] {
        let limits = format!("cpu_workers = {workers}\ndisk = '{} B'", least_disk(10));
        let floor = floor(dir, &config, &limits);
        let limits = format!("memory = '{floor} B'\n{limits}");
        let args = ["run", "--fresh", "--config", &config, "--machine", &machine(dir, &limits)];
        let peak = watched(&args, &dir.join("scratch"));
        assert!(
            peak.resident_bytes <= floor + BASE_BYTES,
            "{workers} workers: {} bytes of memory with a limit of {floor}",
            peak.resident_bytes
        );
        assert!(peak.disk_bytes <= least_disk(10), "{} bytes of disk", peak.disk_bytes);
        made.push(artefacts(&dir.join("run")));
    }
    assert_eq!(differences(&made[0], &made[1]), Vec::<String>::new());
}

#[test]
fn long_urls_stay_within_limits() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let small = image(40, 30, false);
    let url = |row: usize, bytes: usize| format!("https://x/{row}/{}", "u".repeat(bytes - 11 - row.to_string().len()));
    let mut shard = String::new();
    for row in 0..3000 {
        let bytes = match row % 3 {
            0 => 60_000,
            1 => 2048,
            _ => 2049,
        };
        shard.push_str(&format!("{}\t{small}\tm\n", url(row, bytes)));
    }
    // Quarantined rows keep their URLs in the tally too.
    for row in 3000..4000 {
        shard.push_str(&format!("{}\tbm90IGFuIGltYWdl\tm\n", url(row, 2048)));
    }
    std::fs::write(dir.join("shard.csv"), shard).unwrap();
    let config = pipeline(dir, "run", 512, "[preprocess]\nmax_encoded = '64 KiB'\nmax_pixels = 100000\n");
    let limits = format!("max_bad_fraction = 1.0\ncpu_workers = 4\ndisk = '{} B'", least_disk(512));
    let floor = floor(dir, &config, &limits);
    let machine = machine(dir, &format!("memory = '{floor} B'\n{limits}"));
    let peak = watched(&["run", "--config", &config, "--machine", &machine], &dir.join("scratch"));
    assert!(peak.disk_bytes <= least_disk(512), "{} bytes of disk", peak.disk_bytes);
    assert!(peak.resident_bytes <= floor + BASE_BYTES, "{} bytes of memory of {floor}", peak.resident_bytes);
    let report: serde_json::Value =
        serde_json::from_slice(&std::fs::read(dir.join("run/report.json")).unwrap()).unwrap();
    let tally = &report["images"]["tally"];
    assert_eq!(tally["kept"], 1000, "{tally}");
    assert_eq!(tally["quarantined"]["url_too_long"], 2000, "{tally}");
    assert_eq!(tally["quarantined"]["unsupported_format"], 1000, "{tally}");
}

/// Writes pairs that give each image `labels` captions, all of them classes.
fn labelled(dir: &Path, images: usize, labels: usize) {
    let mut pairs = "language\timage_url\tcaption_title_and_reference_description\n".to_owned();
    for image in 0..images {
        for label in 0..labels {
            pairs.push_str(&format!("en\thttps://x/{image}\tcaption {label}\n"));
        }
    }
    std::fs::write(dir.join("pairs.tsv"), pairs).unwrap();
}

#[test]
fn chunk_larger_than_spool_is_refused_until_limit_is_raised() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let small = image(40, 30, false);
    let shard: Vec<String> = (0..100).map(|row| format!("https://x/{row}\t{small}\tm\n")).collect();
    std::fs::write(dir.join("shard.csv"), shard.concat()).unwrap();
    labelled(dir, 100, 10_000);
    let more = format!(
        "[captions]\nclasses = 'train'\n[pairs]\nshards = ['{}/pairs.tsv']\n[preprocess]\nmax_encoded = '64 KiB'\nmax_pixels = 100000\n",
        dir.display()
    );
    let config = pipeline(dir, "run", 50, &more);
    // 50 rows with 40 kB of labels each just fit; 100 rows do not.
    let small_disk = format!("memory = '300 MiB'\ncpu_workers = 4\ndisk = '{} B'", least_disk(50));
    let peak = watched(&["run", "--config", &config, "--machine", &machine(dir, &small_disk)], &dir.join("scratch"));
    assert!(peak.disk_bytes <= least_disk(50), "{} bytes of disk", peak.disk_bytes);
    let config = pipeline(dir, "wide", 100, &more);
    let small_disk = format!("memory = '300 MiB'\ncpu_workers = 4\ndisk = '{} B'", least_disk(100));
    let args = ["run", "--config", &config, "--machine", &machine(dir, &small_disk)];
    let (peak, out) = watched_to_any_end(&args, &dir.join("scratch"));
    let text = stderr_of(&out);
    assert_eq!(out.status.code(), Some(2), "{text}");
    assert!(text.contains("`limits.disk`") && text.contains("row 0 of shard 0"), "{text}");
    assert!(peak.disk_bytes <= least_disk(100), "{} bytes of disk", peak.disk_bytes);
    let large = "memory = '300 MiB'\ncpu_workers = 4\ndisk = '20 MiB'";
    let peak = watched(&["run", "--config", &config, "--machine", &machine(dir, large)], &dir.join("scratch"));
    assert!(peak.disk_bytes <= 20 << 20);
}
