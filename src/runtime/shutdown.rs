//! Request to stop the run, with the signal that caused it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use tokio_util::sync::CancellationToken;

/// Signal that stops a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGINT: Ctrl-C.
    Interrupt,
    /// SIGTERM: the signal that clouds send before they reclaim a machine.
    Terminate,
}

impl Signal {
    /// Returns the exit code of the process after this signal: 128 + the signal's number.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Interrupt => 130,
            Self::Terminate => 143,
        }
    }
}

/// Shutdown request shared by all stages; once raised it stays raised.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    token: CancellationToken,
    signal: Arc<AtomicU8>,
}

impl Shutdown {
    /// Asks every stage to finish or drop its current work and return.
    pub fn raise(&self, signal: Signal) {
        self.signal.store(signal.exit_code(), Ordering::SeqCst);
        self.token.cancel();
    }

    /// Returns whether shutdown was requested; for code that does not await.
    pub fn is_raised(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Returns the signal that requested shutdown.
    pub fn signal(&self) -> Option<Signal> {
        match self.signal.load(Ordering::SeqCst) {
            130 => Some(Signal::Interrupt),
            143 => Some(Signal::Terminate),
            _ => None,
        }
    }

    /// Waits until shutdown is requested.
    pub async fn raised(&self) {
        self.token.cancelled().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_clone_observes_the_signal() {
        let stop = Shutdown::default();
        let other = stop.clone();
        assert!(!other.is_raised());
        stop.raise(Signal::Terminate);
        assert!(other.is_raised());
        assert_eq!(other.signal().map(Signal::exit_code), Some(143));
    }
}
