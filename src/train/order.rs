//! Sample order of an epoch, a pure function of seed, epoch, chunk sizes and window size.
//!
//! The chunks are permuted and joined in this order to windows that fit into memory; then the samples of each window
//! are permuted. A sample is one (image, class) pair, so a chunk has as many samples as labels. Every sample occurs
//! exactly once an epoch. Memory is one entry for each chunk and one for each sample of the current window.
//! Permutations are computed here from the stream of `ChaCha8`, so they do not depend on the version of a library.

use std::collections::BTreeMap;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// Chunks whose samples are shuffled together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// Indices of the chunks; [`SampleIndex::slot`] is a position in this list.
    pub chunks: Vec<usize>,
    /// Number of samples of each chunk, never zero.
    pub sizes: Vec<u64>,
    /// Number of samples of the epoch before this window.
    pub start: u64,
    /// Number of samples of this window.
    pub samples: u64,
    seed: [u8; 32],
}

/// Index of a sample in a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SampleIndex {
    /// Position in [`Window::chunks`].
    pub slot: usize,
    /// Sample within the chunk, from 0.
    pub sample: u64,
}

impl Window {
    /// Computes the order in which the samples are visited.
    pub fn order(&self) -> Vec<SampleIndex> {
        let mut samples: Vec<SampleIndex> = self
            .sizes
            .iter()
            .enumerate()
            .flat_map(|(slot, &size)| (0..size).map(move |sample| SampleIndex { slot, sample }))
            .collect();
        shuffle(&mut samples, &mut ChaCha8Rng::from_seed(self.seed));
        samples
    }
}

/// Splits an epoch into windows; every chunk with samples is in exactly one window.
///
/// A window holds at most `window_samples` samples but at least one chunk, so a larger chunk is a window by itself.
/// Chunks without samples are omitted.
pub fn plan_epoch(chunk_samples: &[u64], seed: u64, epoch: u32, window_samples: u64) -> Vec<Window> {
    let mut chunks: Vec<usize> = (0..chunk_samples.len()).filter(|&chunk| chunk_samples[chunk] > 0).collect();
    shuffle(&mut chunks, &mut ChaCha8Rng::from_seed(derive_seed(seed, epoch, 0)));

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
                seed: derive_seed(seed, epoch, windows.len() as u64 + 1),
            });
        }
        start += size;
    }
    windows
}

/// Returns the window of a position in the epoch and the offset within its order; `None` at or beyond the end.
pub fn locate(windows: &[Window], position: u64) -> Option<(usize, u64)> {
    let index = windows.partition_point(|window| window.start <= position).checked_sub(1)?;
    let offset = position - windows[index].start;
    (offset < windows[index].samples).then_some((index, offset))
}

/// Shuffle quality of a sample order, measured on its first samples.
///
/// Neighbours in the corpus are often alike, and chunks and windows limit the displacement of a sample.
#[derive(Debug, Clone, Default)]
pub struct ShuffleQuality {
    /// Number of samples of the epoch.
    epoch_samples: u64,
    /// Number of samples added.
    added: u64,
    /// Sum of displacements.
    displacement: u128,
    last_class: Option<u32>,
    /// Number of samples with the class of their predecessor.
    repeats: u64,
    counts: BTreeMap<u32, u64>,
}

/// Number of samples after which the measurement stops: one window of the default size, which is read first anyway.
const MEASURED_SAMPLES: u64 = 1 << 16;

impl ShuffleQuality {
    /// Starts a measurement of an epoch with `epoch_samples` samples.
    pub fn new(epoch_samples: u64) -> Self {
        Self { epoch_samples, ..Self::default() }
    }

    /// Adds the next sample of the order by its position in the corpus and its class.
    pub fn add(&mut self, position: u64, class: u32) {
        self.displacement += u128::from(position.abs_diff(self.added));
        self.repeats += u64::from(self.last_class == Some(class));
        self.last_class = Some(class);
        *self.counts.entry(class).or_default() += 1;
        self.added += 1;
    }

    /// Whether enough samples were added.
    pub fn is_complete(&self) -> bool {
        self.added >= MEASURED_SAMPLES
    }

    /// Returns the mean displacement between corpus and order, as a share of the epoch; 1/3 for a uniform permutation.
    pub fn mean_displacement(&self) -> f64 {
        self.displacement as f64 / self.added.max(1) as f64 / self.epoch_samples.max(1) as f64
    }

    /// Returns the label autocorrelation: Cohen's kappa between the classes of a sample and its predecessor.
    ///
    /// It is 0 on average for a uniform permutation, 1 if all neighbours have the same class, and 0 with a single
    /// class.
    pub fn label_autocorrelation(&self) -> f64 {
        let added = self.added.max(1) as f64;
        let chance: f64 = self.counts.values().map(|count| (*count as f64 / added).powi(2)).sum();
        let observed = self.repeats as f64 / (added - 1.0).max(1.0);
        if chance < 1.0 { (observed - chance) / (1.0 - chance) } else { 0.0 }
    }
}

/// Returns the generator's seed for one permutation of an epoch: number 0 for the chunks, 1 and up for the windows.
fn derive_seed(seed: u64, epoch: u32, number: u64) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    bytes[8..12].copy_from_slice(&epoch.to_le_bytes());
    bytes[16..24].copy_from_slice(&number.to_le_bytes());
    // Domain separation from other uses of the run's seed.
    bytes[24..].copy_from_slice(b"wc-order");
    bytes
}

/// Shuffles with the algorithm of Fisher and Yates, from the end.
fn shuffle<T>(items: &mut [T], random: &mut ChaCha8Rng) {
    for last in (1..items.len()).rev() {
        // Multiply and shift (Lemire 2019) without rejection; the bias is below 2⁻³⁰ for any list that fits into
        // memory.
        let choices = last as u128 + 1;
        let other = (u128::from(random.next_u64()) * choices) >> 64;
        items.swap(last, other as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn visit_all(windows: &[Window]) -> Vec<(usize, u64)> {
        let samples = |window: &Window| {
            let chunks = window.chunks.clone();
            window.order().into_iter().map(move |index| (chunks[index.slot], index.sample))
        };
        windows.iter().flat_map(samples).collect()
    }

    proptest! {
        #[test]
        fn every_sample_occurs_once(
            sizes in prop::collection::vec(0u64..12, 0..20), seed: u64, epoch: u32, window in 0u64..40,
        ) {
            let mut seen = visit_all(&plan_epoch(&sizes, seed, epoch, window));
            seen.sort_unstable();
            let all: Vec<(usize, u64)> = sizes
                .iter()
                .enumerate()
                .flat_map(|(chunk, &size)| (0..size).map(move |sample| (chunk, sample)))
                .collect();
            prop_assert_eq!(seen, all);
        }

        #[test]
        fn windows_are_bounded_and_maximal(
            sizes in prop::collection::vec(0u64..12, 0..20), seed: u64, window in 0u64..40,
        ) {
            let windows = plan_epoch(&sizes, seed, 0, window);
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
        fn every_position_is_located(
            sizes in prop::collection::vec(0u64..12, 0..20), seed: u64, window in 0u64..40,
        ) {
            let windows = plan_epoch(&sizes, seed, 3, window);
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
    fn order_depends_on_seed_and_epoch() {
        let sizes = [40, 0, 25, 31, 8, 60];
        let order = |seed, epoch| visit_all(&plan_epoch(&sizes, seed, epoch, 70));
        assert_eq!(order(1, 0), order(1, 0));
        assert_ne!(order(1, 0), order(1, 1));
        assert_ne!(order(1, 0), order(2, 0));
        // Seed and epoch are not merely added.
        assert_ne!(order(1, 1), order(2, 0));
    }

    #[test]
    fn shuffle_quality_detects_unshuffled_order() {
        // 40 chunks of 50 samples, two consecutive chunks a class: neighbours in the corpus are alike.
        let sizes = [50_u64; 40];
        let measure = |order: &[(usize, u64)]| {
            let mut quality = ShuffleQuality::new(2000);
            for (chunk, sample) in order {
                quality.add(*chunk as u64 * 50 + sample, *chunk as u32 / 2);
            }
            (quality.mean_displacement(), quality.label_autocorrelation())
        };
        let corpus: Vec<(usize, u64)> = (0..40).flat_map(|chunk| (0..50).map(move |sample| (chunk, sample))).collect();
        let (moved, correlation) = measure(&corpus);
        assert!(moved == 0.0 && correlation > 0.98, "{moved}, {correlation}");
        let (moved, correlation) = measure(&visit_all(&plan_epoch(&sizes, 1, 0, 10_000)));
        assert!((moved - 1.0 / 3.0).abs() < 0.02 && correlation.abs() < 0.02, "{moved}, {correlation}");
        // Windows of four chunks: large displacements, but neighbours from four chunks only.
        let (moved, correlation) = measure(&visit_all(&plan_epoch(&sizes, 1, 0, 200)));
        assert!((moved - 1.0 / 3.0).abs() < 0.1 && (0.15..0.35).contains(&correlation), "{moved}, {correlation}");
        let empty = ShuffleQuality::new(0);
        assert_eq!((empty.mean_displacement(), empty.label_autocorrelation()), (0.0, 0.0));
    }

    #[test]
    fn permutations_are_uniform() {
        let mut counts = [0_u32; 24];
        for seed in 0..24_000 {
            let order = plan_epoch(&[4], seed, 0, 4)[0].order();
            let code = order.iter().fold(0, |code, index| code * 4 + index.sample);
            let mut all: Vec<u64> =
                (0..256).filter(|code| (0..4).all(|digit| (0..4).any(|at| (code >> (2 * at)) & 3 == digit))).collect();
            all.sort_unstable();
            counts[all.binary_search(&code).unwrap()] += 1;
        }
        assert!(counts.iter().all(|&count| (850..1150).contains(&count)), "{counts:?}");
    }

    #[test]
    fn order_is_stable_across_versions() {
        let windows = plan_epoch(&[3, 2, 4], 42, 1, 6);
        assert_eq!(visit_all(&windows), FIXED);
    }

    const FIXED: &[(usize, u64)] = &[(1, 0), (0, 2), (0, 0), (1, 1), (0, 1), (2, 1), (2, 3), (2, 0), (2, 2)];
}
