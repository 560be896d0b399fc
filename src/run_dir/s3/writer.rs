//! Writes of a process to its run directory on S3.

use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use object_store::multipart::MultipartStore as _;
use object_store::path::Path;
use object_store::{ObjectStore as _, ObjectStoreExt as _, PutMode, PutOptions, PutPayload};

use super::super::lease::Lease;
use super::CONCURRENT_REQUESTS;
use crate::objects::StoreError;
use crate::objects::client::{Client, S3};
use crate::objects::http_error::{explain, is_conflict, is_not_found, is_unsupported};
use crate::objects::read::read_small;

/// Smallest part of a larger file; S3 requires 5 MiB.
const MIN_PART_BYTES: u64 = 8 << 20;
/// Largest number of parts of an object on S3.
const MAX_PARTS: u64 = 10_000;
/// Parts of one object that are uploaded at once.
const CONCURRENT_PARTS: usize = 2;

/// Writes objects while all leases are held.
pub(super) struct Writer {
    pub(super) client: Client,
    pub(super) s3: S3,
    pub(super) leases: Vec<Arc<Lease>>,
}

impl Writer {
    /// Waits until this process holds its leases; returns at once if it has none.
    async fn may_write(&self) -> Result<(), StoreError> {
        for lease in &self.leases {
            lease.wait_until_held().await?;
        }
        Ok(())
    }

    pub(super) async fn write_object(&self, location: &Path, content: Bytes) -> Result<(), StoreError> {
        let url = self.client.url(location);
        let put = || self.s3.upload.put(location, PutPayload::from(content.clone()));
        let answer = self.client.retry_upload(&url, content.len(), || self.may_write(), put).await?;
        answer.map_err(|error| explain(&url, "written", &error))?;
        self.client.traffic.add_written(content.len());
        Ok(())
    }

    /// Writes an object if it does not exist. An existing one with the same content counts as written by this call, whose
    /// first answer may have been lost.
    pub(super) async fn create(&self, location: &Path, content: Bytes) -> Result<bool, StoreError> {
        let (client, url) = (&self.client, self.client.url(location));
        let mut retry_budget = client.retry_budget();
        loop {
            let put = || {
                let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
                self.s3.upload.put_opts(location, PutPayload::from(content.clone()), options)
            };
            match client.retry_upload(&url, content.len(), || self.may_write(), put).await? {
                Ok(_) => {
                    client.traffic.add_written(content.len());
                    return Ok(true);
                }
                // 409 means that another write was in progress, possibly our own.
                Err(error) if is_conflict(&error) => match read_small(client, location).await? {
                    Some((there, _)) => return Ok(there == content),
                    None => retry_budget.wait(&url, "written", "another write is in progress".to_owned()).await?,
                },
                Err(error) if is_unsupported(&error) => {
                    if let Some((there, _)) = read_small(client, location).await? {
                        return Ok(there == content);
                    }
                    // The lease keeps other processes away.
                    self.write_object(location, content).await?;
                    return Ok(true);
                }
                Err(error) => return Err(explain(&url, "written", &error)),
            }
        }
    }

    /// Uploads a file in parts. The object appears when all parts are complete.
    pub(super) async fn put_parts(&self, location: &Path, path: &FilePath, bytes: u64) -> Result<(), StoreError> {
        let (client, s3) = (&self.client, &self.s3.upload);
        let url = client.url(location);
        let head = || client.retry(&url, "read", || self.s3.store.head(location));
        // The earlier object may have the size of the new one.
        let before = head().await?.ok().and_then(|meta| meta.e_tag);
        let create = || s3.create_multipart(location);
        let id = client.retry_upload(&url, 0, || self.may_write(), create).await?;
        let id = id.map_err(|error| explain(&url, "written", &error))?;
        let part_bytes = MIN_PART_BYTES.max(bytes.div_ceil(MAX_PARTS));
        let upload = async {
            let starts = (0..bytes).step_by(part_bytes as usize).enumerate();
            let parts: Vec<_> = stream::iter(starts)
                .map(|(index, start)| {
                    let (id, url) = (&id, &url);
                    async move {
                        let part = read_part(path.to_owned(), start, part_bytes.min(bytes - start)).await?;
                        let put = || s3.put_part(location, id, index, PutPayload::from(part.clone()));
                        let done = client.retry_upload(url, part.len(), || self.may_write(), put).await?;
                        client.traffic.add_written(part.len());
                        done.map_err(|error| explain(url, "written", &error))
                    }
                })
                .buffered(CONCURRENT_PARTS)
                .try_collect()
                .await?;
            let complete = || s3.complete_multipart(location, &id, parts.clone());
            // The timeout grows with the size, because the store joins the parts.
            match client.retry_upload(&url, bytes as usize, || self.may_write(), complete).await? {
                Ok(_) => Ok(()),
                // The upload no longer exists if a request whose answer was lost completed it.
                Err(error) => match head().await? {
                    Ok(meta) if meta.size == bytes && (before.is_none() || meta.e_tag != before) => Ok(()),
                    _ => Err(explain(&url, "written", &error)),
                },
            }
        };
        let uploaded = upload.await;
        if uploaded.is_err() {
            // Unfinished parts would stay stored, and billed.
            self.s3.store.abort_multipart(location, &id).await.ok();
        }
        uploaded
    }

    /// Deletes objects; missing ones are not an error.
    pub(super) async fn delete(&self, locations: Vec<Path>) -> Result<(), StoreError> {
        stream::iter(locations)
            .map(Ok)
            .try_for_each_concurrent(CONCURRENT_REQUESTS, |location| async move {
                let url = self.client.url(&location);
                self.may_write().await?;
                match self.client.retry(&url, "removed", || self.client.inner.delete(&location)).await? {
                    Ok(()) => Ok(()),
                    Err(error) if is_not_found(&error) => Ok(()),
                    Err(error) => Err(explain(&url, "removed", &error)),
                }
            })
            .await
    }
}

/// Reads a part of a local file.
pub(super) async fn read_part(path: PathBuf, start: u64, bytes: u64) -> Result<Bytes, StoreError> {
    let read = tokio::task::spawn_blocking(move || {
        use std::os::unix::fs::FileExt as _;
        let mut part = vec![0; bytes as usize];
        std::fs::File::open(&path)
            .and_then(|file| file.read_exact_at(&mut part, start))
            .map_err(|error| StoreError::io(&path, "read", error))?;
        Ok(Bytes::from(part))
    });
    read.await.unwrap_or_else(|error| Err(StoreError::io("the upload", "read", std::io::Error::other(error))))
}
