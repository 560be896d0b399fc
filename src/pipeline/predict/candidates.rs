//! Captions that a projection head ranks.

use std::sync::Arc;

use crate::catalog::{ClassSource, Classes, Texts};
use crate::objects::Store;
use crate::pipeline::catalog::{self, RunCatalog};
use crate::pipeline::context::RunContext;
use crate::pipeline::error::PipelineError;
use crate::types::MatchRule;

/// Source of the captions in the report, if no file lists them.
const RUN_CLASSES: &str = "the classes of the run";

/// Captions to rank.
pub(crate) struct Candidates {
    pub(crate) captions: Arc<Texts>,
    /// Source of the captions in the report.
    pub(crate) source: String,
    /// Number and hash of the captions.
    pub(crate) fingerprint: String,
}

impl Candidates {
    /// Reads the list of captions to rank: `predict.captions`, else `captions.list`. `None` if neither is set.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(crate) async fn read_list(ctx: &RunContext) -> Result<Option<Self>, PipelineError> {
        let listed = ctx.config.predict().and_then(|predict| predict.captions.as_deref());
        let run_list = || ctx.config.catalog().and_then(|catalog| catalog.captions.list.as_deref());
        let Some(name) = listed.or_else(run_list) else { return Ok(None) };
        let mut captions = Classes::new(ClassSource::List, MatchRule::Exact);
        catalog::read_captions(&ctx.store, name, &mut captions).await?;
        let captions = captions.into_texts();
        let mut hasher = blake3::Hasher::new();
        for caption in captions.iter() {
            hasher.update(&(caption.len() as u64).to_le_bytes()).update(caption.as_bytes());
        }
        let fingerprint = format!("{} captions, {}", captions.len(), &hasher.finalize().to_hex()[..16]);
        Ok(Some(Self { captions: Arc::new(captions), source: Store::redact(name).to_owned(), fingerprint }))
    }

    /// Returns the classes of the run as candidates.
    pub(super) fn from_classes(catalog: &RunCatalog) -> Self {
        Self { captions: Arc::clone(&catalog.texts), source: RUN_CLASSES.to_owned(), fingerprint: String::new() }
    }

    /// Returns the number of captions.
    pub(crate) fn len(&self) -> usize {
        self.captions.len()
    }
}
