//! Search by a picture, a text, or an image or caption of the run.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use serde::Deserialize;

use super::{App, Failure};
use crate::explore::{Built, SearchSettings, Wanted};

/// Results of each kind.
const LIMIT: usize = 20;
/// Captions of each language, side by side.
const LIMIT_OF_LANGUAGE: usize = 5;
/// Longest text to search for, in bytes. An encoder reads far less.
const MAX_TEXT_BYTES: usize = 16 << 10;
/// Time in which a picture must arrive.
const UPLOAD_TIMEOUT: Duration = Duration::from_mins(1);

/// Query of a search.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Choice {
    /// List of captions to rank.
    list: Option<String>,
    /// Set of images to rank.
    images: Option<String>,
    #[serde(default)]
    by_language: bool,
    /// Text to search for.
    text: Option<String>,
    /// Set or list of the row to search for.
    of_images: Option<String>,
    of_list: Option<String>,
    row: Option<u32>,
}

impl Choice {
    fn settings(&self) -> SearchSettings {
        let chosen = |name: &Option<String>| name.clone().filter(|name| !name.is_empty());
        SearchSettings {
            list: chosen(&self.list),
            images: chosen(&self.images),
            limit: if self.by_language { LIMIT_OF_LANGUAGE } else { LIMIT },
            by_language: self.by_language,
        }
    }
}

/// Searches for something like a text or a row.
pub(super) async fn by_choice(
    State(app): State<App>,
    Path(number): Path<usize>,
    Query(choice): Query<Choice>,
) -> Result<Response, Failure> {
    let settings = choice.settings();
    let wanted = match (choice.text, choice.of_images, choice.of_list, choice.row) {
        (Some(text), ..) if text.trim().is_empty() => return Err(Failure::bad_request("the text is empty")),
        (Some(text), ..) if text.len() > MAX_TEXT_BYTES => return Err(Failure::bad_request("the text is too long")),
        (Some(text), ..) => Wanted::Text(text),
        (None, Some(set), _, Some(row)) => Wanted::Image(set, row),
        (None, None, Some(list), Some(row)) => Wanted::Caption(list, row),
        _ => return Err(Failure::bad_request("the request names nothing to search for")),
    };
    answer(&app, number, wanted, settings).await
}

/// Searches for something like the picture in the body of the request.
pub(super) async fn by_picture(
    State(app): State<App>,
    Path(number): Path<usize>,
    Query(choice): Query<Choice>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Failure> {
    let explorer = app.run(number)?.explorer;
    let limit = explorer.max_picture_bytes().await.map_err(|error| Failure::unusable(&error))?;
    let too_large = || Failure {
        status: StatusCode::PAYLOAD_TOO_LARGE,
        message: format!(
            "the picture is larger than {}, the limit of this run (`preprocess.max_encoded`); make it smaller",
            bytesize::ByteSize(limit)
        ),
    };
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|bytes| bytes > limit) {
        return Err(too_large());
    }
    // Few pictures are in memory at once.
    let _permit = app.uploads.acquire().await.map_err(|_| Failure::internal())?;
    let received = tokio::time::timeout(UPLOAD_TIMEOUT, axum::body::to_bytes(body, limit as usize)).await;
    let bytes = received.map_err(|_| Failure::bad_request("the picture did not arrive in time"))?;
    let bytes = bytes.map_err(|_| too_large())?;
    if bytes.is_empty() {
        return Err(Failure::bad_request("the request holds no picture"));
    }
    answer(&app, number, Wanted::Picture(bytes.to_vec()), choice.settings()).await
}

async fn answer(app: &App, number: usize, wanted: Wanted, settings: SearchSettings) -> Result<Response, Failure> {
    let found = app.run(number)?.explorer.search(wanted, settings).await;
    match found.map_err(|error| Failure::unusable(&error))? {
        Built::Ready(found) => super::json(&*found),
        Built::Building(building) => super::building(&building),
    }
}
