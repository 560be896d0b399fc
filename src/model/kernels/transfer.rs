//! Copies between host and GPU, through pinned memory that is used again and again.
//!
//! `CubeCL`'s client copies what it uploads to fresh memory, which is not pinned, and cannot write to a buffer that exists. Its server
//! can do both; this module calls it as the client does.

use burn::tensor::{Bytes, StreamId};
use cubecl::Runtime as _;
use cubecl::cuda::{CudaDevice, CudaRuntime};
use cubecl::device::Device as _;
use cubecl::device_handle::DeviceHandle;
use cubecl::future::{DynFut, block_on};
use cubecl::server::{ComputeServer as _, Handle, ServerError};
use half::bf16;

use crate::model::error::ModelError;

/// Bytes of a piece of an upload. `CubeCL` cuts pinned memory from pages whose size grows with the pieces and with the memory of the
/// GPU: for such pieces a page has 8 to 48 MiB, for a whole batch some hundreds.
const PIECE: usize = 512 << 10;

type Server = <CudaRuntime as cubecl::Runtime>::Server;

/// Way to the memory of a GPU.
pub(super) struct Transfers(DeviceHandle<Server>);

impl std::fmt::Debug for Transfers {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Transfers").finish_non_exhaustive()
    }
}

impl Transfers {
    pub(super) fn new(gpu: usize) -> Self {
        let device = CudaDevice::new(gpu);
        // The client starts the server if it does not run yet.
        CudaRuntime::client(&device);
        Self(DeviceHandle::new(device.to_id()))
    }

    /// Copies bytes to pinned memory and enqueues their copy to the start of `to`.
    ///
    /// # Errors
    /// When earlier work of the current stream failed, or the device's runtime does not answer.
    pub(super) fn upload(&self, bytes: &[u8], to: &Handle) -> Result<(), ModelError> {
        let stream = StreamId::current();
        let sizes: Vec<usize> = bytes.chunks(PIECE).map(<[u8]>::len).collect();
        let staged = self.call(move |server| {
            // Frees pinned memory of earlier uploads. A flush waits for what this stream had to do before its previous flush, and frees
            // the memory of the uploads among it. Below 64 pieces (32 MiB) a batch, the previous flush was the one here: this one waits
            // for the batch before the last. From 64 pieces on, `CubeCL` also flushes at the first launch behind an upload: that launch
            // waits for the previous batch of the stream, and the flush here for the last upload, whose memory it frees.
            server.flush(stream)?;
            server.staging(&sizes, stream)
        })?;
        let mut copies = Vec::with_capacity(staged.len());
        for (index, (mut piece, part)) in staged.into_iter().zip(bytes.chunks(PIECE)).enumerate() {
            piece.copy_from_slice(part);
            let place = to.clone().offset_start((index * PIECE) as u64);
            copies.push((place.copy_descriptor([part.len()].into(), [1].into(), 1), piece));
        }
        self.call(move |server| {
            server.write(copies, stream);
            Ok(())
        })
    }

    /// Enqueues the copy of bf16 features to pinned memory.
    ///
    /// # Errors
    /// When the device's runtime does not answer.
    pub(super) fn download(&self, from: &Handle) -> Result<Features, ModelError> {
        let stream = StreamId::current();
        let bytes = from.size() as usize;
        let copies = vec![from.clone().copy_descriptor([bytes].into(), [1].into(), 1)];
        Ok(Features { read: Some(self.call(move |server| Ok(server.read(copies, stream)))?) })
    }

    fn call<T: Send>(&self, job: impl FnOnce(&mut Server) -> Result<T, ServerError> + Send) -> Result<T, ModelError> {
        let answer = self.0.submit_blocking(job);
        answer.map_err(|_| ModelError::Runtime)?.map_err(|cause| failed(&cause))
    }
}

fn failed(cause: &ServerError) -> ModelError {
    ModelError::Device { reason: cause.to_string() }
}

/// bf16 features that the GPU may still be computing. Their copy to the host is enqueued.
pub(in crate::model) struct Features {
    /// `None` once it was waited for.
    read: Option<DynFut<Result<Vec<Bytes>, ServerError>>>,
}

impl std::fmt::Debug for Features {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Features").finish_non_exhaustive()
    }
}

impl Features {
    /// Waits for the features and returns the first `count` values. Any thread may wait.
    ///
    /// # Errors
    /// When the device fails.
    pub(in crate::model) fn wait(mut self, count: usize) -> Result<Vec<f32>, ModelError> {
        let Some(read) = self.read.take() else { return Ok(Vec::new()) };
        let parts = block_on(read).map_err(|cause| failed(&cause))?;
        let pairs = parts.iter().flat_map(|part| part.as_chunks::<2>().0);
        Ok(pairs.take(count).map(|pair| bf16::from_le_bytes(*pair).to_f32()).collect())
    }
}

impl Drop for Features {
    /// Waits for the copy: other uses of its pinned memory begin when it is dropped.
    fn drop(&mut self) {
        if let Some(read) = self.read.take() {
            block_on(read).ok();
        }
    }
}
