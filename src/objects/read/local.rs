//! Ranges of a local file that stays open.
//!
//! `object_store` opens a local file again for each range, with two blocking calls in a task of their own. At ranges of
//! 256 KiB that costs time; with the file open, a range is one blocking call.

use std::borrow::BorrowMut as _;
use std::fs::File;
use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

use object_store::GetResultPayload;
use tokio::task::JoinHandle;

use super::super::Object;
use super::{RANGES_AHEAD, open_body};
use crate::runtime::{BufferPool, PooledBuffer};

/// Bytes of one read from a local file, where there is no latency to hide; buffers of this size are reused.
pub(super) const LOCAL_RANGE_BYTES: u64 = 256 << 10;

/// Open local file in the version that was listed.
pub(super) struct OpenFile {
    file: File,
    /// Size and last change at the time of opening.
    version: (u64, SystemTime),
    buffers: BufferPool,
}

impl OpenFile {
    /// Opens the listed version; `None` if it no longer exists or the object is not a local file.
    pub(super) async fn open(object: &Object) -> Option<Self> {
        if !object.client.is_local() {
            return None;
        }
        let answer = open_body(object, &object.client.inner, None, &object.client.retry_budget()).await.ok()?;
        let version = (answer.meta.size, answer.meta.last_modified.into());
        let GetResultPayload::File(file, _) = answer.payload else { return None };
        Some(Self { file, version, buffers: BufferPool::new(RANGES_AHEAD + 1, LOCAL_RANGE_BYTES as usize) })
    }

    /// Starts to read a range; the result is `None` if the file changed or cannot be read.
    pub(super) fn read_range(self: &Arc<Self>, range: Range<u64>) -> JoinHandle<Option<PooledBuffer>> {
        let (this, buffer) = (Arc::clone(self), self.buffers.acquire_pooled());
        tokio::task::spawn_blocking(move || {
            let len = (range.end - range.start) as usize;
            let bytes = read_at(&this.file, range.start, len, buffer).ok()?;
            // Checked after the read, so that a change during it is noticed.
            (bytes.as_ref().len() == len && file_version(&this.file).ok()? == this.version).then_some(bytes)
        })
    }
}

fn file_version(file: &File) -> std::io::Result<(u64, SystemTime)> {
    let metadata = file.metadata()?;
    Ok((metadata.len(), metadata.modified()?))
}

/// Reads `len` bytes, or up to the end of the file, without clearing the buffer first.
fn read_at(file: &File, start: u64, len: usize, mut buffer: PooledBuffer) -> std::io::Result<PooledBuffer> {
    let bytes: &mut Vec<u8> = buffer.borrow_mut();
    bytes.clear();
    bytes.reserve_exact(len);
    while bytes.len() < len {
        let offset = start + bytes.len() as u64;
        match rustix::io::pread(file, rustix::buffer::spare_capacity(bytes), offset) {
            Ok(0) => break,
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    bytes.truncate(len);
    Ok(buffer)
}
