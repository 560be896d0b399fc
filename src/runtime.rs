//! Building blocks that stages share: bounded channels, a byte budget, CPU threads, the device thread, shutdown, and the
//! resources that the process may use.
//!
//! Every channel is bounded in items, and [`ByteBudget`] bounds the size of the items. A slow consumer therefore slows its
//! producer down, and memory stays bounded. A stage closes its output by dropping the sender, stops on [`Shutdown`] and
//! fails by returning an error. Nothing here knows images, arrow or burn.

mod buffer_pool;
mod byte_budget;
mod cpu_pool;
mod device_thread;
mod host_memory;
mod resources;
mod shutdown;

pub use buffer_pool::{BufferPool, PooledBuffer};
pub use byte_budget::{ByteBudget, BytePermit};
pub use cpu_pool::{CpuPool, JobPanicked, NoThreads};
pub use device_thread::{DeviceGone, DeviceThread};
pub use host_memory::{HostMemory, MemoryOrigin};
pub use resources::{Resources, usable_cores};
pub use shutdown::{Shutdown, Signal};

use tokio::sync::mpsc;

/// Opens a channel that holds at most `capacity` items; stages use no other constructor.
pub fn channel<T>(capacity: usize) -> (mpsc::Sender<T>, mpsc::Receiver<T>) {
    mpsc::channel(capacity)
}

/// Returns a function that counts the items waiting in a channel; it returns `None` once all senders are dropped.
pub fn queue_length<T: Send + 'static>(sender: &mpsc::Sender<T>) -> impl Fn() -> Option<u64> + Send + Sync + use<T> {
    let sender = sender.downgrade();
    move || sender.upgrade().map(|sender| (sender.max_capacity() - sender.capacity()) as u64)
}
