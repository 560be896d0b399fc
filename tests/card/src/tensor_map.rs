//! Tensor maps: descriptors of a tensor and its tiles for the copy engine.
//!
//! NVIDIA does not publish their layout. This one fits into the same 128 bytes and carries a mark.

/// Last word of each map.
const MARK: u64 = 0x454D_5543_5544_4121;

#[derive(Debug, Clone, Copy, Default)]
pub struct TensorMap {
    pub address: u64,
    pub rank: usize,
    pub element: usize,
    pub dims: [u64; 5],
    /// Bytes from one index to the next, innermost first.
    pub strides: [u64; 5],
    pub tile: [u32; 5],
    pub swizzle: u32,
    pub fill_nan: bool,
    pub data_type: u32,
}

impl TensorMap {
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        data_type: u32,
        address: u64,
        dims: &[u64],
        strides: &[u64],
        tile: &[u32],
        element_strides: &[u32],
        interleave: u32,
        swizzle: u32,
        fill: u32,
    ) -> Result<Self, String> {
        // u8 u16 u32 s32 u64 s64 f16 f32 f64 bf16 f32ftz tf32 tf32ftz
        let element = match data_type {
            0 => 1,
            1 | 6 | 9 => 2,
            2 | 3 | 7 | 10 | 11 | 12 => 4,
            4 | 5 | 8 => 8,
            other => return Err(format!("data type {other}")),
        };
        let rank = dims.len();
        if rank == 0 || rank > 5 {
            return Err(format!("rank {rank}"));
        }
        if !address.is_multiple_of(16) {
            return Err(format!("address {address:#x} is no multiple of 16"));
        }
        if dims.iter().any(|dim| *dim == 0 || *dim > 1 << 32) {
            return Err(format!("dims {dims:?}"));
        }
        if strides.iter().any(|stride| !stride.is_multiple_of(16) || *stride >= 1 << 40) {
            return Err(format!("strides {strides:?} are no multiples of 16 bytes"));
        }
        if tile.iter().any(|side| *side == 0 || *side > 256) {
            return Err(format!("tile {tile:?}: sides are 1 to 256"));
        }
        if swizzle > 3 {
            return Err(format!("swizzle {swizzle} is not supported"));
        }
        if fill == 1 && matches!(data_type, 0..=5) {
            return Err(format!("data type {data_type} is of integers, which NaN does not fill"));
        }
        if element_strides.iter().any(|stride| *stride != 1) {
            return Err(format!("element strides {element_strides:?} are not supported"));
        }
        if interleave != 0 {
            return Err(format!("interleave {interleave} is not supported"));
        }
        let inner = tile[0] as usize * element;
        if !inner.is_multiple_of(16) {
            return Err(format!("a tile's rows of {inner} bytes are no multiple of 16"));
        }
        let most = match swizzle {
            1 => 32,
            2 => 64,
            3 => 128,
            _ => usize::MAX,
        };
        if inner > most {
            return Err(format!("a tile's rows of {inner} bytes are longer than swizzle {swizzle} takes"));
        }
        let mut of = Self { address, rank, element, swizzle, fill_nan: fill == 1, data_type, ..Self::default() };
        of.dims[..rank].copy_from_slice(dims);
        of.tile[..rank].copy_from_slice(tile);
        of.strides[0] = element as u64;
        of.strides[1..rank].copy_from_slice(strides);
        Ok(of)
    }

    /// Bytes of a tile.
    pub fn tile_bytes(&self) -> u64 {
        self.tile[..self.rank].iter().map(|side| u64::from(*side)).product::<u64>() * self.element as u64
    }

    /// Bytes from the first to behind the last value.
    pub fn span(&self) -> u64 {
        let last: u64 = (0..self.rank).map(|at| (self.dims[at] - 1) * self.strides[at]).sum();
        last + self.element as u64
    }

    pub fn encode(&self) -> [u64; 16] {
        let mut out = [0u64; 16];
        out[0] = self.address;
        out[1] = self.rank as u64
            | (self.element as u64) << 8
            | u64::from(self.swizzle) << 16
            | u64::from(self.fill_nan) << 24
            | u64::from(self.data_type) << 32;
        for at in 0..5 {
            out[2 + at] = self.dims[at];
            out[7 + at] = self.strides[at] | u64::from(self.tile[at]) << 48;
        }
        out[15] = MARK;
        out
    }

    pub fn decode(words: &[u64; 16]) -> Option<Self> {
        if words[15] != MARK {
            return None;
        }
        let mut of = Self {
            address: words[0],
            rank: (words[1] & 0xFF) as usize,
            element: (words[1] >> 8 & 0xFF) as usize,
            swizzle: (words[1] >> 16 & 0xFF) as u32,
            fill_nan: words[1] >> 24 & 1 == 1,
            data_type: (words[1] >> 32) as u32,
            ..Self::default()
        };
        for at in 0..5 {
            of.dims[at] = words[2 + at];
            of.strides[at] = words[7 + at] & ((1 << 48) - 1);
            of.tile[at] = (words[7 + at] >> 48) as u32;
        }
        Some(of)
    }
}
