//! Building blocks that stages share: bounded channels, a byte budget, CPU threads, the device thread and shutdown.
//!
//! Every channel is bounded in items whose size [`ByteBudget`] bounds, so a slow consumer slows its producer and nothing
//! grows. A stage closes its output by dropping the sender, stops on [`Shutdown`], and fails by returning an error.
//! Nothing here knows images, arrow or burn.

mod buffer_pool;
mod byte_budget;
mod cpu_pool;
mod device_thread;
mod shutdown;

pub use buffer_pool::{BufferPool, PooledBuffer};
pub use byte_budget::{ByteBudget, BytePermit};
pub use cpu_pool::{CpuPool, JobPanicked, NoThreads};
pub use device_thread::{DeviceGone, DeviceThread};
pub use shutdown::{Shutdown, Signal};

use tokio::sync::mpsc;

/// Opens a link that holds at most `capacity` items: the only door to a channel between stages.
pub fn link<T>(capacity: usize) -> (mpsc::Sender<T>, mpsc::Receiver<T>) {
    mpsc::channel(capacity)
}

/// How many items wait in a link; `None` once nothing is sent any more.
pub fn depth<T: Send + 'static>(sender: &mpsc::Sender<T>) -> impl Fn() -> Option<u64> + Send + Sync + use<T> {
    let sender = sender.downgrade();
    move || sender.upgrade().map(|sender| (sender.max_capacity() - sender.capacity()) as u64)
}
