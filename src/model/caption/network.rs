//! The decoder on a device: one step of all captions at once, with the keys and values of earlier steps kept.

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Int, Tensor, TensorData, activation};

use super::config::{DecoderConfig, DecoderFamily};
use super::layout::{self, Names};
use crate::model::block::{Linear, Norm, activate, cast_to};
use crate::model::config::Activation;
use crate::model::error::ModelError;
use crate::model::load::Loader;

/// Decoder on the device `B::Device`.
#[derive(Debug)]
pub(super) struct Decoder<B: Backend> {
    config: DecoderConfig,
    /// `[vocabulary, hidden]`.
    words: Tensor<B, 2>,
    /// Sum of the position embeddings and the embedding of token type 0, `[positions, hidden]`.
    positions: Tensor<B, 2>,
    /// Norm of the embeddings in BERT; of the last block's output in GPT-2.
    outer_norm: Norm<B>,
    blocks: Vec<DecoderBlock<B>>,
    head: Option<(Linear<B>, Norm<B>)>,
    /// Weight of the output layer, `[vocabulary, hidden]`; `None` if it is that of the words.
    output: Option<Tensor<B, 2>>,
    /// `[1, vocabulary]`.
    output_bias: Option<Tensor<B, 2>>,
    format: DType,
}

/// Self-attention, cross attention and MLP.
#[derive(Debug)]
struct DecoderBlock<B: Backend> {
    query_key_value: Linear<B>,
    attention_output: Linear<B>,
    attention_norm: Norm<B>,
    cross_query: Linear<B>,
    cross_key_value: Linear<B>,
    cross_output: Linear<B>,
    cross_norm: Norm<B>,
    inner: Linear<B>,
    outer: Linear<B>,
    mlp_norm: Norm<B>,
    /// Factor of the attention scores.
    scale: f64,
}

impl<B: Backend> DecoderBlock<B> {
    /// Attention of each caption's new token to the tokens of its image. The captions of an image are its queries, so the
    /// image's keys and values are not repeated.
    fn attend_image(&self, input: Tensor<B, 2>, cross: &KeyValue<B>) -> Tensor<B, 2> {
        let [rows, hidden] = input.dims();
        let [images, heads, _, width] = cross.0.dims();
        let query = self.cross_query.forward(input).reshape([images, rows / images, heads, width]).swap_dims(1, 2);
        let attended = attend(query, cross.0.clone(), cross.1.clone(), self.scale);
        self.cross_output.forward(attended.swap_dims(1, 2).reshape([rows, hidden]))
    }
}

/// Keys and values, `[rows, heads, tokens, width of a head]` each.
type KeyValue<B> = (Tensor<B, 4>, Tensor<B, 4>);

/// Captions in progress.
#[derive(Debug)]
pub(super) struct DecoderState<B: Backend> {
    /// Keys and values of each block for the tokens so far; a row is a caption.
    own: Vec<Option<KeyValue<B>>>,
    /// Keys and values of each block for the encoder's tokens; a row is an image.
    cross: Vec<KeyValue<B>>,
    /// Tokens of each caption so far.
    length: usize,
}

impl<B: Backend> DecoderState<B> {
    /// Keeps the images `images`, and of the captions those of the rows `rows`, in this order.
    pub(super) fn select(&mut self, rows: &[usize], images: Option<&[usize]>) {
        for (key, value) in self.own.iter_mut().flatten() {
            let index = to_indices::<B>(rows.iter().map(|row| *row as i64), &key.device());
            (*key, *value) = (key.clone().select(0, index.clone()), value.clone().select(0, index));
        }
        let Some(images) = images else { return };
        for (key, value) in &mut self.cross {
            let index = to_indices::<B>(images.iter().map(|image| *image as i64), &key.device());
            (*key, *value) = (key.clone().select(0, index.clone()), value.clone().select(0, index));
        }
    }
}

fn to_indices<B: Backend>(values: impl Iterator<Item = i64>, device: &B::Device) -> Tensor<B, 1, Int> {
    let values: Vec<i64> = values.collect();
    let count = values.len();
    Tensor::from_data(TensorData::new(values, [count]), device)
}

impl<B: Backend> Decoder<B> {
    /// Reads the tensors one at a time and uploads them. `bias` is the name of the output layer's bias.
    pub(super) fn load(config: &DecoderConfig, bias: Option<&str>, loader: &Loader<'_, B>) -> Result<Self, ModelError> {
        let (names, hidden) = (layout::names(config.family), config.hidden);
        let mut positions = loader.values(names.positions)?;
        if !names.types.is_empty() {
            let types = loader.values(names.types)?;
            for position in positions.chunks_mut(hidden) {
                position.iter_mut().zip(&types).for_each(|(position, first)| *position += first);
            }
        }
        let head = if names.head_dense.is_empty() {
            None
        } else {
            Some((loader.linear(names.head_dense, hidden, hidden, true)?, loader.norm(names.head_norm)?))
        };
        let table = |name: &str| -> Result<Tensor<B, 2>, ModelError> {
            Ok(loader.upload(loader.values(name)?, [config.vocabulary, hidden]))
        };
        Ok(Self {
            words: table(names.words)?,
            positions: loader.upload(positions, [config.positions, hidden]),
            outer_norm: loader.norm(names.outer_norm)?,
            blocks: (0..config.layers)
                .map(|index| load_block(config, names, index, loader))
                .collect::<Result<_, _>>()?,
            head,
            output: if config.tied { None } else { Some(table(names.output)?) },
            output_bias: match bias {
                Some(bias) => Some(loader.upload(loader.values(bias)?, [1, config.vocabulary])),
                None => None,
            },
            format: loader.format,
            config: config.clone(),
        })
    }

    /// Starts captions of the images with these encoder states, `[images, tokens, hidden]`.
    pub(super) fn start(&self, states: Tensor<B, 3>) -> DecoderState<B> {
        let [images, tokens, hidden] = states.dims();
        let states = states.reshape([images * tokens, hidden]);
        let cross = |block: &DecoderBlock<B>| {
            let both = block.cross_key_value.forward(states.clone());
            let split = |index| self.split(&both, index, [images, tokens]);
            (split(0), split(1))
        };
        let cross = self.blocks.iter().map(cross).collect();
        DecoderState { own: self.blocks.iter().map(|_| None).collect(), cross, length: 0 }
    }

    /// Appends one token to each caption and returns the logits of the next, `[rows, vocabulary]`, in f32.
    ///
    /// Each image has the same number of captions, one after the other.
    pub(super) fn step(&self, state: &mut DecoderState<B>, tokens: &[u32]) -> Tensor<B, 2> {
        let post_norm = self.config.family != DecoderFamily::Gpt2;
        let device = self.words.device();
        let words = to_indices::<B>(tokens.iter().map(|id| i64::from(*id)), &device);
        let places = tokens.iter().map(|id| self.config.position(state.length, *id) as i64);
        let mut states =
            self.words.clone().select(0, words) + self.positions.clone().select(0, to_indices::<B>(places, &device));
        if post_norm {
            states = self.outer_norm.forward(states);
        }
        for (block, (own, cross)) in self.blocks.iter().zip(state.own.iter_mut().zip(&state.cross)) {
            states = add(post_norm, &block.attention_norm, states, |x| self.attend_own(block, x, own));
            states = add(post_norm, &block.cross_norm, states, |x| block.attend_image(x, cross));
            states = add(post_norm, &block.mlp_norm, states, |x| {
                block.outer.forward(activate(self.config.activation, block.inner.forward(x)))
            });
        }
        state.length += 1;
        if !post_norm {
            states = self.outer_norm.forward(states);
        }
        if let Some((dense, norm)) = &self.head {
            let kind = match self.config.family {
                DecoderFamily::Roberta => Activation::Gelu,
                _ => self.config.activation,
            };
            states = norm.forward(activate(kind, dense.forward(states)));
        }
        let output = self.output.as_ref().unwrap_or(&self.words);
        let logits = states.matmul(output.clone().transpose());
        let logits = match &self.output_bias {
            Some(bias) => logits + bias.clone(),
            None => logits,
        };
        cast_to(logits, DType::F32)
    }

    /// Attention of each caption's new token to the caption's tokens.
    fn attend_own(&self, block: &DecoderBlock<B>, input: Tensor<B, 2>, own: &mut Option<KeyValue<B>>) -> Tensor<B, 2> {
        let [rows, hidden] = input.dims();
        let all = block.query_key_value.forward(input);
        let split = |index| self.split(&all, index, [rows, 1]);
        let (mut key, mut value) = (split(1), split(2));
        if let Some((keys, values)) = own.take() {
            key = Tensor::cat(vec![keys, key], 2);
            value = Tensor::cat(vec![values, value], 2);
        }
        *own = Some((key.clone(), value.clone()));
        let attended = attend(split(0), key, value, block.scale).reshape([rows, hidden]);
        block.attention_output.forward(attended)
    }

    /// Returns part `index` of a joined projection, `[rows · tokens, parts · hidden]`, by heads.
    fn split(&self, joined: &Tensor<B, 2>, index: usize, [rows, tokens]: [usize; 2]) -> Tensor<B, 4> {
        let (hidden, heads) = (self.config.hidden, self.config.heads);
        let part = joined.clone().narrow(1, index * hidden, hidden);
        part.reshape([rows, tokens, heads, hidden / heads]).swap_dims(1, 2)
    }

    /// Returns the format of weights and activations.
    pub(super) fn format(&self) -> DType {
        self.format
    }
}

/// Adds the output of a layer to its input; the norm comes after the sum, or before the layer.
fn add<B: Backend>(
    post_norm: bool,
    norm: &Norm<B>,
    states: Tensor<B, 2>,
    layer: impl FnOnce(Tensor<B, 2>) -> Tensor<B, 2>,
) -> Tensor<B, 2> {
    if post_norm {
        norm.forward(states.clone() + layer(states))
    } else {
        let update = layer(norm.forward(states.clone()));
        states + update
    }
}

/// Attention with its softmax in f32.
fn attend<B: Backend>(query: Tensor<B, 4>, key: Tensor<B, 4>, value: Tensor<B, 4>, scale: f64) -> Tensor<B, 4> {
    let format = query.dtype();
    let scores = cast_to(query.matmul(key.transpose()), DType::F32) * scale;
    cast_to(activation::softmax(scores, 3), format).matmul(value)
}

fn load_block<B: Backend>(
    config: &DecoderConfig,
    names: &Names,
    index: usize,
    loader: &Loader<'_, B>,
) -> Result<DecoderBlock<B>, ModelError> {
    let (hidden, inner) = (config.hidden, config.inner);
    let norm = |part: &str| loader.norm(&names.block(index, part));
    let linear = |parts: &[&str], input: usize, out: usize| -> Result<Linear<B>, ModelError> {
        let keys: Vec<String> = parts.iter().map(|part| names.block(index, part)).collect();
        if config.family != DecoderFamily::Gpt2 {
            let parts: Vec<(String, bool)> = keys.into_iter().map(|key| (key, true)).collect();
            return loader.joined(&parts, input, out);
        }
        let key = keys.concat();
        let (weight, bias) = (loader.values(format!("{key}.weight"))?, loader.values(format!("{key}.bias"))?);
        Ok(Linear::from_columns(weight, Some(bias), input, out, (loader.device, loader.format)))
    };
    let mut scale = if config.scaled { 1.0 / ((hidden / config.heads) as f64).sqrt() } else { 1.0 };
    if config.scaled_by_layer {
        scale /= (index + 1) as f64;
    }
    Ok(DecoderBlock {
        query_key_value: linear(names.attention, hidden, 3 * hidden)?,
        attention_output: linear(&[names.attention_output], hidden, hidden)?,
        attention_norm: norm(names.attention_norm)?,
        cross_query: linear(&[names.cross_query], hidden, hidden)?,
        cross_key_value: linear(names.cross_key_value, hidden, 2 * hidden)?,
        cross_output: linear(&[names.cross_output], hidden, hidden)?,
        cross_norm: norm(names.cross_norm)?,
        inner: linear(&[names.inner], hidden, inner)?,
        outer: linear(&[names.outer], inner, hidden)?,
        mlp_norm: norm(names.mlp_norm)?,
        scale,
    })
}
