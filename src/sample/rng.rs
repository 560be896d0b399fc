//! The one source of chance of a drawn corpus: a seed and a stream number in, the same numbers out on every platform.
//!
//! Only integer arithmetic, multiplication and addition are used, never `sin`, `ln` or another function whose last bit
//! depends on the platform's library: the drawn bytes are compared by hash.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::Rng;
use rand_chacha::rand_core::SeedableRng;

/// What a stream of chance is for; streams never share numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Which images, rows and captions there are.
    Plan,
    /// The pixels of the train image with this number.
    TrainImage(u32),
    /// The pixels of the test image with this number.
    TestImage(u32),
    /// The bytes of the unusable row with this number.
    Unusable(u32),
    /// The weights of the checkpoint.
    Weights,
}

impl Purpose {
    fn stream(self) -> u64 {
        let (kind, number) = match self {
            Self::Plan => (0, 0),
            Self::TrainImage(number) => (1, number),
            Self::TestImage(number) => (2, number),
            Self::Unusable(number) => (3, number),
            Self::Weights => (4, 0),
        };
        (kind << 32) | u64::from(number)
    }
}

/// A seeded generator with the few distributions that a drawing needs.
pub(super) struct SampleRng(ChaCha8Rng);

impl SampleRng {
    /// Opens the stream for `purpose` under `seed`.
    pub(super) fn new(seed: u64, purpose: Purpose) -> Self {
        let mut generator = ChaCha8Rng::seed_from_u64(seed);
        generator.set_stream(purpose.stream());
        Self(generator)
    }

    /// 64 random bits.
    pub(super) fn bits(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// A number in `[0, limit)`; 0 where `limit` is 0. The bias is under `limit / 2^32`.
    pub(super) fn below(&mut self, limit: usize) -> usize {
        ((u128::from(self.bits()) * limit as u128) >> 64) as usize
    }

    /// True in `percent` of 100 calls.
    pub(super) fn percent(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// A number in `[low, high)`.
    pub(super) fn between(&mut self, low: f32, high: f32) -> f32 {
        let unit = (self.bits() >> 40) as f32 / (1u32 << 24) as f32;
        low + unit * (high - low)
    }

    /// A number of mean 0 and variance 1: twelve uniform numbers less six (within ±6).
    pub(super) fn normal(&mut self) -> f32 {
        (0..12).map(|_| self.between(0.0, 1.0)).sum::<f32>() - 6.0
    }

    /// One of `items`; `None` where there is none.
    pub(super) fn pick<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        items.get(self.below(items.len()))
    }

    /// Puts `items` into a random order (Fisher and Yates).
    pub(super) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_differ_and_repeat() {
        let bits = |seed, purpose| SampleRng::new(seed, purpose).bits();
        assert_eq!(bits(1, Purpose::Plan), bits(1, Purpose::Plan));
        assert_ne!(bits(1, Purpose::Plan), bits(2, Purpose::Plan));
        assert_ne!(bits(1, Purpose::TrainImage(0)), bits(1, Purpose::TestImage(0)));
        assert_ne!(bits(1, Purpose::TrainImage(0)), bits(1, Purpose::TrainImage(1)));
    }

    #[test]
    fn normal_numbers_have_mean_zero_and_variance_one() {
        let mut rng = SampleRng::new(3, Purpose::Plan);
        let numbers: Vec<f32> = (0..20_000).map(|_| rng.normal()).collect();
        let mean = numbers.iter().sum::<f32>() / 20_000.0;
        let variance = numbers.iter().map(|number| (number - mean).powi(2)).sum::<f32>() / 20_000.0;
        assert!(mean.abs() < 0.03, "mean {mean}");
        assert!((variance - 1.0).abs() < 0.05, "variance {variance}");
    }

    #[test]
    fn a_shuffle_keeps_every_item_and_an_empty_choice_is_none() {
        let mut rng = SampleRng::new(3, Purpose::Plan);
        let mut items: Vec<u32> = (0..100).collect();
        rng.shuffle(&mut items);
        assert_ne!(items, (0..100).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..100).collect::<Vec<_>>());
        assert_eq!(rng.pick::<u32>(&[]), None);
        assert_eq!(rng.below(0), 0);
    }
}
