//! What is below a prefix, page by page: a listing of many pages is not begun again because one failed.

use object_store::ObjectMeta;
use object_store::list::{PaginatedListOptions, PaginatedListStore as _};
use object_store::path::Path;

use super::StoreError;
use super::client::Client;

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) objects: Vec<ObjectMeta>,
    pub(crate) folders: Vec<Path>,
}

/// The objects and folders in a folder.
///
/// # Errors
/// When the listing is refused, or retry_budget ends.
pub(crate) async fn folder(client: &Client, url: &str, location: &Path) -> Result<Found, StoreError> {
    if client.s3.is_some() {
        let mut found = pages(client, url, &prefix(location), Some("/")).await?;
        // Some tools make an object of no bytes that stands for the folder itself.
        found.objects.retain(|meta| meta.location != *location);
        return Ok(found);
    }
    let found = client.ask(url, "listed", || client.inner.list_with_delimiter(Some(location))).await?;
    Ok(Found { objects: found.objects, folders: found.common_prefixes })
}

/// Every object below a folder of S3, at any depth.
///
/// # Errors
/// As [`folder`].
pub(crate) async fn below(client: &Client, url: &str, location: &Path) -> Result<Vec<ObjectMeta>, StoreError> {
    let mut found = pages(client, url, &prefix(location), None).await?.objects;
    found.retain(|meta| meta.location != *location);
    Ok(found)
}

/// The object of S3 that has this name, and every one below it.
///
/// # Errors
/// As [`folder`].
pub(crate) async fn at_or_below(client: &Client, url: &str, location: &Path) -> Result<Vec<ObjectMeta>, StoreError> {
    let mut found = pages(client, url, location.as_ref(), None).await?.objects;
    found.retain(|meta| meta.location.prefix_matches(location));
    Ok(found)
}

/// What the names in a folder start with.
fn prefix(location: &Path) -> String {
    if location.as_ref().is_empty() { String::new() } else { format!("{location}/") }
}

async fn pages(client: &Client, url: &str, prefix: &str, delimiter: Option<&'static str>) -> Result<Found, StoreError> {
    let prefix = (!prefix.is_empty()).then_some(prefix);
    let mut all = Found::default();
    let Some(s3) = &client.s3 else { return Ok(all) };
    let mut options = PaginatedListOptions { delimiter: delimiter.map(Into::into), ..PaginatedListOptions::default() };
    loop {
        let page = client.ask(url, "listed", || s3.store.list_paginated(prefix, options.clone())).await?;
        all.objects.extend(page.result.objects);
        all.folders.extend(page.result.common_prefixes);
        match page.page_token {
            Some(next) if options.page_token.as_ref() != Some(&next) => options.page_token = Some(next),
            Some(_) => {
                let reason = "the store answers with the same page of its listing again".to_owned();
                return Err(StoreError::BadUrl { url: url.to_owned(), reason });
            }
            None => return Ok(all),
        }
    }
}
