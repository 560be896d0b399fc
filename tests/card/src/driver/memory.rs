//! Memory and copies.
#![allow(non_snake_case, reason = "the driver's own names")]
#![allow(clippy::missing_safety_doc, reason = "the CUDA driver API documents each function")]

use super::with;
use crate::state::{CopyJob, INVALID_VALUE, Op, SUCCESS, State};
use crate::{call, problem};

fn allocate(name: &'static str, out: *mut u64, bytes: usize, stream: Option<u64>, host: bool) -> i32 {
    with(name, true, |state| {
        if let Some(stream) = stream
            && let Err(code) = state.stream(stream)
        {
            return code;
        }
        if bytes == 0 && stream.is_some() {
            // Memory pools accept an allocation of 0 bytes; `cuMemAlloc` refuses it.
            state.count("allocations of no bytes");
            call!("{name} of no bytes");
            unsafe { *out = 0 };
            return SUCCESS;
        }
        match state.alloc(bytes as u64, host) {
            Ok(at) => {
                call!("{name} {bytes} = {at:#x} stream {:#x}", stream.unwrap_or(0));
                unsafe { *out = at };
                SUCCESS
            }
            Err(code) => {
                call!("{name} {bytes} refused: {code}");
                code
            }
        }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAllocAsync(out: *mut u64, bytes: usize, stream: u64) -> i32 {
    allocate("cuMemAllocAsync", out, bytes, Some(stream), false)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAlloc_v2(out: *mut u64, bytes: usize) -> i32 {
    allocate("cuMemAlloc_v2", out, bytes, None, false)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAllocHost_v2(out: *mut u64, bytes: usize) -> i32 {
    allocate("cuMemAllocHost_v2", out, bytes, None, true)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemHostAlloc(out: *mut u64, bytes: usize, _flags: u32) -> i32 {
    allocate("cuMemHostAlloc", out, bytes, None, true)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemFreeAsync(at: u64, stream: u64) -> i32 {
    call!("cuMemFreeAsync {at:#x} stream {stream:#x}");
    with("cuMemFreeAsync", true, |state| {
        if at == 0 {
            return SUCCESS;
        }
        match state.allocations.get_mut(&at) {
            Some(block) if !block.host && !block.freeing => block.freeing = true,
            _ => {
                problem!("cuMemFreeAsync of {}", state.describe(at));
                return INVALID_VALUE;
            }
        }
        state.enqueue(stream, Op::Free(at))
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemFree_v2(at: u64) -> i32 {
    call!("cuMemFree_v2 {at:#x}");
    with("cuMemFree_v2", true, |state| {
        // This call synchronises.
        state.run_all();
        state.free(at, false)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemFreeHost(at: u64) -> i32 {
    call!("cuMemFreeHost {at:#x}");
    with("cuMemFreeHost", true, |state| {
        state.run_all();
        state.free(at, true)
    })
}

/// A copy between host and device; `kind`: `HtoD`, `DtoH` or `DtoD`.
fn copy(state: &mut State, kind: &str, mut copy: CopyJob, stream: u64, blocking: bool) -> i32 {
    let spans = |at: u64, pitch: u64| (at, if copy.height == 0 { 0 } else { (copy.height - 1) * pitch + copy.width });
    let (from, to) = (spans(copy.src, copy.src_pitch), spans(copy.dst, copy.dst_pitch));
    let device = |state: &State, (at, bytes): (u64, u64)| {
        state.allocation_of(at, bytes).is_some_and(|(_, block)| !block.host && !block.freeing)
    };
    if (kind != "HtoD" && !device(state, from)) || (kind != "DtoH" && !device(state, to)) {
        problem!("copy {kind} of {} bytes from {} to {}", from.1, state.describe(from.0), state.describe(to.0));
        return INVALID_VALUE;
    }
    let pinned =
        |state: &State, (at, bytes): (u64, u64)| state.allocation_of(at, bytes).is_some_and(|(_, block)| block.host);
    let pageable = (kind == "HtoD" && !pinned(state, from)) || (kind == "DtoH" && !pinned(state, to));
    state.count(match (kind, pageable) {
        ("HtoD", true) => "copies HtoD from pageable memory",
        ("HtoD", false) => "copies HtoD from pinned memory",
        ("DtoH", true) => "copies DtoH to pageable memory",
        ("DtoH", false) => "copies DtoH to pinned memory",
        _ => "copies DtoD",
    });
    if pageable && kind == "HtoD" {
        // The driver waits for the stream, and copies before it returns.
        let (width, height) = (copy.width as usize, copy.height as usize);
        let mut staged = vec![0; width * height];
        for (row, line) in staged.chunks_exact_mut(width.max(1)).enumerate() {
            let at = (copy.src + row as u64 * copy.src_pitch) as *const u8;
            // SAFETY: the caller's memory.
            unsafe { std::ptr::copy_nonoverlapping(at, line.as_mut_ptr(), width) };
        }
        copy.staged = Some(staged);
    }
    let code = state.enqueue(stream, Op::Copy(Box::new(copy)));
    if code == SUCCESS && (blocking || pageable) { state.run_stream(stream, None) } else { code }
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyHtoDAsync_v2(dst: u64, src: u64, bytes: usize, stream: u64) -> i32 {
    call!("cuMemcpyHtoDAsync {src:#x} to {dst:#x} {bytes} stream {stream:#x}");
    let (width, height) = (bytes as u64, 1);
    let of = CopyJob { src, dst, src_pitch: 0, dst_pitch: 0, width, height, staged: None };
    with("cuMemcpyHtoDAsync_v2", true, |state| copy(state, "HtoD", of, stream, false))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyHtoD_v2(dst: u64, src: u64, bytes: usize) -> i32 {
    call!("cuMemcpyHtoD {src:#x} to {dst:#x} {bytes}");
    let of = CopyJob { src, dst, src_pitch: 0, dst_pitch: 0, width: bytes as u64, height: 1, staged: None };
    with("cuMemcpyHtoD_v2", true, |state| copy(state, "HtoD", of, 0, true))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyDtoHAsync_v2(dst: u64, src: u64, bytes: usize, stream: u64) -> i32 {
    call!("cuMemcpyDtoHAsync {src:#x} to {dst:#x} {bytes} stream {stream:#x}");
    let of = CopyJob { src, dst, src_pitch: 0, dst_pitch: 0, width: bytes as u64, height: 1, staged: None };
    with("cuMemcpyDtoHAsync_v2", true, |state| copy(state, "DtoH", of, stream, false))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyDtoH_v2(dst: u64, src: u64, bytes: usize) -> i32 {
    call!("cuMemcpyDtoH {src:#x} to {dst:#x} {bytes}");
    let of = CopyJob { src, dst, src_pitch: 0, dst_pitch: 0, width: bytes as u64, height: 1, staged: None };
    with("cuMemcpyDtoH_v2", true, |state| copy(state, "DtoH", of, 0, true))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyDtoDAsync_v2(dst: u64, src: u64, bytes: usize, stream: u64) -> i32 {
    call!("cuMemcpyDtoDAsync {src:#x} to {dst:#x} {bytes} stream {stream:#x}");
    let of = CopyJob { src, dst, src_pitch: 0, dst_pitch: 0, width: bytes as u64, height: 1, staged: None };
    with("cuMemcpyDtoDAsync_v2", true, |state| copy(state, "DtoD", of, stream, false))
}

/// `CUDA_MEMCPY2D`.
#[repr(C)]
pub struct Memcpy2d {
    src_x: usize,
    src_y: usize,
    src_type: u32,
    src_host: u64,
    src_device: u64,
    src_array: u64,
    src_pitch: usize,
    dst_x: usize,
    dst_y: usize,
    dst_type: u32,
    dst_host: u64,
    dst_device: u64,
    dst_array: u64,
    dst_pitch: usize,
    width: usize,
    height: usize,
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpy2DAsync_v2(of: *const Memcpy2d, stream: u64) -> i32 {
    let of = unsafe { &*of };
    let kind = match (of.src_type, of.dst_type) {
        (1, 2) => "HtoD",
        (2, 1) => "DtoH",
        (2, 2) => "DtoD",
        _ => {
            problem!("cuMemcpy2DAsync from memory of type {} to {}", of.src_type, of.dst_type);
            return INVALID_VALUE;
        }
    };
    let place = |kind: u32, host: u64, device: u64, x: usize, y: usize, pitch: usize| {
        (if kind == 1 { host } else { device }) + (y * pitch + x) as u64
    };
    let (src_pitch, dst_pitch) = (of.src_pitch as u64, of.dst_pitch as u64);
    let (width, height) = (of.width as u64, of.height as u64);
    if (src_pitch < width || dst_pitch < width) && height > 1 {
        problem!("cuMemcpy2DAsync of rows of {width} bytes with pitches {src_pitch} and {dst_pitch}");
        return INVALID_VALUE;
    }
    let src = place(of.src_type, of.src_host, of.src_device, of.src_x, of.src_y, of.src_pitch);
    let dst = place(of.dst_type, of.dst_host, of.dst_device, of.dst_x, of.dst_y, of.dst_pitch);
    call!(
        "cuMemcpy2DAsync {kind} {src:#x} to {dst:#x} {width} x {height} pitches {src_pitch} {dst_pitch} stream {stream:#x}"
    );
    let of = CopyJob { src, dst, src_pitch, dst_pitch, width, height, staged: None };
    with("cuMemcpy2DAsync_v2", true, |state| copy(state, kind, of, stream, false))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemsetD8Async(at: u64, value: u8, bytes: usize, stream: u64) -> i32 {
    call!("cuMemsetD8Async {at:#x} {value} {bytes} stream {stream:#x}");
    with("cuMemsetD8Async", true, |state| state.enqueue(stream, Op::Set { at, value, bytes: bytes as u64 }))
}
