//! One quarantined row: what it holds, and its picture if it starts as one.
//!
//! The bytes may be anything, and may be hostile. They leave the server under the content type of a picture that they start as, or
//! as text in JSON; never as markup. The answer may not be opened as a page of this site, and runs nothing if it is.

use std::sync::Arc;

use axum::extract::{Path, Query, State};
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use super::{App, Failure, quarantine};
use crate::explore::{InputRow, RowPlace, TRAIN_STREAM};

/// Policy of bytes from a corpus: nothing of them may run or load, wherever they are opened.
const SANDBOX: &str = "default-src 'none'; sandbox";

/// Query of a row.
#[derive(Debug, Deserialize)]
pub(super) struct Choice {
    stream: String,
    shard: u32,
    row: u64,
}

/// The row that was read last, so that its picture is not read again. Its lock lets one row be read at a time; each answer
/// has a copy of the bytes.
pub(super) type LastRow = Mutex<Option<(usize, RowPlace, Arc<InputRow>)>>;

/// Description of a row.
#[derive(Debug, Serialize)]
struct Shown {
    shard: String,
    row: u64,
    url: Option<String>,
    reason: String,
    detail: String,
    /// Number of bytes.
    bytes: usize,
    /// The bytes in a few words.
    description: &'static str,
    /// True if a browser may be able to show them.
    is_picture: bool,
    /// First bytes in hexadecimal and as ASCII.
    dump: String,
    /// Command that writes the bytes to a file.
    command: String,
}

/// Answers what a row holds.
pub(super) async fn show(
    State(app): State<App>,
    Path(number): Path<usize>,
    Query(choice): Query<Choice>,
) -> Result<Response, Failure> {
    let run = app.run(number)?;
    let (directory, wanted) = (run.directory.clone(), (choice.stream.clone(), choice.shard, choice.row));
    let recorded = super::read(move || quarantine::find(&directory, &wanted.0, wanted.1, wanted.2)).await?;
    let recorded = recorded.ok_or_else(|| Failure::not_found("the run has not quarantined such a row"))?;
    let row = read(&app, number, &choice).await?;
    let same = |one: &Option<String>, other: &Option<String>| one.is_none() || other.is_none() || one == other;
    if !same(&recorded.image_url, &row.url) {
        return Err(Failure::conflict(
            "the inputs no longer hold this row where the run found it: they have changed since",
        ));
    }
    let content_type = row.content_type();
    super::json(&Shown {
        shard: row.shard.clone(),
        row: choice.row,
        url: recorded.image_url,
        reason: recorded.reason,
        detail: recorded.detail,
        bytes: row.bytes.len(),
        description: row.description(),
        is_picture: content_type.is_some(),
        dump: row.dump(),
        command: command(run.name(), &choice),
    })
}

/// Answers the bytes of a row that starts as a picture.
pub(super) async fn picture(
    State(app): State<App>,
    Path(number): Path<usize>,
    Query(choice): Query<Choice>,
) -> Result<Response, Failure> {
    let row = read(&app, number, &choice).await?;
    let Some(content_type) = row.content_type() else {
        return Err(Failure::conflict("the row holds no picture that browsers show"));
    };
    Ok(untrusted(content_type, row.bytes.clone()))
}

/// Answers bytes of a corpus as a picture, and as nothing else.
pub(super) fn untrusted(content_type: &'static str, bytes: Vec<u8>) -> Response {
    let headers = [
        (header::CONTENT_TYPE, content_type),
        (header::CONTENT_SECURITY_POLICY, SANDBOX),
        (header::CONTENT_DISPOSITION, "attachment"),
    ];
    (headers, bytes).into_response()
}

async fn read(app: &App, number: usize, choice: &Choice) -> Result<Arc<InputRow>, Failure> {
    let place = RowPlace { stream: choice.stream.clone(), shard: choice.shard, row: choice.row };
    let explorer = app.run(number)?.explorer;
    let mut last = app.last_row.lock().await;
    if let Some((run, known, row)) = &*last
        && (*run, known) == (number, &place)
    {
        return Ok(Arc::clone(row));
    }
    // Frees the memory of the row before.
    *last = None;
    let row = Arc::new(explorer.input_row(&place).await.map_err(|error| Failure::unusable(&error))?);
    *last = Some((number, place, Arc::clone(&row)));
    Ok(row)
}

/// Returns the command that writes the bytes of a row to a file.
fn command(run: &str, choice: &Choice) -> String {
    let quote = |text: &str| format!("'{}'", text.replace('\'', "'\\''"));
    let stream = if choice.stream == TRAIN_STREAM { String::new() } else { format!("{}:", choice.stream) };
    let place = format!("{stream}{}/{}", choice.shard, choice.row);
    format!("wikicap-pipeline inspect {} --row {} --output row.bin", quote(run), quote(&place))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_quotes_names_for_the_shell() {
        let choice = |stream: &str| Choice { stream: stream.to_owned(), shard: 3, row: 17 };
        assert_eq!(
            command("runs/it's", &choice("train")),
            "wikicap-pipeline inspect 'runs/it'\\''s' --row '3/17' --output row.bin"
        );
        assert!(command("a", &choice("submission")).contains("--row 'submission:3/17'"));
    }
}
