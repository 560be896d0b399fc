//! Support for fuzz targets: damage to sound input, and limits on panics, memory and time.
//!
//! Damage prefers the places where formats keep their lengths. The targets are in files named `fuzz.rs` beside the code that
//! they test, and run with the other tests. For a longer run, set the number of cases:
//! `WIKICAP_FUZZ_CASES=15000 cargo test --release --lib fuzz` takes ten times as long. `PROPTEST_RNG_SEED` repeats a run. Each
//! finding becomes a named test.
//!
//! Memory is counted per thread, so that other tests do not disturb a target; no target uses several threads. A buffer that
//! grows counts twice, because both copies exist in the worst case. Memory of C code is not counted.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::Config;

/// Cases of a cheap target, which takes a millisecond or less for each.
pub(crate) const CHEAP_CASES: u32 = 1500;
/// Time after which an input fails as too slow. Inputs take milliseconds, even on a busy machine.
const SLOW: Duration = Duration::from_secs(10);
/// Time after which an input counts as endless.
const ENDLESS: Duration = Duration::from_mins(2);

/// Settings of a target that runs `cases` cases by default. `WIKICAP_FUZZ_CASES` gives the cases of a cheap target; others run
/// in proportion.
pub(crate) fn config(cases: u32) -> Config {
    let requested: Option<u32> = std::env::var("WIKICAP_FUZZ_CASES").ok().and_then(|cases| cases.parse().ok());
    let cases = requested
        .map_or(cases, |requested| (u64::from(requested) * u64::from(cases)).div_ceil(CHEAP_CASES.into()) as u32);
    Config { cases, max_shrink_iters: 2000, ..Config::default() }
}

/// A position in the input. Formats keep their lengths at the start or at the end.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Place {
    Anywhere(Index),
    FromStart(usize),
    FromEnd(usize),
}

impl Place {
    fn within(self, len: usize) -> usize {
        match self {
            Self::Anywhere(index) => index.index(len + 1),
            Self::FromStart(at) => at.min(len),
            Self::FromEnd(at) => len - at.min(len),
        }
    }
}

fn place() -> impl Strategy<Value = Place> {
    prop_oneof![
        2 => any::<Index>().prop_map(Place::Anywhere),
        1 => (0usize..128).prop_map(Place::FromStart),
        1 => (0usize..600).prop_map(Place::FromEnd),
    ]
}

/// One change of an input.
#[derive(Clone, Debug)]
pub(crate) enum Damage {
    Cut(Place),
    Set(Place, u8),
    Flip(Place, u8),
    /// Writes a number of 1, 2, 4 or 8 bytes, in either byte order.
    Number(Place, usize, u64, bool),
    Insert(Place, Vec<u8>),
    Remove(Place, usize),
    /// Copies a range of the input to another position.
    Repeat(Place, usize, Place),
    /// Overwrites a range with one of another input.
    Splice(Place, Index, Place, usize),
}

/// Strategy for damage that formats are sensitive to.
pub(crate) fn damage() -> impl Strategy<Value = Vec<Damage>> {
    let extreme = prop_oneof![
        prop::sample::select(vec![
            0,
            1,
            0x7f,
            0x80,
            0xff,
            0x7fff,
            0xffff,
            0x7fff_ffff,
            0x8000_0000,
            0xffff_ffff,
            u64::MAX / 2,
            u64::MAX / 2 + 1,
            u64::MAX,
        ]),
        0u64..0x2_0000,
        any::<u64>(),
    ];
    let one = prop_oneof![
        1 => place().prop_map(Damage::Cut),
        3 => (place(), any::<u8>()).prop_map(|(at, byte)| Damage::Set(at, byte)),
        3 => (place(), 0u8..8).prop_map(|(at, bit)| Damage::Flip(at, bit)),
        4 => (place(), prop::sample::select(vec![1usize, 2, 4, 8]), extreme, any::<bool>())
            .prop_map(|(at, width, value, big)| Damage::Number(at, width, value, big)),
        1 => (place(), prop::collection::vec(any::<u8>(), 1..40)).prop_map(|(at, bytes)| Damage::Insert(at, bytes)),
        1 => (place(), 1usize..64).prop_map(|(at, count)| Damage::Remove(at, count)),
        1 => (place(), 1usize..300, place()).prop_map(|(from, count, to)| Damage::Repeat(from, count, to)),
        1 => (place(), any::<Index>(), place(), 1usize..600)
            .prop_map(|(at, other, from, count)| Damage::Splice(at, other, from, count)),
    ];
    prop::collection::vec(one, 1..6)
}

/// Returns the input `sound[which]` with all changes applied.
pub(crate) fn damaged(sound: &[Vec<u8>], which: Index, damage: &[Damage]) -> Vec<u8> {
    let mut data = sound[which.index(sound.len())].clone();
    for one in damage {
        let len = data.len();
        match one {
            Damage::Cut(at) => data.truncate(at.within(len)),
            Damage::Set(at, byte) => {
                if let Some(place) = data.get_mut(at.within(len)) {
                    *place = *byte;
                }
            }
            Damage::Flip(at, bit) => {
                if let Some(place) = data.get_mut(at.within(len)) {
                    *place ^= 1 << bit;
                }
            }
            Damage::Number(at, width, value, big) => {
                let mut bytes = value.to_le_bytes()[..*width].to_vec();
                if *big {
                    bytes.reverse();
                }
                let at = at.within(len);
                for (place, byte) in data[at..].iter_mut().zip(bytes) {
                    *place = byte;
                }
            }
            Damage::Insert(at, bytes) => {
                let at = at.within(len);
                data.splice(at..at, bytes.iter().copied());
            }
            Damage::Remove(at, count) => {
                let at = at.within(len);
                data.drain(at..(at + count).min(len));
            }
            Damage::Repeat(from, count, to) => {
                let from = from.within(len);
                let part = data[from..(from + count).min(len)].to_vec();
                let to = to.within(len);
                data.splice(to..to, part);
            }
            Damage::Splice(at, other, from, count) => {
                let other = &sound[other.index(sound.len())];
                let from = from.within(other.len());
                let part = &other[from..(from + count).min(other.len())];
                let at = at.within(len);
                data.splice(at..(at + part.len()).min(len), part.iter().copied());
            }
        }
    }
    data
}

/// Cuts the input into blocks of the given sizes, again and again.
pub(crate) fn blocks<'a>(data: &'a [u8], sizes: &'a [usize]) -> impl Iterator<Item = &'a [u8]> {
    let (mut rest, mut sizes) = (data, sizes.iter().cycle());
    std::iter::from_fn(move || {
        let size = (*sizes.next()?).clamp(1, rest.len().max(1)).min(rest.len());
        let (block, later) = rest.split_at(size);
        rest = later;
        (!block.is_empty()).then_some(block)
    })
}

thread_local! {
    /// Location of the last panic on this thread; set while a target runs.
    static PANIC_LOCATION: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Inputs that are being processed, for [`ENDLESS`].
static RUNNING: Mutex<Vec<(std::thread::ThreadId, Instant, Vec<u8>)>> = Mutex::new(Vec::new());

/// Starts a thread that aborts the process when an input is endless; a thread cannot be stopped otherwise.
fn start_watchdog() {
    static STARTED: OnceLock<()> = OnceLock::new();
    STARTED.get_or_init(|| {
        // Panics are expected in large numbers, and the memory of a usual report must not count for the target.
        let default_hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let noted = PANIC_LOCATION.with_borrow_mut(|place| {
                let location = info.location().map(ToString::to_string).unwrap_or_default();
                place.as_mut().map(|place| *place = location)
            });
            if noted.is_none() {
                default_hook(info);
            }
        }));
        std::thread::spawn(|| {
            loop {
                std::thread::sleep(Duration::from_secs(1));
                let running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some((.., input)) = running.iter().find(|(_, started, _)| started.elapsed() > ENDLESS) {
                    let path = std::env::temp_dir().join("wikicap-endless-input");
                    std::fs::write(&path, input).ok();
                    std::process::abort();
                }
            }
        });
    });
}

/// Runs a target on an input. It fails on a panic, on more than `limit_bytes` of allocated memory, and after [`SLOW`].
pub(crate) fn bounded<T>(input: &[u8], limit_bytes: u64, target: impl FnOnce() -> T) -> Result<T, TestCaseError> {
    start_watchdog();
    let me = std::thread::current().id();
    let started = Instant::now();
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner).push((me, started, input.to_vec()));
    PANIC_LOCATION.set(Some(String::new()));
    let mut outcome = None;
    let counted = allocation_counter::measure(|| outcome = Some(catch_unwind(AssertUnwindSafe(target))));
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner).retain(|(thread, ..)| *thread != me);
    let place = PANIC_LOCATION.take().unwrap_or_default();
    let outcome = outcome.and_then(Result::ok).ok_or_else(|| TestCaseError::fail(format!("it panics at {place}")))?;
    prop_assert!(
        counted.bytes_max <= limit_bytes,
        "it allocates {} bytes, {} are allowed",
        counted.bytes_max,
        limit_bytes
    );
    prop_assert!(started.elapsed() <= SLOW, "it takes {:?}", started.elapsed());
    Ok(outcome)
}

#[test]
fn memory_limit_is_exact_and_panics_are_caught() {
    let thousand = || std::hint::black_box(vec![1u8; 1000]).len();
    assert!(bounded(&[], 1000, thousand).is_ok());
    let text = bounded(&[], 999, thousand).unwrap_err().to_string();
    assert!(text.contains("1000 bytes"), "{text}");
    assert!(bounded(&[], 1 << 20, || std::panic::resume_unwind(Box::new(()))).map(|()| 0).is_err());
    assert!(bounded(&[], 1000, thousand).is_ok(), "a panic does not change the count");
}
