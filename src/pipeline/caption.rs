//! Command `caption`: images → captioning model → captions, with their scores and a ranking by them.
//!
//! The images go through the stream of the test images, so inputs, quarantine and resumption are the same: the "feature" of an
//! image is the tokens of its caption, and a chunk of them is committed like any other. The file of captions is written once
//! all are there, and replaces an earlier one as a whole.
//!
//! Captions are a baseline beside the heads. Nothing in a run depends on them, so changed settings make them again.

mod prepare;
mod rank;
mod write;

use std::sync::Arc;
use std::time::SystemTime;

use crate::catalog::ImageFilter;
use crate::chunk::journal::Layout;
use crate::config::RunConfig;
use crate::pipeline::context::RunContext;
use crate::pipeline::error::PipelineError;
use crate::pipeline::features::{self, FeatureSource, FeaturesInput};
use crate::pipeline::images::StreamJob;
use crate::pipeline::observe::report::{CaptionReport, Report};
use crate::pipeline::records::Records;
use crate::runtime::Shutdown;
use crate::telemetry::ProgressRegistry;

use prepare::PreparedCaptions;
use write::GeneratedCaptions;

/// Writes the captions that `[caption]` asks for, or resumes an earlier start. With `wait`, waits for another process that
/// holds the run directory.
///
/// # Errors
/// When it ends early. Everything done so far is kept, and the same call resumes.
pub async fn write_captions(
    config: RunConfig,
    wait: bool,
    progress: ProgressRegistry,
    shutdown: Shutdown,
) -> Result<Report, PipelineError> {
    let started = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
    let (ctx, lock) = RunContext::open(config, None, wait, progress, shutdown).await?;
    let prepared = match prepare::prepare(&ctx).await {
        Ok(prepared) => prepared,
        Err(error) => {
            let dir = ctx.dir.clone();
            tokio::task::spawn_blocking(move || dir.abandon(Some(lock))).await?;
            return Err(error);
        }
    };
    let _lock = lock;
    for folder in [".", "journal"] {
        // Removes half-written files of a killed process.
        ctx.dir.sweep(folder, |_| true)?;
    }
    let mut records = Records::start(&ctx, None, &started, &prepare::report_name(prepared.settings.stem()))?;
    let outcome = Box::pin(run(&records.ctx, prepared, &mut records.report)).await;
    records.finish(outcome).await
}

/// Generates the captions, writes them, and ranks by them.
async fn run(ctx: &RunContext, prepared: PreparedCaptions, report: &mut Report) -> Result<(), PipelineError> {
    let PreparedCaptions { settings, model, input, shards, ids, generation, test_set, references, ranking } = prepared;
    let device = model.open_device(ctx).await?;
    report.device = Some(model.device.to_string());
    let stem = prepare::chunk_stem(settings.stem());
    let filter = ImageFilter::Urls(Arc::clone(test_set.urls()));
    let job = StreamJob::new(ctx, "images to caption", &model.content, (input, shards), filter, &generation);
    let source = FeatureSource::Captioner { checkpoint: &model.checkpoint, device: &device };
    let features = FeaturesInput { job, layout: Layout::predict(&stem), name: "captions", source };
    let output = features::run(ctx, features).await?;

    let captions = GeneratedCaptions::read(ctx, &output.features, &model.decoder, test_set.urls()).await?;
    let written = captions.write(ctx, &settings.output, &ids, test_set.urls(), references.as_ref()).await?;
    report.add_output(&ctx.dir, "captions", &settings.output);
    let mut own = CaptionReport {
        checkpoint: settings.checkpoint.clone(),
        files: model.fingerprint.clone(),
        parameters: model.checkpoint.parameters(),
        search: model.checkpoint.generation().describe(),
        ids: test_set.ids,
        images: test_set.urls().len() as u64,
        ids_without_caption: written.without_caption,
        distinct: captions.texts.len() as u64,
        tally: output.report.tally,
        scores: written.scores,
        ranking: None,
    };
    if let Some(ranking) = ranking {
        let name = settings.ranked_output();
        own.ranking = Some(ranking.run(ctx, &device, &captions, (&ids, &test_set), &name).await?);
        report.add_output(&ctx.dir, "ranking by captions", &name);
    }
    report.captions = Some(own);
    Ok(())
}
