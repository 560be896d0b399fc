//! What stages share: bounded links, a byte budget, CPU threads, the device thread, the stop token and meters.
//!
//! Every link is bounded in items whose size the [`ByteBudget`] bounds; a slow consumer therefore slows its producer
//! and nothing grows. A stage ends its output by dropping the sender, stops at [`Stop`], and fails by returning an
//! error. Nothing here knows images, arrow or burn.

mod board;
mod budget;
mod clock;
mod device;
mod pool;
mod spares;
mod stop;

pub use board::{Board, Kind, Meter, Reading, Shard, Snapshot};
pub use budget::{ByteBudget, Held};
pub use clock::{Clock, ClockSnapshot, Doing};
pub use device::{DeviceGone, DeviceThread};
pub use pool::{CpuPool, JobPanicked, NoThreads};
pub use spares::{Lent, Spare, Spares};
pub use stop::{Signal, Stop};

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
