//! Linear layers of a backbone.

use std::borrow::Cow;

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
    /// Adds the bias and multiplies values by their gates, to which a function is applied. The first half of the layer's outputs are the
    /// gates; the result is half as wide.
    Gated(Activation),
    /// Adds the bias and rotates queries and keys, two thirds of the layer's outputs, by their positions ([`Product::with_rotation`]).
    /// Each head has `width` outputs; value `i` and value `i + width / 2` are a point in the plane. They become neighbours, in queries as
    /// in keys, so that the scores of attention stay the same.
    Rotary { width: usize },
}

impl Epilogue {
    /// Returns the definitions of `epilogue.cu`.
    fn definitions(self) -> Vec<(&'static str, usize)> {
        let [epilogue, activation] = match self {
            Self::Bias => [0, 0],
            Self::Activation(activation) => [1, activation_code(activation)],
            Self::Residual => [2, 0],
            Self::Embedding => [3, 0],
            Self::Gated(activation) => [4, activation_code(activation)],
            Self::Rotary { .. } => [5, 0],
        };
        let mut definitions = vec![("EPILOGUE", epilogue), ("ACTIVATION", activation)];
        if let Self::Rotary { width } = self {
            definitions.push(("WIDTH", width));
        }
        definitions
    }

    /// Orders the rows of a weight with `depth` values a row, or the values of a bias, so that those whose results the epilogue combines
    /// are neighbours.
    fn order_rows(self, values: &[f32], depth: usize) -> Cow<'_, [f32]> {
        match self {
            Self::Gated(_) => Cow::Owned(interleave_halves(values, depth)),
            Self::Rotary { width } => {
                let (rotated, rest) = values.split_at(values.len() / 3 * 2);
                let heads = rotated.chunks_exact(width * depth).flat_map(|head| interleave_halves(head, depth));
                Cow::Owned(heads.chain(rest.iter().copied()).collect())
            }
            _ => Cow::Borrowed(values),
        }
    }
}

/// Returns the number of an activation in `epilogue.cu`.
fn activation_code(activation: Activation) -> usize {
    match activation {
        Activation::Gelu => 0,
        Activation::GeluTanh => 1,
        Activation::Relu => 2,
        Activation::QuickGelu => 3,
        Activation::Silu => 4,
    }
}

/// Alternates the rows of both halves of a matrix with `depth` values a row.
fn interleave_halves(values: &[f32], depth: usize) -> Vec<f32> {
    let (first, second) = values.split_at(values.len() / 2);
    let pairs = first.chunks_exact(depth).zip(second.chunks_exact(depth));
    pairs.flat_map(|(one, other)| one.iter().chain(other)).copied().collect()
}

/// Linear layer on the device, for inputs of a fixed number of rows.
#[derive(Debug)]
pub(super) struct Product {
    weight: Matrix,
    bias: Handle,
    rows: usize,
    /// Patches and tokens of an image, for [`Epilogue::Embedding`] and [`Epilogue::Rotary`].
    image: [usize; 2],
    rotation: Option<Handle>,
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
        let (weight, bias) = (epilogue.order_rows(weight, depth), epilogue.order_rows(bias, 1));
        Self {
            weight: Matrix { values: card.upload(&weight), rows: columns, depth },
            bias: card.upload_f32(bias.into_owned()),
            rows,
            image: [rows, rows],
            rotation: None,
            tile,
            program: tile.program(EPILOGUE, &epilogue.definitions()),
        }
    }

    /// Sets the patches and tokens of an image.
    pub(super) fn with_image(mut self, patches: usize, tokens: usize) -> Self {
        self.image = [patches, tokens];
        self
    }

    /// Sets the rotation of queries and keys: cosine and sine of each pair of a head's values, `[tokens, width / 2, 2]` in f32.
    pub(super) fn with_rotation(mut self, rotation: &Handle, tokens: usize) -> Self {
        self.image = [tokens, tokens];
        self.rotation = Some(rotation.clone());
        self
    }

    /// Returns the values of a row of the product.
    pub(super) fn columns(&self) -> usize {
        self.weight.rows
    }

    /// Enqueues the product of `input`, `[rows, depth]`, into `out` with `pitch` values a row.
    pub(super) fn launch(&self, card: &Card, input: &Handle, out: &Handle, pitch: usize) {
        let input = Matrix { values: input.clone(), rows: self.rows, depth: self.weight.depth };
        let [patches, tokens] = self.image;
        let arguments = Arguments {
            // The second one is the rotation, or else the residual, which `out` holds.
            buffers: vec![self.bias.clone(), self.rotation.as_ref().unwrap_or(out).clone(), out.clone()],
            numbers: [pitch, patches, tokens].map(|size| size as u32).to_vec(),
            ..Arguments::default()
        };
        self.tile.launch(card, &self.program, [input, self.weight.clone()], arguments);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates_are_neighbours_of_their_values() {
        let epilogue = Epilogue::Gated(Activation::Silu);
        assert_eq!(*epilogue.order_rows(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 1), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
        let rows = [1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5];
        assert_eq!(*epilogue.order_rows(&rows, 2), [1.0, 1.5, 3.0, 3.5, 2.0, 2.5, 4.0, 4.5]);
        assert_eq!(*Epilogue::Bias.order_rows(&rows, 2), rows);
    }

    #[test]
    fn halves_of_rotated_heads_are_neighbours() {
        // Query, key and value of two heads of four values.
        let values: Vec<f32> = (0_u8..24).map(f32::from).collect();
        let ordered = Epilogue::Rotary { width: 4 }.order_rows(&values, 1);
        assert_eq!(ordered[..8], [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
        assert_eq!(ordered[8..16], [8.0, 10.0, 9.0, 11.0, 12.0, 14.0, 13.0, 15.0]);
        assert_eq!(ordered[16..], values[16..]);
    }
}
