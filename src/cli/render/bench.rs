//! `bench`: rates of a pipeline's ingestion and of the model's parts.

use super::Table;
use crate::bench::ingest::{Cluster, Demand, Forecast, IngestReport, StageRate, Whole};
use crate::bench::{EmbedReport, FitReport, ForwardReport, HeadReport, RankReport};
use crate::cli::format::{bytes, count, duration, number, percent, plural};

/// Waits for storage below this limit, in seconds, are not shown.
const SHOWN_WAIT_S: f64 = 0.05;

/// Renders the rates of a pipeline's ingestion and the estimates for other machines.
pub(in crate::cli) fn ingest(report: &IngestReport) -> String {
    let mut table = Table::with_headings();
    table.heading("Stages of ingestion, each alone on one core");
    let unusable = if report.unusable == 0 { String::new() } else { format!("; {} rows unusable", report.unusable) };
    table.row("input", format!("first {} of {}{unusable}", plural(report.images as u64, "images"), report.shard));
    let views = if (report.squares_per_image - 1.0).abs() < f64::EPSILON {
        String::new()
    } else {
        format!(", {} views each", number(report.squares_per_image))
    };
    let (stored, side) = (bytes(report.stored_bytes as u64), report.size_px);
    table.row("image", format!("{stored} stored, {side} × {side} px decoded{views}"));
    for StageRate { name, images_per_s, mb_per_s, share } in &report.stages {
        let (images, megabytes, share) = (number(*images_per_s), number(*mb_per_s), percent(*share));
        table.row(name, format!("{images} images/s, {megabytes} MB/s, {share} of the time"));
    }
    if report.waited_s > SHOWN_WAIT_S {
        table.row("waited for storage", format!("{} s", number(report.waited_s)));
    }
    if let Some((rows, megabytes)) = report.pairs {
        table.row("pairs", format!("{} rows/s, {} MB/s unpacked", number(rows), number(megabytes)));
    }
    table.heading(&format!("All stages together on {}", plural(report.threads as u64, "threads")));
    let (rate, scaling) = (number(report.decoded_per_s), number(report.scaling));
    table.row("decode only", format!("{rate} images/s, {scaling} times one thread"));
    let Whole { written_per_s, counted_per_s } = report.whole;
    let pixels_mb = 3.0 * f64::from(report.size_px).powi(2) * report.squares_per_image / 1e6;
    let (written, megabytes) = (number(written_per_s), number(written_per_s * pixels_mb));
    table.row("chunks written to disk", format!("{written} images/s, {megabytes} MB/s of pixels"));
    let share = percent(written_per_s / counted_per_s.max(f64::MIN_POSITIVE));
    table.row("chunks discarded", format!("{} images/s; writing reaches {share} of it", number(counted_per_s)));
    table.heading("Estimate for machines with such cores, scaled to the rate of writing chunks");
    for Forecast { cores, images_per_s, bottleneck } in &report.machines {
        table.row(
            &plural(*cores as u64, "cores"),
            format!("{} images/s, limited by {bottleneck}", number(*images_per_s)),
        );
    }
    table.heading("Needed to keep a GPU busy");
    for Demand { images_per_s, cores, read_mb_per_s, scratch_mb_per_s } in &report.devices {
        let (cores, read, scratch) = (number(*cores), number(*read_mb_per_s), number(*scratch_mb_per_s));
        table.row(
            &format!("{} images/s", number(*images_per_s)),
            format!("{cores} cores, {read} MB/s of shards, {scratch} MB/s of scratch disk, written and read"),
        );
    }
    if let Some((rate, device)) = &report.forward {
        table.heading("Model");
        table.row("forward pass", format!("{} images/s on {device}", number(*rate)));
    }
    table.text + &cluster(&report.cluster)
}

/// Renders the model of several machines: assumptions, then a line for each number of machines.
fn cluster(cluster: &Cluster) -> String {
    let mut table = Table::new(2);
    table.text.push('\n');
    table.text.push_str("Model of a run in parts on several machines\n");
    for assumption in &cluster.assumptions {
        table.row("-", assumption);
    }
    table.text.push_str("  machines parts       time  images/s  start   idle   requests      USD  limit\n");
    for one in &cluster.forecasts {
        let (time, rate, usd) = (duration(one.seconds), count(one.images_per_s.round() as u64), number(one.usd));
        let (starting, idle, requests) = (percent(one.starting), percent(one.idle), count(one.reads + one.writes));
        table.text.push_str(&format!(
            "  {:>8} {:>5} {time:>10} {rate:>9} {starting:>6} {idle:>6} {requests:>10} {usd:>8}  {}\n",
            one.machines, one.parts, one.bottleneck
        ));
    }
    table.text
}

/// Renders the rate of a forward pass.
pub(in crate::cli) fn forward(report: &ForwardReport) -> String {
    let mut table = Table::with_headings();
    table.heading(&format!("Forward pass on {}", report.device));
    let (rows, batch) = (plural(report.rows as u64, "images"), report.batch_size);
    table.row("input", format!("{rows} in batches of {batch}, {}", report.precision));
    table.row("feature", plural(report.feature_dim as u64, "values"));
    table.row("kernels", report.kernels);
    table.row("attention", report.attention);
    table.row("first features", format!("after {} s", number(report.first_features_s)));
    let (images, tera) = (number(report.images_per_s), number(report.tflop_per_s));
    table.row("rate", format!("{images} images/s, {tera} TFLOP/s"));
    table.text
}

/// Renders the rate of a text encoder.
pub(in crate::cli) fn embed(report: &EmbedReport) -> String {
    let mut table = Table::with_headings();
    table.heading(&format!("Text encoder on {}", report.device));
    let (captions, tokens) = (plural(report.captions as u64, "captions"), plural(report.tokens as u64, "tokens"));
    table.row("input", format!("{captions}, {tokens}"));
    table.row("vector", plural(report.dim as u64, "values"));
    table.row("attention", report.attention);
    table.row("tokenizing", format!("{} s", number(report.tokenize_s)));
    let (captions, tokens) = (number(report.captions_per_s), number(report.tokens_per_s));
    table.row("rate", format!("{captions} captions/s, {tokens} tokens/s"));
    table.text
}

/// Renders the rate of a head's training.
pub(in crate::cli) fn head(report: &HeadReport) -> String {
    let mut table = Table::with_headings();
    table.heading(&format!("Training of a head on {}", report.device));
    table.row("steps", format!("{}, {}", report.steps, report.precision));
    table.row("kernels", report.kernels);
    table.row("first step", format!("{} s", number(report.first_step_s)));
    table.row("rate", format!("{} rows/s", number(report.rows_per_s)));
    if let Some(peak) = report.peak_memory_bytes {
        table.row("peak memory", bytes(peak));
    }
    if let Some((step, loss)) = report.losses.last() {
        table.row("loss", format!("{} at step {step}", number(*loss)));
    }
    table.text
}

/// Renders time and memory of a head in closed form.
pub(in crate::cli) fn fit(report: &FitReport) -> String {
    let mut table = Table::with_headings();
    table.heading(&format!("A head in closed form, features of {}", plural(report.dim as u64, "values")));
    let (rate, rows) = (number(report.rows_per_s), plural(report.rows as u64, "images"));
    table.row("covariances", format!("{rate} images/s over {rows}"));
    table.row("solution", format!("{} s", number(report.solve_s)));
    if let Some(peak) = report.peak_memory_bytes {
        table.row("peak memory", bytes(peak));
    }
    table.text
}

/// Renders the rate of ranking.
pub(in crate::cli) fn rank(report: &RankReport) -> String {
    let mut table = Table::with_headings();
    table.heading(&format!("Ranking on {}", report.device));
    let (rate, seconds) = (number(report.rows_per_s), number(report.seconds));
    table.row("rate", format!("{rate} rows/s, {} in {seconds} s", plural(report.rows as u64, "rows")));
    table.text
}
