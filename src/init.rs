//! Command `init`: looks at files of unknown kind and composes a pipeline file for them.
//!
//! Pictures and archives are recognised by their names. Of every other group of files, such as `part-*.parquet`, the start
//! of the first file is read. The largest group of images is the input. Captions come from the same files, from a table
//! that names the same images, from files beside the pictures, or from the names of their folders. The captions determine
//! the head: captions that repeat often become classes; captions that mostly differ need a text head.
//!
//! | part | does |
//! | --- | --- |
//! | `survey` | files and folders → groups of files, and pictures |
//! | `content` | start of a file → its format, columns and first captions |
//! | `choice` | groups → inputs, captions and head |
//! | `pictures` | pictures and their captions |
//! | `compose` | the choice → text of the pipeline file |

mod choice;
mod compose;
mod content;
mod parquet;
mod pictures;
mod survey;

use serde::Serialize;

use crate::config::StoreConfig;
use crate::pipeline::{PipelineError, open_store};

pub use choice::Head;

/// Request for a pipeline file.
#[derive(Debug, Clone)]
pub struct InitRequest {
    /// Folders, files, globs or URLs to look at.
    pub paths: Vec<String>,
    /// Directory of the run.
    pub run_dir: String,
    /// Backbone; `None` for the default.
    pub model: Option<String>,
    /// Text encoder; `None` for the default.
    pub encoder: Option<String>,
}

/// Findings, and the pipeline file for them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Init {
    /// Findings as (name, value), in reading order.
    pub found: Vec<(String, String)>,
    /// Files that are not used, with the reason.
    pub left_out: Vec<String>,
    /// Chosen head, or `none`.
    pub head: Head,
    /// Reason for the choice.
    pub reason: String,
    /// Text of the pipeline file.
    pub pipeline: String,
}

/// Looks at files and composes a pipeline file; writes nothing.
///
/// # Errors
/// When a path cannot be read, or holds no images that the program reads.
pub async fn init(request: &InitRequest, store: &StoreConfig) -> Result<Init, PipelineError> {
    let store = open_store(store);
    let mut survey = survey::Survey::default();
    for path in &request.paths {
        Box::pin(survey.add(&store, path)).await?;
    }
    let choice = Box::pin(choice::choose(&store, survey)).await?;
    let pipeline = compose::compose(request, &choice);
    let choice::Choice { found, left_out, head, reason, .. } = choice;
    Ok(Init { found, left_out, head, reason, pipeline })
}
