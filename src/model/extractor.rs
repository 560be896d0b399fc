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
use crate::model::block::cast_to;
use crate::model::checkpoint::Checkpoint;
use crate::model::checkpoint::Pool;
use crate::model::config::Body;
use crate::model::cpu;
use crate::model::error::ModelError;
use crate::model::kernels;
use crate::model::kernels::CardBackbone;
use crate::model::kernels::Kernels;
use crate::model::kernels::Shape;
use crate::model::load::Loader;
use crate::model::pending::Computed;
use crate::model::pending::Pending;
use crate::model::plain::PlainBackbone;
use crate::model::pooling::Pooling;
use crate::model::windowed::WindowedBackbone;

/// Definition of a feature; fixed for the life of an extractor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtractOptions {
    /// Side of the input, in pixels: a multiple of the patch size, or the checkpoint's own. Positions are interpolated if it differs from the
    /// checkpoint's.
    pub size_px: u32,
    /// Blocks whose outputs make the feature, from 0; a negative number counts from the end, -1 is the last block. The
    /// features of several blocks are concatenated in this order, and come from one pass.
    ///
    /// The backbone's final `LayerNorm` is applied to the output of any block, as in `DINOv2`'s
    /// `get_intermediate_layers(norm=True)`: without it the scales of an inner block's channels differ by orders of
    /// magnitude. Blocks after the last of these are neither loaded nor computed.
    pub layers: Vec<i32>,
    /// Pooling of tokens to a feature.
    pub pool: Pool,
}

impl ExtractOptions {
    /// Returns the bytes of an image's activations for this crate's CUDA kernels, in bf16 on a GPU that can run them; `None` if they do not
    /// compute such features of a backbone.
    pub fn own_kernel_bytes(&self, checkpoint: &Checkpoint) -> Option<u64> {
        let config = checkpoint.config();
        kernels::activation_bytes(config, Pooling::resolve(self.pool, config).ok()?, self.size_px)
    }
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
    /// True if transformer blocks run on the direct path for CPUs, provided that it covers the backbone and the CPU. It
    /// computes in f32, so other formats do not use it.
    pub direct: bool,
    /// Kernels that may compute the backbone.
    pub kernels: Kernels,
}

impl Default for Numerics {
    /// Returns the settings for a CPU: f32, batches of any size, the direct path.
    fn default() -> Self {
        Self { format: DType::F32, batch_rows: None, fused: false, kernels: Kernels::Burn, direct: true }
    }
}

/// Backbone on the device `B::Device`.
#[derive(Debug)]
pub struct Extractor<B: Backend> {
    network: Network<B>,
    /// Blocks whose features are concatenated.
    taps: Vec<u32>,
    feature_dim: usize,
    size_px: u32,
    numerics: Numerics,
    device: B::Device,
    /// Reason for burn's operations although own kernels were allowed.
    gap: Option<&'static str>,
}

#[derive(Debug)]
enum Network<B: Backend> {
    Plain(PlainBackbone<B>),
    Windowed(WindowedBackbone<B>),
    Card(Box<CardBackbone>),
}

impl<B: Backend> Extractor<B> {
    /// Reads the tensors that `options` need, one at a time, and uploads them to `device`.
    ///
    /// # Errors
    /// When the backbone cannot work at `size_px`, a layer or the pooling does not exist, or a file cannot be read.
    pub fn load(
        checkpoint: &Checkpoint,
        options: &ExtractOptions,
        numerics: Numerics,
        device: &B::Device,
    ) -> Result<Self, ModelError> {
        let config = checkpoint.config();
        let size_px = options.size_px;
        checkpoint.check_size(size_px)?;
        let feature_dim = checkpoint.feature_parts(&options.layers, options.pool)?.iter().sum();
        let taps: Vec<u32> =
            options.layers.iter().map(|layer| config.resolve_layer(*layer)).collect::<Result<_, _>>()?;
        let last = taps.iter().copied().max().unwrap_or(0);
        let pooling = Pooling::resolve(options.pool, config)?;
        let read = |keys: &[String]| checkpoint.read(keys);
        let direct = if numerics.direct && numerics.format == DType::F32 { cpu::detect() } else { None };
        let loader = Loader { read: &read, device, format: numerics.format, norm_epsilon: config.norm_epsilon, direct };
        let attention = |[tokens, heads, width]: [usize; 3]| {
            if numerics.fused {
                let images = numerics.batch_rows.unwrap_or(2).max(1);
                Attention::choose_by_trial::<B>([images, heads, tokens, width], numerics.format, device)
            } else if numerics.format == DType::F32 {
                Ok(Attention::Plain)
            } else {
                // The softmax of burn's operation computes in the format of its inputs.
                Ok(Attention::Products)
            }
        };
        let shape = numerics.batch_rows.map(|images| Shape { images, size_px, taps: &taps, pooling, feature_dim });
        let own = numerics.kernels.own().zip(shape).filter(|_| numerics.format == DType::BF16);
        let gap = own.and_then(|([_, capability], _)| kernels::find_gap(config, pooling, capability as u32));
        let network = match (&config.body, own) {
            (Body::Plain(plain), Some((gpu, shape))) if gap.is_none() => {
                Network::Card(Box::new(CardBackbone::load((checkpoint, plain), shape, &loader, gpu)?))
            }
            (Body::Plain(plain), _) => {
                Network::Plain(PlainBackbone::load((checkpoint, plain), size_px, last, pooling, &loader, attention)?)
            }
            (Body::Windowed(windowed), _) => {
                Network::Windowed(WindowedBackbone::load((checkpoint, windowed), size_px, last, &loader)?)
            }
        };
        Ok(Self { network, taps, feature_dim, size_px, numerics, device: device.clone(), gap })
    }

    /// Returns the width of a feature.
    pub fn feature_dim(&self) -> usize {
        self.feature_dim
    }

    /// Returns the name of the attention implementation in use.
    pub fn attention(&self) -> &'static str {
        match &self.network {
            Network::Plain(plain) => plain.attention().as_str(),
            // Its position bias is added to scores in memory.
            Network::Windowed(_) => Attention::Products.as_str(),
            Network::Card(_) => "flash",
        }
    }

    /// Returns the kernels in use: `burn`, `direct` for the path of CPUs, or the instruction of the products of this crate's own kernels, `mma.sync` or `wgmma`.
    pub fn kernels(&self) -> &'static str {
        match &self.network {
            Network::Plain(plain) if plain.attention() == Attention::Direct => "direct",
            Network::Plain(_) | Network::Windowed(_) => "burn",
            Network::Card(card) => card.instruction(),
        }
    }

    /// Returns the part of the model that this crate's kernels do not cover, if burn runs it for that reason.
    pub fn gap(&self) -> Option<&'static str> {
        self.gap
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
    pub fn submit<P>(&self, pixels: P, rows: usize) -> Result<Pending<B>, ModelError>
    where
        P: BorrowMut<Vec<u8>> + AsRef<[u8]> + Send + 'static,
    {
        let Some((bytes, all)) = self.pad(pixels, rows)? else { return Ok(Pending::new(None, 0)) };
        if let Network::Card(card) = &self.network {
            return Ok(Pending::new(Some(Computed::Card(card.forward(&bytes)?, self.feature_dim)), rows));
        }
        Ok(Pending::new(self.forward(self.upload(bytes), all)?.map(Computed::Burn), rows))
    }

    /// Enqueues one batch and returns the states of all tokens after the last loaded block and the final norm, `[rows, tokens,
    /// hidden]`; `None` without rows. The buffer is dropped once it is copied.
    ///
    /// # Errors
    /// As [`Self::submit`].
    pub(super) fn states<P>(&self, pixels: P, rows: usize) -> Result<Option<Tensor<B, 3>>, ModelError>
    where
        P: BorrowMut<Vec<u8>> + AsRef<[u8]> + Send + 'static,
    {
        let Some((bytes, all)) = self.pad(pixels, rows)? else { return Ok(None) };
        let (format, side) = (self.numerics.format, self.size_px as usize);
        let states = match &self.network {
            Network::Plain(plain) => plain.states(self.upload(bytes), (all, side), format, &self.taps)?,
            Network::Windowed(windowed) => windowed.states(self.upload(bytes), (all, side), format),
            Network::Card(_) => {
                let reason = "own kernels return features and no states of tokens".to_owned();
                return Err(ModelError::Device { reason });
            }
        };
        Ok(Some(if all > rows { states.narrow(0, 0, rows) } else { states }))
    }

    /// Pads a batch to the fixed batch size; returns it with its rows. `None` without rows.
    fn pad<P>(&self, mut pixels: P, rows: usize) -> Result<Option<(Bytes, usize)>, ModelError>
    where
        P: BorrowMut<Vec<u8>> + AsRef<[u8]> + Send + 'static,
    {
        let image = self.image_bytes(pixels.as_ref().len(), rows)?;
        if rows == 0 {
            return Ok(None);
        }
        let all = self.numerics.batch_rows.unwrap_or(rows);
        if rows > all {
            return Err(ModelError::Batch { rows, batch_rows: all });
        }
        pixels.borrow_mut().resize(all * image, 0);
        Ok(Some((Bytes::from_shared(bytes::Bytes::from_owner(pixels), AllocationProperty::Native), all)))
    }

    fn upload(&self, bytes: Bytes) -> Tensor<B, 1, Int> {
        // One-dimensional: the upload would pad and copy each row of a wider shape by itself.
        let count = bytes.len();
        Tensor::from_data(TensorData::from_bytes(bytes, [count], DType::U8), (&self.device, DType::U8))
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
    fn forward(&self, pixels: Tensor<B, 1, Int>, rows: usize) -> Result<Option<Tensor<B, 2>>, ModelError> {
        let (format, side) = (self.numerics.format, self.size_px as usize);
        let mut features = match &self.network {
            Network::Plain(plain) => plain.forward(pixels, (rows, side), format, &self.taps)?,
            Network::Windowed(windowed) => windowed.forward(pixels, (rows, side), format, &self.taps),
            // It has no tensors.
            Network::Card(_) => return Ok(None),
        };
        let features = if features.len() == 1 { features.remove(0) } else { Tensor::cat(features, 1) };
        Ok(Some(cast_to(features, format)))
    }
}
