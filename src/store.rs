//! Objects by name: listing, reads in bounded ranges pinned to one version, and durable directories.
//!
//! An input is found by a glob ([`Store::list`]) and read front to back ([`Store::open`]) in ranges of 4 MiB of which
//! two are in flight, each of them refused by the store when the object is no longer the one that was listed. gzip
//! (of several members too) and zstd are recognised by their first bytes and unpacked on the way. What a run writes
//! goes through [`Directory`], where a name either holds a complete file or nothing.
//!
//! This version reads and writes local files; what it asks of `object_store` is what remote stores offer too.
//! Nothing here knows image formats or burn.

mod directory;
mod glob;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_compression::tokio::bufread::{GzipDecoder, ZstdDecoder};
use bytes::Bytes;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt as _};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio_util::io::StreamReader;

pub use directory::{Directory, Lock};

/// Bytes of one ranged read: large enough to hide a remote store's latency, small beside any memory limit.
const RANGE_BYTES: u64 = 4 << 20;
/// Ranges in flight for one open object.
const RANGES_AHEAD: usize = 2;
/// Bytes that the decompressor hands on at a time.
const UNPACK_BYTES: usize = 256 << 10;

/// A front-to-back reader of an object's unpacked bytes.
pub type Reader = Pin<Box<dyn AsyncRead + Send>>;

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
    #[error("access to `{url}` was refused")]
    Refused {
        /// What was asked for.
        url: String,
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
            std::io::ErrorKind::PermissionDenied => Self::Refused { url: path },
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
            | Self::Truncated { .. }
            | Self::Damaged { .. } => true,
            Self::Refused { .. } | Self::DiskFull { .. } | Self::InUse { .. } | Self::Io { .. } => false,
        }
    }
}

/// An object as it was when it was listed.
#[derive(Debug, Clone)]
pub struct Object {
    /// Its name for a person, and in errors.
    pub url: String,
    /// Its size in bytes.
    pub size: u64,
    location: Path,
    version: Option<String>,
}

/// Opens objects by name.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<dyn ObjectStore>,
}

impl Default for Store {
    fn default() -> Self {
        Self { inner: Arc::new(LocalFileSystem::new()) }
    }
}

impl Store {
    /// Lists the objects that any of the patterns matches: in the order of the patterns, then by name, each once.
    ///
    /// `*`, `?`, `[…]` and `{…}` match within one path component.
    ///
    /// # Errors
    /// When a pattern is malformed, matches nothing, or the listing is refused.
    pub async fn list(&self, patterns: &[String]) -> Result<Vec<Object>, StoreError> {
        let mut found: Vec<Object> = Vec::new();
        for pattern in patterns {
            let mut matches = glob::expand(self.inner.as_ref(), pattern).await?;
            if matches.is_empty() {
                return Err(StoreError::NoMatch { pattern: pattern.clone() });
            }
            matches.sort_by(|one, other| one.location.cmp(&other.location));
            for meta in matches {
                if found.iter().all(|object| object.location != meta.location) {
                    found.push(Object::from_meta(pattern, meta));
                }
            }
        }
        Ok(found)
    }

    /// Finds one object by its exact name.
    ///
    /// # Errors
    /// When it is not there or cannot be reached.
    pub async fn find(&self, name: &str) -> Result<Object, StoreError> {
        glob::refuse_directory(name, name.strip_prefix("file://").unwrap_or(name))?;
        let location = glob::location(name)?;
        let meta = self.inner.head(&location).await.map_err(|error| explain(name, error))?;
        Ok(Object { url: name.to_owned(), ..Object::from_meta(name, meta) })
    }

    /// Opens an object's unpacked bytes. `packed_read` counts the stored bytes as they arrive.
    ///
    /// # Errors
    /// When the first bytes cannot be read. Later failures arrive as [`std::io::Error`]s of the reader: pass them to
    /// [`explain_read`].
    pub async fn open(&self, object: &Object, packed_read: Arc<AtomicU64>) -> Result<Reader, StoreError> {
        let packed_name = [".gz", ".zst"].iter().any(|ending| object.url.ends_with(ending));
        if object.size == 0 && packed_name {
            // A compressed file of nothing still has a header; no bytes at all are a download that failed.
            return Err(StoreError::Truncated { url: object.url.clone() });
        }
        let ranges = (0..object.size).step_by(RANGE_BYTES as usize).map({
            let object = object.clone();
            let inner = Arc::clone(&self.inner);
            move |start| read_range(Arc::clone(&inner), object.clone(), start)
        });
        let blocks = stream::iter(ranges).buffered(RANGES_AHEAD).inspect_ok(move |block: &Bytes| {
            packed_read.fetch_add(block.len() as u64, Ordering::Relaxed);
        });
        let mut packed = StreamReader::new(blocks.boxed());
        let head = packed.fill_buf().await.map_err(|error| explain_read(&object.url, error))?;
        Ok(match head {
            [0x1f, 0x8b, ..] => {
                let mut unpacked = GzipDecoder::new(packed);
                unpacked.multiple_members(true);
                Box::pin(BufReader::with_capacity(UNPACK_BYTES, unpacked))
            }
            [0x28, 0xb5, 0x2f, 0xfd, ..] => {
                let mut unpacked = ZstdDecoder::new(packed);
                unpacked.multiple_members(true);
                Box::pin(BufReader::with_capacity(UNPACK_BYTES, unpacked))
            }
            _ => Box::pin(packed),
        })
    }
}

impl Object {
    fn from_meta(pattern: &str, meta: ObjectMeta) -> Self {
        Self {
            url: glob::display(pattern, &meta.location),
            size: meta.size,
            version: meta.e_tag,
            location: meta.location,
        }
    }
}

/// Reads one range, which must come complete and from the version that was listed.
async fn read_range(store: Arc<dyn ObjectStore>, object: Object, start: u64) -> std::io::Result<Bytes> {
    let end = (start + RANGE_BYTES).min(object.size);
    let options =
        GetOptions { range: Some(GetRange::Bounded(start..end)), if_match: object.version, ..GetOptions::default() };
    let read = async { store.get_opts(&object.location, options).await?.bytes().await };
    let block = read.await.map_err(|error| std::io::Error::other(explain(&object.url, error)))?;
    if block.len() as u64 == end - start {
        Ok(block)
    } else {
        Err(std::io::Error::other(StoreError::Changed { url: object.url }))
    }
}

fn explain(url: &str, error: object_store::Error) -> StoreError {
    use object_store::Error;
    let url = url.to_owned();
    match error {
        Error::NotFound { .. } => StoreError::NotFound { url },
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => StoreError::Refused { url },
        Error::Precondition { .. } | Error::NotModified { .. } => StoreError::Changed { url },
        other => {
            let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&other);
            while let Some(error) = cause {
                if let Some(io) = error.downcast_ref::<std::io::Error>()
                    && io.kind() == std::io::ErrorKind::PermissionDenied
                {
                    return StoreError::Refused { url };
                }
                cause = error.source();
            }
            StoreError::Io { path: url, action: "read", source: std::io::Error::other(other) }
        }
    }
}

/// Turns a [`Reader`]'s error into one that names the object and says what to do.
pub fn explain_read(url: &str, error: std::io::Error) -> StoreError {
    match error.kind() {
        std::io::ErrorKind::UnexpectedEof => StoreError::Truncated { url: url.to_owned() },
        std::io::ErrorKind::InvalidData | std::io::ErrorKind::InvalidInput => {
            StoreError::Damaged { url: url.to_owned(), reason: error.to_string() }
        }
        _ => match error.downcast::<StoreError>() {
            Ok(named) => named,
            // The decompressors report a damaged stream as an error of no particular kind.
            Err(other) if other.kind() == std::io::ErrorKind::Other => {
                StoreError::Damaged { url: url.to_owned(), reason: other.to_string() }
            }
            Err(other) => StoreError::io(url, "read", other),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use tokio::io::AsyncReadExt as _;

    use super::*;

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packer.write_all(data).unwrap();
        packer.finish().unwrap()
    }

    async fn read(dir: &tempfile::TempDir, bytes: &[u8]) -> Result<Vec<u8>, StoreError> {
        let path = dir.path().join("part.bin");
        std::fs::write(&path, bytes).unwrap();
        let store = Store::default();
        let object = store.find(path.to_str().unwrap()).await?;
        let mut unpacked = Vec::new();
        let mut reader = store.open(&object, Arc::default()).await?;
        reader.read_to_end(&mut unpacked).await.map_err(|error| explain_read(&object.url, error))?;
        Ok(unpacked)
    }

    #[tokio::test]
    async fn plain_gzip_and_several_members_read_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let data: Vec<u8> = (0..9_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        assert_eq!(read(&dir, &data).await.unwrap(), data);
        assert_eq!(read(&dir, &gzip(&data)).await.unwrap(), data);
        let (head, tail) = data.split_at(1_234_567);
        assert_eq!(read(&dir, &[gzip(head), gzip(tail)].concat()).await.unwrap(), data);
        assert!(read(&dir, b"").await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_truncated_or_damaged_gzip_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let mut packed = gzip(&vec![7; 100_000]);
        let cut = &packed[..packed.len() - 9];
        let error = read(&dir, cut).await.unwrap_err();
        assert!(matches!(error, StoreError::Truncated { .. }), "{error}");
        let checksum = packed.len() - 6;
        packed[checksum] ^= 0xff;
        let error = read(&dir, &packed).await.unwrap_err();
        assert!(matches!(error, StoreError::Damaged { .. }) && error.to_string().contains("part.bin"), "{error}");
    }

    #[tokio::test]
    async fn an_object_that_changes_under_the_reader_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("part.bin");
        std::fs::write(&path, vec![1; 30 << 20]).unwrap();
        let store = Store::default();
        let object = store.find(path.to_str().unwrap()).await.unwrap();
        let mut reader = store.open(&object, Arc::default()).await.unwrap();
        let mut block = vec![0; 1 << 20];
        reader.read_exact(&mut block).await.unwrap();
        std::fs::write(&path, vec![2; 30 << 20]).unwrap();
        let error = reader.read_to_end(&mut Vec::new()).await.unwrap_err();
        assert!(matches!(explain_read("part.bin", error), StoreError::Changed { .. }));
    }

    #[tokio::test]
    async fn globs_list_in_order_and_each_file_once() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().to_str().unwrap();
        std::fs::create_dir(dir.path().join("sub dir%20")).unwrap();
        for name in ["b-1.tsv", "b-0.tsv", "a.tsv", "note.txt", "sub dir%20/c.tsv"] {
            std::fs::write(dir.path().join(name), name).unwrap();
        }
        let patterns = [format!("{root}/b-*.tsv"), format!("{root}/*.tsv"), format!("{root}/sub*/*.tsv")];
        let names: Vec<String> = Store::default()
            .list(&patterns)
            .await
            .unwrap()
            .into_iter()
            .map(|object| object.url.strip_prefix(root).unwrap().to_owned())
            .collect();
        assert_eq!(names, ["/b-0.tsv", "/b-1.tsv", "/a.tsv", "/sub dir%20/c.tsv"]);
        let error = Store::default().list(&[format!("{root}/*.zip")]).await.unwrap_err();
        assert!(matches!(error, StoreError::NoMatch { .. }) && error.to_string().contains("*.zip"), "{error}");
    }
}
