//! Input objects: listing, and reads in bounded ranges pinned to one version.
//!
//! An object is named by a local path or a URL (`s3://`, `gs://`, `az://`, `https://`). [`Store::list`] expands globs and
//! [`Store::open`] reads an object front to back in ranges of 4 MiB (256 KiB for local files), two at a time. A range is
//! retried until it is complete, and refused when the object is no longer the version that was listed. gzip (several
//! members included) and zstd are recognised by their first bytes and decompressed on the fly; checksums and lengths are
//! verified.
//!
//! | part | does |
//! | --- | --- |
//! | `client` | URL → client, credentials, timeouts |
//! | `http_retry` | which failures are transient, and how long to wait |
//! | `read` | one version of an object in ranges |
//! | `gzip` | compressed bytes → decompressed ones |
//! | `glob` | patterns → objects |
//! | `listing` | the objects under a prefix, page by page |
//!
//! Durable directories are in [`crate::run_dir`]. Nothing here knows image formats or burn.

pub(crate) mod client;
mod error;
#[cfg(test)]
mod fuzz;
mod glob;
mod gzip;
pub(crate) mod http_error;
pub(crate) mod http_retry;
pub(crate) mod listing;
mod profile;
pub(crate) mod read;
mod traffic;

use std::pin::Pin;
use std::sync::Arc;

use async_compression::tokio::bufread::ZstdDecoder;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStoreExt as _};
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio_util::io::StreamReader;

pub use client::{StoreSettings, tls};
pub use error::StoreError;
pub use read::ReadStats;
pub use traffic::{Traffic, TrafficSnapshot};

use client::{Client, Clients};
use gzip::Gunzip;

/// Bytes that the decompressor of zstd hands on at a time.
const UNPACK_BYTES: usize = 256 << 10;
/// And that of gzip: with the window before them they stay in a processor's second cache.
const GUNZIP_BYTES: usize = 64 << 10;
/// Bytes at both ends of an object that its fingerprint reads. The last of a gzip file hold its checksum and length.
const FINGERPRINT_BYTES: u64 = 64 << 10;
/// Objects whose fingerprints are read at once.
const FINGERPRINTS_AT_ONCE: usize = 16;

/// A front-to-back reader of an object's unpacked bytes, which lends them from where they came or were unpacked.
pub type Reader = Pin<Box<dyn AsyncBufRead + Send>>;

/// An object as it was when it was listed.
#[derive(Debug, Clone)]
pub struct Object {
    /// Its name for a person, and in errors.
    pub url: String,
    /// Its name among those that were listed with it: the same wherever they are kept, so that what is made of them is, too.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    client: Client,
    location: Path,
    e_tag: Option<String>,
    /// Second of the last change.
    modified: i64,
}

/// Opens objects by name.
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
    /// Bytes that one open object holds at most: ranges ahead, and what is unpacked.
    pub const OPEN_BYTES: u64 = read::RANGE_BYTES * (read::RANGES_AHEAD as u64 + 1) + 2 * UNPACK_BYTES as u64;

    /// Stores as the settings say.
    pub fn new(settings: StoreSettings) -> Self {
        Self { clients: Arc::new(Clients::new(settings)) }
    }

    /// Whether a name is a URL of a remote store.
    pub fn is_remote(name: &str) -> bool {
        client::scheme(name).is_some()
    }

    /// A name as it may be shown and kept: the query of a URL of the web holds what signs it.
    pub fn shown(name: &str) -> &str {
        client::shown(name)
    }

    /// What went over the wire so far.
    pub fn traffic(&self) -> Arc<Traffic> {
        Arc::clone(&self.clients.traffic)
    }

    /// Lists the objects that any of the patterns matches: in the order of the patterns, then by name, each once.
    ///
    /// `*`, `?`, `[…]` and `{…}` match within one path component.
    ///
    /// # Errors
    /// When a pattern is malformed, matches nothing, or the listing is refused.
    pub async fn list(&self, patterns: &[String]) -> Result<Vec<Object>, StoreError> {
        let mut found: Vec<Object> = Vec::new();
        let mut known = std::collections::BTreeSet::new();
        for pattern in patterns {
            let (client, mut matches) = glob::expand(&self.clients, pattern).await?;
            if matches.is_empty() {
                return Err(StoreError::NoMatch { pattern: client::shown(pattern).to_owned() });
            }
            matches.sort_by(|one, other| one.location.cmp(&other.location));
            for meta in matches {
                if known.insert((client.root.clone(), meta.location.clone())) {
                    found.push(Object::new(glob::display(&client, pattern, &meta.location), &client, meta));
                }
            }
        }
        let names: Vec<String> = distinct_names(found.iter().map(|object| object.url.as_str()));
        for (object, name) in found.iter_mut().zip(names) {
            object.name = name;
        }
        Ok(found)
    }

    /// Finds one object by its exact name.
    ///
    /// # Errors
    /// When it is not there or cannot be reached.
    pub async fn find(&self, name: &str) -> Result<Object, StoreError> {
        let (client, location) = glob::locate(&self.clients, name)?;
        let url = client::shown(name);
        let meta = client.ask(url, "read", || client.inner.head(&location)).await?;
        Ok(Object::new(url.to_owned(), &client, meta))
    }

    /// A word for each object's content that does not depend on where it is or when it was written: of its size and its
    /// first and last 64 KiB, where a gzip file has its checksum and length. (Of a web server without ranges, of size and first.)
    ///
    /// # Errors
    /// When an object cannot be read or changed.
    pub async fn fingerprints(&self, objects: &[Object]) -> Result<Vec<String>, StoreError> {
        stream::iter(objects.to_vec())
            .map(|object| async move {
                let mut hasher = blake3::Hasher::new();
                hasher.update(&object.size.to_le_bytes());
                let head = FINGERPRINT_BYTES.min(object.size);
                let tail = object.size.saturating_sub(FINGERPRINT_BYTES).max(head);
                if object.size > 0 && !read::ranges_work(&object).await? {
                    hasher.update(&read::head(&object, head).await?);
                } else {
                    for range in [0..head, tail..object.size].into_iter().filter(|range| !range.is_empty()) {
                        hasher.update(&read::read_range(&object, range).await?);
                    }
                }
                Ok(hasher.finalize().to_hex()[..16].to_owned())
            })
            .buffered(FINGERPRINTS_AT_ONCE)
            .try_collect()
            .await
    }

    /// Opens an object's unpacked bytes. `intake` counts the stored bytes as they arrive.
    ///
    /// # Errors
    /// When the first bytes cannot be read. Later failures arrive as [`std::io::Error`]s of the reader: pass them to
    /// [`explain_read`].
    pub async fn open(&self, object: &Object, intake: Arc<ReadStats>) -> Result<Reader, StoreError> {
        self.open_at(object, 0, intake).await
    }

    /// As [`Self::open`], from an offset in the unpacked bytes on. What is before it in a packed object is unpacked all the same;
    /// in a plain one it is passed over, and counts as come.
    ///
    /// # Errors
    /// As [`Self::open`], and when the object ends before the offset.
    pub async fn open_at(&self, object: &Object, offset: u64, intake: Arc<ReadStats>) -> Result<Reader, StoreError> {
        let packed_name = [".gz", ".zst"].iter().any(|ending| object.url.ends_with(ending));
        if object.size == 0 && packed_name {
            // A compressed file of nothing still has a header; no bytes at all are a download that failed.
            return Err(StoreError::Truncated { url: object.url.clone() });
        }
        let before = intake.bytes();
        let blocks = read::blocks(object, 0, Arc::clone(&intake)).await?;
        let mut packed = StreamReader::new(blocks);
        let head = packed.fill_buf().await.map_err(|error| explain_read(&object.url, error))?;
        let mut reader: Reader = match head {
            [0x1f, 0x8b, ..] => Box::pin(Gunzip::new(packed, GUNZIP_BYTES)),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => {
                let mut unpacked = ZstdDecoder::new(packed);
                unpacked.multiple_members(true);
                Box::pin(BufReader::with_capacity(UNPACK_BYTES, unpacked))
            }
            _ if offset > 0 && offset <= object.size && read::ranges_work(object).await? => {
                drop(packed);
                intake.skip(offset.saturating_sub(intake.bytes() - before));
                return Ok(Box::pin(StreamReader::new(read::blocks(object, offset, intake).await?)));
            }
            _ => Box::pin(packed),
        };
        if offset > 0 {
            let skipped = tokio::io::copy(&mut (&mut reader).take(offset), &mut tokio::io::sink()).await;
            if skipped.map_err(|error| explain_read(&object.url, error))? < offset {
                return Err(StoreError::Changed { url: object.url.clone() });
            }
        }
        Ok(reader)
    }

    /// Reads a small object whole and unpacked, as it is.
    ///
    /// # Errors
    /// When it is not there, cannot be read, or is larger than `limit_bytes`.
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

impl Object {
    pub(crate) fn new(url: String, client: &Client, meta: ObjectMeta) -> Self {
        let client = client.clone();
        Self {
            name: distinct_names([url.as_str()]).remove(0),
            url,
            size: meta.size,
            client,
            location: meta.location,
            e_tag: meta.e_tag.map(quoted),
            modified: meta.last_modified.timestamp(),
        }
    }

    /// Whether an answer is of another version than was listed. Stores differ in what they tell: tags where both are known,
    /// else size and the second of the last change. Of equal tags, an answer of another size is one that was cut.
    fn is_other_than(&self, meta: &ObjectMeta) -> bool {
        match (&self.e_tag, &meta.e_tag) {
            (Some(listed), Some(now)) if !self.client.is_local() => *listed != quoted(now.clone()),
            (Some(listed), Some(now)) if *listed != quoted(now.clone()) => true,
            _ if self.client.is_local() => self.size != meta.size,
            _ => self.size != meta.size || self.modified != meta.last_modified.timestamp(),
        }
    }
}

/// A tag as headers have it: Azure lists it without its quotation marks.
fn quoted(tag: String) -> String {
    if tag.ends_with('"') { tag } else { format!("\"{tag}\"") }
}

/// The shortest ends of paths or URLs that name each of them alike: what follows the folder that they have in common.
fn distinct_names<'a>(urls: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let urls: Vec<&str> = urls.into_iter().collect();
    let folder = |url: &str| url.rfind('/').map_or(0, |slash| slash + 1);
    let common = urls.iter().skip(1).fold(urls.first().map_or(0, |first| folder(first)), |common, url| {
        let same = urls[0].bytes().zip(url.bytes()).take_while(|(one, other)| one == other).count();
        // Back to the end of a folder's name, which no character of several bytes is in.
        urls[0].as_bytes()[..common.min(same)].iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1)
    });
    urls.iter().map(|url| url[common..].to_owned()).collect()
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
    async fn reading_on_from_an_offset_gives_the_rest() {
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
    async fn a_file_that_is_replaced_under_the_reader_is_read_to_its_end() {
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

    #[test]
    fn names_are_the_same_wherever_the_objects_are() {
        for root in ["/data/", "s3://bucket/some/where/", "https://host/", "data/", ""] {
            let names = |names: &[&str]| {
                let urls: Vec<String> = names.iter().map(|name| format!("{root}{name}")).collect();
                distinct_names(urls.iter().map(String::as_str))
            };
            assert_eq!(names(&["images/part-0.gz"]), ["part-0.gz"]);
            assert_eq!(names(&["images/part-00.gz", "images/part-01.gz"]), ["part-00.gz", "part-01.gz"]);
            assert_eq!(
                names(&["a/part-0.gz", "b/part-0.gz", "a/part-1.gz"]),
                ["a/part-0.gz", "b/part-0.gz", "a/part-1.gz"]
            );
            assert_eq!(names(&["äö/x.gz", "äü/x.gz"]), ["äö/x.gz", "äü/x.gz"]);
            assert_eq!(names(&["x/ab/1", "x/ab", "x/ab/2"]), ["ab/1", "ab", "ab/2"]);
            assert_eq!(names(&[]), Vec::<String>::new());
        }
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
