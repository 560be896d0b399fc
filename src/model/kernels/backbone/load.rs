//! Loading of a backbone's layers.

use burn::tensor::backend::Backend;
use cubecl::server::Handle;

use super::head::Head;
use super::{ATTENTION_TILE, Attention, Bias, Block, Norm, Patches, Pool, ROW, Shape, Sizes};
use crate::card::{Card, Program};
use crate::model::checkpoint::Checkpoint;
use crate::model::config::{FeedForward, FinalNorm, PlainConfig, Positions};
use crate::model::error::ModelError;
use crate::model::kernels::ImageSizes;
use crate::model::kernels::product::{Epilogue, Product};
use crate::model::layout;
use crate::model::load::Loader;
use crate::model::plain::{compute_rotation, load_biases, load_embeddings};
use crate::model::pooling::{PooledTokens, Pooling};
use crate::model::relative;

/// Reader of a checkpoint's layers.
pub(super) struct Load<'a, B: Backend> {
    pub(super) card: &'a Card,
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) plain: &'a PlainConfig,
    pub(super) loader: &'a Loader<'a, B>,
    pub(super) sizes: Sizes,
    /// Table of [`Product::with_rotation`].
    pub(super) rotation: Option<Handle>,
}

impl<B: Backend> Load<'_, B> {
    pub(super) fn patches(&self, side: usize) -> Result<Patches, ModelError> {
        let config = self.checkpoint.config();
        let Sizes { images, image, hidden, .. } = self.sizes;
        let ImageSizes { grid, patch_pitch: pitch, tokens, leading, .. } = image;
        let name = layout::names(config.family).patch;
        let patch = config.patch_px as usize;
        let area = patch * patch;
        // From [hidden, channel, row, column] to the order of pixels in an image.
        let published = self.loader.values(format!("{name}.weight"))?;
        let mut weight = Vec::with_capacity(hidden * pitch);
        for kernel in published.chunks_exact(3 * area) {
            weight.extend((0..area).flat_map(|cell| (0..3).map(move |channel| kernel[channel * area + cell])));
            weight.resize(weight.len().next_multiple_of(pitch), 0.0);
        }
        let [first, positions] = load_embeddings(config, self.plain, grid, self.loader)?;
        let mut bias = positions.unwrap_or_else(|| vec![0.0; grid * grid * hidden]);
        if self.plain.biases.patch {
            let shift = self.loader.values(format!("{name}.bias"))?;
            bias.chunks_exact_mut(hidden).for_each(|row| row.iter_mut().zip(&shift).for_each(|(to, by)| *to += by));
        }
        let product = Product::new(self.card, (&weight, &bias), pitch, images * grid * grid, Epilogue::Embedding);
        let sizes = [images, side, patch, grid, pitch, hidden, leading, tokens];
        let mut numbers: Vec<u32> = sizes.map(|size| size as u32).to_vec();
        let preprocessor = self.checkpoint.preprocessor();
        let (rescale, mean, std) = (preprocessor.rescale, preprocessor.mean, preprocessor.std);
        numbers.extend(std.map(|std| (rescale / std).to_bits()));
        numbers.extend(std::array::from_fn::<_, 3, _>(|channel| (-mean[channel] / std[channel]).to_bits()));
        // A thread writes eight values of a patch or of a leading token.
        let threads = images * (grid * grid * pitch + leading * hidden) / 8;
        Ok(Patches {
            program: Program::new("patches", &[include_str!("../patches.cu")], &[], 256, 0),
            blocks: threads.div_ceil(256),
            leading: self.card.upload_f32(first.unwrap_or_default()),
            numbers,
            projection: product.with_image(grid * grid, tokens),
        })
    }

    /// Loads a norm of all tokens.
    pub(super) fn norm(&self, name: &str) -> Result<Norm, ModelError> {
        let upload = |kind: &str| Ok(self.card.upload_f32(self.loader.values(format!("{name}.{kind}"))?));
        Ok(Norm {
            program: Program::new(
                "layer_norm",
                &[ROW, include_str!("../norm.cu")],
                &[("HIDDEN", self.sizes.hidden)],
                256,
                0,
            ),
            weight: upload("weight")?,
            bias: upload("bias")?,
            rows: self.sizes.rows(),
            pitch: self.sizes.hidden,
            epsilon: self.loader.norm_epsilon as f32,
        })
    }

    /// Loads linear layers of the same input, `[rows, input]`, as one product. `scale` names a `LayerScale` of the result.
    pub(super) fn linear(
        &self,
        parts: &[(String, bool)],
        [rows, input, out]: [usize; 3],
        epilogue: Epilogue,
        scale: Option<String>,
    ) -> Result<Product, ModelError> {
        let (mut weight, mut bias) = self.loader.joined_values(parts, out)?;
        if let Some(scale) = scale {
            let scale = self.loader.values(scale)?;
            for (row, factor) in weight.chunks_exact_mut(input).zip(&scale) {
                for value in row.iter_mut() {
                    *value *= factor;
                }
            }
            bias.iter_mut().flatten().zip(&scale).for_each(|(value, factor)| *value *= factor);
        }
        let bias = bias.unwrap_or_else(|| vec![0.0; out]);
        Ok(Product::new(self.card, (&weight, &bias), input, rows, epilogue))
    }

    /// Loads the projections to query, key and value as one product of all tokens.
    fn query_key_value(&self, index: u32) -> Result<Product, ModelError> {
        let (names, biases) = (layout::names(self.checkpoint.config().family), self.plain.biases);
        let key = |part: &str| names.block(index, part);
        let [query, key_part, value] = names.query_key_value;
        let parts = [(key(query), biases.query), (key(key_part), biases.key), (key(value), biases.value)];
        let Sizes { image, hidden, .. } = self.sizes;
        let shape = [self.sizes.rows(), hidden, 3 * hidden];
        match &self.rotation {
            None => self.linear(&parts, shape, Epilogue::Bias, None),
            Some(rotation) => {
                let width = hidden / self.plain.heads;
                Ok(self.linear(&parts, shape, Epilogue::Rotary { width }, None)?.with_rotation(rotation, image.tokens))
            }
        }
    }

    /// Loads the relative position bias of each block up to `last`.
    pub(super) fn biases(&self, last: u32) -> Result<Vec<Option<Bias>>, ModelError> {
        let (config, grid) = (self.checkpoint.config(), self.sizes.image.grid);
        let (heads, scale) = (self.plain.heads, ((self.plain.hidden / self.plain.heads) as f32).sqrt());
        if self.plain.relative.is_none() {
            return Ok(vec![None; last as usize + 1]);
        }
        let mut places = Vec::new();
        for part in relative::compute_places(grid) {
            places.extend(part.into_iter().map(i32::cast_unsigned));
            places.resize(places.len().next_multiple_of(ATTENTION_TILE), 0);
        }
        let places = self.card.upload_u32(places);
        load_biases(self.plain, &layout::names(config.family), last, |name| {
            let mut tables = relative::resize_tables(&self.loader.values(name)?, heads, config.native_grid(), grid);
            for value in &mut tables {
                *value *= scale;
            }
            let entries = tables.len() / heads;
            Ok(Bias { tables: self.card.upload_f32(tables), entries, places: places.clone() })
        })
    }

    /// Loads a block. After the query-key-value product it computes only the tokens `computed`.
    pub(super) fn block(&self, index: u32, computed: PooledTokens, bias: Option<Bias>) -> Result<Block, ModelError> {
        let config = self.checkpoint.config();
        let (names, biases) = (layout::names(config.family), self.plain.biases);
        let Sizes { images, image, hidden, inner, .. } = self.sizes;
        let queries = computed.count(image.tokens);
        let (rows, pitch) = (images * queries, hidden * image.tokens / queries);
        let key = |part: &str| names.block(index, part);
        let scale = |part: &str| self.plain.layer_scale.then(|| key(part));
        let single = |part: &str, bias: bool| [(key(part), bias)];
        let inner_layer = [names.inner];
        let (sources, outputs, activation, outer) = match self.plain.feed_forward {
            FeedForward::Mlp { .. } => {
                (inner_layer.as_slice(), inner, Epilogue::Activation(config.activation), names.outer)
            }
            FeedForward::Gated { activation, .. } => {
                let sources = layout::gate_and_up_names(self.checkpoint.split_gate());
                (sources, 2 * inner, Epilogue::Gated(activation), names.gated_outer)
            }
        };
        let sources: Vec<(String, bool)> = sources.iter().map(|part| (key(part), biases.mlp)).collect();
        Ok(Block {
            attention_norm: self.norm(&key(names.attention_norm))?,
            query_key_value: self.query_key_value(index)?,
            attention: Attention::new(self.plain, self.sizes, queries, bias),
            attention_output: self.linear(
                &single(names.attention_output, biases.attention_output),
                [rows, hidden, hidden],
                Epilogue::Residual,
                scale(names.attention_scale),
            )?,
            mlp_norm: Norm { rows, pitch, ..self.norm(&key(names.mlp_norm))? },
            inner: self.linear(&sources, [rows, hidden, outputs], activation, None)?,
            outer: self.linear(
                &single(outer, biases.mlp),
                [rows, inner, hidden],
                Epilogue::Residual,
                scale(names.mlp_scale),
            )?,
            pitch,
        })
    }

    /// Loads the final norm for each part of the feature, and the head after it.
    pub(super) fn pools(&self, shape: Shape<'_>) -> Result<(Vec<Pool>, Option<Head>), ModelError> {
        let Sizes { images, image, hidden, feature_dim, .. } = self.sizes;
        let width = feature_dim / shape.taps.len().max(1);
        let head = match (shape.pooling, self.plain.head) {
            (Pooling::Head, Some(head)) => Some(Head::load(self, head, feature_dim)?),
            _ => None,
        };
        let code = match (shape.pooling, self.plain.final_norm) {
            (Pooling::Cls | Pooling::Head, _) => 0,
            (Pooling::Mean, FinalNorm::Tokens) => 1,
            (Pooling::ClsMean, FinalNorm::Tokens) => 2,
            (Pooling::MeanBeforeNorm, _) => 3,
            (Pooling::Mean, FinalNorm::Feature) => 4,
            (Pooling::ClsMean, FinalNorm::Feature) => 5,
        };
        let pool = |(place, block): (usize, &u32)| {
            let norm = self.norm(layout::final_norm(self.checkpoint.config(), self.plain))?;
            let column = place * width;
            let [pitch, first] = if head.is_some() { [hidden, 0] } else { [feature_dim, column] };
            let sizes = [image.tokens, image.leading, pitch, first].map(|size| size as u32);
            Ok(Pool {
                block: *block as usize,
                program: Program::new(
                    "pool",
                    &[ROW, include_str!("../pool.cu")],
                    &[("HIDDEN", hidden), ("POOLING", code)],
                    128,
                    0,
                ),
                numbers: sizes.into_iter().chain([norm.epsilon.to_bits(), 0]).collect(),
                norm,
                column,
                images,
            })
        };
        let pools = shape.taps.iter().enumerate().map(pool).collect::<Result<_, _>>()?;
        Ok((pools, head))
    }
}

/// Uploads the rotation of queries and keys, if the positions of the model are one.
pub(super) fn upload_rotation(card: &Card, plain: &PlainConfig, grid: usize) -> Option<Handle> {
    let Positions::Rotary { theta } = plain.positions else { return None };
    let (rotation, width) = (compute_rotation(theta, plain, grid), plain.hidden / plain.heads);
    let tokens = rotation.cosine.chunks_exact(width).zip(rotation.sine.chunks_exact(width));
    // Both halves of a head have the same angles.
    let pairs = tokens.flat_map(|(cosine, sine)| cosine[..width / 2].iter().zip(sine));
    Some(card.upload_f32(pairs.flat_map(|(cosine, sine)| [*cosine, *sine]).collect()))
}
