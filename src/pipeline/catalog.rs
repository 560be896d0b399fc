//! Stage `catalog`: captions and pairs → classes and join index.
//!
//! The result is kept in `catalog/` of the run directory, so that the pairs are read once. Its journal entry exists if
//! and only if the files are complete. While the pairs are read, a [`checkpoint`] every few seconds bounds the work
//! that a kill loses.
//!
//! Once the catalog is saved, memory holds the join index alone. The texts and languages of the classes stay in
//! `catalog/classes.parquet`, and a stage that needs them reads them: [`StoredClasses`], [`RunCatalog`].

mod build;
mod checkpoint;
mod files;

use std::sync::Arc;

use crate::catalog::JoinIndex;
use crate::config::CatalogConfig;
use crate::objects::Object;
use crate::pipeline::context::RunContext;
use crate::pipeline::error::PipelineError;
use crate::pipeline::inputs::PairInput;
use crate::pipeline::observe::report::{CatalogReport, StageRemarks};

pub(crate) use build::read_captions;
pub(crate) use files::{RunCatalog, StoredClasses, count_classes, is_complete};

use checkpoint::CheckpointWriter;

/// Remark on pairs of which no row has a label.
pub(crate) const NO_LABEL: &str = "no row of the pairs has a caption that is a class, so no image has a label: the published test captions hardly occur \
     in the training rows; ways out: `captions.classes = \"train\"` (the training captions are the classes) with `[head] kind \
     = \"text\"` (ranks captions that were never seen), or `captions.match = \"title\"` (compare page titles alone)";

/// Labels of a run, and the number of its classes.
#[derive(Debug)]
pub(crate) struct Catalog {
    /// Number of captions that are classes.
    pub(crate) classes: usize,
    /// Classes of each image URL.
    pub(crate) index: Arc<JoinIndex>,
    /// Counts for the report.
    pub(crate) report: CatalogReport,
}

/// Input of the stage.
pub(crate) struct CatalogInput<'a> {
    /// Source of the classes, and filter of the pairs.
    pub(crate) config: &'a CatalogConfig,
    /// Format and columns of the pairs.
    pub(crate) input: PairInput,
    /// Files of pairs, in order.
    pub(crate) shards: Vec<Object>,
    /// Hash of everything that the catalog depends on.
    pub(crate) generation: String,
}

/// Output of the stage.
pub(crate) struct CatalogOutput {
    /// Classes and labels.
    pub(crate) catalog: Catalog,
    /// Remarks for the report.
    pub(crate) remarks: StageRemarks,
}

/// Loads the catalog, or builds and saves it.
///
/// # Errors
/// When an input or the run directory fails, or there is no class; [`PipelineError::Stopped`] when the run has to stop.
pub(crate) async fn run(ctx: &RunContext, input: CatalogInput<'_>) -> Result<CatalogOutput, PipelineError> {
    let CatalogInput { config, input, shards, generation } = input;
    let catalog = if let Some(catalog) = files::load(&ctx.dir, &config.captions, &generation)? {
        catalog
    } else {
        let stage_progress = ctx.progress.stage("pairs", "rows", 0);
        let (writer, checkpoint) = CheckpointWriter::open(ctx.dir.clone(), &generation)?;
        let built = build::build(ctx, config, (&input, &shards), &stage_progress, writer, checkpoint).await?;
        let Some(built) = built else { return Err(ctx.stopped()) };
        let catalog = files::save(&ctx.dir, built, &generation)?;
        CheckpointWriter::remove_all(&ctx.dir)?;
        ctx.events.stage_finished(&stage_progress);
        catalog
    };
    let mut remarks = StageRemarks::default();
    if catalog.report.labelled_rows == 0 {
        remarks.add_note(NO_LABEL);
    }
    Ok(CatalogOutput { catalog, remarks })
}
