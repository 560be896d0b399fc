//! A card of its own for each test, with one stream, and the bytes of a kernel's buffers.

use std::sync::Arc;

use cuda::log::take_problems;
use cuda::module::{Function, Module};
use cuda::races::Between;
use cuda::state::{CopyJob, Event, Launch, Op, SUCCESS, State, Stream};

pub const STREAM: u64 = 0x1000;

pub struct Rig {
    pub state: State,
}

impl Rig {
    /// A card that searches for races and compares products.
    pub fn new(lazy: bool) -> Self {
        take_problems();
        let mut state = State::new(lazy, Some(Between::Lanes), true);
        state.streams.insert(STREAM, Stream::default());
        Self { state }
    }

    pub fn add_stream(&mut self, stream: u64) {
        self.state.streams.insert(stream, Stream::default());
    }

    pub fn add_event(&mut self, event: u64, stream: u64) {
        self.state.events.insert(event, Event { recorded: 1, reached: 0, stream });
    }

    pub fn buffer(&mut self, values: &[u32]) -> u64 {
        let at = self.state.alloc(4 * values.len() as u64, false).expect("memory");
        // SAFETY: just allocated, and large enough.
        unsafe { std::slice::from_raw_parts_mut(at as *mut u32, values.len()) }.copy_from_slice(values);
        at
    }

    pub fn values(&self, at: u64, count: usize) -> Vec<u32> {
        // SAFETY: callers name a live buffer of that many values.
        unsafe { std::slice::from_raw_parts(at as *const u32, count) }.to_vec()
    }

    /// A launch of the first entry of a module.
    pub fn kernel(ptx: &str, blocks: u32, threads: u32, params: &[u64]) -> Op {
        let module = Arc::new(Module::load(ptx.as_bytes()).expect("a module"));
        let name = module.entries[0].name.clone();
        let function = Arc::new(Function::find(&module, &name).expect("an entry"));
        let params = params.iter().flat_map(|param| param.to_le_bytes()).collect();
        Op::Kernel(Box::new(Launch { function, grid: [blocks, 1, 1], block: [threads, 1, 1], shared: 0, params }))
    }

    pub fn copy(src: u64, dst: u64, bytes: u64) -> Op {
        Op::Copy(Box::new(CopyJob { src, dst, src_pitch: 0, dst_pitch: 0, width: bytes, height: 1, staged: None }))
    }

    /// Runs a kernel to its end: the error code, and the problems that were reported.
    pub fn run(&mut self, ptx: &str, blocks: u32, threads: u32, params: &[u64]) -> (i32, Vec<String>) {
        let queued = self.state.enqueue(STREAM, Self::kernel(ptx, blocks, threads, params));
        let code = if queued == SUCCESS { self.state.run_stream(STREAM, None) } else { queued };
        (code, take_problems())
    }
}

/// Words of the input of most tests.
pub fn numbers(count: u32) -> Vec<u32> {
    (0..count).map(|index| 1000 + index).collect()
}

/// Runs a kernel in one block on [`numbers`]: the error code, the problems, and a word for each thread.
pub fn run(ptx: &str, threads: u32) -> (i32, Vec<String>, Vec<u32>) {
    let mut rig = Rig::new(false);
    let (from, to) = (rig.buffer(&numbers(threads)), rig.buffer(&vec![7; threads as usize]));
    let (code, problems) = rig.run(ptx, 1, threads, &[from, to]);
    let values = rig.values(to, threads as usize);
    (code, problems, values)
}

/// Asserts that a kernel runs without a problem, and returns its words.
pub fn right(what: &str, ptx: &str, threads: u32) -> Vec<u32> {
    let (code, problems, values) = run(ptx, threads);
    assert_eq!((code, problems), (SUCCESS, vec![]), "{what}");
    values
}

/// Asserts that a kernel is reported with some words, and returns what it wrote.
pub fn reported(what: &str, ptx: &str, threads: u32, words: &str) -> Vec<u32> {
    let (_, problems, values) = run(ptx, threads);
    assert!(problems.iter().any(|problem| problem.contains(words)), "{what}: {problems:#?}");
    values
}

/// A module with one kernel of two pointers, `in` and `out`. `%r1` is the thread, `%rd3` its word of `in`, `%rd4` that of `out`.
pub fn module(declarations: &str, body: &str) -> String {
    format!(
        ".version 8.3\n.target sm_80\n.address_size 64\n.visible .entry kernel(\n.param .u64 kernel_param_0,\n\
         .param .u64 kernel_param_1\n)\n{{\n.reg .pred %p<8>;\n.reg .b32 %r<32>;\n.reg .f32 %f<16>;\n.reg .b64 %rd<16>;\n{declarations}\n\
         ld.param.u64 %rd1, [kernel_param_0];\nld.param.u64 %rd2, [kernel_param_1];\nmov.u32 %r1, %tid.x;\n\
         mul.wide.u32 %rd5, %r1, 4;\nadd.s64 %rd3, %rd1, %rd5;\nadd.s64 %rd4, %rd2, %rd5;\n{body}\nret;\n}}\n"
    )
}
