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
    /// 128 × 256 by `wgmma`.
    Wide,
}

impl Tile {
    /// Chooses the tile for a result. Products of fewer than [`WGMMA_ROWS`] rows, and all without `wgmma`, take small tiles if the large
    /// ones are too few for all multiprocessors.
    pub(crate) fn choose(capability: u32, multiprocessors: u32, rows: usize, columns: usize) -> Self {
        if has_wgmma(capability) && rows >= WGMMA_ROWS {
            // The tiles that take fewer bytes from the L2 cache, which limits them.
            let bytes = |tile: Self| tile.rounds(multiprocessors, rows, columns) * tile.sides().iter().sum::<usize>();
            return if bytes(Self::Wide) < bytes(Self::Wgmma) { Self::Wide } else { Self::Wgmma };
        }
        let tiles = Self::Large.count(rows, columns);
        if tiles < multiprocessors as usize { Self::Small } else { Self::Large }
    }

    /// Returns the large tile of a GPU.
    pub(crate) fn large(capability: u32) -> Self {
        if has_wgmma(capability) { Self::Wgmma } else { Self::Large }
    }

    /// Returns the instruction of the products.
    pub(crate) fn instruction(self) -> &'static str {
        if self.has_maps() { "wgmma" } else { "mma.sync" }
    }

    /// Returns whether the copy engine brings the matrices, by tensor maps.
    fn has_maps(self) -> bool {
        matches!(self, Self::Wgmma | Self::Wide)
    }

    /// Returns rows and columns.
    fn sides(self) -> [usize; 2] {
        match self {
            Self::Small => [64, 64],
            Self::Large | Self::Wgmma => [128, 128],
            Self::Wide => [128, 256],
        }
    }

    /// Returns the tiles of a result.
    fn count(self, rows: usize, columns: usize) -> usize {
        let [high, wide] = self.sides();
        rows.div_ceil(high) * columns.div_ceil(wide)
    }

    /// Returns the most tiles that a multiprocessor computes.
    fn rounds(self, multiprocessors: u32, rows: usize, columns: usize) -> usize {
        self.count(rows, columns).div_ceil(multiprocessors as usize)
    }

    /// Returns the columns of a result that a warp passes to its epilogue at once.
    pub(crate) fn strip(self) -> usize {
        if self.has_maps() { 128 } else { 32 }
    }

    /// Puts a product together. `epilogue` is its file.
    pub(crate) fn program(self, epilogue: &'static str, definitions: &[(&str, usize)]) -> Program {
        let mut definitions = definitions.to_vec();
        let [high, wide] = self.sides();
        if self.has_maps() {
            // A multiprocessor holds these stages, with their barriers, for each of its blocks.
            let (stages, blocks) = if self == Self::Wide { (4, 1) } else { (3, 2) };
            definitions.extend([("TILE_N", wide), ("STAGES", stages), ("BLOCKS_PER_SM", blocks)]);
            let shared_bytes = stages * ((high + wide) * 64 * 2 + 16);
            return Program::new("product", &[END, epilogue, PRODUCT_WGMMA], &definitions, 9 * 32, shared_bytes);
        }
        // Both fit the 48 KiB of every GPU.
        let (warp_side, stages, blocks) = if self == Self::Small { (32, 4, 4) } else { (64, 3, 2) };
        definitions.extend([("TILE_M", high), ("TILE_N", wide), ("WARP_M", warp_side), ("WARP_N", warp_side)]);
        definitions.extend([("STAGES", stages), ("BLOCKS_PER_SM", blocks)]);
        Program::new("product", &[END, epilogue, PRODUCT], &definitions, 4 * 32, stages * (high + wide) * 32 * 2)
    }

    /// Enqueues the product of `left` and the transpose of `right`. `arguments` are those of the epilogue.
    pub(crate) fn launch(self, card: &Card, program: &Program, [left, right]: [Matrix; 2], mut arguments: Arguments) {
        let sizes = [left.rows, right.rows, left.depth];
        let blocks = self.count(left.rows, right.rows);
        arguments.numbers.splice(0..0, sizes.map(|size| size as u32));
        if self.has_maps() {
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
        assert_eq!(Tile::choose(90, 132, many, 768), Tile::Wide);
        assert_eq!(Tile::choose(90, 132, 8 * 197, 768), Tile::Wgmma);
        assert_eq!(Tile::choose(90, 132, one, 768), Tile::Small);
        assert_eq!(Tile::choose(80, 108, one, 768), Tile::Small);
        for capability in [80, 86, 89, 100, 103, 120] {
            assert_eq!(Tile::choose(capability, 108, many, 768), Tile::Large);
            assert_eq!(Tile::large(capability), Tile::Large);
        }
        assert_eq!(Tile::large(90), Tile::Wgmma);
    }
}
