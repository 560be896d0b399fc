//! Linear layers of a backbone.

use cubecl::server::Handle;

use crate::card::{Arguments, Card, Matrix, Tile};
use crate::model::config::Activation;

const EPILOGUE: &str = include_str!("epilogue.cu");

/// End of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Epilogue {
    /// Adds the bias.
    Bias,
    /// Adds the bias and applies a function.
    Activation(Activation),
    /// Adds the bias and the old content of the result.
    Residual,
    /// Adds a bias of each patch, and stores patches behind the leading tokens of their image.
    Embedding,
}

impl Epilogue {
    /// Returns the numbers of epilogue and activation in `epilogue.cu`.
    fn codes(self) -> [usize; 2] {
        match self {
            Self::Bias => [0, 0],
            Self::Activation(Activation::Gelu) => [1, 0],
            Self::Activation(Activation::GeluTanh) => [1, 1],
            Self::Activation(Activation::Relu) => [1, 2],
            Self::Activation(Activation::QuickGelu) => [1, 3],
            Self::Activation(Activation::Silu) => [1, 4],
            Self::Residual => [2, 0],
            Self::Embedding => [3, 0],
        }
    }
}

/// Linear layer on the device, for inputs of a fixed number of rows.
#[derive(Debug)]
pub(super) struct Product {
    weight: Matrix,
    bias: Handle,
    rows: usize,
    /// Patches and tokens of an image, for [`Epilogue::Embedding`].
    image: [usize; 2],
    tile: Tile,
    program: crate::card::Program,
}

impl Product {
    /// Uploads a weight, `[out, depth]` as in torch, and a bias: `[out]`, or `[patches, out]` for an embedding.
    pub(super) fn new(
        card: &Card,
        (weight, bias): (&[f32], &[f32]),
        depth: usize,
        rows: usize,
        epilogue: Epilogue,
    ) -> Self {
        let columns = weight.len() / depth;
        let tile = Tile::choose(card.capability, card.multiprocessors, rows, columns);
        let [end, activation] = epilogue.codes();
        Self {
            weight: Matrix { values: card.upload(weight), rows: columns, depth },
            bias: card.upload_f32(bias.to_vec()),
            rows,
            image: [rows, rows],
            tile,
            program: tile.program(EPILOGUE, &[("EPILOGUE", end), ("ACTIVATION", activation)]),
        }
    }

    /// Sets the patches and tokens of an image.
    pub(super) fn with_image(mut self, patches: usize, tokens: usize) -> Self {
        self.image = [patches, tokens];
        self
    }

    /// Enqueues the product of `input`, `[rows, depth]`, into `out` with `pitch` values a row.
    pub(super) fn launch(&self, card: &Card, input: &Handle, out: &Handle, pitch: usize) {
        let input = Matrix { values: input.clone(), rows: self.rows, depth: self.weight.depth };
        let [patches, tokens] = self.image;
        let arguments = Arguments {
            // The residual is what `out` holds.
            buffers: vec![self.bias.clone(), out.clone(), out.clone()],
            numbers: [pitch, patches, tokens].map(|size| size as u32).to_vec(),
            ..Arguments::default()
        };
        self.tile.launch(card, &self.program, [input, self.weight.clone()], arguments);
    }
}
