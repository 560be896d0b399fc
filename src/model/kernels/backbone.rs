//! A backbone of this crate's own kernels: its buffers, and one forward pass.

mod head;
mod load;

use burn::tensor::backend::Backend;
use cubecl::server::Handle;

use head::Head;
use load::{Load, upload_rotation};

use super::product::Product;
use super::transfer::{Features, Transfers};
use super::{ImageSizes, Kernels};
use crate::card::{Arguments, Card, Program, Tile};
use crate::model::checkpoint::Checkpoint;
use crate::model::config::PlainConfig;
use crate::model::error::ModelError;
use crate::model::layout;
use crate::model::load::Loader;
use crate::model::pooling::{PooledTokens, Pooling};

const ROW: &str = include_str!("row.cu");

/// Queries of a block of attention, and keys of a tile.
const ATTENTION_TILE: usize = 64;

/// Inputs and features of a backbone.
#[derive(Debug, Clone, Copy)]
pub(in crate::model) struct Shape<'a> {
    /// Images in every batch.
    pub(in crate::model) images: usize,
    /// Side of an image, in pixels.
    pub(in crate::model) size_px: u32,
    /// Blocks whose features are concatenated.
    pub(in crate::model) taps: &'a [u32],
    pub(in crate::model) pooling: Pooling,
    /// Width of all features together.
    pub(in crate::model) feature_dim: usize,
}

/// Backbone on a GPU. Its buffers hold one batch; all batches use them one after the other.
#[derive(Debug)]
pub(in crate::model) struct CardBackbone {
    card: Card,
    transfers: Transfers,
    patches: Patches,
    first_norm: Option<Norm>,
    blocks: Vec<Block>,
    pools: Vec<Pool>,
    head: Option<Head>,
    sizes: Sizes,
    buffers: Buffers,
}

#[derive(Debug, Clone, Copy)]
struct Sizes {
    images: usize,
    image: ImageSizes,
    hidden: usize,
    inner: usize,
    feature_dim: usize,
}

impl Sizes {
    /// Returns the tokens of a batch.
    fn rows(&self) -> usize {
        self.images * self.image.tokens
    }
}

#[derive(Debug)]
struct Buffers {
    /// Bytes, `[images, side, side, 3]`.
    pixels: Handle,
    /// Residual stream, `[rows, hidden]`.
    states: Handle,
    /// Input of the next product, `[rows, hidden]`.
    input: Handle,
    /// Patches; query, key and value; or the hidden layer of the MLP.
    wide: Handle,
    /// `[images, feature_dim]`.
    features: Handle,
}

#[derive(Debug)]
struct Patches {
    program: Program,
    blocks: usize,
    /// Tokens before the patches, f32.
    leading: Handle,
    numbers: Vec<u32>,
    projection: Product,
}

#[derive(Debug)]
struct Norm {
    program: Program,
    weight: Handle,
    bias: Handle,
    rows: usize,
    /// Values from row to row of its input.
    pitch: usize,
    epsilon: f32,
}

#[derive(Debug)]
struct Attention {
    program: Program,
    blocks: usize,
    numbers: Vec<u32>,
    bias: Option<Bias>,
}

/// Relative position bias of a block, as `attention.cu` reads it.
#[derive(Debug, Clone)]
struct Bias {
    /// `[heads, entries]`, f32, multiplied by the root of a head's width.
    tables: Handle,
    entries: usize,
    /// Places of queries, then of keys, each filled up to a multiple of [`ATTENTION_TILE`].
    places: Handle,
}

#[derive(Debug)]
struct Block {
    attention_norm: Norm,
    query_key_value: Product,
    attention: Attention,
    attention_output: Product,
    mlp_norm: Norm,
    inner: Product,
    outer: Product,
    /// Values from row to row of the residual stream, of the tokens that the block computes.
    pitch: usize,
}

/// Pooling of a block into a part of the feature.
#[derive(Debug)]
struct Pool {
    block: usize,
    program: Program,
    norm: Norm,
    numbers: Vec<u32>,
    /// First value of the part in the feature.
    column: usize,
    images: usize,
}

impl CardBackbone {
    /// Loads the blocks up to the last of `shape.taps`. [`super::find_gap`] must have found nothing.
    pub(in crate::model) fn load<B: Backend>(
        (checkpoint, plain): (&Checkpoint, &PlainConfig),
        shape: Shape<'_>,
        loader: &Loader<'_, B>,
        [gpu, capability]: [usize; 2],
    ) -> Result<Self, ModelError> {
        let card = Card::new(gpu, capability as u32);
        let Shape { images, feature_dim, .. } = shape;
        let image = ImageSizes::new(checkpoint.config(), plain, shape.size_px);
        let (hidden, inner) = (plain.hidden, plain.feed_forward.inner());
        let sizes = Sizes { images, image, hidden, inner, feature_dim };
        let rotation = upload_rotation(&card, plain, image.grid);
        let load = Load { card: &card, checkpoint, plain, loader, sizes, rotation };
        let patches = load.patches(shape.size_px as usize)?;
        let names = layout::names(checkpoint.config().family);
        let first_norm = if plain.first_norm { Some(load.norm(names.first_norm)?) } else { None };
        let last = shape.taps.iter().copied().max().unwrap_or(0);
        let block = |(index, bias)| {
            load.block(index, if index == last { plain.pooled_tokens(shape.pooling) } else { PooledTokens::All }, bias)
        };
        let blocks = (0..).zip(load.biases(last)?).map(block).collect::<Result<_, _>>()?;
        let (pools, head) = load.pools(shape)?;
        let buffers = Buffers {
            pixels: card.allocate_bytes(images * 3 * (shape.size_px * shape.size_px) as usize),
            states: card.allocate(sizes.rows() * hidden),
            input: card.allocate(sizes.rows() * hidden),
            wide: card.allocate(images * image.wide),
            features: card.allocate(images * feature_dim),
        };
        let transfers = Transfers::new(gpu);
        Ok(Self { card, transfers, patches, first_norm, blocks, pools, head, sizes, buffers })
    }

    /// Returns the instruction of the products.
    pub(in crate::model) fn instruction(&self) -> &'static str {
        Tile::large(self.card.capability).instruction()
    }

    /// Enqueues the forward pass of a batch, `[images, side, side, 3]`, from the upload of the pixels to the copy of the features.
    ///
    /// # Errors
    /// When the device fails.
    pub(in crate::model) fn forward(&self, pixels: &[u8]) -> Result<Features, ModelError> {
        let pass = || {
            self.transfers.upload(pixels, &self.buffers.pixels)?;
            self.launch();
            self.transfers.download(&self.buffers.features)
        };
        self.card.exclusive(pass).ok_or(ModelError::Runtime)?
    }

    fn launch(&self) {
        let (card, hidden) = (&self.card, self.sizes.hidden);
        let Buffers { states, input, wide, .. } = &self.buffers;
        self.patches.launch(card, &self.buffers, hidden);
        if let Some(norm) = &self.first_norm {
            norm.launch(card, states, states);
        }
        for (index, block) in self.blocks.iter().enumerate() {
            block.attention_norm.launch(card, states, input);
            block.query_key_value.launch(card, input, wide, 3 * hidden);
            block.attention.launch(card, wide, input);
            block.attention_output.launch(card, input, states, block.pitch);
            block.mlp_norm.launch(card, states, input);
            block.inner.launch(card, input, wide, self.sizes.inner);
            block.outer.launch(card, wide, states, block.pitch);
            for pool in self.pools.iter().filter(|pool| pool.block == index) {
                self.pool(pool);
            }
        }
    }

    fn pool(&self, pool: &Pool) {
        let Buffers { states, features, .. } = &self.buffers;
        match &self.head {
            None => pool.launch(&self.card, states, features),
            Some(head) => {
                let part = features.clone().offset_start(2 * pool.column as u64);
                head.launch(&self.card, &self.buffers, pool, (&part, self.sizes.feature_dim));
            }
        }
    }
}

impl Patches {
    fn launch(&self, card: &Card, buffers: &Buffers, hidden: usize) {
        let Buffers { pixels, states, wide, .. } = buffers;
        let arguments = Arguments {
            buffers: vec![pixels.clone(), self.leading.clone(), wide.clone(), states.clone()],
            numbers: self.numbers.clone(),
            ..Arguments::default()
        };
        card.launch(&self.program, self.blocks, arguments);
        self.projection.launch(card, wide, states, hidden);
    }
}

impl Norm {
    /// Rows of a block: one a warp.
    const BLOCK: usize = 8;

    fn launch(&self, card: &Card, from: &Handle, to: &Handle) {
        let arguments = Arguments {
            buffers: vec![from.clone(), self.weight.clone(), self.bias.clone(), to.clone()],
            numbers: vec![self.rows as u32, self.epsilon.to_bits(), self.pitch as u32],
            ..Arguments::default()
        };
        card.launch(&self.program, self.rows.div_ceil(Self::BLOCK), arguments);
    }
}

impl Attention {
    /// Attention of the first `queries` tokens of each image to all.
    fn new(plain: &PlainConfig, sizes: Sizes, queries: usize, bias: Option<Bias>) -> Self {
        let width = plain.hidden / plain.heads;
        // A tile of queries, and two tiles each of keys and values; rows are padded to whole products and by 16 bytes.
        let shared_bytes = 5 * ATTENTION_TILE * (2 * width.next_multiple_of(16) + 16);
        let scale = std::f32::consts::LOG2_E / (width as f32).sqrt();
        let mut definitions = vec![("WIDTH", width)];
        let mut numbers = vec![sizes.image.tokens as u32, plain.heads as u32, scale.to_bits(), queries as u32];
        if let Some(bias) = &bias {
            definitions.push(("BIASED", 1));
            numbers.extend([bias.entries as u32, 0]);
        }
        Self {
            program: Program::new("attention", &[include_str!("attention.cu")], &definitions, 128, shared_bytes),
            blocks: sizes.images * plain.heads * queries.div_ceil(ATTENTION_TILE),
            numbers,
            bias,
        }
    }

    fn launch(&self, card: &Card, packed: &Handle, to: &Handle) {
        let bias = self.bias.iter().flat_map(|bias| [&bias.tables, &bias.places]);
        let buffers = [packed].into_iter().chain(bias).chain([to]).cloned().collect();
        let arguments = Arguments { buffers, numbers: self.numbers.clone(), ..Arguments::default() };
        card.launch(&self.program, self.blocks, arguments);
    }
}

impl Pool {
    fn launch(&self, card: &Card, states: &Handle, to: &Handle) {
        let Norm { weight, bias, .. } = &self.norm;
        let arguments = Arguments {
            buffers: vec![states.clone(), weight.clone(), bias.clone(), to.clone()],
            numbers: self.numbers.clone(),
            ..Arguments::default()
        };
        card.launch(&self.program, self.images, arguments);
    }
}

impl Kernels {
    /// Returns index and compute capability of the GPU whose own kernels may run.
    pub(in crate::model) fn own(self) -> Option<[usize; 2]> {
        match self {
            Self::Burn => None,
            Self::Own { gpu, capability } => Some([gpu, capability as usize]),
        }
    }
}
