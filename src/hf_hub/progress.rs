//! Progress of a download.

use std::sync::atomic::{AtomicU64, Ordering};

/// Progress report of a download.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Download {
    /// Total bytes as far as known; the total grows when bytes must be downloaded again.
    Total(u64),
    /// Bytes that another process downloaded, now or earlier.
    Resumed(u64),
    /// Bytes received since the last report.
    Received(u64),
}

/// Adds up the total and passes reports on to a callback.
pub(super) struct ProgressReporter<'a> {
    total: AtomicU64,
    report: &'a (dyn Fn(Download) + Send + Sync),
}

impl<'a> ProgressReporter<'a> {
    pub(super) fn new(report: &'a (dyn Fn(Download) + Send + Sync)) -> Self {
        Self { total: AtomicU64::new(0), report }
    }

    /// Adds bytes to download, or to download again.
    pub(super) fn add_total(&self, bytes: u64) {
        (self.report)(Download::Total(self.total.fetch_add(bytes, Ordering::Relaxed) + bytes));
    }

    pub(super) fn add_resumed(&self, bytes: u64) {
        (self.report)(Download::Resumed(bytes));
    }

    pub(super) fn add_received(&self, bytes: u64) {
        (self.report)(Download::Received(bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn total_grows_by_repeated_bytes() {
        let reports = std::sync::Mutex::new(Vec::new());
        let report = |report| reports.lock().unwrap().push(report);
        let progress = ProgressReporter::new(&report);
        progress.add_total(10);
        progress.add_received(4);
        progress.add_total(4);
        assert_eq!(*reports.lock().unwrap(), [Download::Total(10), Download::Received(4), Download::Total(14)]);
    }
}
