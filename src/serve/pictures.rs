//! Held-out and test images with their ranked captions, and the pictures themselves.

use axum::extract::{Path, Query, State};
use axum::response::Response;
use serde::Deserialize;

use super::{App, Failure, rows};
use crate::explore::{Built, Filter, Order, Rendition};

/// Pictures of one answer.
const PAGE_PICTURES: usize = 24;

/// Query of the view.
#[derive(Debug, Deserialize)]
pub(super) struct Choice {
    /// Set of images.
    images: String,
    #[serde(default)]
    order: Order,
    #[serde(default)]
    seed: u64,
    language: Option<String>,
    from: Option<f64>,
    to: Option<f64>,
    text: Option<String>,
    #[serde(default)]
    offset: usize,
}

/// Query of a picture.
#[derive(Debug, Deserialize)]
pub(super) struct PictureChoice {
    images: String,
    row: u32,
    #[serde(default)]
    kind: Kind,
}

#[derive(Debug, Default, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    #[default]
    Thumbnail,
    Original,
    Model,
}

/// Answers what can be seen and searched in a run.
pub(super) async fn contents(State(app): State<App>, Path(number): Path<usize>) -> Result<Response, Failure> {
    let contents = app.run(number)?.explorer.contents().await;
    super::json(&contents.map_err(|error| Failure::unusable(&error))?)
}

/// Answers a page of pictures.
pub(super) async fn show(
    State(app): State<App>,
    Path(number): Path<usize>,
    Query(choice): Query<Choice>,
) -> Result<Response, Failure> {
    let set = app.run(number)?.explorer.pictures(&choice.images).await.map_err(|error| Failure::unusable(&error))?;
    let set = match set {
        Built::Ready(set) => set,
        Built::Building(building) => return super::building(&building),
    };
    let Choice { order, seed, language, from, to, text, offset, .. } = choice;
    let filter = Filter { order, seed, language, from, to, text, offset };
    let page = super::read(move || set.page(&filter, PAGE_PICTURES)).await?;
    super::json(&page)
}

/// Answers the bytes of a picture.
pub(super) async fn picture(
    State(app): State<App>,
    Path(number): Path<usize>,
    Query(choice): Query<PictureChoice>,
) -> Result<Response, Failure> {
    let rendition = match choice.kind {
        Kind::Thumbnail => Rendition::Thumbnail,
        Kind::Original => Rendition::Original,
        Kind::Model => Rendition::Model,
    };
    let explorer = app.run(number)?.explorer;
    let picture = explorer.picture(&choice.images, choice.row, rendition).await;
    let (kind, bytes) = picture.map_err(|error| Failure::unusable(&error))?;
    Ok(rows::untrusted(kind, bytes))
}
