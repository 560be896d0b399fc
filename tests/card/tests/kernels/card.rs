//! A card of its own for each test: buffers that end where their values end, and launches.

use std::sync::Arc;

use cuda::log::take_problems;
use cuda::module::{Function, Module};
use cuda::races::Between;
use cuda::state::{Launch, Op, SUCCESS, State, Stream};
use cuda::tensor_map::TensorMap;

use crate::nvrtc::{Source, compile};
use crate::values::{from_bits, to_bits};

const STREAM: u64 = 0x1000;

/// Compute capability of the card.
pub fn card_sm() -> u32 {
    std::env::var("EMUCUDA_SM").ok().and_then(|sm| sm.parse().ok()).unwrap_or(90)
}

/// An argument of a kernel.
pub enum Arg {
    Map([u64; 16]),
    Pointer(u64),
    /// Four bytes each.
    Info(Vec<u32>),
}

pub struct Card {
    state: State,
}

impl Card {
    /// A card that looks for races.
    pub fn new() -> Self {
        take_problems();
        let mut state = State::new(true, Some(Between::Lanes), false);
        state.streams.insert(STREAM, Stream::default());
        Self { state }
    }

    pub fn bytes(&mut self, bytes: &[u8]) -> u64 {
        let at = self.state.alloc(bytes.len() as u64, false).expect("memory");
        // SAFETY: just allocated, and large enough.
        unsafe { std::slice::from_raw_parts_mut(at as *mut u8, bytes.len()) }.copy_from_slice(bytes);
        at
    }

    pub fn bf16(&mut self, values: &[f32]) -> u64 {
        self.bytes(&values.iter().flat_map(|value| to_bits(*value).to_le_bytes()).collect::<Vec<u8>>())
    }

    pub fn f32(&mut self, values: &[f32]) -> u64 {
        self.bytes(&values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>())
    }

    /// A buffer of NaN.
    pub fn results(&mut self, count: usize) -> u64 {
        self.bytes(&vec![0xFF; 2 * count])
    }

    pub fn read(&self, at: u64, count: usize) -> Vec<f32> {
        // SAFETY: callers name a live buffer of that many values.
        unsafe { std::slice::from_raw_parts(at as *const u16, count) }.iter().map(|bits| from_bits(*bits)).collect()
    }

    pub fn read_f32(&self, at: u64, count: usize) -> Vec<f32> {
        // SAFETY: callers name a live buffer of that many values.
        unsafe { std::slice::from_raw_parts(at as *const f32, count) }.to_vec()
    }

    /// A map of a bf16 matrix with tiles of 128 rows × 64 values.
    pub fn map(at: u64, rows: usize, depth: usize) -> Arg {
        let (dims, strides) = ([depth as u64, rows as u64], [2 * depth as u64]);
        Arg::Map(TensorMap::new(9, at, &dims, &strides, &[64, 128], &[1, 1], 0, 3, 0).expect("a map").encode())
    }

    /// Runs a kernel; returns what the card reports.
    pub fn try_run(&mut self, source: &Source, blocks: usize, threads: u32, shared: u32, args: &[Arg]) -> Vec<String> {
        let module = Arc::new(Module::load(&compile(source)).expect("a module"));
        let name = module.entries[0].name.clone();
        let function = Arc::new(Function::find(&module, &name).expect("an entry"));
        function.most_shared.store(227 << 10, std::sync::atomic::Ordering::Relaxed);
        let mut params: Vec<u8> = Vec::new();
        for arg in args {
            match arg {
                Arg::Map(words) => {
                    params.resize(params.len().next_multiple_of(64), 0);
                    params.extend(words.iter().flat_map(|word| word.to_le_bytes()));
                }
                Arg::Pointer(at) => params.extend(at.to_le_bytes()),
                Arg::Info(words) => params.extend(words.iter().flat_map(|word| word.to_le_bytes())),
            }
        }
        let launch = Launch { function, grid: [blocks as u32, 1, 1], block: [threads, 1, 1], shared, params };
        assert_eq!(self.state.enqueue(STREAM, Op::Kernel(Box::new(launch))), SUCCESS);
        let code = self.state.run_stream(STREAM, None);
        let mut problems = take_problems();
        if code != SUCCESS && problems.is_empty() {
            problems.push(format!("code {code}"));
        }
        problems
    }

    /// Runs a kernel that must not be reported.
    pub fn run(&mut self, source: &Source, blocks: usize, threads: u32, shared: u32, args: &[Arg]) {
        let problems = self.try_run(source, blocks, threads, shared, args);
        assert!(problems.is_empty(), "{problems:#?}");
    }
}
