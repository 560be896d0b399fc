//! Data sets of the hub as inputs: `hf://datasets/ORG/NAME[@REVISION]/PATH`.
//!
//! A store belongs to one repository and is pinned to the commit that its revision had at the first request. Sizes and
//! versions come from the hub's listing; contents are read in ranges and never stored. In offline mode the files are those
//! that another client downloaded into the cache.

mod listing;
mod name;
mod store;

use std::sync::Arc;

use object_store::ObjectStore;
use object_store::local::LocalFileSystem;

use super::cache::Cache;
use super::settings::Settings;
use crate::objects::{Provider, StoreError, StoreSettings, Traffic};
use name::DatasetName;
use store::DatasetStore;

/// Opens data sets with the endpoint, token and cache of this process's environment.
#[derive(Debug)]
pub(crate) struct Datasets;

impl Provider for Datasets {
    fn scheme(&self) -> &'static str {
        name::SCHEME
    }

    fn split<'a>(&self, url: &'a str) -> Result<(String, &'a str), StoreError> {
        let (name, key) = DatasetName::split(url)?;
        Ok((name.to_string(), key))
    }

    fn open(
        &self,
        root: &str,
        settings: &StoreSettings,
        traffic: &Arc<Traffic>,
    ) -> Result<Arc<dyn ObjectStore>, StoreError> {
        let (name, _) = DatasetName::split(root)?;
        let hub = Settings::from_env();
        if hub.offline { open_cached(&name, &hub) } else { DatasetStore::open(name, &hub, settings, traffic) }
    }
}

/// Opens the cached snapshot of a data set.
fn open_cached(name: &DatasetName, hub: &Settings) -> Result<Arc<dyn ObjectStore>, StoreError> {
    let cache = Cache::of_dataset(&hub.cache, &name.repo);
    let snapshot = cache.resolve_commit(&name.revision).map(|commit| cache.snapshot(&commit));
    let Some(snapshot) = snapshot.filter(|snapshot| snapshot.is_dir()) else {
        return Err(StoreError::NotCached {
            repo: name.to_string(),
            lack: "it has nothing of this revision".to_owned(),
            cache: hub.cache.display().to_string(),
            hint: "HF_HUB_OFFLINE is set: unset it to stream the files, or download the data set with another client first",
        });
    };
    tracing::warn!(dataset = %name, "HF_HUB_OFFLINE is set: only the files of the data set that are in the cache are read");
    let store = LocalFileSystem::new_with_prefix(&snapshot)
        .map_err(|error| StoreError::io(&snapshot, "opened", std::io::Error::other(error)))?;
    Ok(Arc::new(store))
}
