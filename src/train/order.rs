//! The order in which an epoch visits its samples: a pure function of seed, epoch, chunk sizes and window.
//!
//! Chunks are permuted, then joined in that order into windows that fit into memory, and the samples of a window are
//! permuted. A sample is one (image, class) pair; a chunk has as many as its labels. Each sample comes exactly once
//! an epoch. Memory is one entry a chunk for the plan and one entry a sample for the one window at work.
//! The permutations are made here from the stream of `ChaCha8`, so they never change with a library.

use std::collections::BTreeMap;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// Chunks whose samples are shuffled together, and where the window lies in the epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// Indices of the chunks, in the order in which [`Place::slot`] counts them.
    pub chunks: Vec<usize>,
    /// Samples of each of these chunks; none is zero.
    pub sizes: Vec<u64>,
    /// Samples of the epoch before this window.
    pub start: u64,
    /// Samples of this window.
    pub samples: u64,
    seed: [u8; 32],
}

/// One sample of a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// Index into [`Window::chunks`].
    pub slot: usize,
    /// Sample within that chunk, from 0.
    pub sample: u64,
}

impl Window {
    /// The samples in the order in which they are visited; computed on each call.
    pub fn order(&self) -> Vec<Place> {
        let mut places: Vec<Place> = self
            .sizes
            .iter()
            .enumerate()
            .flat_map(|(slot, &size)| (0..size).map(move |sample| Place { slot, sample }))
            .collect();
        shuffle(&mut places, &mut ChaCha8Rng::from_seed(self.seed));
        places
    }
}

/// Plans an epoch: every chunk with samples is in exactly one window.
///
/// A window holds at most `window_samples` samples, but at least one chunk, so one chunk larger than that is a
/// window of its own. Chunks without samples are left out.
pub fn plan(chunk_samples: &[u64], seed: u64, epoch: u32, window_samples: u64) -> Vec<Window> {
    let mut chunks: Vec<usize> = (0..chunk_samples.len()).filter(|&chunk| chunk_samples[chunk] > 0).collect();
    shuffle(&mut chunks, &mut ChaCha8Rng::from_seed(stream(seed, epoch, 0)));

    let mut windows: Vec<Window> = Vec::new();
    let mut start = 0_u64;
    for chunk in chunks {
        let size = chunk_samples[chunk];
        let open = windows.last_mut().filter(|window| window.samples.saturating_add(size) <= window_samples);
        if let Some(window) = open {
            window.chunks.push(chunk);
            window.sizes.push(size);
            window.samples += size;
        } else {
            windows.push(Window {
                chunks: vec![chunk],
                sizes: vec![size],
                start,
                samples: size,
                seed: stream(seed, epoch, windows.len() as u64 + 1),
            });
        }
        start += size;
    }
    windows
}

/// Window and offset within its order of the sample at a position of the epoch; `None` at or past the end.
pub fn locate(windows: &[Window], position: u64) -> Option<(usize, u64)> {
    let index = windows.partition_point(|window| window.start <= position).checked_sub(1)?;
    let offset = position - windows[index].start;
    (offset < windows[index].samples).then_some((index, offset))
}

/// How well an order is mixed, by its first samples: in the order of the corpus neighbours are alike, and chunks and windows bound how
/// far a sample moves.
#[derive(Debug, Clone, Default)]
pub struct Mixing {
    /// Samples of the epoch.
    all: u64,
    seen: u64,
    moved: u128,
    last: Option<u32>,
    same: u64,
    counts: BTreeMap<u32, u64>,
}

/// Samples after which an order is judged: those of a window of the usual size, which is what is read first in any case.
const JUDGED_SAMPLES: u64 = 1 << 16;

impl Mixing {
    /// Of an epoch with so many samples.
    pub fn of(all: u64) -> Self {
        Self { all, ..Self::default() }
    }

    /// Adds the next sample of the order: its position in the corpus, and its class.
    pub fn add(&mut self, position: u64, class: u32) {
        self.moved += u128::from(position.abs_diff(self.seen));
        self.same += u64::from(self.last == Some(class));
        self.last = Some(class);
        *self.counts.entry(class).or_default() += 1;
        self.seen += 1;
    }

    /// Whether more samples would tell no more.
    pub fn is_enough(&self) -> bool {
        self.seen >= JUDGED_SAMPLES
    }

    /// Mean distance between a sample's places in the corpus and in the order, as a share of all samples; 1/3 where every
    /// order is as likely.
    pub fn moved(&self) -> f64 {
        self.moved as f64 / self.seen.max(1) as f64 / self.all.max(1) as f64
    }

    /// How much more often than by chance a sample has the class of the one before, as a share of what is possible: 0 where every
    /// order is as likely, 1 where all neighbours are alike (Cohen's kappa of a sample and its successor). 0 with one class.
    pub fn correlation(&self) -> f64 {
        let seen = self.seen.max(1) as f64;
        let chance: f64 = self.counts.values().map(|count| (*count as f64 / seen).powi(2)).sum();
        let same = self.same as f64 / (seen - 1.0).max(1.0);
        if chance < 1.0 { (same - chance) / (1.0 - chance) } else { 0.0 }
    }
}

/// The generator's seed of one permutation: 0 for the chunks of an epoch, 1 and up for its windows.
fn stream(seed: u64, epoch: u32, part: u64) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    bytes[8..12].copy_from_slice(&epoch.to_le_bytes());
    bytes[16..24].copy_from_slice(&part.to_le_bytes());
    // Keeps this use of a run's seed apart from every other one.
    bytes[24..].copy_from_slice(b"wc-order");
    bytes
}

/// Fisher and Yates, from the end.
fn shuffle<T>(items: &mut [T], random: &mut ChaCha8Rng) {
    for last in (1..items.len()).rev() {
        // A multiply and a shift instead of a remainder; the bias is below 2⁻³⁰ for any list that fits into memory.
        let choices = last as u128 + 1;
        let other = (u128::from(random.next_u64()) * choices) >> 64;
        items.swap(last, other as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn visited(windows: &[Window]) -> Vec<(usize, u64)> {
        let places = |window: &Window| {
            let chunks = window.chunks.clone();
            window.order().into_iter().map(move |place| (chunks[place.slot], place.sample))
        };
        windows.iter().flat_map(places).collect()
    }

    proptest! {
        #[test]
        fn each_sample_comes_exactly_once(
            sizes in prop::collection::vec(0u64..12, 0..20), seed: u64, epoch: u32, window in 0u64..40,
        ) {
            let mut seen = visited(&plan(&sizes, seed, epoch, window));
            seen.sort_unstable();
            let all: Vec<(usize, u64)> = sizes
                .iter()
                .enumerate()
                .flat_map(|(chunk, &size)| (0..size).map(move |sample| (chunk, sample)))
                .collect();
            prop_assert_eq!(seen, all);
        }

        #[test]
        fn a_window_is_bounded_and_cannot_take_the_next_chunk(
            sizes in prop::collection::vec(0u64..12, 0..20), seed: u64, window in 0u64..40,
        ) {
            let windows = plan(&sizes, seed, 0, window);
            for (index, this) in windows.iter().enumerate() {
                prop_assert!(this.samples <= window || this.chunks.len() == 1);
                prop_assert_eq!(this.samples, this.sizes.iter().sum::<u64>());
                if let Some(next) = windows.get(index + 1) {
                    prop_assert!(this.samples + next.sizes[0] > window);
                    prop_assert_eq!(this.start + this.samples, next.start);
                }
            }
        }

        #[test]
        fn every_position_is_found_in_its_window(
            sizes in prop::collection::vec(0u64..12, 0..20), seed: u64, window in 0u64..40,
        ) {
            let windows = plan(&sizes, seed, 3, window);
            let total: u64 = sizes.iter().sum();
            for position in 0..total {
                let (index, offset) = locate(&windows, position).unwrap();
                prop_assert!(offset < windows[index].samples);
                prop_assert_eq!(windows[index].start + offset, position);
            }
            prop_assert_eq!(locate(&windows, total), None);
            prop_assert_eq!(locate(&windows, u64::MAX), None);
        }
    }

    #[test]
    fn the_order_follows_seed_and_epoch_and_nothing_else() {
        let sizes = [40, 0, 25, 31, 8, 60];
        let order = |seed, epoch| visited(&plan(&sizes, seed, epoch, 70));
        assert_eq!(order(1, 0), order(1, 0));
        assert_ne!(order(1, 0), order(1, 1));
        assert_ne!(order(1, 0), order(2, 0));
        // Not the same permutation moved by one, which adding seed and epoch would give.
        assert_ne!(order(1, 1), order(2, 0));
    }

    #[test]
    fn mixing_tells_a_shuffled_order_from_one_that_is_not() {
        // 40 chunks of 50 samples; each chunk is of one class, as neighbours in the corpus often are.
        let sizes = [50_u64; 40];
        let mixing = |order: &[(usize, u64)]| {
            let mut mixing = Mixing::of(2000);
            for (chunk, sample) in order {
                mixing.add(*chunk as u64 * 50 + sample, *chunk as u32 / 2);
            }
            (mixing.moved(), mixing.correlation())
        };
        let corpus: Vec<(usize, u64)> = (0..40).flat_map(|chunk| (0..50).map(move |sample| (chunk, sample))).collect();
        let (moved, correlation) = mixing(&corpus);
        assert!(moved == 0.0 && correlation > 0.98, "{moved}, {correlation}");
        let (moved, correlation) = mixing(&visited(&plan(&sizes, 1, 0, 10_000)));
        assert!((moved - 1.0 / 3.0).abs() < 0.02 && correlation.abs() < 0.02, "{moved}, {correlation}");
        // Windows of four chunks: far moves, but neighbours from four chunks alone.
        let (moved, correlation) = mixing(&visited(&plan(&sizes, 1, 0, 200)));
        assert!((moved - 1.0 / 3.0).abs() < 0.1 && (0.15..0.35).contains(&correlation), "{moved}, {correlation}");
        assert_eq!((Mixing::of(0).moved(), Mixing::of(0).correlation()), (0.0, 0.0));
    }

    #[test]
    fn permutations_are_spread_evenly() {
        let mut counts = [0_u32; 24];
        for seed in 0..24_000 {
            let order = plan(&[4], seed, 0, 4)[0].order();
            let code = order.iter().fold(0, |code, place| code * 4 + place.sample);
            let mut all: Vec<u64> =
                (0..256).filter(|code| (0..4).all(|digit| (0..4).any(|at| (code >> (2 * at)) & 3 == digit))).collect();
            all.sort_unstable();
            counts[all.binary_search(&code).unwrap()] += 1;
        }
        assert!(counts.iter().all(|&count| (850..1150).contains(&count)), "{counts:?}");
    }

    #[test]
    fn the_order_does_not_change_between_versions() {
        let windows = plan(&[3, 2, 4], 42, 1, 6);
        assert_eq!(visited(&windows), FIXED);
    }

    const FIXED: &[(usize, u64)] = &[(1, 0), (0, 2), (0, 0), (1, 1), (0, 1), (2, 1), (2, 3), (2, 0), (2, 2)];
}
