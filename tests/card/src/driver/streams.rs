//! Streams and events.
#![allow(non_snake_case, reason = "the driver's own names")]
#![allow(clippy::missing_safety_doc, reason = "the CUDA driver API documents each function")]

use super::with;
use crate::state::{Event, INVALID_HANDLE, NOT_READY, Op, SUCCESS, Stream};
use crate::{call, problem};

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamCreate(out: *mut u64, flags: u32) -> i32 {
    with("cuStreamCreate", true, |state| {
        let stream = state.handle();
        state.streams.insert(stream, Stream::default());
        call!("cuStreamCreate flags {flags} = {stream:#x}");
        unsafe { *out = stream };
        SUCCESS
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamCreateWithPriority(out: *mut u64, flags: u32, _priority: i32) -> i32 {
    unsafe { cuStreamCreate(out, flags) }
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamDestroy_v2(stream: u64) -> i32 {
    call!("cuStreamDestroy {stream:#x}");
    with("cuStreamDestroy_v2", true, |state| {
        state.run_stream(stream, None);
        if state.streams.remove(&stream).is_some() { SUCCESS } else { INVALID_HANDLE }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamSynchronize(stream: u64) -> i32 {
    call!("cuStreamSynchronize {stream:#x}");
    with("cuStreamSynchronize", true, |state| match state.stream(stream) {
        Ok(_) => state.run_stream(stream, None),
        Err(code) => code,
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamWaitEvent(stream: u64, event: u64, flags: u32) -> i32 {
    call!("cuStreamWaitEvent {stream:#x} event {event:#x} flags {flags}");
    with("cuStreamWaitEvent", true, |state| match state.events.get(&event) {
        Some(of) => {
            let generation = of.recorded;
            state.enqueue(stream, Op::Wait(event, generation))
        }
        None => {
            problem!("stream {stream:#x} is to wait for event {event:#x}, which does not exist");
            INVALID_HANDLE
        }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventCreate(out: *mut u64, _flags: u32) -> i32 {
    with("cuEventCreate", true, |state| {
        let event = state.handle();
        state.events.insert(event, Event::default());
        unsafe { *out = event };
        SUCCESS
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventRecord(event: u64, stream: u64) -> i32 {
    call!("cuEventRecord {event:#x} stream {stream:#x}");
    with("cuEventRecord", true, |state| {
        let Some(of) = state.events.get_mut(&event) else {
            problem!("record of event {event:#x}, which does not exist");
            return INVALID_HANDLE;
        };
        of.recorded += 1;
        of.stream = stream;
        let generation = of.recorded;
        state.enqueue(stream, Op::Record(event, generation))
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventSynchronize(event: u64) -> i32 {
    call!("cuEventSynchronize {event:#x}");
    // cudarc's threads wait without a context.
    with("cuEventSynchronize", false, |state| match state.events.get(&event) {
        Some(of) => {
            let (stream, generation) = (of.stream, of.recorded);
            state.run_stream(stream, Some((event, generation)))
        }
        None => {
            problem!("wait for event {event:#x}, which does not exist");
            INVALID_HANDLE
        }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventQuery(event: u64) -> i32 {
    with("cuEventQuery", false, |state| match state.events.get(&event) {
        Some(of) if of.reached >= of.recorded => SUCCESS,
        Some(_) => NOT_READY,
        None => INVALID_HANDLE,
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventDestroy_v2(event: u64) -> i32 {
    with("cuEventDestroy_v2", false, |state| match state.events.get(&event) {
        Some(of) if of.reached < of.recorded => {
            // As on a card, it is freed when it is reached; queued waits for it hold.
            call!("cuEventDestroy {event:#x} before it is reached");
            SUCCESS
        }
        Some(_) => {
            state.events.remove(&event);
            SUCCESS
        }
        None => {
            problem!("event {event:#x} is destroyed twice");
            INVALID_HANDLE
        }
    })
}
