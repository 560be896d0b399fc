//! Progress on standard error: one bar for the whole run on a terminal, a log line every few seconds elsewhere.

use std::io::{IsTerminal as _, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

use super::format;
use super::output::escape_controls;
use crate::telemetry::{ProgressRegistry, RunEstimate, StageSnapshot, estimate_run};

/// Steps of the bar.
const BAR_STEPS: u64 = 1000;
/// Time between two updates of the bar.
const TICK: Duration = Duration::from_millis(200);
/// Time between two log lines about a stage.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Destination of progress and logs.
#[derive(Debug, Clone)]
pub(super) struct Screen {
    bars: MultiProgress,
    style: Style,
    color: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    Bar,
    Lines,
    Quiet,
}

/// Returns whether standard error is a terminal that can move the cursor.
fn has_cursor() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

impl Screen {
    /// Chooses a bar or lines by what standard error is, and colour by `NO_COLOR` (<https://no-color.org>).
    pub(super) fn new(quiet: bool) -> Self {
        let cursor = has_cursor();
        let color = cursor && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let style = match (quiet, cursor) {
            (true, _) => Style::Quiet,
            (false, true) => Style::Bar,
            (false, false) => Style::Lines,
        };
        let target = if style == Style::Bar { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        Self { bars: MultiProgress::with_draw_target(target), style, color }
    }

    /// Shows the stages of a run until [`Display::end`].
    pub(super) fn follow(&self, registry: &ProgressRegistry) -> Display {
        let (screen, registry, ended) = (self.clone(), registry.clone(), Arc::new(AtomicBool::new(false)));
        let flag = Arc::clone(&ended);
        let follow = move || match screen.style {
            Style::Bar => screen.draw_bar(&registry, &flag),
            Style::Lines => log_stages(&registry, &flag),
            Style::Quiet => {}
        };
        let thread = std::thread::Builder::new().name("progress".to_owned()).spawn(follow).ok();
        Display { ended, thread }
    }

    /// Draws one bar for the whole run; each stage that ends leaves a line above it.
    fn draw_bar(&self, registry: &ProgressRegistry, ended: &AtomicBool) {
        let bar = self.bars.add(ProgressBar::new(BAR_STEPS));
        // The message is cut at the width that the terminal has at the time of drawing.
        if let Ok(style) = ProgressStyle::with_template("{bar:16} {wide_msg}") {
            bar.set_style(style);
        }
        let (started, mut reported) = (Instant::now(), Vec::new());
        loop {
            let last = ended.load(Ordering::SeqCst);
            let snapshots = registry.snapshots();
            log_finished(&snapshots, &mut reported);
            if last {
                bar.finish_and_clear();
                return;
            }
            let estimate = estimate_run(&registry.expected(), &snapshots);
            bar.set_position((run_share(&estimate, started.elapsed()) * BAR_STEPS as f64) as u64);
            bar.set_message(run_line(&estimate, &snapshots, SystemTime::now()));
            std::thread::park_timeout(TICK);
        }
    }
}

/// Returns the share of the run's time that has passed, as far as the rest can be estimated.
fn run_share(estimate: &RunEstimate, elapsed: Duration) -> f64 {
    let (passed, left) = (elapsed.as_secs_f64(), estimate.left.as_secs_f64());
    // Each stage of unknown time counts as the mean of the others.
    let known = (estimate.done + usize::from(left > 0.0)).max(1) as f64;
    let unknown = (passed + left) * estimate.unknown.len() as f64 / known;
    passed / (passed + left + unknown).max(f64::MIN_POSITIVE)
}

/// Describes the run in one line: `images 40.3 %, 812 rows/s; run ends about 14:32 UTC (3 min 5 s)`.
fn run_line(estimate: &RunEstimate, snapshots: &[StageSnapshot], now: SystemTime) -> String {
    let Some(stage) = snapshots.iter().rev().find(|stage| !stage.finished) else { return "starting".to_owned() };
    let share = match stage.total {
        Some(total) if total > 0 => format::percent((stage.done as f64 / total as f64).min(1.0)),
        _ => format::plural(stage.done, stage.unit),
    };
    let name = escape_controls(&stage.name);
    let stage_text = format!("{name} {share}, {} {}/s", format::number(stage.rate()), stage.unit);
    if estimate.left.is_zero() {
        return stage_text;
    }
    let end = humantime::format_rfc3339_seconds(now + estimate.left).to_string();
    let (day, time) = (end.get(5..10).unwrap_or_default(), end.get(11..16).unwrap_or_default());
    let time = if estimate.left < Duration::from_hours(20) { time.to_owned() } else { format!("{day} {time}") };
    let left = format::duration(estimate.left.as_secs() as f64);
    match estimate.unknown.split_first() {
        None => format!("{stage_text}; run ends about {time} UTC ({left})"),
        Some((next, [])) => format!("{stage_text}; until {time} UTC ({left}), then {next}"),
        Some((next, more)) => format!("{stage_text}; until {time} UTC ({left}), then {next} and {} more", more.len()),
    }
}

/// Logs each stage that has ended since the last call.
fn log_finished(snapshots: &[StageSnapshot], reported: &mut Vec<bool>) {
    reported.resize(snapshots.len().max(reported.len()), false);
    for (stage, reported) in snapshots.iter().zip(reported) {
        if stage.finished && !*reported {
            *reported = true;
            tracing::info!("{}", progress_line(stage));
        }
    }
}

fn time_left(stage: &StageSnapshot) -> Option<String> {
    let left = stage.eta().filter(|_| !stage.finished)?;
    Some(format::duration(left.as_secs() as f64))
}

/// Describes the progress of a stage in one line: `images: 1,200 of 2,980 rows (40.3 %), 812 rows/s, 2 s left`.
fn progress_line(stage: &StageSnapshot) -> String {
    let StageSnapshot { name, unit, done, resumed, .. } = stage;
    let rate = format::number(stage.rate());
    if stage.finished {
        let (units, time) = (format::plural(*done, unit), format::duration(stage.elapsed.as_secs_f64()));
        return match done - resumed.min(done) {
            0 => format!("{name}: done, {units}, all from an earlier run"),
            _ => format!("{name}: done, {units} in {time}, {rate} {unit}/s"),
        };
    }
    let units = match stage.total {
        Some(total) if total > 0 => {
            let share = format::percent((*done as f64 / total as f64).min(1.0));
            format!("{} of {} ({share})", format::count(*done), format::plural(total, unit))
        }
        _ => format::plural(*done, unit),
    };
    let left = time_left(stage).map_or_else(String::new, |left| format!(", {left} left"));
    format!("{name}: {units}, {rate} {unit}/s{left}")
}

fn log_stages(registry: &ProgressRegistry, ended: &AtomicBool) {
    let mut next = Instant::now() + LOG_INTERVAL;
    let mut reported: Vec<bool> = Vec::new();
    loop {
        let last = ended.load(Ordering::SeqCst);
        let snapshots = registry.snapshots();
        log_finished(&snapshots, &mut reported);
        if Instant::now() >= next {
            for stage in snapshots.iter().filter(|stage| !stage.finished) {
                tracing::info!("{}", progress_line(stage));
            }
            let estimate = estimate_run(&registry.expected(), &snapshots);
            if !estimate.left.is_zero() {
                tracing::info!("run: {}", run_line(&estimate, &snapshots, SystemTime::now()));
            }
            next = Instant::now() + LOG_INTERVAL;
        }
        if last {
            return;
        }
        std::thread::park_timeout(TICK);
    }
}

/// Progress display of a running pipeline.
pub(super) struct Display {
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Display {
    /// Shows the last state and ends.
    pub(super) fn end(self) {
        self.ended.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread {
            thread.thread().unpark();
            // A panic while drawing must not fail the run.
            thread.join().ok();
        }
    }
}

/// Sends log lines to standard error, above the bars.
pub(super) fn start_log(screen: &Screen, verbose: u8, quiet: bool) {
    // CubeCL warns of each task after a thread of its own has panicked, without a reason. The panic ends the command, with one.
    let default = match verbose {
        0 if quiet => "warn,cubecl_common=off",
        0 => "warn,wikicap_pipeline=info,cubecl_common=off",
        1 => "info,wikicap_pipeline=debug",
        _ => "debug",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(verbose > 0)
        // The writer colours lines after it has escaped them.
        .with_ansi(false)
        .with_timer(Seconds)
        .with_writer(LogWriter { bars: screen.bars.clone(), color: screen.color })
        .init();
}

/// Time of a log line: UTC, to the second.
struct Seconds;

impl FormatTime for Seconds {
    fn format_time(&self, out: &mut Writer<'_>) -> std::fmt::Result {
        write!(out, "{}", humantime::format_rfc3339_seconds(SystemTime::now()))
    }
}

/// Writer of log lines that hides the bars meanwhile. Messages quote names and errors from data, so control characters
/// are escaped here, where every line passes.
#[derive(Clone)]
struct LogWriter {
    bars: MultiProgress,
    color: bool,
}

/// Levels and their colours on a terminal.
const LEVEL_COLORS: [(&str, &str); 4] =
    [(" WARN ", "\x1b[33m"), (" ERROR ", "\x1b[31m"), (" INFO ", "\x1b[32m"), (" DEBUG ", "\x1b[34m")];

/// Escapes a log line, and colours its level.
fn safe_line(line: &str, color: bool) -> String {
    let safe = escape_controls(line);
    // The level follows the time, which has no spaces.
    let level = LEVEL_COLORS
        .iter()
        .filter_map(|(level, code)| Some((safe.find(level)?, *level, *code)))
        .min_by_key(|(at, ..)| *at)
        .filter(|_| color);
    match level {
        Some((at, level, code)) => {
            format!("{}{code}{}\x1b[0m{}", &safe[..at], level, &safe[at + level.len()..])
        }
        None => safe.into_owned(),
    }
}

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let line = safe_line(&String::from_utf8_lossy(bytes), self.color);
        self.bars.suspend(|| std::io::stderr().write_all(line.as_bytes()))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
    }
}

impl<'a> MakeWriter<'a> for LogWriter {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_line_is_escaped_before_it_is_coloured() {
        let line = "2026-01-01T00:00:00Z  WARN `a\u{1b}[31m.gz` ERROR \u{9b}2J\n";
        assert_eq!(safe_line(line, false), "2026-01-01T00:00:00Z  WARN `a\\x1b[31m.gz` ERROR \\u{9b}2J\n");
        let colored = safe_line(line, true);
        assert!(
            colored.starts_with("2026-01-01T00:00:00Z \u{1b}[33m WARN \u{1b}[0m`a\\x1b[31m.gz` ERROR"),
            "{colored}"
        );
    }

    #[test]
    fn run_line_fits_80_columns_and_names_the_end() {
        let registry = ProgressRegistry::default();
        let stage = registry.stage("images", "images", 44_762);
        stage.add(12_345);
        let mut snapshot = stage.snapshot();
        snapshot.elapsed = Duration::from_secs(1);
        let now = SystemTime::UNIX_EPOCH + Duration::from_hours(14);
        let left = Duration::from_secs(185);
        let line = |unknown: &[&str], left| {
            let unknown = unknown.iter().map(ToString::to_string).collect();
            run_line(&RunEstimate { done: 1, left, unknown }, std::slice::from_ref(&snapshot), now)
        };
        let text = "images 27.6 %, 12,300 images/s; run ends about 14:03 UTC (3 min 5 s)";
        assert_eq!(line(&[], left), text);
        let text = "images 27.6 %, 12,300 images/s; until 14:03 UTC (3 min 5 s), then train";
        assert_eq!(line(&["train"], left), text);
        assert!(line(&["train", "test images"], left).ends_with("then train and 1 more"));
        assert!(line(&[], Duration::from_hours(30)).contains("01-02 20:00 UTC"));
        assert_eq!(line(&[], Duration::ZERO), "images 27.6 %, 12,300 images/s");
    }

    #[test]
    fn share_of_the_run_grows_to_one() {
        let estimate = |done, left, unknown: usize| RunEstimate {
            done,
            left: Duration::from_secs(left),
            unknown: vec![String::new(); unknown],
        };
        let share = |estimate, seconds| run_share(&estimate, Duration::from_secs(seconds));
        assert!((share(estimate(0, 30, 1), 10) - 0.125).abs() < 1e-9);
        assert!((share(estimate(1, 10, 0), 30) - 0.75).abs() < 1e-9);
        assert!((share(estimate(3, 0, 0), 40) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn progress_line_says_how_much_is_done() {
        let registry = ProgressRegistry::default();
        let stage = registry.stage("images", "rows", 2000);
        stage.add_resumed(500);
        assert_eq!(progress_line(&stage.snapshot()), "images: 500 of 2,000 rows (25.0 %), 0 rows/s");
        stage.finish();
        assert_eq!(progress_line(&stage.snapshot()), "images: done, 500 rows, all from an earlier run");
    }
}
