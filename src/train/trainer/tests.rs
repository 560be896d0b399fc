//! Tests of both engines: against torch, for invariance, and for rejected input.

use std::path::Path;

use burn::backend::Flex;
use safetensors::SafeTensors;

use super::*;
use crate::reference::distance;
use crate::train::{Schedule, ScheduleKind};

mod invariance;
mod rejected;
mod torch;

type Cpu = Flex;

const CLASSES: usize = 50;
const DIM: usize = 16;
const ROWS: usize = 8;

struct Reference {
    bytes: Vec<u8>,
    numbers: serde_json::Value,
}

impl Reference {
    fn read() -> Self {
        let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/reference"));
        let numbers = std::fs::read(folder.join("head.json")).unwrap();
        Self {
            bytes: std::fs::read(folder.join("head.safetensors")).unwrap(),
            numbers: serde_json::from_slice(&numbers).unwrap(),
        }
    }

    fn words<T>(&self, name: &str, read: fn([u8; 4]) -> T) -> Vec<T> {
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        let data = file.tensor(name).unwrap().data();
        data.chunks_exact(4).map(|word| read(word.try_into().unwrap())).collect()
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        self.words(name, f32::from_le_bytes)
    }

    fn labels(&self) -> Vec<u32> {
        self.words("labels", u32::from_le_bytes)
    }

    fn number(&self, name: &str) -> f64 {
        self.numbers[name].as_f64().unwrap()
    }

    fn start(&self) -> HeadState {
        HeadState {
            classes: CLASSES,
            dim: DIM,
            weight: self.floats("start.weight"),
            bias: self.floats("start.bias"),
            weight_momentum: vec![0.0; CLASSES * DIM],
            bias_momentum: vec![0.0; CLASSES],
        }
    }

    fn sgd(&self) -> Sgd {
        Sgd {
            momentum: self.number("momentum"),
            weight_decay: self.number("weight_decay"),
            clip_norm: self.number("clip_norm"),
            label_smoothing: 0.0,
        }
    }

    fn schedule(&self) -> Schedule {
        Schedule { kind: ScheduleKind::Linear, peak: self.number("peak"), warmup_steps: 4, total_steps: 20 }
    }
}

fn options(rows: usize, classes: usize) -> Options {
    Options { tiling: Tiling { rows, classes }, compute: Compute::F32, engine: EngineKind::Gpu }
}

/// Returns the options of both engines; the CPU engine ignores the tile size of classes.
fn engines(rows: usize, classes: usize) -> [Options; 2] {
    let device = options(rows, classes);
    [device, Options { engine: EngineKind::Cpu, ..device }]
}

fn trainer(state: HeadState, sgd: Sgd, options: Options) -> Trainer<Cpu> {
    Trainer::new(state, sgd, options, &<Cpu as burn::tensor::backend::BackendTypes>::Device::default()).unwrap()
}

const PLAIN: Sgd = Sgd { momentum: 0.0, weight_decay: 0.0, clip_norm: 0.0, label_smoothing: 0.0 };

/// Accumulates the two micro-batches of a step of the reference data.
fn accumulate_reference_step(trainer: &mut Trainer<Cpu>, features: &[f32], labels: &[u32], step: usize) {
    for micro in 0..2 {
        let rows = (step * 2 + micro) * ROWS;
        let features = &features[rows * DIM..(rows + ROWS) * DIM];
        let targets = Targets::single(&labels[rows..rows + ROWS]);
        trainer.accumulate(&Features::Host(features), &targets, 2 * ROWS).unwrap();
    }
}

#[test]
fn own_kernels_need_bf16_and_whole_vectors() {
    let own =
        Options { compute: Compute::Bf16, engine: EngineKind::Own { gpu: 1, capability: 80 }, ..Options::default() };
    assert_eq!(own.own_gpu(768), Some((1, 80)));
    let older = EngineKind::Own { gpu: 1, capability: 75 };
    for (options, dim) in [
        (own, 767),
        (Options { compute: Compute::F32, ..own }, 768),
        (Options { engine: older, ..own }, 768),
        (Options { engine: EngineKind::Gpu, ..own }, 768),
        (Options::default(), 768),
    ] {
        assert_eq!(options.own_gpu(dim), None, "{options:?}, {dim}");
    }
}
