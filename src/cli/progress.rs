//! Progress: bars on a terminal, a log line now and then elsewhere.

use std::io::{IsTerminal as _, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::telemetry::{ProgressRegistry, StageSnapshot};

/// Time between two looks at the stages on a terminal.
const TICK: Duration = Duration::from_millis(200);
/// Time between two log lines elsewhere.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// Where progress and logs go.
#[derive(Debug, Clone)]
pub(super) struct Screen {
    bars: MultiProgress,
    terminal: bool,
    json: bool,
}

impl Screen {
    /// Bars on standard error where that is a terminal.
    pub(super) fn new(json: bool) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let target = if terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        Self { bars: MultiProgress::with_draw_target(target), terminal, json }
    }

    /// Whether results are wanted as JSON.
    pub(super) fn json(&self) -> bool {
        self.json
    }

    /// Shows the stages of a run until [`Following::end`].
    pub(super) fn follow(&self, board: &ProgressRegistry) -> Following {
        let (screen, board, over) = (self.clone(), board.clone(), Arc::new(AtomicBool::new(false)));
        let flag = Arc::clone(&over);
        let thread = std::thread::Builder::new()
            .name("progress".to_owned())
            .spawn(move || if screen.terminal { screen.draw(&board, &flag) } else { log(&board, &flag) })
            .ok();
        Following { over, thread }
    }

    fn draw(&self, board: &ProgressRegistry, over: &AtomicBool) {
        let mut bars: Vec<ProgressBar> = Vec::new();
        loop {
            let last = over.load(Ordering::SeqCst);
            for (index, stage) in board.snapshots().iter().enumerate() {
                if index == bars.len() {
                    bars.push(self.bars.add(ProgressBar::new(0)));
                }
                show(&bars[index], stage, last);
            }
            if last {
                return;
            }
            std::thread::park_timeout(TICK);
        }
    }
}

fn show(bar: &ProgressBar, stage: &StageSnapshot, last: bool) {
    if bar.is_finished() {
        return;
    }
    let template = if stage.total.is_some() && !stage.finished {
        "{prefix:22} {bar:30} {pos}/{len} {msg}"
    } else {
        "{prefix:22} {pos} {msg}"
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.set_prefix(stage.name.clone());
    bar.set_length(stage.total.unwrap_or(0).max(stage.done));
    bar.set_position(stage.done);
    let eta = stage.eta().filter(|_| !stage.finished).map_or_else(String::new, |left| {
        format!(", {} left", humantime::format_duration(Duration::from_secs(left.as_secs())))
    });
    bar.set_message(format!("{}, {:.0}/s{eta}", stage.unit, stage.rate()));
    if stage.finished || last {
        bar.abandon();
    }
}

fn log(board: &ProgressRegistry, over: &AtomicBool) {
    let mut next = Instant::now() + LOG_EVERY;
    let mut reported: Vec<bool> = Vec::new();
    loop {
        let last = over.load(Ordering::SeqCst);
        let due = Instant::now() >= next;
        for (index, stage) in board.snapshots().iter().enumerate() {
            if index == reported.len() {
                reported.push(false);
            }
            if !reported[index] && (stage.finished || due) {
                reported[index] = stage.finished;
                let left = stage.eta().filter(|_| !stage.finished).map(|left| Duration::from_secs(left.as_secs()));
                tracing::info!(
                    stage = stage.name,
                    done = stage.done,
                    total = stage.total,
                    unit = stage.unit,
                    per_second = stage.rate().round(),
                    left = left.map(|left| humantime::format_duration(left).to_string()),
                    "{}",
                    if stage.finished { "stage done" } else { "progress" }
                );
            }
        }
        if due {
            next = Instant::now() + LOG_EVERY;
        }
        if last {
            return;
        }
        std::thread::park_timeout(TICK);
    }
}

/// Progress that is being shown.
pub(super) struct Following {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Following {
    /// Shows the last state and ends.
    pub(super) fn end(self) {
        self.over.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread {
            thread.thread().unpark();
            // A panic in the drawing of bars must not cost the run.
            thread.join().ok();
        }
    }
}

/// Sends log lines to standard error, above the bars.
pub(super) fn start_log(screen: &Screen, verbose: u8) {
    let default = match verbose {
        0 => "warn,wikicap_pipeline=info",
        1 => "info,wikicap_pipeline=debug",
        _ => "debug",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(verbose > 0)
        .with_ansi(screen.terminal)
        .with_writer(Above(screen.bars.clone()))
        .init();
}

/// Writes whole lines while the bars are out of the way.
#[derive(Clone)]
struct Above(MultiProgress);

impl Write for Above {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.suspend(|| std::io::stderr().write(bytes))
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
    }
}

impl<'a> MakeWriter<'a> for Above {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}
