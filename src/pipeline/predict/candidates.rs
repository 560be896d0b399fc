//! The captions that a projection head ranks.

use std::sync::Arc;

use crate::catalog::{ClassSource, Classes, Match};
use crate::objects::Store;
use crate::pipeline::PipelineError;
use crate::pipeline::catalog::{self, Own as RunCatalog};
use crate::pipeline::context::RunContext;

/// Source of the captions in the report, where no file lists them.
const RUN_CLASSES: &str = "the classes of the run";

/// Captions to rank.
pub(crate) struct Candidates {
    pub(super) captions: Arc<Classes>,
    /// Source of the captions in the report.
    pub(super) source: String,
}

impl Candidates {
    /// Reads the list of captions to rank: `predict.captions`, else `captions.list`. `None` where neither is set.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(super) async fn read_list(ctx: &RunContext) -> Result<Option<Self>, PipelineError> {
        let pipeline = ctx.config.pipeline();
        let listed = pipeline.predict.as_ref().map_or("", |predict| predict.captions.as_str());
        let run_list = pipeline.captions.as_ref().map_or("", |captions| captions.list.as_str());
        let name = if listed.is_empty() { run_list } else { listed };
        if name.is_empty() {
            return Ok(None);
        }
        let mut captions = Classes::new(ClassSource::List, Match::Exact);
        catalog::read_list(&ctx.store, name, &mut captions).await?;
        captions.shrink();
        Ok(Some(Self { captions: Arc::new(captions), source: Store::shown(name).to_owned() }))
    }

    /// The classes of the run.
    pub(super) fn from_classes(catalog: &RunCatalog) -> Self {
        Self { captions: Arc::clone(&catalog.classes), source: RUN_CLASSES.to_owned() }
    }

    /// Number of captions.
    pub(super) fn len(&self) -> usize {
        self.captions.len()
    }
}
