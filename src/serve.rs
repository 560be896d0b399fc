//! Command `serve`: a page about runs, over HTTP.
//!
//! The page reads local and remote run directories, also of runs under way in other processes, and never writes to
//! them. Everything that a browser needs is part of the program.
//!
//! | part | does |
//! | --- | --- |
//! | `guard` | which requests are answered, and the security headers of every answer |
//! | `assets` | files of the page |
//! | `run` | one run directory: progress, report, configuration, training curve |
//! | `compare` | several runs side by side |
//! | `live` | the same as server-sent events, whenever it changes |
//! | `quarantine` | rows that could not be used |
//! | `rows` | one of them, with its bytes |
//! | `pictures` | images with their ranked captions |
//! | `search` | search by picture, text or row |

mod assets;
mod compare;
mod guard;
mod live;
mod pictures;
mod quarantine;
mod rows;
mod run;
mod search;

use std::fmt;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs as _};
use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Router, middleware};
use serde::Serialize;
use tokio::sync::Semaphore;

use crate::config::StoreConfig;
use crate::explore::Building;
use crate::objects::StoreError;
use crate::pipeline::{self, PipelineError};
use crate::runtime::Shutdown;

pub use compare::{Comparison, RunSummary, compare};

use guard::Guard;
use rows::LastRow;
use run::Run;

/// Server of the page, bound to its address.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    runs: Arc<Vec<Run>>,
    guard: Arc<Guard>,
}

/// Error of starting the server.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address cannot be used.
    #[error("`--address {address}`: {source}; use a free `PORT` or `HOST:PORT`")]
    Address {
        /// The address as given.
        address: String,
        /// Cause.
        source: std::io::Error,
    },
    /// A run directory cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The directory is not one of a run.
    #[error("`{0}` holds no run: `run.toml` is missing; give the `run.dir` of a pipeline file")]
    NoRun(String),
}

/// Binds `PORT` or `:PORT` on localhost, or `HOST:PORT`.
///
/// # Errors
/// When the address is malformed, not local or in use.
pub fn bind(address: &str) -> Result<TcpListener, std::io::Error> {
    let full = match address.strip_prefix(':').unwrap_or(address) {
        port if port.parse::<u16>().is_ok() => format!("127.0.0.1:{port}"),
        _ => address.to_owned(),
    };
    let listener = TcpListener::bind(full.to_socket_addrs()?.collect::<Vec<SocketAddr>>().as_slice())?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

impl Server {
    /// Opens run directories, which are paths or URLs, and binds the address. Nothing is written.
    ///
    /// # Errors
    /// When the address is in use, or a directory holds no run.
    pub fn open(address: &str, runs: &[String], settings: &StoreConfig) -> Result<Self, ServeError> {
        let store = pipeline::open_store(settings);
        let runs = runs.iter().map(|name| Run::open(&store, name)).collect::<Result<Vec<_>, _>>()?;
        Self::bind(address, runs)
    }

    /// Opens the directory of a run that starts in this process, which may be absent, and binds the address.
    ///
    /// # Errors
    /// When the address is in use, or the name of the directory is invalid.
    pub fn beside_run(address: &str, run: &str, settings: &StoreConfig) -> Result<Self, ServeError> {
        Self::bind(address, vec![Run::new(&pipeline::open_store(settings), run)?])
    }

    fn bind(address: &str, runs: Vec<Run>) -> Result<Self, ServeError> {
        let fail = |source| ServeError::Address { address: address.to_owned(), source };
        let listener = bind(address).map_err(fail)?;
        let bound = listener.local_addr().map_err(fail)?;
        let guard = Guard::new(bound, address);
        Ok(Self { listener, address: bound, runs: Arc::new(runs), guard: Arc::new(guard) })
    }

    /// Returns the address of the page.
    pub fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    /// Returns whether other machines can reach the page.
    pub fn is_public(&self) -> bool {
        !self.address.ip().is_loopback()
    }

    /// Answers requests until a shutdown is asked for.
    ///
    /// # Errors
    /// When the system refuses to listen.
    pub async fn run(self, shutdown: Shutdown) -> std::io::Result<()> {
        let listener = tokio::net::TcpListener::from_std(self.listener)?;
        let app = router(self.runs, self.guard, shutdown.clone());
        axum::serve(listener, app).with_graceful_shutdown(async move { shutdown.raised().await }).await
    }
}

/// Uploaded pictures that are in memory at once.
const UPLOADS: usize = 2;

/// State that the handlers share.
#[derive(Clone, Debug)]
struct App {
    runs: Arc<Vec<Run>>,
    shutdown: Shutdown,
    /// Permits to hold an uploaded picture in memory.
    uploads: Arc<Semaphore>,
    last_row: Arc<LastRow>,
}

impl App {
    fn run(&self, number: usize) -> Result<Run, Failure> {
        self.runs.get(number).cloned().ok_or_else(|| Failure::not_found("there is no such run"))
    }
}

fn router(runs: Arc<Vec<Run>>, guard: Arc<Guard>, shutdown: Shutdown) -> Router {
    Router::new()
        .merge(assets::routes())
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/api/runs", get(list_runs))
        .route("/api/compare", get(compare_runs))
        .route("/api/runs/{run}", get(show_run))
        .route("/api/runs/{run}/live", get(live::follow))
        .route("/api/runs/{run}/quarantine", get(quarantine::show))
        .route("/api/runs/{run}/quarantine/row", get(rows::show))
        .route("/api/runs/{run}/quarantine/picture", get(rows::picture))
        .route("/api/runs/{run}/contents", get(pictures::contents))
        .route("/api/runs/{run}/pictures", get(pictures::show))
        .route("/api/runs/{run}/picture", get(pictures::picture))
        .route("/api/runs/{run}/search", get(search::by_choice).post(search::by_picture))
        .fallback(|| async { Failure::not_found("there is no such page") })
        .layer(middleware::from_fn_with_state(guard, guard::check))
        .with_state(App { runs, shutdown, uploads: Arc::new(Semaphore::new(UPLOADS)), last_row: Arc::default() })
}

async fn list_runs(State(app): State<App>) -> Result<Response, Failure> {
    let runs = Arc::clone(&app.runs);
    let overviews = read(move || runs.iter().map(Run::overview).collect::<Result<Vec<_>, _>>()).await?;
    json(&overviews)
}

/// A comparison with its chart as HTML.
#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    comparison: Comparison,
    chart: String,
}

async fn compare_runs(State(app): State<App>) -> Result<Response, Failure> {
    let runs = Arc::clone(&app.runs);
    let overviews = read(move || runs.iter().map(Run::overview).collect::<Result<Vec<_>, _>>()).await?;
    let shown = Shown { comparison: compare::compare_overviews(&overviews), chart: compare::draw(&overviews) };
    json(&shown)
}

async fn show_run(State(app): State<App>, Path(number): Path<usize>) -> Result<Response, Failure> {
    let run = app.run(number)?;
    json(&read(move || run.overview()).await?)
}

/// Answers with a value as JSON.
fn json(value: &impl Serialize) -> Result<Response, Failure> {
    let text = serde_json::to_string(value).map_err(|_| Failure::internal())?;
    Ok(([(header::CONTENT_TYPE, "application/json")], text).into_response())
}

/// Answers that a result is being built.
fn building(progress: &Building) -> Result<Response, Failure> {
    let mut response = json(&serde_json::json!({ "building": progress }))?;
    *response.status_mut() = StatusCode::ACCEPTED;
    Ok(response)
}

/// Runs a blocking read on a thread of its own.
async fn read<T, E>(job: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, Failure>
where
    T: Send + 'static,
    E: std::error::Error + Send + 'static,
{
    match tokio::task::spawn_blocking(job).await {
        Ok(outcome) => outcome.map_err(|error| Failure::unreadable(&error)),
        Err(_) => Err(Failure::internal()),
    }
}

/// Answer to a request that cannot be served: a sentence as JSON.
#[derive(Debug)]
struct Failure {
    status: StatusCode,
    message: String,
}

impl Failure {
    fn not_found(message: &str) -> Self {
        Self { status: StatusCode::NOT_FOUND, message: message.to_owned() }
    }

    fn internal() -> Self {
        Self { status: StatusCode::INTERNAL_SERVER_ERROR, message: "internal error".to_owned() }
    }

    fn bad_request(message: impl fmt::Display) -> Self {
        Self { status: StatusCode::BAD_REQUEST, message: message.to_string() }
    }

    fn conflict(message: &str) -> Self {
        Self { status: StatusCode::CONFLICT, message: message.to_owned() }
    }

    /// Something that this run, or this machine, cannot show.
    fn unusable(error: &PipelineError) -> Self {
        let status = match error {
            PipelineError::Store(_) | PipelineError::Chunk(_) => StatusCode::BAD_GATEWAY,
            PipelineError::Gone(_) | PipelineError::Threads(_) | PipelineError::Internal(_) => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
            _ => StatusCode::CONFLICT,
        };
        Self { status, message: pipeline::chain(error) }
    }

    fn unreadable(error: &dyn std::error::Error) -> Self {
        Self { status: StatusCode::BAD_GATEWAY, message: pipeline::chain(error) }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let body = serde_json::json!({ "error": self.message }).to_string();
        (self.status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
    }
}
