//! Files of the page, which are part of the program.

use axum::Router;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;

/// A file: route, content type, content.
type Asset = (&'static str, &'static str, &'static str);

const SCRIPT: &str = "text/javascript; charset=utf-8";
const ASSETS: &[Asset] = &[
    ("/", "text/html; charset=utf-8", include_str!("page/index.html")),
    ("/style.css", "text/css; charset=utf-8", include_str!("page/style.css")),
    ("/icon.svg", "image/svg+xml", include_str!("page/icon.svg")),
    ("/main.js", SCRIPT, include_str!("page/main.js")),
    ("/dom.js", SCRIPT, include_str!("page/dom.js")),
    ("/format.js", SCRIPT, include_str!("page/format.js")),
    ("/chart.js", SCRIPT, include_str!("page/chart.js")),
    ("/run.js", SCRIPT, include_str!("page/run.js")),
    ("/quarantine.js", SCRIPT, include_str!("page/quarantine.js")),
    ("/pictures.js", SCRIPT, include_str!("page/pictures.js")),
    ("/search.js", SCRIPT, include_str!("page/search.js")),
    ("/picture.js", SCRIPT, include_str!("page/picture.js")),
    ("/compare.js", SCRIPT, include_str!("page/compare.js")),
];

/// Returns the routes of all files.
pub(super) fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    ASSETS.iter().fold(Router::new(), |router, (route, kind, content)| {
        router.route(route, get(|| async { ([(header::CONTENT_TYPE, *kind)], *content).into_response() }))
    })
}
