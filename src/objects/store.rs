//! Lists and opens objects by name.

use std::pin::Pin;
use std::sync::Arc;

use async_compression::tokio::bufread::ZstdDecoder;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio_util::io::StreamReader;

use super::client::{self, Clients};
use super::gzip::GzipReader;
use super::object::{Object, distinct_names};
use super::sniff::{Content, FileFormat, sniff};
use super::{Provider, ReadStats, StoreError, StoreSettings, Traffic, folder, glob, names, read};

/// Bytes that the zstd decompressor returns at a time.
const ZSTD_BYTES: usize = 256 << 10;
/// Bytes that the gzip decompressor returns at a time: with the window before them they fit a processor's second cache.
const GZIP_BYTES: usize = 64 << 10;
/// Bytes at either end of an object that its fingerprint covers. A gzip file ends with its checksum and length.
const FINGERPRINT_BYTES: u64 = 64 << 10;
/// Objects whose fingerprints are computed at once.
const CONCURRENT_FINGERPRINTS: usize = 16;
/// Names that are looked up at once.
const CONCURRENT_LOOKUPS: usize = 16;

/// Reader of an object's decompressed bytes, front to back, which lends out its own buffer.
pub type Reader = Pin<Box<dyn AsyncBufRead + Send>>;

/// Finds and opens objects by name.
#[derive(Debug, Clone)]
pub struct Store {
    pub(crate) clients: Arc<Clients>,
}

impl Default for Store {
    fn default() -> Self {
        Self::new(StoreSettings::default())
    }
}

impl Store {
    /// Bytes that one request reads.
    pub const RANGE_BYTES: u64 = read::RANGE_BYTES;
    /// Upper bound on the memory of one open object: ranges read ahead and decompressed bytes.
    pub const OPEN_BYTES: u64 = read::RANGE_BYTES * (read::RANGES_AHEAD as u64 + 1) + 2 * ZSTD_BYTES as u64;

    /// Creates a store with the given settings; connects to nothing yet.
    pub fn new(settings: StoreSettings) -> Self {
        Self::with_providers(settings, Vec::new())
    }

    /// Creates a store that also knows the URL schemes of `providers`.
    pub(crate) fn with_providers(settings: StoreSettings, providers: Vec<Arc<dyn Provider>>) -> Self {
        Self { clients: Arc::new(Clients::new(settings, providers)) }
    }

    /// Returns whether a name is a URL of a remote store.
    pub fn is_remote(name: &str) -> bool {
        client::remote_scheme(name).is_some()
    }

    /// Returns a name without the query of its URL, which may hold a signature.
    pub fn redact(name: &str) -> &str {
        client::redact(name)
    }

    /// Returns a pattern that matches a name and nothing else.
    pub fn escape(name: &str) -> String {
        glob::escape(name)
    }

    /// Returns the counters of requests and bytes.
    pub fn traffic(&self) -> Arc<Traffic> {
        Arc::clone(&self.clients.traffic)
    }

    /// Lists the objects that match any of the patterns, each once, in the order of the patterns and then by name.
    ///
    /// `*`, `?`, `[…]` and `{…}` match within one path component. `{00..19}` stands for a range of names, all of which must
    /// exist, and `@NAME` for the names that the lines of a file hold.
    ///
    /// # Errors
    /// When a pattern is malformed or matches nothing, or the store refuses the listing.
    pub async fn list(&self, patterns: &[String]) -> Result<Vec<Object>, StoreError> {
        let mut objects: Vec<Object> = Vec::new();
        let mut listed = std::collections::BTreeSet::new();
        let mut names = Vec::new();
        for pattern in patterns {
            names.extend(names::expand(self, pattern).await?);
        }
        let mut found = stream::iter(names)
            .map(|name| async move {
                let (client, mut matches) = Box::pin(glob::expand(&self.clients, &name)).await?;
                if matches.is_empty() {
                    return Err(StoreError::NoMatch { pattern: client::redact(&name).to_owned() });
                }
                matches.sort_by(|one, other| one.location.cmp(&other.location));
                Ok((name, client, matches))
            })
            .buffered(CONCURRENT_LOOKUPS);
        while let Some((name, client, matches)) = found.try_next().await? {
            for meta in matches {
                if listed.insert((client.root.clone(), meta.location.clone())) {
                    objects.push(Object::new(glob::display(&client, &name, &meta.location), &client, meta));
                }
            }
        }
        drop(found);
        let names: Vec<String> = distinct_names(objects.iter().map(|object| object.url.as_str()));
        for (object, name) in objects.iter_mut().zip(names) {
            object.name = name;
        }
        Ok(objects)
    }

    /// Lists all files below folders, at any depth, in the order of their names. A file is named by its path below its folder, or
    /// below the folder that all of them share. Hidden files and folders are left out.
    ///
    /// # Errors
    /// When a folder does not exist, holds no file, or the store refuses the listing.
    pub async fn list_folders(&self, folders: &[String]) -> Result<Vec<(String, Vec<Object>)>, StoreError> {
        folder::list(&self.clients, folders).await
    }

    /// Returns whether a name is that of a folder: it ends in `/`, or is a local directory.
    pub fn is_folder(name: &str) -> bool {
        let path = name.strip_prefix("file://").unwrap_or(name);
        client::redact(name).ends_with('/') || (!Self::is_remote(name) && std::path::Path::new(path).is_dir())
    }

    /// Finds one object by its exact name.
    ///
    /// # Errors
    /// When it does not exist or cannot be reached.
    pub async fn find(&self, name: &str) -> Result<Object, StoreError> {
        let (client, location) = glob::locate(&self.clients, name)?;
        let url = client::redact(name);
        let meta = read::read_meta(&client, url, &location).await?;
        Ok(Object::new(url.to_owned(), &client, meta))
    }

    /// Computes a fingerprint of each object's content, which does not depend on its location or time.
    ///
    /// It covers the size and the first and last 64 KiB; on a web server without ranges, the size and the first 64 KiB.
    ///
    /// # Errors
    /// When an object cannot be read or has changed.
    pub async fn fingerprints(&self, objects: &[Object]) -> Result<Vec<String>, StoreError> {
        stream::iter(objects.to_vec())
            .map(|object| async move {
                if let Some(files) = object.folder() {
                    return folder::fingerprint(files).await;
                }
                let mut hasher = blake3::Hasher::new();
                hasher.update(&object.size.to_le_bytes());
                let head = FINGERPRINT_BYTES.min(object.size);
                let tail = object.size.saturating_sub(FINGERPRINT_BYTES).max(head);
                if object.size > 0 && !read::supports_ranges(&object).await? {
                    hasher.update(&read::read_head(&object, head).await?);
                } else {
                    for range in [0..head, tail..object.size].into_iter().filter(|range| !range.is_empty()) {
                        hasher.update(&read::read_range(&object, range).await?);
                    }
                }
                Ok(hasher.finalize().to_hex()[..16].to_owned())
            })
            .buffered(CONCURRENT_FINGERPRINTS)
            .try_collect()
            .await
    }

    /// Opens an object's text, decompressed; `stats` counts the stored bytes as they arrive.
    ///
    /// # Errors
    /// When the first bytes cannot be read, or show another format than text ([`sniff()`]). Later failures are
    /// [`std::io::Error`]s of the reader: pass them to [`explain_read`].
    pub async fn open(&self, object: &Object, stats: Arc<ReadStats>) -> Result<Reader, StoreError> {
        self.open_at(object, 0, stats).await
    }

    /// Opens an object's text, decompressed, at an offset.
    ///
    /// A compressed object is decompressed from its start. Of a plain object the bytes before the offset are not read, but
    /// `stats` counts them.
    ///
    /// # Errors
    /// As [`Self::open`], and when the object ends before the offset.
    pub async fn open_at(&self, object: &Object, offset: u64, stats: Arc<ReadStats>) -> Result<Reader, StoreError> {
        self.open_as(&[FileFormat::Text], object, offset, stats).await
    }

    /// Opens an object's decompressed bytes at an offset, as [`Self::open_at`], if they have one of the formats.
    ///
    /// # Errors
    /// As [`Self::open_at`].
    pub async fn open_as(
        &self,
        formats: &[FileFormat],
        object: &Object,
        offset: u64,
        stats: Arc<ReadStats>,
    ) -> Result<Reader, StoreError> {
        let before = stats.bytes();
        let (mut reader, Content { compression, format }) = self.open_any(object, Arc::clone(&stats)).await?;
        if !formats.contains(&format) {
            let (content, advice) = format.explain(compression);
            return Err(StoreError::WrongFormat { url: object.url.clone(), content, advice });
        }
        if offset == 0 {
            return Ok(reader);
        }
        if compression.is_none() && offset <= object.size && read::supports_ranges(object).await? {
            drop(reader);
            stats.skip(offset.saturating_sub(stats.bytes() - before));
            return Ok(Box::pin(StreamReader::new(read::stream_blocks(object, offset, stats).await?)));
        }
        let skipped = tokio::io::copy(&mut (&mut reader).take(offset), &mut tokio::io::sink()).await;
        if skipped.map_err(|error| explain_read(&object.url, error))? < offset {
            return Err(StoreError::Changed { url: object.url.clone() });
        }
        Ok(reader)
    }

    /// Opens an object's decompressed bytes and recognises their format, whatever it is.
    ///
    /// # Errors
    /// When the first bytes cannot be read.
    pub async fn open_any(&self, object: &Object, stats: Arc<ReadStats>) -> Result<(Reader, Content), StoreError> {
        let compressed_name = [".gz", ".zst"].iter().any(|ending| object.url.ends_with(ending));
        if object.size == 0 && compressed_name {
            // Even an empty compressed file has a header; no bytes at all are a failed download.
            return Err(StoreError::Truncated { url: object.url.clone() });
        }
        let mut stored = StreamReader::new(read::stream_blocks(object, 0, stats).await?);
        let stored_format = sniff(stored.fill_buf().await.map_err(|error| explain_read(&object.url, error))?);
        let mut reader: Reader = match stored_format {
            FileFormat::Gzip => Box::pin(GzipReader::new(stored, GZIP_BYTES)),
            FileFormat::Zstd => {
                let mut decoder = ZstdDecoder::new(stored);
                decoder.multiple_members(true);
                Box::pin(BufReader::with_capacity(ZSTD_BYTES, decoder))
            }
            format => return Ok((Box::pin(stored), Content { compression: None, format })),
        };
        let format = sniff(reader.fill_buf().await.map_err(|error| explain_read(&object.url, error))?);
        Ok((reader, Content { compression: Some(stored_format), format }))
    }

    /// Reads the decompressed content of a small object.
    ///
    /// # Errors
    /// When it does not exist, cannot be read, or is larger than `limit_bytes`.
    pub async fn read(&self, name: &str, limit_bytes: u64) -> Result<Vec<u8>, StoreError> {
        let object = self.find(name).await?;
        let mut content = Vec::new();
        let mut reader = self.open(&object, Arc::default()).await?.take(limit_bytes + 1);
        reader.read_to_end(&mut content).await.map_err(|error| explain_read(&object.url, error))?;
        if content.len() as u64 > limit_bytes {
            let reason = format!("it holds more than {}", bytesize::ByteSize(limit_bytes));
            return Err(StoreError::BadUrl { url: object.url, reason });
        }
        Ok(content)
    }
}

/// Converts a [`Reader`]'s error into one that names the object and says what to do.
pub fn explain_read(url: &str, error: std::io::Error) -> StoreError {
    match error.kind() {
        std::io::ErrorKind::UnexpectedEof => StoreError::Truncated { url: url.to_owned() },
        std::io::ErrorKind::InvalidData | std::io::ErrorKind::InvalidInput => {
            StoreError::Damaged { url: url.to_owned(), reason: error.to_string() }
        }
        _ => match error.downcast::<StoreError>() {
            Ok(error) => error,
            // Decompressors report damaged data without a specific kind.
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
    async fn compression_does_not_change_the_content() {
        let dir = tempfile::tempdir().unwrap();
        let data: Vec<u8> = (0..9_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        assert_eq!(read(&dir, &data).await.unwrap(), data);
        assert_eq!(read(&dir, &gzip(&data)).await.unwrap(), data);
        let (head, tail) = data.split_at(1_234_567);
        assert_eq!(read(&dir, &[gzip(head), gzip(tail)].concat()).await.unwrap(), data);
        assert!(read(&dir, b"").await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn open_at_reads_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        let data: Vec<u8> = (0..9_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        for (name, bytes) in [("plain", data.clone()), ("packed", gzip(&data))] {
            let path = dir.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            let store = Store::default();
            let object = store.find(path.to_str().unwrap()).await.unwrap();
            for offset in [1, 5_000_000, 9_000_000] {
                let mut rest = Vec::new();
                store.open_at(&object, offset, Arc::default()).await.unwrap().read_to_end(&mut rest).await.unwrap();
                assert_eq!(rest, data[offset as usize..], "{name} from {offset}");
            }
            let error = store.open_at(&object, 9_000_001, Arc::default()).await.err().unwrap();
            assert!(matches!(error, StoreError::Changed { .. }), "{error}");
        }
    }

    #[tokio::test]
    async fn damaged_gzip_is_refused_by_name() {
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
    async fn object_changed_while_reading_is_refused() {
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
    async fn replaced_file_is_read_to_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let [path, other] = ["part.bin", "other.bin"].map(|name| dir.path().join(name));
        std::fs::write(&path, vec![1; 3 << 20]).unwrap();
        std::fs::write(&other, vec![2; 3 << 20]).unwrap();
        let store = Store::default();
        let object = store.find(path.to_str().unwrap()).await.unwrap();
        let mut reader = store.open(&object, Arc::default()).await.unwrap();
        let mut all = vec![0; 1 << 20];
        reader.read_exact(&mut all).await.unwrap();
        std::fs::rename(&other, &path).unwrap();
        reader.read_to_end(&mut all).await.unwrap();
        assert!(all == vec![1; 3 << 20]);
        let error = store.open(&object, Arc::default()).await.err().unwrap();
        assert!(matches!(error, StoreError::Changed { .. }), "{error}");
    }

    #[tokio::test]
    async fn globs_list_each_file_once_in_order() {
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
