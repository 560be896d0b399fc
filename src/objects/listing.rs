//! Lists the objects under a prefix page by page, so that a failure repeats one page only.

use object_store::ObjectMeta;
use object_store::list::{PaginatedListOptions, PaginatedListStore as _};
use object_store::path::Path;

use super::StoreError;
use super::client::Client;

/// Result of a listing.
#[derive(Debug, Default)]
pub(crate) struct Listed {
    pub(crate) objects: Vec<ObjectMeta>,
    pub(crate) folders: Vec<Path>,
}

/// Lists the objects and folders directly in a folder.
///
/// # Errors
/// When the store refuses the listing, or the retry budget is spent.
pub(crate) async fn list_folder(client: &Client, url: &str, location: &Path) -> Result<Listed, StoreError> {
    if client.s3.is_some() {
        let mut listed = list_pages(client, url, &folder_prefix(location), Some("/")).await?;
        // Some tools create an empty object that stands for the folder itself.
        listed.objects.retain(|meta| meta.location != *location);
        return Ok(listed);
    }
    let listed = client.request(url, "listed", || client.inner.list_with_delimiter(Some(location))).await?;
    Ok(Listed { objects: listed.objects, folders: listed.common_prefixes })
}

/// Lists all objects below a folder of S3, at any depth.
///
/// # Errors
/// As [`list_folder`].
pub(crate) async fn list_below(client: &Client, url: &str, location: &Path) -> Result<Vec<ObjectMeta>, StoreError> {
    let mut listed = list_pages(client, url, &folder_prefix(location), None).await?.objects;
    listed.retain(|meta| meta.location != *location);
    Ok(listed)
}

/// Lists the object of S3 with this name and all objects below it.
///
/// # Errors
/// As [`list_folder`].
pub(crate) async fn list_at_or_below(
    client: &Client,
    url: &str,
    location: &Path,
) -> Result<Vec<ObjectMeta>, StoreError> {
    let mut listed = list_pages(client, url, location.as_ref(), None).await?.objects;
    listed.retain(|meta| meta.location.prefix_matches(location));
    Ok(listed)
}

/// Returns the prefix of all names in a folder.
fn folder_prefix(location: &Path) -> String {
    if location.as_ref().is_empty() { String::new() } else { format!("{location}/") }
}

async fn list_pages(
    client: &Client,
    url: &str,
    prefix: &str,
    delimiter: Option<&'static str>,
) -> Result<Listed, StoreError> {
    let prefix = (!prefix.is_empty()).then_some(prefix);
    let mut listed = Listed::default();
    let Some(s3) = &client.s3 else { return Ok(listed) };
    let mut options = PaginatedListOptions { delimiter: delimiter.map(Into::into), ..PaginatedListOptions::default() };
    loop {
        let page = client.request(url, "listed", || s3.store.list_paginated(prefix, options.clone())).await?;
        listed.objects.extend(page.result.objects);
        listed.folders.extend(page.result.common_prefixes);
        match page.page_token {
            Some(next) if options.page_token.as_ref() != Some(&next) => options.page_token = Some(next),
            Some(_) => {
                let reason = "the store answers with the same page of its listing again".to_owned();
                return Err(StoreError::BadUrl { url: url.to_owned(), reason });
            }
            None => return Ok(listed),
        }
    }
}
