//! Modules, launches and tensor maps.
#![allow(non_snake_case, reason = "the driver's own names")]
#![allow(clippy::missing_safety_doc, reason = "the CUDA driver API documents each function")]

use std::ffi::{CStr, c_char, c_void};
use std::sync::Arc;

use super::with;
use crate::module::{Function, Module};
use crate::state::{INVALID_HANDLE, INVALID_PTX, INVALID_VALUE, Launch, NOT_FOUND, NOT_SUPPORTED, Op, SUCCESS};
use crate::{call, card, problem, tensor_map};

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoadData(out: *mut u64, image: *const c_char) -> i32 {
    let text = unsafe { CStr::from_ptr(image) };
    with("cuModuleLoadData", true, |state| match Module::load(text.to_bytes()) {
        Ok(module) => {
            let handle = state.handle();
            call!("cuModuleLoadData {} bytes = {handle:#x} {}", text.to_bytes().len(), module.name);
            state.modules.insert(handle, Arc::new(module));
            unsafe { *out = handle };
            SUCCESS
        }
        Err(why) => {
            problem!("module refused: {why}");
            INVALID_PTX
        }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuModuleUnload(module: u64) -> i32 {
    call!("cuModuleUnload {module:#x}");
    with("cuModuleUnload", true, |state| if state.modules.remove(&module).is_some() { SUCCESS } else { INVALID_HANDLE })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleGetFunction(out: *mut u64, module: u64, name: *const c_char) -> i32 {
    let name = unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned();
    with("cuModuleGetFunction", true, |state| {
        let Some(module) = state.modules.get(&module).cloned() else { return INVALID_HANDLE };
        let Some(function) = Function::find(&module, &name) else {
            problem!("module {} has no entry `{name}`", module.name);
            return NOT_FOUND;
        };
        let handle = state.handle();
        call!("cuModuleGetFunction {} {name} = {handle:#x}", module.name);
        state.functions.insert(handle, Arc::new(function));
        unsafe { *out = handle };
        SUCCESS
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuFuncSetAttribute(function: u64, attribute: i32, value: i32) -> i32 {
    with("cuFuncSetAttribute", true, |state| {
        let Some(function) = state.functions.get(&function) else { return INVALID_HANDLE };
        // CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        if attribute == 8 {
            if value < 0 || value as u32 + function.static_shared() > card::card().shared_optin as u32 {
                problem!("{}: {value} bytes of shared memory are more than the card has", function.name());
                return INVALID_VALUE;
            }
            function.most_shared.store(value as u32, std::sync::atomic::Ordering::SeqCst);
        }
        SUCCESS
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuFuncGetAttribute(value: *mut i32, _attribute: i32, _function: u64) -> i32 {
    unsafe { *value = 0 };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLaunchKernel(
    function: u64,
    gx: u32,
    gy: u32,
    gz: u32,
    bx: u32,
    by: u32,
    bz: u32,
    shared: u32,
    stream: u64,
    params: *mut *mut c_void,
    _extra: *mut *mut c_void,
) -> i32 {
    with("cuLaunchKernel", true, |state| {
        let Some(function) = state.functions.get(&function).cloned() else {
            problem!("launch of a function that does not exist");
            return INVALID_HANDLE;
        };
        call!(
            "launch {} {} grid {gx},{gy},{gz} block {bx},{by},{bz} shared {shared} stream {stream:#x}",
            function.module.name,
            function.name()
        );
        let (grid, block) = ([gx, gy, gz], [bx, by, bz]);
        if let Err((code, why)) = function.may_launch(grid, block, shared) {
            problem!("launch of {} {} refused: {why}", function.module.name, function.name());
            return code;
        }
        let mut bytes = vec![0u8; function.param_bytes()];
        for (index, (offset, size)) in function.params().enumerate() {
            // SAFETY: as many pointers as the function has parameters.
            unsafe {
                let from = *params.add(index) as *const u8;
                std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr().add(offset), size);
            }
        }
        let launch = Launch { function, grid, block, shared, params: bytes };
        state.enqueue(stream, Op::Kernel(Box::new(launch)))
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuTensorMapEncodeTiled(
    map: *mut [u64; 16],
    data_type: u32,
    rank: u32,
    address: u64,
    dims: *const u64,
    strides: *const u64,
    tile: *const u32,
    element_strides: *const u32,
    interleave: u32,
    swizzle: u32,
    promotion: u32,
    fill: u32,
) -> i32 {
    with("cuTensorMapEncodeTiled", true, |state| {
        // The copy engine came with Hopper.
        if card::card().major < 9 {
            return NOT_SUPPORTED;
        }
        let rank_of = rank.min(5) as usize;
        // SAFETY: the arrays have as many elements as the rank says.
        let (dims, strides, tile, element_strides) = unsafe {
            (
                std::slice::from_raw_parts(dims, rank_of),
                std::slice::from_raw_parts(strides, rank_of.saturating_sub(1)),
                std::slice::from_raw_parts(tile, rank_of),
                std::slice::from_raw_parts(element_strides, rank_of),
            )
        };
        call!(
            "cuTensorMapEncodeTiled type {data_type} at {address:#x} dims {dims:?} strides {strides:?} tile {tile:?} elements {element_strides:?} interleave {interleave} swizzle {swizzle} promotion {promotion} fill {fill}"
        );
        let of = tensor_map::TensorMap::new(
            data_type,
            address,
            dims,
            strides,
            tile,
            element_strides,
            interleave,
            swizzle,
            fill,
        );
        match of {
            Ok(of) => {
                if state.allocation_of(address, of.span()).is_none() {
                    problem!("a tensor map spans {} bytes from {}", of.span(), state.describe(address));
                }
                unsafe { *map = of.encode() };
                SUCCESS
            }
            Err(why) => {
                problem!("tensor map refused: {why}");
                INVALID_VALUE
            }
        }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuTensorMapEncodeIm2col() -> i32 {
    problem!("cuTensorMapEncodeIm2col is not here");
    NOT_SUPPORTED
}
