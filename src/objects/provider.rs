//! Stores of URL schemes that other modules implement, such as `hf://`.

use std::sync::Arc;

use object_store::ObjectStore;

use super::{StoreError, StoreSettings, Traffic};

/// Opens the read-only stores of one URL scheme.
///
/// A store may fail with a [`StoreError`] inside [`object_store::Error::Generic`]: it is permanent and is reported as it
/// is. Other failures of that kind are retried.
pub(crate) trait Provider: std::fmt::Debug + Send + Sync {
    /// Returns the scheme, without `://`.
    fn scheme(&self) -> &'static str;

    /// Splits a URL into the root of its store, without a final `/`, and the key of the object.
    ///
    /// # Errors
    /// When the URL is malformed.
    fn split<'a>(&self, url: &'a str) -> Result<(String, &'a str), StoreError>;

    /// Opens the store of a root; sends no request yet.
    ///
    /// # Errors
    /// When the environment is invalid.
    fn open(
        &self,
        root: &str,
        settings: &StoreSettings,
        traffic: &Arc<Traffic>,
    ) -> Result<Arc<dyn ObjectStore>, StoreError>;
}
