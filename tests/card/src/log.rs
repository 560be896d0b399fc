//! Logs: `calls.PID.log` with a line a call, and `problems.log` with what a card would refuse, punish or leave undefined.

use std::cell::RefCell;
use std::fs::{File, create_dir_all};
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock};
use std::time::Instant;

use crate::settings::settings;

/// Problems that [`take_problems`] can return at most.
const MAX_KEPT: usize = 100;

thread_local! {
    static PROBLEMS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Returns and forgets the problems of this thread, for tests.
pub fn take_problems() -> Vec<String> {
    PROBLEMS.take()
}

pub struct Log {
    pub dir: Option<PathBuf>,
    calls: Option<Mutex<BufWriter<File>>>,
    started: Instant,
}

pub fn log() -> &'static Log {
    static LOG: OnceLock<Log> = OnceLock::new();
    LOG.get_or_init(|| {
        let dir = settings().log.clone();
        let calls = dir.as_ref().and_then(|dir| {
            create_dir_all(dir.join("modules")).ok()?;
            // Programs that probe in a child process have several logs.
            let file = File::create(dir.join(format!("calls.{}.log", std::process::id()))).ok()?;
            Some(Mutex::new(BufWriter::with_capacity(1 << 16, file)))
        });
        Log { dir, calls, started: Instant::now() }
    })
}

impl Log {
    pub fn on(&self) -> bool {
        self.calls.is_some()
    }
    pub fn call(&self, text: &str) {
        if let Some(calls) = &self.calls {
            let at = self.started.elapsed().as_micros();
            let mut out = calls.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let thread = std::thread::current();
            let _ = writeln!(out, "{at} [{}] {text}", thread.name().unwrap_or("?"));
            // The program may exit without destructors.
            let _ = out.flush();
        }
    }
    /// Reports something that a card would refuse, punish or leave undefined.
    pub fn problem(&self, text: &str) {
        PROBLEMS.with_borrow_mut(|problems| {
            if problems.len() < MAX_KEPT {
                problems.push(text.to_owned());
            }
        });
        self.call(&format!("PROBLEM {text}"));
        if let Some(dir) = &self.dir {
            let path = dir.join("problems.log");
            if let Ok(mut file) = File::options().create(true).append(true).open(path) {
                let _ = writeln!(file, "{text}");
            }
        }
        // Without a log, problems would pass unnoticed.
        if self.dir.is_none() {
            eprintln!("emulated card: {text}");
        }
    }
}

#[macro_export]
macro_rules! call {
    ($($arg:tt)*) => { if $crate::log::log().on() { $crate::log::log().call(&format!($($arg)*)) } };
}
#[macro_export]
macro_rules! problem {
    ($($arg:tt)*) => { $crate::log::log().problem(&format!($($arg)*)) };
}
