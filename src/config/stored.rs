//! The pipeline as `run.toml` stores it.

use serde::{Deserialize, Serialize};

use super::parse::PipelineFile;
use super::raw::RawPipeline;

/// A pipeline with all defaults filled in, in the form of a pipeline file.
///
/// It is a record of a run: it can be written, read and shown, but it is not a checked configuration.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StoredPipeline(pub(super) RawPipeline);

impl StoredPipeline {
    /// Returns the name of the submission; `None` without `[predict]`.
    pub fn output(&self) -> Option<&str> {
        self.0.predict.as_ref().map(|predict| predict.output.as_str())
    }

    /// Calls `edit` with the path, glob or URL of every input, for instance to remove secrets from it.
    pub fn edit_inputs(&mut self, mut edit: impl FnMut(&mut String)) {
        let pipeline = &mut self.0;
        pipeline.captions.iter_mut().map(|captions| &mut captions.list).for_each(&mut edit);
        pipeline.pairs.iter_mut().flat_map(|pairs| &mut pairs.shards).for_each(&mut edit);
        pipeline.images.iter_mut().flat_map(|images| &mut images.shards).for_each(&mut edit);
        if let Some(predict) = &mut pipeline.predict {
            let single = [&mut predict.ids, &mut predict.truth, &mut predict.captions, &mut predict.blend];
            predict.images.iter_mut().chain(single).for_each(&mut edit);
        }
        if let Some(caption) = &mut pipeline.caption {
            caption.images.iter_mut().chain([&mut caption.ids, &mut caption.references]).for_each(edit);
        }
    }
}

impl From<StoredPipeline> for PipelineFile {
    fn from(stored: StoredPipeline) -> Self {
        Self(stored.0)
    }
}
