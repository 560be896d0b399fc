//! The wish to stop, and who wished it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use tokio_util::sync::CancellationToken;

/// What asked the run to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGINT: Ctrl-C.
    Interrupt,
    /// SIGTERM: what a cloud sends before it takes a machine away.
    Terminate,
}

impl Signal {
    /// The process's exit code after it: 128 + the signal's number.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Interrupt => 130,
            Self::Terminate => 143,
        }
    }
}

/// Shared by all stages; once raised it stays raised.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    token: CancellationToken,
    signal: Arc<AtomicU8>,
}

impl Shutdown {
    /// Asks every stage to finish or drop what it has in hand and return.
    pub fn raise(&self, signal: Signal) {
        self.signal.store(signal.exit_code(), Ordering::SeqCst);
        self.token.cancel();
    }

    /// Whether it was raised, for loops that do not wait.
    pub fn is_raised(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Who raised it.
    pub fn signal(&self) -> Option<Signal> {
        match self.signal.load(Ordering::SeqCst) {
            130 => Some(Signal::Interrupt),
            143 => Some(Signal::Terminate),
            _ => None,
        }
    }

    /// Waits until it is raised.
    pub async fn raised(&self) {
        self.token.cancelled().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_clone_sees_the_signal() {
        let stop = Shutdown::default();
        let other = stop.clone();
        assert!(!other.is_raised());
        stop.raise(Signal::Terminate);
        assert!(other.is_raised());
        assert_eq!(other.signal().map(Signal::exit_code), Some(143));
    }
}
