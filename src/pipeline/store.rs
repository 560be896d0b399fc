//! Client of the object stores, configured by a machine file.

use std::sync::Arc;

use crate::config::StoreConfig;
use crate::hf_hub::Datasets;
use crate::objects::{Store, StoreSettings};

/// Opens the client.
pub(crate) fn open_store(settings: &StoreConfig) -> Store {
    let StoreConfig { endpoint, retry_budget, read_timeout } = settings.clone();
    Store::with_providers(StoreSettings { endpoint, retry_budget, read_timeout }, vec![Arc::new(Datasets)])
}
