//! What a store can refuse, sorted by what a person can do about it.

/// What a store can refuse.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The named object is not there.
    #[error("`{url}` is not there")]
    NotFound {
        /// What was asked for.
        url: String,
    },
    /// A glob matches nothing.
    #[error("`{pattern}` matches no file")]
    NoMatch {
        /// The glob.
        pattern: String,
    },
    /// A glob cannot be understood.
    #[error("`{pattern}` is not a usable pattern: {reason}")]
    BadPattern {
        /// The glob.
        pattern: String,
        /// Why not.
        reason: String,
    },
    /// Permission was refused; no later call can succeed.
    #[error("access to `{url}` was refused{hint}")]
    Refused {
        /// What was asked for.
        url: String,
        /// What may help, as a clause with its comma; empty for files.
        hint: &'static str,
    },
    /// The object is no longer the one that was listed.
    #[error("`{url}` changed while the run was reading it; run again once it is at rest")]
    Changed {
        /// The object.
        url: String,
    },
    /// The object's compressed stream ends early.
    #[error("`{url}` ends in the middle of its compressed data: it is truncated, fetch it again")]
    Truncated {
        /// The object.
        url: String,
    },
    /// The object's compressed stream is damaged.
    #[error("`{url}` is damaged: {reason}; fetch it again")]
    Damaged {
        /// The object.
        url: String,
        /// What the decompressor says.
        reason: String,
    },
    /// The object's bytes are fewer than its size promises, again and again.
    #[error(
        "`{url}` ends after {got} of {size} bytes, however often it is read: the store holds a truncated object, upload it again"
    )]
    Short {
        /// The object.
        url: String,
        /// Bytes that came.
        got: u64,
        /// Bytes promised.
        size: u64,
    },
    /// Nobody answers, or the answer is an error that does not go away.
    #[error(
        "`{url}` cannot be {action}: {reason}; gave up after {attempts} attempts in {waited}; the same command resumes"
    )]
    Unreachable {
        /// What was asked for.
        url: String,
        /// What was tried, as a participle.
        action: &'static str,
        /// The last failure, in short.
        reason: String,
        /// How often it was tried.
        attempts: u32,
        /// For how long.
        waited: String,
    },
    /// The name of an object or a store's configuration makes no sense.
    #[error("`{url}` cannot be used: {reason}")]
    BadUrl {
        /// The URL as it was given.
        url: String,
        /// Why not.
        reason: String,
    },
    /// The hub has no such repository or revision, or not what a checkpoint needs.
    #[error("`{repo}` {what}")]
    NotOnHub {
        /// Repository and revision.
        repo: String,
        /// What it is not or has not, and what to do.
        what: String,
    },
    /// A file of the hub is not in the cache, and the hub is not asked.
    #[error("`{repo}` is not complete in the cache `{cache}`: {lack}; {hint}")]
    NotCached {
        /// Repository and revision.
        repo: String,
        /// The first file that is missing, as a clause.
        lack: String,
        /// The cache.
        cache: String,
        /// What to do.
        hint: &'static str,
    },
    /// What came is not what the hub states, twice.
    #[error(
        "`{url}` came with {wrong} as the hub states, and so it did a second time: the hub, a mirror or a proxy serves a damaged file; try another `HF_ENDPOINT` or revision"
    )]
    Mismatch {
        /// The file.
        url: String,
        /// What came, and what not.
        wrong: String,
    },
    /// Another process took the directory over, because this one did not renew its claim in time.
    #[error(
        "`{path}` was taken over by {holder} while this process could not reach the store; it stops here, and nothing that is committed is lost"
    )]
    Lost {
        /// The directory.
        path: String,
        /// Who holds it now.
        holder: String,
    },
    /// No room is left.
    #[error("no space is left on the disk of `{path}`; make room and run the same command again, it resumes")]
    DiskFull {
        /// What was being written.
        path: String,
    },
    /// Another process works on the directory.
    #[error("`{path}` is in use by {holder}; wait for it or stop it")]
    InUse {
        /// The directory.
        path: String,
        /// Who holds it and since when.
        holder: String,
    },
    /// Anything else that the system says.
    #[error("`{path}` cannot be {action}: {source}")]
    Io {
        /// The file.
        path: String,
        /// What was tried, as a participle.
        action: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
}

impl StoreError {
    /// Sorts the system's answer about `path` by what a person can do about it.
    pub fn io(path: impl AsRef<std::path::Path>, action: &'static str, source: std::io::Error) -> Self {
        let path = path.as_ref().display().to_string();
        match source.kind() {
            // What cannot be made is not missing.
            std::io::ErrorKind::NotFound if !["created", "written"].contains(&action) => Self::NotFound { url: path },
            std::io::ErrorKind::PermissionDenied => Self::Refused { url: path, hint: "" },
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Self::DiskFull { path },
            _ => Self::Io { path, action, source },
        }
    }

    /// Whether the input itself is at fault, rather than the way to it.
    pub fn is_input(&self) -> bool {
        match self {
            Self::NotFound { .. }
            | Self::NoMatch { .. }
            | Self::BadPattern { .. }
            | Self::Changed { .. }
            | Self::Short { .. }
            | Self::NotOnHub { .. }
            | Self::Mismatch { .. }
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
