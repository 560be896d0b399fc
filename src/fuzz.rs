//! Hostile input for everything that reads: damage to sound input that knows where formats keep their lengths, and the
//! three things that no input may bring about.
//!
//! The targets stand beside what they attack, in files named `fuzz.rs`, and run with the other tests. A longer run is the
//! same with more cases: `PROPTEST_CASES=15000 cargo test --release --lib fuzz` takes ten times as long; `PROPTEST_RNG_SEED` replays one. What a
//! run finds becomes a test by name.
//!
//! Memory is counted by the thread, so that tests that run beside a target do not disturb it; nothing that is attacked
//! works on several threads. Growing a buffer counts the old one and the new one, as it is in the worst case.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::Config;

/// Cases of a cheap target, one that takes a millisecond or less for each.
pub(crate) const CHEAP_CASES: u32 = 1500;
/// Time after which a single input counts as one that is slow on purpose. They take milliseconds, on a busy machine too.
const SLOW: Duration = Duration::from_secs(10);
/// Time after which it counts as one that never ends.
const ENDLESS: Duration = Duration::from_mins(2);

/// Settings of a target that runs so many cases with the other tests, and more in proportion with `PROPTEST_CASES`, which
/// counts those of a cheap one.
pub(crate) fn config(cases: u32) -> Config {
    let asked: Option<u32> = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    let cases = asked.map_or(cases, |asked| (u64::from(asked) * u64::from(cases)).div_ceil(CHEAP_CASES.into()) as u32);
    Config { cases, max_shrink_iters: 2000, ..Config::default() }
}

/// A place in the input: formats keep their lengths at the start or at the end.
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

/// One thing done to an input.
#[derive(Clone, Debug)]
pub(crate) enum Damage {
    Cut(Place),
    Set(Place, u8),
    Flip(Place, u8),
    /// A number of 1, 2, 4 or 8 bytes, in either order.
    Number(Place, usize, u64, bool),
    Insert(Place, Vec<u8>),
    Remove(Place, usize),
    /// A stretch of the input once more, elsewhere.
    Repeat(Place, usize, Place),
    /// A stretch of another input.
    Splice(Place, Index, Place, usize),
}

/// Damage that is likely to matter.
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

/// The input `sound[which]` after all of `damage`.
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
    /// Set while an input is at work on this thread: where it made something panic.
    static UNDER_ATTACK: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// What runs now, for [`ENDLESS`].
static RUNNING: Mutex<Vec<(std::thread::ThreadId, Instant, Vec<u8>)>> = Mutex::new(Vec::new());

/// Ends the process, which is the only way to stop a thread, when an input has not come to an end.
fn watch() {
    static WATCHING: OnceLock<()> = OnceLock::new();
    WATCHING.get_or_init(|| {
        // Panics are expected, many of them, and what the usual report of one takes is not the target's.
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let noted = UNDER_ATTACK.with_borrow_mut(|place| {
                let location = info.location().map(ToString::to_string).unwrap_or_default();
                place.as_mut().map(|place| *place = location)
            });
            if noted.is_none() {
                usual(info);
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

/// Runs a target on an input: it must not panic, nor take more than `limit_bytes` of memory at any moment, nor long.
pub(crate) fn bounded<T>(input: &[u8], limit_bytes: u64, target: impl FnOnce() -> T) -> Result<T, TestCaseError> {
    watch();
    let me = std::thread::current().id();
    let started = Instant::now();
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner).push((me, started, input.to_vec()));
    UNDER_ATTACK.set(Some(String::new()));
    let mut outcome = None;
    let taken = allocation_counter::measure(|| outcome = Some(catch_unwind(AssertUnwindSafe(target))));
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner).retain(|(thread, ..)| *thread != me);
    let place = UNDER_ATTACK.take().unwrap_or_default();
    let outcome = outcome.and_then(Result::ok).ok_or_else(|| TestCaseError::fail(format!("it panics at {place}")))?;
    prop_assert!(
        taken.bytes_max <= limit_bytes,
        "it takes {} bytes of memory, {} are allowed",
        taken.bytes_max,
        limit_bytes
    );
    prop_assert!(started.elapsed() <= SLOW, "it takes {:?}", started.elapsed());
    Ok(outcome)
}

#[test]
fn the_bound_is_exact_and_panics_are_caught() {
    let thousand = || std::hint::black_box(vec![1u8; 1000]).len();
    assert!(bounded(&[], 1000, thousand).is_ok());
    let text = bounded(&[], 999, thousand).unwrap_err().to_string();
    assert!(text.contains("1000 bytes"), "{text}");
    assert!(bounded(&[], 1 << 20, || std::panic::resume_unwind(Box::new(()))).map(|()| 0).is_err());
    assert!(bounded(&[], 1000, thousand).is_ok(), "a panic leaves the count as it was");
}
