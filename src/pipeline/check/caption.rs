//! Checks `[caption]`: the captioning model, its images, ids and references.

use std::path::PathBuf;

use super::{Check, sample};
use crate::caption::References;
use crate::config::{CaptionConfig, RunConfig};
use crate::model::ModelError;
use crate::model::caption::{CaptionCheckpoint, CaptionDecoder};
use crate::objects::Store;
use crate::pipeline::device::model_error;
use crate::pipeline::error::{PipelineError, chain};
use crate::pipeline::hub::{self, HubModel, require_checkpoint};
use crate::pipeline::inputs::list_images;

/// Upper bound on a file of references.
const MAX_REFERENCES_BYTES: u64 = 1 << 30;

/// Checks the section and describes what `caption` would do.
pub(super) async fn check_caption(config: &RunConfig, store: &Store, check: &mut Check) {
    let Some(caption) = config.caption() else { return };
    if let Some(text) = check.ok(describe_model(config, caption, store).await) {
        check.needs.insert("caption.checkpoint".to_owned(), text);
    }
    let columns = config.images().map(|images| images.columns.clone()).unwrap_or_default();
    if let Some((input, shards)) = check.ok(list_images(store, &caption.images, caption.format, &columns).await) {
        let bytes = bytesize::ByteSize(shards.iter().map(|shard| shard.size).sum());
        let text = format!("{} files, {bytes}, {}", shards.len(), input.format.as_str());
        check.inputs.insert("caption.images".to_owned(), text);
    }
    if !caption.ids.is_empty()
        && let Some(text) = check.ok(sample::sample_ids(store, &caption.ids).await)
    {
        check.sample.insert("caption.ids".to_owned(), text);
    }
    if let Some(references) = &caption.references {
        check.ok(check_references(store, references).await);
    }
}

async fn check_references(store: &Store, name: &str) -> Result<(), PipelineError> {
    let content = store.read(name, MAX_REFERENCES_BYTES).await?;
    let read = References::read(&*content, Store::redact(name));
    read.map(drop).map_err(|error| PipelineError::Input(chain(&error)))
}

/// Opens the model and describes it; says so if its files are still to be downloaded.
async fn describe_model(config: &RunConfig, caption: &CaptionConfig, store: &Store) -> Result<String, PipelineError> {
    let dir = match hub::look_up(config, HubModel::Captioner, store).await? {
        Some(Ok(dir)) => dir,
        Some(Err(_)) => return Ok(format!("`{}` is downloaded first", caption.checkpoint)),
        None => PathBuf::from(&caption.checkpoint),
    };
    require_checkpoint("caption.checkpoint", &caption.checkpoint, &dir)?;
    let (beams, tokens) = (caption.num_beams, caption.max_new_tokens);
    let open = move || -> Result<_, ModelError> {
        let checkpoint = CaptionCheckpoint::open_with(&dir, beams, tokens)?;
        CaptionDecoder::load(&checkpoint)?;
        Ok(checkpoint)
    };
    let checkpoint = tokio::task::spawn_blocking(open).await?.map_err(model_error)?;
    Ok(format!("{} parameters, {}", checkpoint.parameters(), checkpoint.generation().describe()))
}
