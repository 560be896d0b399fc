//! Runs a text encoder on a device and pools its last hidden states to embeddings.

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor, TensorData, activation};

use super::checkpoint::TextCheckpoint;
use super::direct::Direct;
use super::layout;
use super::modules::Pooling;
use super::paired::{self, PairedConfig, PairedTower, PooledToken};
use crate::model::attention::Attention;
use crate::model::block::{Linear, Norm, activate, cast_to};
use crate::model::config::Activation;
use crate::model::cpu;
use crate::model::error::ModelError;
use crate::model::weights::{Format, WeightReader};

/// Attention score of a padding token. Far below any real score, but finite: the difference of two infinities is NaN.
const MASKED_SCORE: f32 = -1e30;

/// Numerical settings of an encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TextNumerics {
    /// Format of weights and activations. Norms, softmax, activation functions and pooling always compute in f32.
    pub format: DType,
    /// True if blocks run on the direct path for CPUs, provided that it covers the encoder and the CPU. It computes in f32,
    /// so other formats do not use it.
    pub direct: bool,
}

impl Default for TextNumerics {
    fn default() -> Self {
        Self { format: DType::F32, direct: true }
    }
}

/// Table of word embeddings, `[vocabulary, hidden]`, in the format of its file.
#[derive(Debug)]
struct WordEmbeddings {
    bytes: Vec<u8>,
    format: Format,
    hidden: usize,
}

impl WordEmbeddings {
    /// Adds the embedding of a word to `to`.
    fn add_row(&self, word: u32, to: &mut [f32]) {
        let width = self.hidden * self.format.bytes();
        let row = &self.bytes[word as usize * width..(word as usize + 1) * width];
        match self.format {
            Format::F32 => to.iter_mut().zip(row.as_chunks().0).for_each(|(to, b)| *to += f32::from_le_bytes(*b)),
            Format::F16 => {
                to.iter_mut().zip(row.as_chunks().0).for_each(|(to, b)| *to += half::f16::from_le_bytes(*b).to_f32());
            }
            Format::Bf16 => {
                to.iter_mut().zip(row.as_chunks().0).for_each(|(to, b)| *to += half::bf16::from_le_bytes(*b).to_f32());
            }
        }
    }
}

/// Transformer block with its norms after the residual connections.
#[derive(Debug)]
struct PostNormBlock<B: Backend> {
    query_key_value: Linear<B>,
    attention_output: Linear<B>,
    attention_norm: Norm<B>,
    inner: Linear<B>,
    outer: Linear<B>,
    output_norm: Norm<B>,
}

/// Layers between the embeddings of tokens and pooling.
#[derive(Debug)]
enum Body<B: Backend> {
    Device {
        first_norm: Norm<B>,
        blocks: Vec<PostNormBlock<B>>,
    },
    Direct(Direct),
    /// Text tower, which pools itself, and the place of its pooled token.
    Tower(PairedTower<B>, PooledToken),
}

/// Text encoder on the device `B::Device`.
#[derive(Debug)]
pub struct TextEncoder<B: Backend> {
    words: WordEmbeddings,
    /// Sum of the position embeddings and the embedding of token type 0, `[positions, hidden]`.
    positions: Vec<f32>,
    first_position: usize,
    body: Body<B>,
    /// Norm of the pooled state.
    pooled_norm: Option<Norm<B>>,
    /// Layers after the pooling; the flag says whether tanh follows.
    dense: Vec<(Linear<B>, bool)>,
    activation: Activation,
    pooling: Pooling,
    normalise: bool,
    heads: usize,
    hidden: usize,
    /// Width of an embedding; values after it are cut off.
    dim: usize,
    numerics: TextNumerics,
    device: B::Device,
}

impl<B: Backend> TextEncoder<B> {
    /// Reads the tensors one at a time and uploads them to `device`.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn load(checkpoint: &TextCheckpoint, numerics: TextNumerics, device: &B::Device) -> Result<Self, ModelError> {
        let (config, modules) = (&checkpoint.config, &checkpoint.modules);
        let (hidden, target) = (config.hidden, (device, numerics.format));
        let norm = |name: &str| -> Result<Norm<B>, ModelError> {
            let read = |kind: &str| checkpoint.read(&[format!("{name}.{kind}")]);
            Ok(Norm::new(read("weight")?, read("bias")?, config.norm_epsilon, device))
        };
        // Projections of the same input are joined to one product.
        let linear = |index: usize, parts: &[&str], input: usize, out: usize| -> Result<Linear<B>, ModelError> {
            let keys = |kind: &str| -> Vec<String> {
                parts.iter().map(|part| format!("{}.{kind}", layout::block_key(index, part))).collect()
            };
            let (weight, bias) = (checkpoint.read(&keys("weight"))?, checkpoint.read(&keys("bias"))?);
            Ok(Linear::new(&weight, Some(bias), input, out, target))
        };
        let block = |index: usize| -> Result<PostNormBlock<B>, ModelError> {
            Ok(PostNormBlock {
                query_key_value: linear(index, &layout::QUERY_KEY_VALUE, hidden, 3 * hidden)?,
                attention_output: linear(index, &[layout::ATTENTION_OUTPUT], hidden, hidden)?,
                attention_norm: norm(&layout::block_key(index, layout::ATTENTION_NORM))?,
                inner: linear(index, &[layout::INNER], hidden, config.inner)?,
                outer: linear(index, &[layout::OUTER], config.inner, hidden)?,
                output_norm: norm(&layout::block_key(index, layout::OUTPUT_NORM))?,
            })
        };
        if let Some(paired) = checkpoint.paired.as_ref().filter(|paired| paired.transformed.is_none()) {
            return Self::load_tower(checkpoint, paired, numerics, device);
        }
        let direct = if numerics.direct && numerics.format == DType::F32 { cpu::detect() } else { None };
        let body = match direct {
            Some(arch) => Body::Direct(Direct::load(checkpoint, arch)?),
            None => Body::Device {
                first_norm: norm(layout::FIRST_NORM)?,
                blocks: (0..config.layers).map(block).collect::<Result<_, _>>()?,
            },
        };
        let (bytes, format) = checkpoint.read_raw(layout::WORDS)?;
        let mut positions = checkpoint.read(&[layout::POSITIONS.to_owned()])?;
        let types = checkpoint.read(&[layout::TYPES.to_owned()])?;
        for position in positions.chunks_mut(hidden) {
            position.iter_mut().zip(&types).for_each(|(position, first)| *position += first);
        }
        let mut dense = Vec::with_capacity(modules.dense.len());
        for layer in &modules.dense {
            let path = layer.dir.join("model.safetensors");
            let reader = WeightReader::open(&path)?;
            let read = |name: &str, shape: &[usize]| match reader.tensors().get(name) {
                Some(tensor) if tensor.shape == shape => reader.read(tensor),
                _ => Err(ModelError::weights(&path, format!("it has no `{name}` of shape `{shape:?}`"))),
            };
            let weight = read("linear.weight", &[layer.output, layer.input])?;
            let bias = if layer.bias { Some(read("linear.bias", &[layer.output])?) } else { None };
            // f32: these layers are small, and nothing after them would hide a rounding.
            dense.push((Linear::new(&weight, bias, layer.input, layer.output, (device, DType::F32)), layer.tanh));
        }
        let mut pooled_norm = None;
        if let Some((paired, width)) = checkpoint.paired.as_ref().and_then(|own| Some((own, own.transformed?))) {
            let layer = |name: &str, input, out, bias: bool| -> Result<(Linear<B>, bool), ModelError> {
                let weight = checkpoint.read(&[format!("{name}.weight")])?;
                let bias = if bias { Some(checkpoint.read(&[format!("{name}.bias")])?) } else { None };
                Ok((Linear::new(&weight, bias, input, out, (device, DType::F32)), false))
            };
            pooled_norm = Some(norm(paired::POOLED_NORM)?);
            dense.push(layer(paired::TRANSFORMATION, hidden, width, true)?);
            dense.push(layer(paired::PROJECTION, width, paired.dim, false)?);
        }
        Ok(Self {
            words: WordEmbeddings { bytes, format, hidden },
            positions,
            first_position: config.first_position,
            body,
            pooled_norm,
            dense,
            activation: config.activation,
            pooling: modules.pooling,
            normalise: modules.normalise,
            heads: config.heads,
            hidden,
            dim: checkpoint.dim(),
            numerics,
            device: device.clone(),
        })
    }

    /// Loads the text tower of an image backbone.
    fn load_tower(
        checkpoint: &TextCheckpoint,
        paired: &PairedConfig,
        numerics: TextNumerics,
        device: &B::Device,
    ) -> Result<Self, ModelError> {
        let config = &checkpoint.config;
        let (bytes, format) = checkpoint.read_raw(paired::WORDS)?;
        Ok(Self {
            words: WordEmbeddings { bytes, format, hidden: config.hidden },
            positions: checkpoint.read(&[paired::POSITIONS.to_owned()])?,
            first_position: config.first_position,
            body: Body::Tower(PairedTower::load(checkpoint, paired, numerics.format, device)?, paired.pooled),
            pooled_norm: None,
            dense: Vec::new(),
            activation: config.activation,
            pooling: Pooling::default(),
            normalise: true,
            heads: config.heads,
            hidden: config.hidden,
            dim: checkpoint.dim(),
            numerics,
            device: device.clone(),
        })
    }

    /// Returns the width of an embedding.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Returns the attention implementation in use.
    pub fn attention(&self) -> Attention {
        match self.body {
            Body::Direct(_) => Attention::Direct,
            Body::Device { .. } | Body::Tower(..) => Attention::Products,
        }
    }

    /// Maps token ids to embeddings, `[captions, dim]`, row-major. Each caption is padded to `tokens` tokens.
    ///
    /// The embedding of a caption without tokens is zero.
    ///
    /// # Errors
    /// When a caption has more than `tokens` tokens, `tokens` exceeds the number of positions, or the device fails.
    pub fn embed(&self, captions: &[&[u32]], tokens: usize) -> Result<Vec<f32>, ModelError> {
        let room = self.positions.len() / self.hidden - self.first_position;
        let longest = captions.iter().map(|caption| caption.len()).max().unwrap_or(0);
        if longest > tokens || tokens > room {
            let reason =
                format!("a caption of `{longest}` tokens exceeds a batch of `{tokens}` tokens, at most `{room}`");
            return Err(ModelError::Tokenizer { reason });
        }
        if captions.is_empty() || tokens == 0 {
            return Ok(vec![0.0; captions.len() * self.dim]);
        }
        let rows = captions.len();
        let vectors = match &self.body {
            Body::Device { first_norm, blocks } => self.map_pooled(self.forward(captions, tokens, first_norm, blocks)),
            Body::Direct(direct) => {
                let lengths: Vec<usize> = captions.iter().map(|caption| caption.len()).collect();
                let embed = |caption: usize, to: &mut [f32]| self.write_embeddings(captions[caption], to);
                let pooled = direct.forward(&lengths, embed, self.pooling);
                let data = TensorData::new(pooled, [rows, self.hidden]);
                self.map_pooled(Tensor::from_data(data, (&self.device, DType::F32)))
            }
            Body::Tower(tower, pooled) => {
                let pooled: Vec<usize> = captions.iter().map(|caption| pooled.position(caption)).collect();
                let data = TensorData::new(self.padded_embeddings(captions, tokens), [rows * tokens, self.hidden]);
                let inputs = Tensor::from_data(data, (&self.device, self.numerics.format));
                scale_to_unit_length(tower.forward(inputs, rows, tokens, &pooled))
            }
        };
        let vectors = if vectors.dims()[1] > self.dim { vectors.narrow(1, 0, self.dim) } else { vectors };
        let failed = |reason: String| ModelError::Device { reason };
        let data = vectors.try_into_data().map_err(|cause| failed(cause.to_string()))?;
        data.convert::<f32>().into_vec::<f32>().map_err(|cause| failed(format!("{cause:?}")))
    }

    /// Writes the summed embeddings of a caption's tokens to `to`, `[tokens, hidden]`.
    fn write_embeddings(&self, caption: &[u32], to: &mut [f32]) {
        let mut next = self.first_position;
        for (word, to) in caption.iter().zip(to.chunks_exact_mut(self.hidden)) {
            // In `RoBERTa` a token of padding, which a caption may spell out, has the position of its own number.
            let position = if *word as usize + 1 == self.first_position {
                *word as usize
            } else {
                next += 1;
                next - 1
            };
            to.copy_from_slice(&self.positions[position * self.hidden..][..self.hidden]);
            self.words.add_row(*word, to);
        }
    }

    /// Returns the summed embeddings of captions, each padded with zeros to `tokens` tokens.
    fn padded_embeddings(&self, captions: &[&[u32]], tokens: usize) -> Vec<f32> {
        let mut inputs = vec![0.0_f32; captions.len() * tokens * self.hidden];
        for (caption, to) in captions.iter().zip(inputs.chunks_exact_mut(tokens * self.hidden)) {
            self.write_embeddings(caption, to);
        }
        inputs
    }

    /// Maps captions to their states after the last block, each padded to `tokens` tokens, and pools these.
    fn forward(
        &self,
        captions: &[&[u32]],
        tokens: usize,
        first_norm: &Norm<B>,
        blocks: &[PostNormBlock<B>],
    ) -> Tensor<B, 2> {
        let (rows, hidden, heads, format) = (captions.len(), self.hidden, self.heads, self.numerics.format);
        let upload = |values: Vec<f32>, shape: [usize; 2]| {
            Tensor::<B, 2>::from_data(TensorData::new(values, shape), (&self.device, DType::F32))
        };
        // 0 for a token, `MASKED_SCORE` for padding.
        let is_padding = |at: usize| at % tokens >= captions[at / tokens].len();
        let padded = captions.iter().any(|caption| caption.len() < tokens);
        let mask = padded.then(|| {
            let scores = (0..rows * tokens).map(|at| if is_padding(at) { MASKED_SCORE } else { 0.0 });
            upload(scores.collect(), [rows, tokens])
        });
        let scores_mask = mask.clone().map(|mask| mask.reshape([rows, 1, 1, tokens]));
        let inputs = upload(self.padded_embeddings(captions, tokens), [rows * tokens, hidden]);
        let mut states = cast_to(first_norm.forward_f32(inputs), format);
        for block in blocks {
            let query_key_value = block.query_key_value.forward(states.clone());
            let split = |index: usize| {
                let values = query_key_value.clone().narrow(1, index * hidden, hidden);
                values.reshape([rows, tokens, heads, hidden / heads]).swap_dims(1, 2)
            };
            let scores = cast_to(split(0).matmul(split(1).transpose()), DType::F32) / ((hidden / heads) as f64).sqrt();
            let scores = match &scores_mask {
                Some(mask) => scores + mask.clone(),
                None => scores,
            };
            let attended = cast_to(activation::softmax(scores, 3), format).matmul(split(2));
            let attended = attended.swap_dims(1, 2).reshape([rows * tokens, hidden]);
            states = block.attention_norm.forward(states + block.attention_output.forward(attended));
            let mlp = block.outer.forward(activate(self.activation, block.inner.forward(states.clone())));
            states = block.output_norm.forward(states + mlp);
        }
        let states = cast_to(states, DType::F32).reshape([rows, tokens, hidden]);
        let counts = upload(captions.iter().map(|caption| caption.len() as f32).collect(), [rows, 1]);
        // 1 for a token, 0 for padding.
        let present = mask.map(|mask| (mask / -f64::from(MASKED_SCORE) + 1.0).reshape([rows, tokens, 1]));
        let sum = |states: Tensor<B, 3>| {
            let states = match &present {
                Some(present) => states * present.clone(),
                None => states,
            };
            states.sum_dim(1).squeeze_dim::<2>(1)
        };
        match self.pooling {
            Pooling::Mean => sum(states) / counts.clamp_min(1e-9),
            Pooling::MeanSqrt => sum(states) / counts.clamp_min(1e-9).sqrt(),
            Pooling::Cls => states.narrow(1, 0, 1).squeeze_dim(1),
            Pooling::Max => {
                let states = match &present {
                    Some(present) => states + (present.clone() - 1.0) * -f64::from(MASKED_SCORE),
                    None => states,
                };
                states.max_dim(1).squeeze_dim(1)
            }
        }
    }

    /// Applies the layers after the pooling, `[rows, hidden]` to `[rows, dim before truncation]`.
    fn map_pooled(&self, mut vectors: Tensor<B, 2>) -> Tensor<B, 2> {
        if let Some(norm) = &self.pooled_norm {
            vectors = norm.forward_f32(vectors);
        }
        for (layer, tanh) in &self.dense {
            vectors = layer.forward(vectors);
            if *tanh {
                vectors = vectors.tanh();
            }
        }
        if self.normalise { scale_to_unit_length(vectors) } else { vectors }
    }
}

/// Scales each row to unit length.
fn scale_to_unit_length<B: Backend>(vectors: Tensor<B, 2>) -> Tensor<B, 2> {
    let length = vectors.clone().powi_scalar(2).sum_dim(1).sqrt().clamp_min(1e-12);
    vectors / length
}
