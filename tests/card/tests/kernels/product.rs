//! Products by mma.sync and wgmma, with all epilogues.

use crate::card::{Arg, Card, card_sm};
use crate::nvrtc::Source;
use crate::values::{check, noise};

/// A kernel that computes products.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    Large,
    Small,
    Wgmma,
    Wide,
}

pub const BIAS: u32 = 0;
pub const ACTIVATION: u32 = 1;
pub const RESIDUAL: u32 = 2;
pub const EMBED: u32 = 3;
pub const GATED: u32 = 4;
pub const ROTARY: u32 = 5;

impl Kernel {
    /// The kernels that the card can run.
    pub fn all() -> Vec<Self> {
        let mut all = vec![Self::Large, Self::Small];
        if card_sm() == 90 {
            all.extend([Self::Wgmma, Self::Wide]);
        }
        all
    }

    /// Those of them that train a head.
    pub fn of_training() -> Vec<Self> {
        if card_sm() == 90 { vec![Self::Large, Self::Wgmma] } else { vec![Self::Large] }
    }

    pub fn source(self, epilogue: u32, activation: u32) -> Source {
        self.source_with(&["model/kernels/epilogue.cu"], &[("EPILOGUE", epilogue), ("ACTIVATION", activation)])
    }

    /// The source with the files of an end.
    pub fn source_with(self, end: &[&str], common: &[(&str, u32)]) -> Source {
        let own: &[(&str, u32)] = match self {
            Self::Large => {
                &[("TILE_M", 128), ("TILE_N", 128), ("WARP_M", 64), ("WARP_N", 64), ("STAGES", 3), ("BLOCKS_PER_SM", 2)]
            }
            Self::Small => {
                &[("TILE_M", 64), ("TILE_N", 64), ("WARP_M", 32), ("WARP_N", 32), ("STAGES", 4), ("BLOCKS_PER_SM", 4)]
            }
            Self::Wgmma => &[("TILE_N", 128), ("STAGES", 3), ("BLOCKS_PER_SM", 2)],
            Self::Wide => &[("TILE_N", 256), ("STAGES", 4), ("BLOCKS_PER_SM", 1)],
        };
        let file = if self.has_maps() { "card/product_wgmma.cu" } else { "card/product.cu" };
        Source::new(&[&["card/common.cu", "card/end.cu"], end, &[file]].concat(), &[common, own].concat())
    }

    /// True if the copy engine brings the matrices, by tensor maps.
    pub fn has_maps(self) -> bool {
        matches!(self, Self::Wgmma | Self::Wide)
    }

    /// Rows and columns of a tile, threads of a block, and bytes of shared memory.
    pub fn launch(self) -> ([usize; 2], u32, u32) {
        match self {
            Self::Large => ([128, 128], 128, 3 * (128 + 128) * 64),
            Self::Small => ([64, 64], 128, 4 * (64 + 64) * 64),
            Self::Wgmma => ([128, 128], 288, 3 * 32_768 + 48),
            Self::Wide => ([128, 256], 288, 4 * 49_152 + 64),
        }
    }
}

/// A product, and what its result must be.
pub struct Product {
    pub rows: usize,
    pub columns: usize,
    pub depth: usize,
    /// Values from row to row of the result.
    pub pitch: usize,
    /// Patches and tokens of an image.
    pub image: [usize; 2],
    pub left: Vec<f32>,
    pub right: Vec<f32>,
    pub bias: Vec<f32>,
    pub old: Vec<f32>,
    /// Width of a head, and cosine and sine of each pair of its columns for each token (ROTARY).
    pub rotation: Option<(usize, Vec<f32>)>,
}

impl Product {
    pub fn new(rows: usize, columns: usize, depth: usize) -> Self {
        Self {
            rows,
            columns,
            depth,
            pitch: columns,
            image: [rows, rows],
            left: noise(1, rows * depth),
            right: noise(2, columns * depth),
            bias: noise(3, columns),
            old: noise(4, rows * columns),
            rotation: None,
        }
    }

    /// A product whose rows are patches, each with a bias of its own.
    pub fn embedding(images: usize, patches: usize, tokens: usize, columns: usize, depth: usize) -> Self {
        let rows = images * patches;
        let (bias, old) = (noise(3, patches * columns), noise(4, images * tokens * columns));
        Self { image: [patches, tokens], bias, old, ..Self::new(rows, columns, depth) }
    }

    /// A product whose columns are gates and their values, alternately.
    pub fn gated(rows: usize, columns: usize, depth: usize) -> Self {
        Self::new(rows, columns, depth).apart(columns / 2)
    }

    /// Query, key and value of heads of some width, for images of some tokens.
    pub fn rotary(images: usize, tokens: usize, heads: usize, width: usize, depth: usize) -> Self {
        let rotation = Some((width, noise(5, tokens * width)));
        Self { image: [tokens, tokens], rotation, ..Self::new(images * tokens, 3 * heads * width, depth) }
    }

    /// A product whose result's rows lie apart.
    pub fn apart(self, pitch: usize) -> Self {
        Self { pitch, old: noise(4, self.rows * pitch), ..self }
    }

    pub fn exact(&self, row: usize, column: usize) -> f64 {
        let line = self.left[row * self.depth..].iter().zip(&self.right[column * self.depth..]).take(self.depth);
        line.map(|(left, right)| f64::from(*left) * f64::from(*right)).sum()
    }

    /// Runs the kernel; returns what the card reports, and the results.
    pub fn try_run(&self, kernel: Kernel, source: &Source) -> (Vec<String>, Vec<f32>) {
        let mut card = Card::new();
        let (left, right, bias, out) =
            (card.bf16(&self.left), card.bf16(&self.right), card.f32(&self.bias), card.bf16(&self.old));
        let mut args = Vec::new();
        if kernel.has_maps() {
            args = vec![Card::map(left, self.rows, self.depth), Card::map(right, self.columns, self.depth)];
        }
        let second = self.rotation.as_ref().map_or(out, |(_, angles)| card.f32(angles));
        args.extend([left, right, bias, second, out].map(Arg::Pointer));
        let sizes = [self.rows, self.columns, self.depth, self.pitch, self.image[0], self.image[1]];
        args.push(Arg::Info(sizes.map(|size| size as u32).to_vec()));
        let ([high, wide], threads, shared) = kernel.launch();
        let blocks = self.rows.div_ceil(high) * self.columns.div_ceil(wide);
        let problems = card.try_run(source, blocks, threads, shared, &args);
        let found = card.read(out, self.old.len());
        (problems, found)
    }

    fn check(&self, kernel: Kernel, epilogue: u32, activation: u32) {
        let what = format!(
            "{kernel:?}, epilogue {epilogue}, activation {activation}, {} × {} × {}",
            self.rows, self.columns, self.depth
        );
        let mut definitions = vec![("EPILOGUE", epilogue), ("ACTIVATION", activation)];
        definitions.extend(self.rotation.iter().map(|(width, _)| ("WIDTH", *width as u32)));
        let (problems, found) = self.try_run(kernel, &kernel.source_with(&["model/kernels/epilogue.cu"], &definitions));
        assert!(problems.is_empty(), "{what}: {problems:#?}");
        let mut exact: Vec<f64> = self.old.iter().map(|value| f64::from(*value)).collect();
        let [patches, tokens] = self.image;
        for row in 0..self.rows {
            for column in 0..self.columns {
                let (sum, at) = (self.exact(row, column), row * self.pitch + column);
                match epilogue {
                    EMBED => {
                        let token = row / patches * tokens + tokens - patches + row % patches;
                        exact[token * self.columns + column] =
                            sum + f64::from(self.bias[row % patches * self.columns + column]);
                    }
                    RESIDUAL => exact[at] += sum + f64::from(self.bias[column]),
                    ACTIVATION => exact[at] = activate(activation, sum + f64::from(self.bias[column])),
                    GATED => {
                        let (value, to) = (sum + f64::from(self.bias[column]), at - column + column / 2);
                        exact[to] = if column % 2 == 0 { activate(activation, value) } else { exact[to] * value };
                    }
                    ROTARY if column < self.columns / 3 * 2 => {
                        let (width, angles) = self.rotation.as_ref().expect("angles");
                        let angles = &angles[row % tokens * width + column % width / 2 * 2..];
                        let partner = column ^ 1;
                        let other = self.exact(row, partner) + f64::from(self.bias[partner]);
                        let sine = f64::from(angles[1]) * if column % 2 == 0 { -1.0 } else { 1.0 };
                        exact[at] = (sum + f64::from(self.bias[column])) * f64::from(angles[0]) + other * sine;
                    }
                    _ => exact[at] = sum + f64::from(self.bias[column]),
                }
            }
        }
        check(&what, &found, &exact, 1e-5 * (self.depth as f64).sqrt());
    }
}

fn activate(kind: u32, x: f64) -> f64 {
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    match kind {
        0 => x * (1.0 - erfc(x / 2.0_f64.sqrt()) / 2.0),
        1 => x * sigmoid(2.0 * (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x)),
        2 => x.max(0.0),
        3 => x * sigmoid(1.702 * x),
        _ => x * sigmoid(x),
    }
}

/// The complementary error function, by Simpson's rule on its integral.
fn erfc(x: f64) -> f64 {
    let steps = 2000;
    let width = x / f64::from(steps);
    let value = |at: i32| (-(f64::from(at) * width).powi(2)).exp();
    let inner: f64 = (1..steps).map(|at| value(at) * if at % 2 == 1 { 4.0 } else { 2.0 }).sum();
    1.0 - 2.0 / std::f64::consts::PI.sqrt() * width / 3.0 * (value(0) + inner + value(steps))
}

#[test]
fn products_are_right_for_odd_shapes() {
    for kernel in Kernel::all() {
        for [rows, columns, depth] in
            [[1, 64, 64], [129, 136, 40], [197, 264, 64], [70, 8, 200], [257, 72, 128], [64, 64, 8]]
        {
            Product::new(rows, columns, depth).check(kernel, BIAS, 0);
        }
    }
}

#[test]
fn deep_products_use_each_stage_many_times() {
    for kernel in Kernel::all() {
        Product::new(130, 136, 776).check(kernel, RESIDUAL, 0);
    }
}

#[test]
fn activations_are_right() {
    for kernel in Kernel::all() {
        for activation in 0..5 {
            Product::new(33, 128, 24).check(kernel, ACTIVATION, activation);
        }
    }
}

#[test]
fn values_are_multiplied_by_their_gates() {
    for kernel in Kernel::all() {
        for [rows, columns, depth] in [[1, 128, 64], [129, 144, 40], [197, 48, 64], [70, 16, 200], [257, 400, 24]] {
            Product::gated(rows, columns, depth).check(kernel, GATED, 4);
        }
        for activation in 0..4 {
            Product::gated(33, 80, 24).check(kernel, GATED, activation);
        }
    }
}

#[test]
fn queries_and_keys_are_rotated() {
    for kernel in Kernel::all() {
        for [images, tokens, heads, width] in
            [[1, 1, 1, 64], [3, 65, 2, 64], [2, 197, 1, 80], [40, 5, 3, 24], [1, 257, 5, 8]]
        {
            Product::rotary(images, tokens, heads, width, 40).check(kernel, ROTARY, 0);
        }
    }
}

#[test]
fn residual_is_added_in_place() {
    for kernel in Kernel::all() {
        Product::new(129, 72, 64).check(kernel, RESIDUAL, 0);
    }
}

#[test]
fn rows_of_a_result_may_lie_apart() {
    for kernel in Kernel::all() {
        Product::new(70, 72, 64).apart(5 * 72).check(kernel, RESIDUAL, 0);
        Product::new(70, 264, 64).apart(3 * 264).check(kernel, RESIDUAL, 0);
    }
}

#[test]
fn patches_are_stored_behind_the_leading_tokens() {
    for kernel in Kernel::all() {
        for [images, patches, tokens] in [[3, 49, 50], [2, 64, 69], [5, 16, 16], [16, 64, 65]] {
            Product::embedding(images, patches, tokens, 64, 192).check(kernel, EMBED, 0);
        }
        Product::embedding(2, 9, 10, 264, 64).check(kernel, EMBED, 0);
    }
}
