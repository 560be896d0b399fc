//! Pooling of tokens to a feature: the meaning of [`Pool`] for a checkpoint.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use crate::model::config::{BackboneConfig, Body, FinalNorm, ProjectionHead};
use crate::model::error::ModelError;
use crate::model::family::Family;
use crate::types::Pool;

/// Pooling of one block's tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pooling {
    /// The CLS token.
    Cls,
    /// The mean of the patches.
    Mean,
    /// The CLS token, then the mean of the patches.
    ClsMean,
    /// The head that maps to the space of the text tower.
    Head,
    /// The mean of the patches before the final norm: the input of CLIP's classifier in transformers.
    MeanBeforeNorm,
}

/// Tokens of a sequence whose states pooling reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PooledTokens {
    /// All tokens.
    All,
    /// The first token. The last block computes its states alone.
    First,
}

impl PooledTokens {
    /// Returns how many of `tokens` these are.
    pub(super) fn count(self, tokens: usize) -> usize {
        match self {
            Self::All => tokens,
            Self::First => tokens.min(1),
        }
    }
}

impl Pooling {
    /// Returns the pooling that `pool` means for a checkpoint.
    ///
    /// # Errors
    /// When the checkpoint has no CLS token or no head that it needs.
    pub(super) fn resolve(pool: Pool, config: &BackboneConfig) -> Result<Self, ModelError> {
        let supported = supported_pools(config);
        if !supported.contains(&pool) {
            return Err(ModelError::Pool { pool, family: config.family.name(), supported });
        }
        Ok(match pool {
            Pool::Cls => Self::Cls,
            Pool::Mean => Self::Mean,
            Pool::ClsMean => Self::ClsMean,
            Pool::Head => Self::Head,
            Pool::Default => match (config.family, &config.body) {
                (Family::Dinov2 | Family::Dinov2WithRegisters, _) => Self::ClsMean,
                (Family::Siglip, _) | (_, Body::Windowed(_)) => Self::Mean,
                (Family::Clip | Family::MetaClip2 | Family::AltClip, _) => Self::MeanBeforeNorm,
                (_, Body::Plain(plain)) if plain.final_norm == FinalNorm::Feature => Self::Mean,
                _ => Self::Cls,
            },
        })
    }

    /// Returns the width of the feature of a block.
    pub(super) fn width(self, config: &BackboneConfig, block: u32) -> usize {
        let width = config.width(block);
        match (self, &config.body) {
            (Self::ClsMean, _) => 2 * width,
            (Self::Head, Body::Plain(plain)) => match plain.head {
                Some(ProjectionHead::Linear { dim }) => dim,
                _ => width,
            },
            _ => width,
        }
    }
}

/// Features of some blocks of a backbone, in the order in which the caller names the blocks.
pub(super) struct TapFeatures<'a, B: Backend> {
    taps: &'a [u32],
    features: Vec<Option<Tensor<B, 2>>>,
}

impl<'a, B: Backend> TapFeatures<'a, B> {
    /// Starts to collect the features of the blocks `taps`; a block may be named twice.
    pub(super) fn new(taps: &'a [u32]) -> Self {
        Self { taps, features: vec![None; taps.len()] }
    }

    /// Computes the feature of a block, `[rows, width]`, if the caller named that block.
    pub(super) fn collect(&mut self, block: u32, feature: impl FnOnce() -> Tensor<B, 2>) {
        if self.taps.contains(&block) {
            let feature = feature();
            let places = self.features.iter_mut().zip(self.taps).filter(|(_, tap)| **tap == block);
            places.for_each(|(place, _)| *place = Some(feature.clone()));
        }
    }

    /// Returns the features.
    pub(super) fn into_vec(self) -> Vec<Tensor<B, 2>> {
        self.features.into_iter().flatten().collect()
    }
}

/// Returns the pools that a checkpoint has.
pub(super) fn supported_pools(config: &BackboneConfig) -> Vec<Pool> {
    let (cls, head) = match &config.body {
        Body::Plain(plain) => (plain.cls, plain.head.is_some()),
        Body::Windowed(_) => (false, false),
    };
    let has = |pool: &Pool| match pool {
        Pool::Default | Pool::Mean => true,
        Pool::Cls | Pool::ClsMean => cls,
        Pool::Head => head,
    };
    Pool::ALL.into_iter().filter(has).collect()
}
