//! Bytes of an input object → push parser, in bounded steps.

use tokio::io::AsyncBufReadExt as _;

use crate::corpus::PushParser;
use crate::objects::{Reader, explain_read};
use crate::pipeline::error::PipelineError;

/// Upper bound on the bytes fed to a parser at once.
pub(crate) const FEED_BYTES: usize = 256 << 10;

/// Feeds the parser the next bytes of the reader, at most [`FEED_BYTES`], or tells it that the object has ended.
/// Returns whether more may follow.
///
/// # Errors
/// When the object cannot be read.
pub(crate) async fn feed_parser(
    reader: &mut Reader,
    parser: &mut impl PushParser,
    url: &str,
) -> Result<bool, PipelineError> {
    let bytes = reader.fill_buf().await.map_err(|error| explain_read(url, error))?;
    if bytes.is_empty() {
        parser.finish();
        return Ok(false);
    }
    let fed = bytes.len().min(FEED_BYTES);
    parser.feed(&bytes[..fed]);
    reader.consume(fed);
    Ok(true)
}
