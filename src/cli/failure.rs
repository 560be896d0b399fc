//! Failure of a command: its message and exit code.

use std::sync::OnceLock;

use crate::pipeline::{self, PipelineError};
use crate::runtime::Signal;

/// Message of the first panic in this process.
pub(super) static FIRST_PANIC: OnceLock<String> = OnceLock::new();

/// Message and exit code of a failed command. An empty message prints nothing.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) message: String,
    pub(super) code: u8,
}

impl Failure {
    pub(super) fn new(code: u8, message: impl Into<String>) -> Self {
        Self { message: message.into(), code }
    }

    /// Returns whether a signal asked for the end.
    pub(super) fn is_stop(&self) -> bool {
        [Signal::Interrupt, Signal::Terminate].iter().any(|signal| signal.exit_code() == self.code)
    }
}

impl From<PipelineError> for Failure {
    fn from(error: PipelineError) -> Self {
        let mut message = pipeline::chain(&error);
        // GPU libraries panic where they fail, often on their own threads; the first panic names the cause.
        if let Some(panic) = FIRST_PANIC.get().filter(|_| error.is_panic()) {
            message = with_cause(&message, panic);
        }
        Self::new(error.exit_code(), message)
    }
}

/// Adds the first panic to the message of a failure. `CubeCL` panics when the device has too little memory, and on some errors of the
/// driver.
pub(super) fn with_cause(message: &str, panic: &str) -> String {
    if let Some(error) = panic.find("DriverError(").and_then(|at| pipeline::driver_error(&panic[at..])) {
        return format!("the device failed: {error}");
    }
    match panic.split_once("can't allocate buffer of size: ").and_then(|(_, bytes)| bytes.trim().parse::<u64>().ok()) {
        Some(bytes) => format!(
            "the device is out of memory: it has no {} MiB left; set a smaller `device.batch_size` or `train.batch_size`, or stop other users of the device",
            bytes.div_ceil(1 << 20)
        ),
        None => format!("{message} (cause: {panic})"),
    }
}

/// Converts errors of small commands; their cause is always a file named on the command line.
impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::new(3, format!("{error:#}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_memory_is_named_when_it_runs_out() {
        let panic = "called `Result::unwrap()` on an `Err` value: can't allocate buffer of size: 20971520";
        let message = with_cause("the device stopped answering", panic);
        assert!(message.starts_with("the device is out of memory: it has no 20 MiB left; set a smaller"), "{message}");
        assert_eq!(with_cause("it failed", "why"), "it failed (cause: why)");
    }

    #[test]
    fn driver_error_in_a_panic_is_the_message() {
        let panic = "called `Result::unwrap()` on an `Err` value: DriverError(CUDA_ERROR_ECC, \"bad memory\")";
        assert_eq!(with_cause("the device stopped answering", panic), "the device failed: bad memory (CUDA_ERROR_ECC)");
    }
}
