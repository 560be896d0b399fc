//! Client of the object stores, configured by a machine file.

use crate::config::StoreConfig;
use crate::objects::{Store, StoreSettings};

/// Opens the client.
pub(crate) fn open_store(settings: &StoreConfig) -> Store {
    let StoreConfig { endpoint, retry_budget, read_timeout } = settings.clone();
    Store::new(StoreSettings { endpoint, retry_budget, read_timeout })
}
