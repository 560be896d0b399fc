//! [`PipelineError`]: reasons why a run ends early, and their exit codes.

use crate::catalog::CatalogError;
use crate::chunk::ChunkError;
use crate::config::ConfigError;
use crate::corpus::CorpusError;
use crate::objects::StoreError;
use crate::runtime::{DeviceGone, JobPanicked, NoThreads, Signal};

/// Reason why a run ends early.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// The configuration is invalid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The configuration does not fit the artefacts in the run directory.
    #[error("{0}")]
    Generation(String),
    /// An object cannot be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An input file does not have the published format.
    #[error(transparent)]
    Corpus(#[from] CorpusError),
    /// An artefact cannot be read or written.
    #[error(transparent)]
    Chunk(#[from] ChunkError),
    /// An input can be read but not used.
    #[error("{0}")]
    Input(String),
    /// The device or the model fails.
    #[error("{0}")]
    Model(String),
    /// The thread of the device has ended.
    #[error(transparent)]
    Gone(#[from] DeviceGone),
    /// The system refuses to start threads.
    #[error(transparent)]
    Threads(#[from] NoThreads),
    /// The run was asked to stop; everything done so far is saved.
    #[error("stopped after saving; run the same command again to resume")]
    Stopped(Signal),
    /// A bug in this program.
    #[error("{0}; please report it with the command and the log")]
    Internal(String),
}

impl PipelineError {
    /// Whether the run directory may be out of reach, so that nothing more can be written to it.
    pub(crate) fn is_out_of_reach(&self) -> bool {
        let (Self::Store(error) | Self::Chunk(ChunkError::Store(error))) = self else { return false };
        matches!(error, StoreError::Unreachable { .. } | StoreError::Lost { .. })
    }

    /// Whether a panic or a bug ended the run.
    pub fn is_panic(&self) -> bool {
        matches!(self, Self::Gone(_) | Self::Internal(_))
    }

    /// Returns the exit code of the process.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_)
            | Self::Generation(_)
            | Self::Store(StoreError::BadPattern { .. })
            | Self::Chunk(ChunkError::NoRoom { .. }) => 2,
            Self::Corpus(_) | Self::Input(_) | Self::Chunk(ChunkError::Damaged { .. }) => 3,
            Self::Store(error) | Self::Chunk(ChunkError::Store(error)) => {
                if error.is_input() {
                    3
                } else {
                    4
                }
            }
            Self::Model(_) | Self::Gone(_) | Self::Internal(_) | Self::Threads(_) => 5,
            Self::Stopped(signal) => signal.exit_code(),
        }
    }
}

impl From<CatalogError> for PipelineError {
    fn from(error: CatalogError) -> Self {
        Self::Input(error.to_string())
    }
}

impl From<JobPanicked> for PipelineError {
    fn from(error: JobPanicked) -> Self {
        Self::Internal(error.to_string())
    }
}

impl From<tokio::task::JoinError> for PipelineError {
    fn from(_: tokio::task::JoinError) -> Self {
        Self::from(JobPanicked)
    }
}

/// Joins the messages of an error and its causes with colons. Leaves out a cause that its parent already quotes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    one_line(text)
}

/// Shortens an error of `CubeCL`, a tree of causes and backtraces over many lines, to one line. Other texts stay as they are: a
/// table of changed keys has lines.
///
/// An error of the CUDA driver stands for all of them: the first one makes all later calls fail.
fn one_line(text: String) -> String {
    if !["\nCaused by:", "\nBacktrace", "\nNo backtrace available"].iter().any(|mark| text.contains(mark)) {
        return text;
    }
    let mut parts: Vec<&str> = Vec::new();
    for line in text.lines().map(|line| line.trim().trim_matches(['[', ']'])) {
        let noise = ["Caused by:", "Backtrace", "No backtrace available"].iter().any(|start| line.starts_with(start));
        if !line.is_empty() && !noise && !parts.contains(&line) {
            parts.push(line);
        }
    }
    let found = parts.iter().find_map(|part| driver_error(part));
    match (found, parts.first().and_then(|first| first.split(": ").next())) {
        (Some(found), Some(subject)) => format!("{subject}: {found}"),
        _ => parts.join(": "),
    }
}

/// Returns `message (CODE)` for a line with `DriverError(CODE, "message")`, behind the text before it.
pub(crate) fn driver_error(line: &str) -> Option<String> {
    let (before, behind) = line.split_once("DriverError(")?;
    let (code, message) = behind.split_once(", ")?;
    let message = message.trim_start_matches('"').split('"').next()?;
    Some(format!("{before}{message} ({code})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn driver_error_is_one_line() {
        let text = "the device failed: An error happened during execution\nCaused by:\n  The server is in an invalid state\n\
                    Caused by:\n  [Launch(An unknown error happened during launch\nCaused by:\n  \
                    DriverError(CUDA_ERROR_ILLEGAL_ADDRESS, \"an illegal memory access was encountered\")\nBacktrace\n\
                    No backtrace available), Io(Unknown error happened during execution\nNo backtrace available)]";
        let wanted = "the device failed: an illegal memory access was encountered (CUDA_ERROR_ILLEGAL_ADDRESS)";
        assert_eq!(one_line(text.to_owned()), wanted);
    }

    #[test]
    fn text_before_a_driver_error_is_kept() {
        let text =
            "the device failed: x\nCaused by:\n  Unable to load the PTX: DriverError(CUDA_ERROR_INVALID_PTX, \"bad\")";
        assert_eq!(
            one_line(text.to_owned()),
            "the device failed: Unable to load the PTX: bad (CUDA_ERROR_INVALID_PTX)"
        );
    }

    #[test]
    fn other_lines_are_joined_once_each() {
        let text = "the device failed: one\nCaused by:\n  two\nCaused by:\n  two\nBacktrace:\nNo backtrace available";
        assert_eq!(one_line(text.to_owned()), "the device failed: one: two");
        let table = "made with other settings:\n  key  then  now\nset the keys back";
        assert_eq!(one_line(table.to_owned()), table);
    }
}
