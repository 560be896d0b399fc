//! Files of the page, which are part of the program.

use std::sync::LazyLock;

use axum::Router;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;

use crate::view;

/// A file: route, content type, content.
type Asset = (&'static str, &'static str, &'static str);

const SCRIPT: &str = "text/javascript; charset=utf-8";
const ASSETS: &[Asset] = &[
    ("/", "text/html; charset=utf-8", include_str!("page/index.html")),
    ("/icon.svg", "image/svg+xml", include_str!("page/icon.svg")),
    ("/main.js", SCRIPT, include_str!("page/main.js")),
    ("/dom.js", SCRIPT, include_str!("page/dom.js")),
    ("/format.js", SCRIPT, include_str!("page/format.js")),
    ("/run.js", SCRIPT, include_str!("page/run.js")),
    ("/quarantine.js", SCRIPT, include_str!("page/quarantine.js")),
    ("/pictures.js", SCRIPT, include_str!("page/pictures.js")),
    ("/search.js", SCRIPT, include_str!("page/search.js")),
    ("/picture.js", SCRIPT, include_str!("page/picture.js")),
    ("/compare.js", SCRIPT, include_str!("page/compare.js")),
];
/// Styles, which the snapshots of a run share.
static STYLE: LazyLock<String> = LazyLock::new(view::style);

/// Returns the routes of all files.
pub(super) fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    let style = || async { ([(header::CONTENT_TYPE, "text/css; charset=utf-8")], STYLE.as_str()).into_response() };
    ASSETS.iter().fold(Router::new().route("/style.css", get(style)), |router, (route, kind, content)| {
        router.route(route, get(|| async { ([(header::CONTENT_TYPE, *kind)], *content).into_response() }))
    })
}
