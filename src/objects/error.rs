//! Errors of stores, by what a person can do about them.

use std::borrow::Cow;
use std::sync::Arc;

/// Failure to list, read or write an object or a file.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The object does not exist.
    #[error("`{url}` does not exist{answer}")]
    NotFound {
        /// Name of the object.
        url: String,
        /// Answer of the server, in parentheses after a space; empty for files.
        answer: String,
    },
    /// The bucket of an object does not exist on this server.
    #[error("the bucket of `{url}` does not exist{answer}: check its name and the endpoint")]
    NoBucket {
        /// Name of the object.
        url: String,
        /// Answer of the server, in parentheses after a space.
        answer: String,
    },
    /// A glob matches no object.
    #[error("`{pattern}` matches no file")]
    NoMatch {
        /// The glob.
        pattern: String,
    },
    /// A glob is malformed.
    #[error("`{pattern}` is not a usable pattern: {reason}")]
    BadPattern {
        /// The glob.
        pattern: String,
        /// Cause.
        reason: String,
    },
    /// Permission was refused; no later call can succeed.
    #[error("access to `{url}` was refused{hint}")]
    Refused {
        /// Name of the object.
        url: String,
        /// Advice, as a clause that starts with its punctuation; empty for files.
        hint: Cow<'static, str>,
    },
    /// The object is no longer the listed version.
    #[error("`{url}` changed while the run was reading it; run again once it no longer changes")]
    Changed {
        /// The object.
        url: String,
    },
    /// The object's compressed data end early.
    #[error("`{url}` ends in the middle of its compressed data: it is truncated, fetch it again")]
    Truncated {
        /// The object.
        url: String,
    },
    /// The object's compressed data are damaged.
    #[error("`{url}` is damaged: {reason}; fetch it again")]
    Damaged {
        /// The object.
        url: String,
        /// Message of the decompressor.
        reason: String,
    },
    /// The object is in another format than the text that it should hold.
    #[error("`{url}` is {content}, not text: {advice}")]
    WrongFormat {
        /// The object.
        url: String,
        /// Recognised format, with its article.
        content: String,
        /// Advice to the user.
        advice: &'static str,
    },
    /// The object has fewer bytes than its stated size in every attempt.
    #[error(
        "`{url}` ends after {got} of {size} bytes in every attempt: the stored object is truncated, upload it again"
    )]
    Short {
        /// The object.
        url: String,
        /// Bytes received.
        got: u64,
        /// Stated size in bytes.
        size: u64,
    },
    /// The store could not be reached, or kept answering with an error, until the retry budget was spent.
    #[error(
        "`{url}` cannot be {action}: {reason}; gave up after {attempts} attempts in {waited}; the same command resumes"
    )]
    Unreachable {
        /// Name of the object.
        url: String,
        /// Attempted action, as a participle.
        action: &'static str,
        /// Last failure, in few words.
        reason: String,
        /// Number of attempts.
        attempts: u32,
        /// Time since the last progress.
        waited: String,
    },
    /// The name of an object or the configuration of a store is invalid.
    #[error("`{url}` cannot be used: {reason}")]
    BadUrl {
        /// The URL as given.
        url: String,
        /// Cause.
        reason: String,
    },
    /// The hub lacks the repository or the revision, or the repository lacks a file that a checkpoint needs.
    #[error("`{repo}` {what}")]
    NotOnHub {
        /// Repository and revision.
        repo: String,
        /// Predicate that says what is missing and what to do.
        what: String,
    },
    /// A file is not in the hub's cache, and the hub may not be asked.
    #[error("`{repo}` is not complete in the cache `{cache}`: {lack}; {hint}")]
    NotCached {
        /// Repository and revision.
        repo: String,
        /// First missing file, as a clause.
        lack: String,
        /// Directory of the cache.
        cache: String,
        /// Advice.
        hint: &'static str,
    },
    /// A file differs from the size or hash that the hub states, twice.
    #[error(
        "`{url}` was downloaded twice with {wrong}: the hub, a mirror or a proxy serves a damaged file; try another `HF_ENDPOINT` or revision"
    )]
    Mismatch {
        /// Name of the file.
        url: String,
        /// Difference, as a noun phrase.
        wrong: String,
    },
    /// Another process took the run directory over, because this one did not renew its lease in time.
    #[error(
        "`{path}` was taken over by {holder} while this process could not reach the store; it stops here, and committed work is kept"
    )]
    Lost {
        /// The directory.
        path: String,
        /// Present holder of the lease.
        holder: String,
    },
    /// No space is left on the disk.
    #[error("no space is left on the disk of `{path}`; make room and run the same command again, it resumes")]
    DiskFull {
        /// The file that was being written.
        path: String,
    },
    /// Another process uses the directory.
    #[error("`{path}` is in use by {holder}; wait for it or stop it")]
    InUse {
        /// The directory.
        path: String,
        /// Process that holds it, and since when.
        holder: String,
    },
    /// Any other failure reported by the system.
    #[error("`{path}` cannot be {action}: {source}")]
    Io {
        /// The file.
        path: String,
        /// Attempted action, as a participle.
        action: &'static str,
        /// Error of the system.
        source: Arc<std::io::Error>,
    },
}

impl StoreError {
    /// Converts an I/O error about `path` to the variant that says what to do.
    pub fn io(path: impl AsRef<std::path::Path>, action: &'static str, source: std::io::Error) -> Self {
        let path = path.as_ref().display().to_string();
        match source.kind() {
            // A file that cannot be created has a missing parent, which is another problem.
            std::io::ErrorKind::NotFound if !["created", "written"].contains(&action) => {
                Self::NotFound { url: path, answer: String::new() }
            }
            std::io::ErrorKind::PermissionDenied => Self::Refused { url: path, hint: Cow::Borrowed("") },
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Self::DiskFull { path },
            _ => Self::Io { path, action, source: Arc::new(source) },
        }
    }

    /// Whether the input itself is at fault, rather than the way to it.
    pub fn is_input(&self) -> bool {
        match self {
            Self::NotFound { .. }
            | Self::NoBucket { .. }
            | Self::NoMatch { .. }
            | Self::BadPattern { .. }
            | Self::Changed { .. }
            | Self::Short { .. }
            | Self::NotOnHub { .. }
            | Self::Mismatch { .. }
            | Self::WrongFormat { .. }
            | Self::Truncated { .. }
            | Self::Damaged { .. } => true,
            Self::Refused { .. }
            | Self::Unreachable { .. }
            | Self::BadUrl { .. }
            | Self::NotCached { .. }
            | Self::Lost { .. }
            | Self::DiskFull { .. }
            | Self::InUse { .. }
            | Self::Io { .. } => false,
        }
    }
}
