//! Runs the frozen backbone on a device: maps pixels to features.

use std::borrow::BorrowMut;

use burn::tensor::AllocationProperty;
use burn::tensor::Bytes;
use burn::tensor::DType;
use burn::tensor::Int;
use burn::tensor::Tensor;
use burn::tensor::TensorData;
use burn::tensor::backend::Backend;

use crate::model::attention::Attention;
use crate::model::block::Block;
use crate::model::block::Linear;
use crate::model::block::Mlp;
use crate::model::block::Norm;
use crate::model::block::PatchEmbedding;
use crate::model::block::cast_to;
use crate::model::checkpoint::Checkpoint;
use crate::model::checkpoint::Pool;
use crate::model::config::FeedForward;
use crate::model::error::ModelError;
use crate::model::layout;
use crate::model::pending::Pending;
use crate::model::position;

/// Definition of a feature; fixed for the life of an extractor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExtractOptions {
    /// Side of the input, in pixels, a multiple of the patch size. Positions are interpolated if it differs from the
    /// checkpoint's.
    pub size_px: u32,
    /// Block whose output is the feature, from 0; a negative number counts from the end, -1 is the last block.
    ///
    /// The backbone's final `LayerNorm` is applied to the output of any block, as in `DINOv2`'s
    /// `get_intermediate_layers(norm=True)`: without it the scales of an inner block's channels differ by orders of
    /// magnitude. Later blocks are neither loaded nor computed.
    pub layer: i32,
    /// Pooling of tokens to a feature.
    pub pool: Pool,
}

/// Numerical settings of an extractor; features differ only by the rounding of the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Numerics {
    /// Format of weights, activations and features. Norms, softmax, activation functions and means always compute in
    /// f32.
    pub format: DType,
    /// Fixed number of rows of every batch, for devices that compile kernels by shape; shorter batches are padded.
    pub batch_rows: Option<usize>,
    /// Whether to use fused attention kernels if a trial accepts them.
    pub fused: bool,
}

impl Default for Numerics {
    /// Returns the settings for a CPU: f32, batches of any size, no fused kernels.
    fn default() -> Self {
        Self { format: DType::F32, batch_rows: None, fused: false }
    }
}

/// Backbone on the device `B::Device`.
#[derive(Debug)]
pub struct Extractor<B: Backend> {
    patches: PatchEmbedding<B>,
    /// CLS token plus its position embedding, `[1, 1, hidden]`.
    cls: Tensor<B, 3>,
    /// Position embeddings of the patches, `[1, grid², hidden]`.
    positions: Tensor<B, 3>,
    blocks: Vec<Block<B>>,
    final_norm: Norm<B>,
    attention: Attention,
    with_mean: bool,
    feature_dim: usize,
    size_px: u32,
    numerics: Numerics,
    device: B::Device,
}

impl<B: Backend> Extractor<B> {
    /// Reads the tensors that `options` need, one at a time, and uploads them to `device`.
    ///
    /// # Errors
    /// When `size_px` is not a multiple of the patch size, the layer does not exist, or a file cannot be read.
    pub fn load(
        checkpoint: &Checkpoint,
        options: &ExtractOptions,
        numerics: Numerics,
        device: &B::Device,
    ) -> Result<Self, ModelError> {
        let config = checkpoint.config();
        let target = (device, numerics.format);
        let (size_px, patch_px) = (options.size_px, config.patch_px);
        if size_px == 0 || size_px % patch_px != 0 {
            return Err(ModelError::PatchSize { size_px, patch_px });
        }
        let last = config.resolve_layer(options.layer)?;
        let read = |key: &str| checkpoint.read(&[key.to_owned()]);
        let norm = |key: &str| -> Result<Norm<B>, ModelError> {
            let (gamma, beta) = (read(&format!("{key}.weight"))?, read(&format!("{key}.bias"))?);
            Ok(Norm::new(gamma, beta, config.norm_epsilon, device))
        };

        let preprocessor = checkpoint.preprocessor();
        let patches = PatchEmbedding::new(
            &read(&format!("{}.weight", layout::PATCH))?,
            read(&format!("{}.bias", layout::PATCH))?,
            patch_px as usize,
            (preprocessor.rescale, preprocessor.mean, preprocessor.std),
            target,
        );
        let grid = (size_px / patch_px) as usize;
        let hidden = config.hidden;
        let mut embeddings = position::interpolate(read(layout::POSITIONS)?, config.native_grid(), grid, hidden);
        let positions = embeddings.split_off(hidden);
        embeddings.iter_mut().zip(read(layout::CLS)?).for_each(|(position, cls)| *position += cls);
        let tokens = |values: Vec<f32>, count: usize| {
            Tensor::<B, 3>::from_data(TensorData::new(values, [1, count, hidden]), target)
        };
        let attention = if numerics.fused {
            let images = numerics.batch_rows.unwrap_or(2).max(1);
            let shape = [images, config.heads, 1 + grid * grid, hidden / config.heads];
            Attention::choose_by_trial::<B>(shape, numerics.format, device)?
        } else if numerics.format == DType::F32 {
            Attention::Plain
        } else {
            // The softmax of burn's operation computes in the format of its inputs.
            Attention::Products
        };
        let blocks = (0..=last).map(|index| load_block(checkpoint, index, target)).collect::<Result<_, _>>()?;
        Ok(Self {
            patches,
            cls: tokens(embeddings, 1),
            positions: tokens(positions, grid * grid),
            blocks,
            final_norm: norm(layout::FINAL_NORM)?,
            attention,
            with_mean: options.pool.has_mean(config.family),
            feature_dim: checkpoint.feature_dim(options.pool),
            size_px,
            numerics,
            device: device.clone(),
        })
    }

    /// Returns the width of a feature.
    pub fn feature_dim(&self) -> usize {
        self.feature_dim
    }

    /// Returns the attention implementation in use.
    pub fn attention(&self) -> Attention {
        self.attention
    }

    /// Maps pixels, `[rows, size_px, size_px, 3]`, RGB, to features, `[rows, feature_dim]`; both row-major.
    ///
    /// On the CPU the same batch gives the same bits.
    ///
    /// # Errors
    /// When the length of `pixels` does not match `rows`, or the device fails.
    pub fn features(&self, pixels: &[u8], rows: usize) -> Result<Vec<f32>, ModelError> {
        let image = self.image_bytes(pixels.len(), rows)?;
        let batch = self.numerics.batch_rows.unwrap_or(rows).max(1);
        let mut features = Vec::with_capacity(rows * self.feature_dim);
        for part in pixels.chunks((batch * image).max(1)) {
            features.extend(self.submit(part.to_vec(), part.len() / image)?.wait()?);
        }
        Ok(features)
    }

    /// Enqueues one batch on the current stream without waiting for its features. The buffer is dropped once it is
    /// copied.
    ///
    /// # Errors
    /// When the length of `pixels` does not match `rows`, or `rows` exceeds the fixed batch size.
    pub fn submit<P>(&self, mut pixels: P, rows: usize) -> Result<Pending<B>, ModelError>
    where
        P: BorrowMut<Vec<u8>> + AsRef<[u8]> + Send + 'static,
    {
        let image = self.image_bytes(pixels.as_ref().len(), rows)?;
        if rows == 0 {
            return Ok(Pending::new(None, 0));
        }
        let all = self.numerics.batch_rows.unwrap_or(rows);
        if rows > all {
            return Err(ModelError::Batch { rows, batch_rows: all });
        }
        pixels.borrow_mut().resize(all * image, 0);
        let bytes = Bytes::from_shared(bytes::Bytes::from_owner(pixels), AllocationProperty::Native);
        // One-dimensional: the upload would pad and copy each row of a wider shape by itself.
        let data = TensorData::from_bytes(bytes, [all * image], DType::U8);
        let uploaded = Tensor::from_data(data, (&self.device, DType::U8));
        Ok(Pending::new(Some(self.forward(uploaded, all)), rows))
    }

    /// Computes a batch of black images, so that all kernels are compiled and tuned.
    ///
    /// # Errors
    /// When the device fails.
    pub fn warm_up(&self) -> Result<(), ModelError> {
        let rows = self.numerics.batch_rows.unwrap_or(1);
        let side = self.size_px as usize;
        self.submit(vec![0; rows * 3 * side * side], rows)?.wait().map(drop)
    }

    /// Returns the size of an image in bytes, after checking that `found` bytes are `rows` images.
    fn image_bytes(&self, found: usize, rows: usize) -> Result<usize, ModelError> {
        let side = self.size_px as usize;
        let image = side.saturating_mul(side).saturating_mul(3);
        if image.checked_mul(rows) == Some(found) {
            return Ok(image);
        }
        Err(ModelError::Pixels { found, rows, size_px: self.size_px })
    }

    /// Maps pixels, `[rows · size_px · size_px · 3]`, to features, `[rows, feature_dim]`, in the configured format.
    fn forward(&self, pixels: Tensor<B, 1, Int>, rows: usize) -> Tensor<B, 2> {
        let format = self.numerics.format;
        let patches = self.patches.forward(pixels, rows, self.size_px as usize, format);
        let [_, count, hidden] = patches.dims();
        let cls = self.cls.clone().expand([rows, 1, hidden]);
        let tokens = Tensor::cat(vec![cls, patches + self.positions.clone()], 1);
        let mut states = tokens.reshape([rows * (1 + count), hidden]);
        for block in &self.blocks {
            states = block.forward(states, rows, self.attention);
        }
        let states = states.reshape([rows, 1 + count, hidden]);
        let features = if self.with_mean {
            let states = self.final_norm.forward_f32(states);
            let cls = states.clone().narrow(1, 0, 1).squeeze_dim(1);
            let mean = states.narrow(1, 1, count).mean_dim(1).squeeze_dim(1);
            Tensor::cat(vec![cls, mean], 1)
        } else {
            // The norm treats each token by itself, so only the CLS token needs it.
            self.final_norm.forward_f32(states.narrow(1, 0, 1).reshape([rows, hidden]))
        };
        cast_to(features, format)
    }
}

/// Reads and uploads the weights of one transformer block.
fn load_block<B: Backend>(
    checkpoint: &Checkpoint,
    index: u32,
    target: (&B::Device, DType),
) -> Result<Block<B>, ModelError> {
    let device = target.0;
    let config = checkpoint.config();
    let hidden = config.hidden;
    let parts = layout::module_names(config.family);
    let read = |part: &str| checkpoint.read(&[layout::block_key(index, part)]);
    let norm = |part: &str| -> Result<Norm<B>, ModelError> {
        let (gamma, beta) = (read(&format!("{part}.weight"))?, read(&format!("{part}.bias"))?);
        Ok(Norm::new(gamma, beta, config.norm_epsilon, device))
    };
    // Projections of the same input are joined to one product.
    let linear = |parts: &[&str], input: usize, out: usize, bias: bool| -> Result<Linear<B>, ModelError> {
        let keys = |kind: &str| -> Vec<String> {
            parts.iter().map(|part| layout::block_key(index, &format!("{part}.{kind}"))).collect()
        };
        let bias = if bias { Some(checkpoint.read(&keys("bias"))?) } else { None };
        Ok(Linear::new(&checkpoint.read(&keys("weight"))?, bias, input, out, target))
    };
    let scale = |part: Option<&str>| -> Result<Option<Tensor<B, 2>>, ModelError> {
        let Some(part) = part else { return Ok(None) };
        Ok(Some(Tensor::from_data(TensorData::new(read(part)?, [1, hidden]), target)))
    };
    let mlp = match config.feed_forward {
        FeedForward::Mlp { inner } => Mlp::Plain {
            inner: linear(&[parts.inner], hidden, inner, true)?,
            activation: config.activation,
            outer: linear(&[parts.outer], inner, hidden, true)?,
        },
        FeedForward::SwiGlu { inner: width } => {
            let split = checkpoint.split_swiglu();
            let sources = if split { layout::SWIGLU_SPLIT.as_slice() } else { &[layout::SWIGLU_IN] };
            Mlp::SwiGlu {
                inner: linear(sources, hidden, 2 * width, true)?,
                width,
                outer: linear(&[layout::SWIGLU_OUT], width, hidden, true)?,
            }
        }
    };
    Ok(Block {
        attention_norm: norm(parts.attention_norm)?,
        query_key_value: linear(&layout::QUERY_KEY_VALUE, hidden, 3 * hidden, config.qkv_bias)?,
        attention_output: linear(&[layout::ATTENTION_OUTPUT], hidden, hidden, true)?,
        attention_scale: scale(parts.attention_scale)?,
        mlp_norm: norm(parts.mlp_norm)?,
        mlp,
        mlp_scale: scale(parts.mlp_scale)?,
        heads: config.heads,
    })
}
