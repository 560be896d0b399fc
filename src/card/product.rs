//! Matrix products: the choice of a tile, and its launches.

use super::memory::{Arguments, Card, Matrix};
use super::program::Program;

const END: &str = include_str!("end.cu");
const PRODUCT: &str = include_str!("product.cu");
const PRODUCT_WGMMA: &str = include_str!("product_wgmma.cu");

/// Rows from which a product takes `wgmma`, where the GPU has it. Fewer rows are better spread over the GPU in small tiles.
const WGMMA_ROWS: usize = 256;

/// Tile of a product, and the instruction that computes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tile {
    /// 64 × 64 by `mma.sync`.
    Small,
    /// 128 × 128 by `mma.sync`.
    Large,
    /// 128 × 128 by `wgmma`.
    Wgmma,
}

impl Tile {
    /// Chooses the tile for a result. Without `wgmma`, a product with too few large tiles for all multiprocessors takes small ones.
    pub(crate) fn choose(capability: u32, multiprocessors: u32, rows: usize, columns: usize) -> Self {
        if has_wgmma(capability) && rows >= WGMMA_ROWS {
            return Self::Wgmma;
        }
        let tiles = rows.div_ceil(128) * columns.div_ceil(128);
        if tiles < multiprocessors as usize { Self::Small } else { Self::Large }
    }

    /// Returns the large tile of a GPU.
    pub(crate) fn large(capability: u32) -> Self {
        if has_wgmma(capability) { Self::Wgmma } else { Self::Large }
    }

    /// Returns the instruction of the products.
    pub(crate) fn instruction(self) -> &'static str {
        if self == Self::Wgmma { "wgmma" } else { "mma.sync" }
    }

    fn side(self) -> usize {
        if self == Self::Small { 64 } else { 128 }
    }

    /// Returns the columns of a result that a warp passes to its epilogue at once.
    pub(crate) fn strip(self) -> usize {
        if self == Self::Wgmma { 128 } else { 32 }
    }

    /// Puts a product together. `epilogue` is its file.
    pub(crate) fn program(self, epilogue: &'static str, definitions: &[(&str, usize)]) -> Program {
        let mut definitions = definitions.to_vec();
        let side = self.side();
        if self == Self::Wgmma {
            // Three stages of two tiles, and their barriers: two blocks fit a multiprocessor.
            let stages = 3;
            definitions.push(("STAGES", stages));
            let shared_bytes = stages * (2 * 128 * 64 * 2 + 16);
            return Program::new("product", &[END, epilogue, PRODUCT_WGMMA], &definitions, 9 * 32, shared_bytes);
        }
        // Both fit the 48 KiB of every GPU.
        let (warp_side, stages, blocks) = if self == Self::Small { (32, 4, 4) } else { (64, 3, 2) };
        definitions.extend([("TILE_M", side), ("TILE_N", side), ("WARP_M", warp_side), ("WARP_N", warp_side)]);
        definitions.extend([("STAGES", stages), ("BLOCKS_PER_SM", blocks)]);
        Program::new("product", &[END, epilogue, PRODUCT], &definitions, 4 * 32, stages * 2 * side * 32 * 2)
    }

    /// Enqueues the product of `left` and the transpose of `right`. `arguments` are those of the epilogue.
    pub(crate) fn launch(self, card: &Card, program: &Program, [left, right]: [Matrix; 2], mut arguments: Arguments) {
        let sizes = [left.rows, right.rows, left.depth];
        let blocks = left.rows.div_ceil(self.side()) * right.rows.div_ceil(self.side());
        arguments.numbers.splice(0..0, sizes.map(|size| size as u32));
        if self == Self::Wgmma {
            // `CubeCL` passes the matrices of maps as the first buffers.
            arguments.maps = vec![left, right];
        } else {
            arguments.buffers.splice(0..0, [left.values, right.values]);
        }
        card.launch(program, blocks, arguments);
    }
}

/// Returns whether a GPU has `wgmma`.
fn has_wgmma(capability: u32) -> bool {
    capability == 90
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
            assert_eq!(Tile::large(capability), Tile::Large);
        }
        assert_eq!(Tile::large(90), Tile::Wgmma);
    }
}
