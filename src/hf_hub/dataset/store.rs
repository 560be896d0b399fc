//! Read-only store of one data set.
//!
//! The hub redirects a large file to another host by a URL that is signed for a short time. That URL is reused for the
//! next ranges, without the token, until the host refuses it.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::path::Path;
use object_store::{
    Attributes, CopyOptions, Error, Extensions, GetOptions, GetRange, GetResult, GetResultPayload, ListResult,
    MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult,
};
use reqwest::header::HeaderName;
use reqwest::{Method, Response};
use tokio::sync::OnceCell;
use url::Url;

use super::super::headers::range_start;
use super::super::http::{Http, RequestError, describe, name};
use super::super::settings::Settings;
use super::listing::{Entry, find_commit, list_folder};
use super::name::DatasetName;
use crate::objects::{StoreError, StoreSettings, Traffic};

/// Largest file of which a range may be cut out of the whole: git holds larger ones as pointers, and their hosts know ranges.
const MAX_WHOLE_BYTES: u64 = 32 << 20;
/// Name of the store in errors of `object_store`.
const STORE: &str = "hub";
const REPO_COMMIT: HeaderName = HeaderName::from_static("x-repo-commit");

type Folder = Arc<OnceCell<Arc<Vec<Entry>>>>;

/// Store of one data set at one commit.
#[derive(Debug, Clone)]
pub(super) struct DatasetStore(Arc<Dataset>);

#[derive(Debug)]
struct Dataset {
    http: Http,
    name: DatasetName,
    commit: OnceCell<String>,
    /// Listings of folders; a commit never changes.
    folders: Mutex<HashMap<String, Folder>>,
    /// Signed URLs of large files.
    signed: Mutex<HashMap<Path, Url>>,
}

impl std::fmt::Display for DatasetStore {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.name.fmt(out)
    }
}

/// Wraps an error that no further attempt can avoid.
fn permanent(error: StoreError) -> Error {
    Error::Generic { store: STORE, source: Box::new(error) }
}

/// Wraps a failure after which another attempt may succeed.
fn transient(reason: String) -> Error {
    Error::Generic { store: STORE, source: reason.into() }
}

impl DatasetStore {
    pub(super) fn open(
        name: DatasetName,
        hub: &Settings,
        settings: &StoreSettings,
        traffic: &Arc<Traffic>,
    ) -> Result<Arc<dyn ObjectStore>, StoreError> {
        let http = Http::open(hub, settings.retry_budget, settings.read_timeout, Arc::clone(traffic))?;
        let (commit, folders, signed) = (OnceCell::new(), Mutex::default(), Mutex::default());
        Ok(Arc::new(Self(Arc::new(Dataset { http, name, commit, folders, signed }))))
    }
}

impl Dataset {
    async fn commit(&self) -> Result<&str, StoreError> {
        let commit = self.commit.get_or_try_init(|| find_commit(&self.http, &self.name));
        Ok(commit.await?)
    }

    /// Lists a folder, once.
    async fn folder(&self, folder: &str) -> Result<Arc<Vec<Entry>>, StoreError> {
        let cell = {
            let mut folders = self.folders.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(folders.entry(folder.to_owned()).or_default())
        };
        let listed = cell.get_or_try_init(|| async {
            let commit = self.commit().await?;
            list_folder(&self.http, &self.name, commit, folder).await.map(Arc::new)
        });
        Ok(Arc::clone(listed.await?))
    }

    /// Lists the files below a folder, at any depth.
    async fn list_below(&self, folder: &str) -> Result<Vec<ObjectMeta>, StoreError> {
        let (mut folders, mut files) = (vec![folder.to_owned()], Vec::new());
        while let Some(folder) = folders.pop() {
            for entry in self.folder(&folder).await?.iter() {
                match Path::parse(&entry.path) {
                    Ok(location) if entry.is_file() => files.push(describe_file(entry, location)),
                    Ok(_) => folders.push(entry.path.clone()),
                    Err(_) => {}
                }
            }
        }
        Ok(files)
    }

    /// Returns the description of a file.
    async fn stat(&self, location: &Path) -> Result<ObjectMeta, StoreError> {
        let path = location.as_ref();
        let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
        let entries = self.folder(folder).await?;
        let entry = entries.iter().find(|entry| entry.is_file() && entry.path == path);
        let entry = entry.ok_or_else(|| StoreError::NotFound { url: self.url(location), answer: String::new() })?;
        Ok(describe_file(entry, location.clone()))
    }

    fn url(&self, location: &Path) -> String {
        format!("{}/{location}", self.name)
    }

    /// Requests a range of a file.
    async fn request(&self, location: &Path, commit: &str, range: &str) -> Result<Response, RequestError> {
        let signed = self.signed.lock().unwrap_or_else(PoisonError::into_inner).get(location).cloned();
        if let Some(url) = signed {
            match self.http.send(Method::GET, url, Some(range), true).await {
                Ok(response) if response.status().is_success() => return Ok(response),
                // The endpoint signs another URL.
                _ => self.signed.lock().unwrap_or_else(PoisonError::into_inner).remove(location),
            };
        }
        let url = self.http.file_url(&self.name.path(), commit, location.as_ref());
        let response = self.http.send(Method::GET, url.clone(), Some(range), true).await?;
        let elsewhere = response.url().origin() != url.origin();
        if response.status().is_success() && elsewhere {
            let mut signed = self.signed.lock().unwrap_or_else(PoisonError::into_inner);
            signed.insert(location.clone(), response.url().clone());
        }
        Ok(response)
    }

    /// Opens a range of a file and checks that the answer is that range of the listed version.
    /// Returns the answer and the number of bytes in it before the range.
    async fn open_range(&self, meta: &ObjectMeta, range: Range<u64>) -> Result<(Response, u64), RequestError> {
        let commit = self.commit().await?;
        let text = format!("bytes={}-{}", range.start, range.end - 1);
        let response = self.request(&meta.location, commit, &text).await?;
        let url = self.url(&meta.location);
        let header = |name: HeaderName| response.headers().get(name).and_then(|value| value.to_str().ok());
        if header(REPO_COMMIT).is_some_and(|other| other != commit) {
            return Err(StoreError::Mismatch { url, wrong: "the files of another commit".to_owned() }.into());
        }
        match response.status().as_u16() {
            206 => {
                let total =
                    header(reqwest::header::CONTENT_RANGE).and_then(|value| value.rsplit('/').next()?.parse().ok());
                if total.is_some_and(|total: u64| total != meta.size) {
                    let wrong = format!("{} bytes instead of {}", total.unwrap_or_default(), meta.size);
                    return Err(StoreError::Mismatch { url, wrong }.into());
                }
                if range_start(response.headers()) != Some(range.start) {
                    return Err(self.http.not_a_hub("it answers with another range than the requested one").into());
                }
                Ok((response, 0))
            }
            200 if meta.size <= MAX_WHOLE_BYTES => Ok((response, range.start)),
            200..300 => {
                let server = name(response.url());
                let reason = format!("{server} answers a request for a range with the whole file");
                Err(StoreError::BadUrl { url, reason }.into())
            }
            416 => Err(StoreError::Mismatch { url, wrong: format!("fewer than {} bytes", meta.size) }.into()),
            _ => Err(self.http.explain(&response, &self.name.to_string(), &url).into()),
        }
    }
}

/// Returns `take` bytes of a body after the first `skip`.
fn cut(
    body: BoxStream<'static, Result<Bytes, Error>>,
    skip: u64,
    take: u64,
) -> BoxStream<'static, Result<Bytes, Error>> {
    let cut = body.scan((skip, take), |(skip, take), part| {
        let part = part.map(|part| {
            let from = part.len().min(*skip as usize);
            let to = part.len().min(from.saturating_add(*take as usize));
            *skip -= from as u64;
            *take -= (to - from) as u64;
            part.slice(from..to)
        });
        std::future::ready(Some(part))
    });
    cut.boxed()
}

/// Describes a file by its entry. The commit pins its time, so the hash alone tells versions apart.
fn describe_file(entry: &Entry, location: Path) -> ObjectMeta {
    ObjectMeta {
        location,
        last_modified: std::time::UNIX_EPOCH.into(),
        size: entry.bytes(),
        e_tag: Some(format!("\"{}\"", entry.hash())),
        version: None,
    }
}

#[async_trait]
impl ObjectStore for DatasetStore {
    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult, Error> {
        let meta = self.0.stat(location).await.map_err(permanent)?;
        let range = match options.range {
            None => 0..meta.size,
            Some(GetRange::Bounded(range)) => range.start..range.end.min(meta.size),
            Some(GetRange::Offset(start)) => start..meta.size,
            Some(GetRange::Suffix(bytes)) => meta.size.saturating_sub(bytes)..meta.size,
        };
        let payload = if options.head || range.is_empty() {
            GetResultPayload::Stream(stream::empty().boxed())
        } else {
            let (response, skip) = self.0.open_range(&meta, range.clone()).await.map_err(|error| match error {
                RequestError::Transient(reason) => transient(reason),
                RequestError::Permanent(error) => permanent(error),
                RequestError::OutOfRange => permanent(StoreError::Changed { url: self.0.url(location) }),
            })?;
            let url = response.url().clone();
            let body = response.bytes_stream().map_err(move |error| transient(describe(&error, &url)));
            GetResultPayload::Stream(cut(body.boxed(), skip, range.end - range.start))
        };
        let (attributes, extensions) = (Attributes::default(), Extensions::default());
        Ok(GetResult { payload, meta, range, attributes, extensions })
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult, Error> {
        let folder = prefix.map(Path::as_ref).unwrap_or_default();
        let entries = self.0.folder(folder).await.map_err(permanent)?;
        let (mut objects, mut common_prefixes) = (Vec::new(), Vec::new());
        for entry in entries.iter() {
            // A name that is not a path of `object_store`, such as one with `//`, cannot be asked for.
            let Ok(location) = Path::parse(&entry.path) else { continue };
            if entry.is_file() {
                objects.push(describe_file(entry, location));
            } else {
                common_prefixes.push(location);
            }
        }
        Ok(ListResult { objects, common_prefixes, extensions: Extensions::default() })
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta, Error>> {
        let dataset = Arc::clone(&self.0);
        let prefix = prefix.cloned().unwrap_or_default();
        let files = async move { dataset.list_below(prefix.as_ref()).await.map_err(permanent) };
        stream::once(files).map_ok(|files| stream::iter(files.into_iter().map(Ok))).try_flatten().boxed()
    }

    async fn put_opts(&self, location: &Path, _: PutPayload, _: PutOptions) -> Result<PutResult, Error> {
        Err(unsupported("writing", location))
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        _: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>, Error> {
        Err(unsupported("writing", location))
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path, Error>>,
    ) -> BoxStream<'static, Result<Path, Error>> {
        locations.map(|location| Err(unsupported("removal", &location?))).boxed()
    }

    async fn copy_opts(&self, from: &Path, _: &Path, _: CopyOptions) -> Result<(), Error> {
        Err(unsupported("writing", from))
    }
}

/// Returns the error for requests that a data set does not support.
fn unsupported(what: &str, location: &Path) -> Error {
    Error::NotImplemented { operation: format!("{what} of `{location}`"), implementer: STORE.to_owned() }
}
