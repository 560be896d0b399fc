//! Devices, contexts and errors.
#![allow(non_snake_case, reason = "the driver's own names")]
#![allow(clippy::missing_safety_doc, reason = "the CUDA driver API documents each function")]

use std::ffi::{CStr, CString, c_char, c_void};

use super::{CURRENT_CONTEXT, with};
use crate::settings::settings;
use crate::state::{INVALID_DEVICE, NOT_FOUND, SUCCESS, State, state};
use crate::{call, card, problem};

/// Handle of the only context.
const CONTEXT: u64 = 0x5A5A_0000;

unsafe extern "C" {
    fn atexit(job: extern "C" fn()) -> i32;
}

extern "C" fn at_exit() {
    if let Ok(state) = state().try_lock() {
        state.summary();
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn cuInit(flags: u32) -> i32 {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        // SAFETY: a function that stays.
        unsafe { atexit(at_exit) };
    });
    call!("cuInit {flags}");
    with("cuInit", false, |_| SUCCESS)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDriverGetVersion(version: *mut i32) -> i32 {
    unsafe { *version = settings().driver };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetCount(count: *mut i32) -> i32 {
    unsafe { *count = 1 };
    with("cuDeviceGetCount", false, |_| SUCCESS)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGet(device: *mut i32, ordinal: i32) -> i32 {
    unsafe { *device = ordinal };
    with("cuDeviceGet", false, |_| if ordinal == 0 { SUCCESS } else { INVALID_DEVICE })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetName(name: *mut c_char, length: i32, _device: i32) -> i32 {
    let text = CString::new(card::card().name).unwrap_or_default();
    let bytes = text.as_bytes_with_nul();
    let count = bytes.len().min(length as usize);
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr().cast(), name, count) };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetUuid_v2(uuid: *mut [u8; 16], _device: i32) -> i32 {
    unsafe { *uuid = *b"emulated-cuda-01" };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceTotalMem_v2(bytes: *mut usize, _device: i32) -> i32 {
    unsafe { *bytes = card::memory() as usize };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetAttribute(value: *mut i32, attribute: i32, _device: i32) -> i32 {
    let found = card::attribute(attribute);
    if found.is_none() {
        problem!("attribute {attribute} is not known here, 0 given");
    }
    unsafe { *value = found.unwrap_or(0) };
    with("cuDeviceGetAttribute", false, |_| SUCCESS)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxRetain(context: *mut u64, device: i32) -> i32 {
    call!("cuDevicePrimaryCtxRetain {device}");
    unsafe { *context = CONTEXT };
    with("cuDevicePrimaryCtxRetain", false, |state| {
        state.retained += 1;
        SUCCESS
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDevicePrimaryCtxRelease_v2(device: i32) -> i32 {
    call!("cuDevicePrimaryCtxRelease {device}");
    with("cuDevicePrimaryCtxRelease_v2", false, |state| {
        state.retained -= 1;
        if state.retained < 0 {
            problem!("the context is released more often than it was retained");
        }
        SUCCESS
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSetCurrent(context: u64) -> i32 {
    CURRENT_CONTEXT.set(context);
    with("cuCtxSetCurrent", false, |_| SUCCESS)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetCurrent(context: *mut u64) -> i32 {
    unsafe { *context = CURRENT_CONTEXT.get() };
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSynchronize() -> i32 {
    call!("cuCtxSynchronize");
    with("cuCtxSynchronize", true, State::run_all)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> i32 {
    with("cuMemGetInfo_v2", true, |state| {
        let all = card::memory();
        unsafe {
            *total = all as usize;
            *free = (all - (512 << 20).min(all / 8)).saturating_sub(state.used) as usize;
        }
        SUCCESS
    })
}

fn name(code: i32) -> (&'static CStr, &'static CStr) {
    match code {
        0 => (c"CUDA_SUCCESS", c"no error"),
        1 => (c"CUDA_ERROR_INVALID_VALUE", c"invalid argument"),
        2 => (c"CUDA_ERROR_OUT_OF_MEMORY", c"out of memory"),
        101 => (c"CUDA_ERROR_INVALID_DEVICE", c"invalid device ordinal"),
        201 => (c"CUDA_ERROR_INVALID_CONTEXT", c"invalid device context"),
        218 => (c"CUDA_ERROR_INVALID_PTX", c"a PTX JIT compilation failed"),
        222 => (c"CUDA_ERROR_UNSUPPORTED_PTX_VERSION", c"the provided PTX was compiled with an unsupported toolchain."),
        400 => (c"CUDA_ERROR_INVALID_HANDLE", c"invalid resource handle"),
        500 => (c"CUDA_ERROR_NOT_FOUND", c"named symbol not found"),
        600 => (c"CUDA_ERROR_NOT_READY", c"device not ready"),
        700 => (c"CUDA_ERROR_ILLEGAL_ADDRESS", c"an illegal memory access was encountered"),
        701 => (c"CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", c"too many resources requested for launch"),
        719 => (c"CUDA_ERROR_LAUNCH_FAILED", c"unspecified launch failure"),
        801 => (c"CUDA_ERROR_NOT_SUPPORTED", c"operation not supported"),
        _ => (c"CUDA_ERROR_UNKNOWN", c"unknown error"),
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorName(code: i32, out: *mut *const c_char) -> i32 {
    unsafe { *out = name(code).0.as_ptr() };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorString(code: i32, out: *mut *const c_char) -> i32 {
    unsafe { *out = name(code).1.as_ptr() };
    SUCCESS
}

/// NVRTC 12.9 asks for a table of undocumented functions. Without this function it calls a null pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetExportTable(table: *mut *const c_void, _id: *const [u8; 16]) -> i32 {
    unsafe { *table = std::ptr::null() };
    NOT_FOUND
}
