//! Settings of the emulated card: environment variables, read once.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::OnceLock;

use crate::races::Between;

/// See README.md for each variable.
pub struct Settings {
    /// `EMUCUDA_SM`: compute capability without its point.
    pub sm: i32,
    /// `EMUCUDA_DRIVER`: version that the driver reports.
    pub driver: i32,
    /// `EMUCUDA_MEMORY_MIB`: device memory, instead of the card's.
    pub memory_mib: Option<u64>,
    /// `EMUCUDA_LOG`: directory for calls, problems and modules.
    pub log: Option<PathBuf>,
    /// `EMUCUDA_EXECUTE`: 0 lets launches do nothing.
    pub execute: bool,
    /// `EMUCUDA_ORDER`: `lazy` runs a stream only when somebody waits for it.
    pub lazy: bool,
    /// `EMUCUDA_RACES`: 1 looks for races on shared memory, `lanes` also for those between lanes of one warp.
    pub races: Option<Between>,
    /// `EMUCUDA_COMPARE`: 1 compares kernels that compute the same product.
    pub compare: bool,
    /// `EMUCUDA_THREADS`: most threads that run the blocks of a kernel. Default: one for each core.
    pub threads: u64,
    /// `EMUCUDA_TUNING_SEED`: draws how long kernels take.
    pub tuning_seed: Option<u64>,
    /// `EMUCUDA_FILL`: byte that fills fresh memory.
    pub fill: Option<u8>,
    /// `EMUCUDA_PTXAS`: assembler for each module.
    pub ptxas: Option<PathBuf>,
    /// `EMUCUDA_FAIL`: calls that return an error.
    pub fail: String,
    /// `EMUCUDA_IGNORE`: calls that report success and do nothing.
    pub ignore: Vec<String>,
}

/// Returns the settings of this process.
pub fn settings() -> &'static Settings {
    static SETTINGS: OnceLock<Settings> = OnceLock::new();
    SETTINGS.get_or_init(|| Settings {
        sm: number("EMUCUDA_SM").unwrap_or(90),
        driver: number("EMUCUDA_DRIVER").unwrap_or(13_000),
        memory_mib: number("EMUCUDA_MEMORY_MIB"),
        log: text("EMUCUDA_LOG").map(PathBuf::from),
        execute: text("EMUCUDA_EXECUTE").is_none_or(|value| value != "0"),
        lazy: text("EMUCUDA_ORDER").is_some_and(|value| value == "lazy"),
        races: text("EMUCUDA_RACES").and_then(|value| match value.as_str() {
            "lanes" => Some(Between::Lanes),
            "1" => Some(Between::Warps),
            _ => None,
        }),
        compare: text("EMUCUDA_COMPARE").is_some_and(|value| value == "1"),
        threads: number("EMUCUDA_THREADS")
            .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |count| count.get() as u64)),
        tuning_seed: number("EMUCUDA_TUNING_SEED"),
        fill: text("EMUCUDA_FILL").and_then(|value| u8::from_str_radix(&value, 16).ok()),
        ptxas: text("EMUCUDA_PTXAS").map(PathBuf::from),
        fail: text("EMUCUDA_FAIL").unwrap_or_default(),
        ignore: text("EMUCUDA_IGNORE").unwrap_or_default().split(',').map(ToOwned::to_owned).collect(),
    })
}

fn text(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Returns a number. One that does not parse ends the process: a test with another card than asked for would prove nothing.
fn number<T: FromStr>(name: &str) -> Option<T> {
    text(name).map(|value| {
        value.parse().unwrap_or_else(|_| {
            eprintln!("emulated card: `{name}` is `{value}`, which is no number");
            std::process::abort()
        })
    })
}
