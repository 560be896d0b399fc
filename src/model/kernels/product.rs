//! Matrix products: the choice of kernel, and its launches.

use cubecl::server::Handle;

use super::card::{Arguments, Card, Matrix};
use super::program::{File, Program};
use crate::model::config::Activation;

/// Rows from which a product takes `wgmma`, where the GPU has it. Fewer rows are better spread over the GPU in small tiles.
const WGMMA_ROWS: usize = 256;

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

/// Tile of a product, and the instruction that computes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tile {
    /// 64 × 64 by `mma.sync`.
    Small,
    /// 128 × 128 by `mma.sync`.
    Large,
    /// 128 × 128 by `wgmma`.
    Wgmma,
}

impl Tile {
    /// Chooses the tile for a result. A product with too few large tiles for all multiprocessors takes small ones.
    fn choose(capability: u32, multiprocessors: u32, rows: usize, columns: usize) -> Self {
        if has_wgmma(capability) && rows >= WGMMA_ROWS {
            return Self::Wgmma;
        }
        let tiles = rows.div_ceil(128) * columns.div_ceil(128);
        if tiles < multiprocessors as usize { Self::Small } else { Self::Large }
    }

    fn side(self) -> usize {
        if self == Self::Small { 64 } else { 128 }
    }

    fn program(self, epilogue: Epilogue) -> Program {
        let [end, activation] = epilogue.codes();
        let mut definitions = vec![("EPILOGUE", end), ("ACTIVATION", activation)];
        let side = self.side();
        if self == Self::Wgmma {
            // Three stages of two tiles, and their barriers: two blocks fit a multiprocessor.
            let stages = 3;
            definitions.push(("STAGES", stages));
            return Program::new(File::ProductWgmma, &definitions, 9 * 32, stages * (2 * 128 * 64 * 2 + 16));
        }
        // Both fit the 48 KiB of every GPU.
        let (warp_rows, stages, blocks, threads) = if self == Self::Small { (32, 4, 4, 128) } else { (64, 3, 2, 256) };
        definitions.extend([("TILE_M", side), ("TILE_N", side), ("WARP_M", warp_rows)]);
        definitions.extend([("STAGES", stages), ("BLOCKS_PER_SM", blocks)]);
        Program::new(File::Product, &definitions, threads, stages * 2 * side * 32 * 2)
    }
}

/// Returns whether a GPU has `wgmma`.
pub(super) fn has_wgmma(capability: u32) -> bool {
    capability == 90
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
    program: Program,
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
        Self {
            weight: Matrix { values: card.upload(weight), rows: columns, depth },
            bias: card.upload_f32(bias),
            rows,
            image: [rows, rows],
            tile,
            program: tile.program(epilogue),
        }
    }

    /// Sets the patches and tokens of an image.
    pub(super) fn with_image(mut self, patches: usize, tokens: usize) -> Self {
        self.image = [patches, tokens];
        self
    }

    /// Enqueues the product of `input`, `[rows, depth]`, into `out` with `pitch` values a row.
    pub(super) fn launch(&self, card: &Card, input: &Handle, out: &Handle, pitch: usize) {
        let Matrix { values: weight, rows: columns, depth } = &self.weight;
        let mut arguments = Arguments::default();
        if self.tile == Tile::Wgmma {
            // `CubeCL` passes the matrices of maps as the first buffers.
            let input = Matrix { values: input.clone(), rows: self.rows, depth: *depth };
            arguments.maps = vec![input, self.weight.clone()];
        } else {
            arguments.buffers = vec![input.clone(), weight.clone()];
        }
        // The residual is what `out` holds.
        arguments.buffers.extend([self.bias.clone(), out.clone(), out.clone()]);
        let [patches, tokens] = self.image;
        arguments.numbers = [self.rows, *columns, *depth, pitch, patches, tokens].map(|size| size as u32).to_vec();
        let side = self.tile.side();
        card.launch(&self.program, self.rows.div_ceil(side) * columns.div_ceil(side), arguments);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tile_follows_shape_and_generation() {
        let (one, many) = (197, 128 * 197);
        assert_eq!(Tile::choose(90, 132, many, 768), Tile::Wgmma);
        assert_eq!(Tile::choose(90, 132, one, 768), Tile::Small);
        assert_eq!(Tile::choose(80, 108, one, 768), Tile::Small);
        for capability in [80, 86, 89, 100, 103, 120] {
            assert_eq!(Tile::choose(capability, 108, many, 768), Tile::Large);
        }
    }
}
