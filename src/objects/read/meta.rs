//! Size and version of an object.

use object_store::path::Path;
use object_store::{Error, GetOptions, GetRange, ObjectMeta, ObjectStoreExt as _};

use super::super::StoreError;
use super::super::client::Client;
use super::super::http_error::{explain, is_out_of_range, may_refuse_head};

/// Returns the size and version of an object.
///
/// Web servers may refuse `HEAD`: a signed URL is valid for one method, and some servers do not implement it. They are then
/// asked for the first byte, or, if they do not support ranges or the object is empty, for the whole object, of which the
/// body is not read.
///
/// # Errors
/// When the object does not exist or cannot be reached.
pub(in super::super) async fn read_meta(client: &Client, url: &str, location: &Path) -> Result<ObjectMeta, StoreError> {
    let refused = match client.retry(url, "read", || client.inner.head(location)).await? {
        Ok(meta) => return Ok(meta),
        Err(error) => error,
    };
    if !client.is_web() || !may_refuse_head(&refused) {
        return Err(explain(url, "read", &refused));
    }
    let get = |range| client.inner.get_opts(location, GetOptions { range, ..GetOptions::default() });
    match client.retry(url, "read", || get(Some(GetRange::Bounded(0..1)))).await? {
        Ok(answer) => Ok(answer.meta),
        Err(error) if matches!(error, Error::NotSupported { .. }) || is_out_of_range(&error) => {
            client.request(url, "read", || get(None)).await.map(|answer| answer.meta)
        }
        Err(error) => Err(explain(url, "read", &error)),
    }
}
