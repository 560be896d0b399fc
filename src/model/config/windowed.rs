//! Backbones with attention within windows: Swin and Swin v2.

use super::{Keys, MAX_LAYERS, MAX_WIDTH};
use crate::model::error::ModelError;
use crate::model::family::Family;

/// Upper bound on stages. Each halves the grid of tokens and doubles their width.
const MAX_STAGES: usize = 8;
/// Upper bound on the width of the first stage.
const MAX_EMBED_WIDTH: u64 = MAX_WIDTH >> MAX_STAGES;
/// Upper bound on the side of a window, in tokens.
const MAX_WINDOW: u64 = 256;

/// Architecture of a backbone whose tokens attend within windows.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::model) struct WindowedConfig {
    /// Width of a token in the first stage; each further stage doubles it.
    pub(in crate::model) embed: usize,
    /// Blocks of each stage.
    pub(in crate::model) depths: Vec<usize>,
    /// Heads of each stage.
    pub(in crate::model) heads: Vec<usize>,
    /// Side of a window, in tokens.
    pub(in crate::model) window: usize,
    /// Side of the windows in pre-training, for each stage of Swin v2; 0 for the same side.
    pub(in crate::model) pretrained_windows: Vec<usize>,
    /// Inner width of the MLP, as a multiple of a token's width.
    pub(in crate::model) mlp_ratio: f64,
    pub(in crate::model) qkv_bias: bool,
    /// True if a table of positions is added to the embedding.
    pub(in crate::model) absolute_positions: bool,
    /// Patches along one side at the native image size.
    pub(in crate::model) native_grid: usize,
    /// True if the blocks are those of Swin v2.
    pub(in crate::model) v2: bool,
}

impl WindowedConfig {
    /// Returns the number of blocks.
    pub(in crate::model) fn blocks(&self) -> usize {
        self.depths.iter().sum()
    }

    /// Returns the stage of a block.
    pub(in crate::model) fn stage_of(&self, block: usize) -> usize {
        let mut end = 0;
        let ends_after = |depth: &usize| {
            end += depth;
            block < end
        };
        self.depths.iter().position(ends_after).unwrap_or(self.depths.len() - 1)
    }

    /// Returns the width of a token in a stage.
    pub(in crate::model) fn width(&self, stage: usize) -> usize {
        self.embed << stage
    }

    /// Returns the inner width of the MLPs of a stage.
    pub(in crate::model) fn inner(&self, stage: usize) -> usize {
        // transformers truncates: int(mlp_ratio * dim).
        (self.mlp_ratio * self.width(stage) as f64) as usize
    }

    /// Returns the side of the grid of tokens in a stage, for a grid of patches. Merging pads an odd grid.
    pub(in crate::model) fn grid(patches: usize, stage: usize) -> usize {
        (0..stage).fold(patches, |grid, _| grid.div_ceil(2))
    }

    /// Returns the side of the windows of a stage and the shift of every second block, for a grid of tokens.
    ///
    /// Swin shrinks a window that exceeds the grid. Swin v2 does so for the native grid only.
    pub(in crate::model) fn window_and_shift(&self, stage: usize, grid: usize) -> (usize, usize) {
        let limit = if self.v2 { self.native_grid >> stage } else { grid };
        if limit <= self.window { (limit.max(1), 0) } else { (self.window, self.window / 2) }
    }
}

impl Keys<'_> {
    /// Checks the keys of a windowed backbone.
    pub(super) fn windowed(&self, native_grid: usize) -> Result<WindowedConfig, ModelError> {
        let raw = self.raw;
        let embed = self.count("embed_dim", raw.embed_dim, 96, MAX_EMBED_WIDTH)?;
        let depths = self.list("depths", raw.depths.as_deref(), &[2, 2, 6, 2], MAX_LAYERS / MAX_STAGES as u64)?;
        let heads = self.list("num_heads", raw.num_heads.as_deref(), &[3, 6, 12, 24], MAX_WIDTH)?;
        if heads.len() != depths.len() {
            let problem = format!("has `{}` values, `depths` has `{}`", heads.len(), depths.len());
            return Err(ModelError::value(self.path, "num_heads", problem));
        }
        for (stage, heads) in heads.iter().enumerate() {
            let width = embed << stage;
            if !width.is_multiple_of(*heads) {
                let problem = format!("has `{heads}` for stage {stage}, which does not divide its width, `{width}`");
                return Err(ModelError::value(self.path, "num_heads", problem));
            }
        }
        let mlp_ratio = raw.mlp_ratio.unwrap_or(4.0);
        if !(mlp_ratio * embed as f64 >= 1.0 && mlp_ratio <= 64.0) {
            return Err(ModelError::value(
                self.path,
                "mlp_ratio",
                format!("is `{mlp_ratio}`; it must be from 0 to 64"),
            ));
        }
        let v2 = self.family == Family::Swinv2;
        let pretrained = raw.pretrained_window_sizes.clone().unwrap_or_default();
        let pretrained_windows = (0..depths.len()).map(|stage| pretrained.get(stage).map_or(0, |side| *side as usize));
        let config = WindowedConfig {
            pretrained_windows: pretrained_windows.collect(),
            embed,
            depths,
            heads,
            window: self.count("window_size", raw.window_size, 7, MAX_WINDOW)?,
            mlp_ratio,
            qkv_bias: raw.qkv_bias.unwrap_or(true),
            absolute_positions: raw.use_absolute_embeddings.unwrap_or(false),
            native_grid,
            v2,
        };
        if v2 && native_grid >> (config.depths.len() - 1) == 0 {
            let problem =
                format!("gives a grid of `{native_grid}` patches, too few for `{}` stages", config.depths.len());
            return Err(ModelError::value(self.path, "image_size", problem));
        }
        Ok(config)
    }

    /// Checks a list with one value for each stage.
    fn list(
        &self,
        key: &'static str,
        values: Option<&[u64]>,
        default: &[u64],
        limit: u64,
    ) -> Result<Vec<usize>, ModelError> {
        let values = values.unwrap_or(default);
        if values.is_empty() || values.len() > MAX_STAGES {
            let problem = format!("has `{}` values; it must have from 1 to {MAX_STAGES}", values.len());
            return Err(ModelError::value(self.path, key, problem));
        }
        values.iter().map(|value| self.count(key, Some(*value), 1, limit)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_belong_to_stages() {
        let config = WindowedConfig {
            embed: 8,
            depths: vec![2, 3, 2],
            heads: vec![1, 2, 4],
            window: 4,
            pretrained_windows: vec![0; 3],
            mlp_ratio: 2.0,
            qkv_bias: true,
            absolute_positions: false,
            native_grid: 16,
            v2: false,
        };
        let stages: Vec<usize> = (0..config.blocks()).map(|block| config.stage_of(block)).collect();
        assert_eq!(stages, [0, 0, 1, 1, 1, 2, 2]);
        assert_eq!([0, 1, 2].map(|stage| WindowedConfig::grid(9, stage)), [9, 5, 3]);
        assert_eq!(config.window_and_shift(0, 9), (4, 2));
        assert_eq!(config.window_and_shift(2, 3), (3, 0));
        let v2 = WindowedConfig { v2: true, ..config };
        assert_eq!(v2.window_and_shift(1, 3), (4, 2));
        assert_eq!(v2.window_and_shift(2, 9), (4, 0));
    }
}
