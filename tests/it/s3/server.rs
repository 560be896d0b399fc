//! An S3 server in this process on its own port, which stores objects as files, and the faults in front of it.
//!
//! Faults happen on the wire: a connection is closed or reset, a body is shorter than its object. Writes are served one at a
//! time, so that a condition and its write are one step, as S3 promises.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::{Method, Request, Response, StatusCode, header};
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};

use super::faults::{Fate, Faults, RequestKey};

/// Credentials with full access.
pub(crate) const KEYS: (&str, &str) = ("test-key", "test-secret");
/// Bytes of a throttled body sent at a time.
const SLOW_BYTES: usize = 16 << 10;

type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, io::Error>;

/// The server; it stops when dropped.
pub(crate) struct Server {
    folder: tempfile::TempDir,
    address: SocketAddr,
    shared: Arc<Shared>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Drop for Server {
    fn drop(&mut self) {
        // Dropping may happen inside another runtime, where blocking is not allowed.
        self.runtime.take().expect("it is taken here alone").shutdown_background();
    }
}

struct Shared {
    root: PathBuf,
    s3: S3Service,
    /// Held exclusively by writers.
    order: tokio::sync::RwLock<()>,
    faults: Faults,
    asked: Mutex<HashMap<String, u64>>,
    /// Whether conditional writes get status 501.
    plain: AtomicBool,
    /// Whether connections are accepted and closed without a response.
    away: AtomicBool,
    /// Whether ranges are ignored: every response is the whole object.
    whole: AtomicBool,
    /// Whether `HEAD` is refused, as for a URL that is signed for `GET`.
    headless: AtomicBool,
    /// Number of bytes of an object that are sent; the rest is promised and never comes.
    holds: AtomicU64,
    requests: AtomicU64,
    faulty: AtomicU64,
    /// Requests as `METHOD /path`, in order.
    log: Mutex<Vec<String>>,
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Server {
    pub(crate) fn start(faults: Faults) -> Self {
        Self::with_keys(faults, true)
    }

    /// Starts a server without authentication, for plain HTTP.
    pub(crate) fn open_to_all(faults: Faults) -> Self {
        Self::with_keys(faults, false)
    }

    fn with_keys(faults: Faults, keys: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut builder = S3ServiceBuilder::new(s3s_fs::FileSystem::new(folder.path()).unwrap());
        if keys {
            builder.set_auth(SimpleAuth::from_single(KEYS.0, KEYS.1));
        }
        let shared = Arc::new(Shared {
            root: folder.path().to_owned(),
            s3: builder.build(),
            order: tokio::sync::RwLock::default(),
            faults,
            asked: Mutex::default(),
            plain: AtomicBool::new(false),
            away: AtomicBool::new(false),
            whole: AtomicBool::new(false),
            headless: AtomicBool::new(false),
            holds: AtomicU64::new(u64::MAX),
            requests: AtomicU64::new(0),
            faulty: AtomicU64::new(0),
            log: Mutex::default(),
        });
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let serving = Arc::clone(&shared);
        runtime.spawn(async move { listen(TcpListener::from_std(listener).unwrap(), serving).await });
        Self { folder, address, shared, runtime: Some(runtime) }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns the folder of a bucket, creating it.
    pub(crate) fn bucket(&self, name: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    /// Serves a local folder as a bucket.
    pub(crate) fn serve(&self, name: &str, folder: &Path) {
        std::os::unix::fs::symlink(folder, self.folder.path().join(name)).unwrap();
    }

    /// Sets whether ranges are ignored.
    pub(crate) fn set_whole(&self, whole: bool) {
        self.shared.whole.store(whole, Ordering::SeqCst);
    }

    /// Sets whether `HEAD` is refused.
    pub(crate) fn set_headless(&self, headless: bool) {
        self.shared.headless.store(headless, Ordering::SeqCst);
    }

    /// Sets how many bytes of each object are sent.
    pub(crate) fn set_holds(&self, bytes: u64) {
        self.shared.holds.store(bytes, Ordering::SeqCst);
    }

    /// Sets whether conditional writes are refused as not implemented.
    pub(crate) fn set_plain(&self, plain: bool) {
        self.shared.plain.store(plain, Ordering::SeqCst);
    }

    /// Sets whether every connection is closed without a response.
    pub(crate) fn set_away(&self, away: bool) {
        self.shared.away.store(away, Ordering::SeqCst);
    }

    /// Returns the number of requests and of injected faults.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.shared.requests.load(Ordering::SeqCst), self.shared.faulty.load(Ordering::SeqCst))
    }

    /// Returns the requests so far, as `METHOD /path`.
    pub(crate) fn log(&self) -> Vec<String> {
        locked(&self.shared.log).clone()
    }

    /// Sets the environment of a command: this server's address and credentials, and none of this machine's settings.
    pub(crate) fn reached_by<'a>(&self, command: &'a mut std::process::Command) -> &'a mut std::process::Command {
        for name in ["AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION"] {
            command.env_remove(name);
        }
        command
            .env("HOME", self.folder.path())
            .env("AWS_ENDPOINT_URL", self.endpoint())
            .env("AWS_REGION", "us-east-1")
            .env("AWS_ACCESS_KEY_ID", KEYS.0)
            .env("AWS_SECRET_ACCESS_KEY", KEYS.1)
    }
}

async fn listen(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let cut = Arc::new(AtomicBool::new(false));
        let wire = Wire { stream, cut: Arc::clone(&cut) };
        let shared = Arc::clone(&shared);
        let service = hyper::service::service_fn(move |request| {
            let (shared, cut) = (Arc::clone(&shared), Arc::clone(&cut));
            async move { shared.serve(request, &cut).await }
        });
        tokio::spawn(async move {
            let serving = hyper::server::conn::http1::Builder::new()
                .serve_connection(hyper_util::rt::TokioIo::new(wire), service);
            // Injected faults end the connection with an error.
            serving.await.ok();
        });
    }
}

/// A connection that can be closed by a reset.
struct Wire {
    stream: TcpStream,
    cut: Arc<AtomicBool>,
}

impl Drop for Wire {
    fn drop(&mut self) {
        if self.cut.load(Ordering::SeqCst) {
            // Closing sends RST and drops unsent bytes.
            self.stream.set_zero_linger().ok();
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, into)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, from)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Closes the connection: hyper does so when a service or a body fails.
fn cut_off() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, "cut by the test")
}

impl Shared {
    async fn serve(&self, request: Request<Incoming>, cut: &Arc<AtomicBool>) -> io::Result<Response<Body>> {
        if self.away.load(Ordering::SeqCst) {
            return Err(cut_off());
        }
        let faults = self.faults;
        let text = |name: &str| {
            request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
        };
        let (method, uri, range) = (request.method().clone(), request.uri().clone(), text("range"));
        let conditional = method == Method::PUT && !(text("if-match") + &text("if-none-match")).is_empty();
        // Upload ids and listing tokens differ between runs.
        let query = uri
            .query()
            .unwrap_or_default()
            .split('&')
            .filter(|part| !["uploadId=", "continuation-token="].iter().any(|variable| part.starts_with(variable)));
        let path = format!("{}?{}", uri.path(), query.collect::<Vec<_>>().join("&"));
        let attempt = {
            let mut asked = locked(&self.asked);
            let count = asked.entry(format!("{method} {path} {range}")).or_default();
            *count += 1;
            *count - 1
        };
        self.requests.fetch_add(1, Ordering::SeqCst);
        locked(&self.log).push(format!("{method} {}", uri.path()));
        let asked = RequestKey { method: method.as_str(), path: &path, range: &range, conditional, attempt };
        tokio::time::sleep(faults.lateness(asked)).await;
        let fate = faults.fate(asked);
        self.faulty.fetch_add(u64::from(fate != Fate::Served), Ordering::SeqCst);

        match fate {
            Fate::Unheard => {
                cut.store(attempt.is_multiple_of(2), Ordering::SeqCst);
                return Err(cut_off());
            }
            Fate::Status(status) => return Ok(refusal(status, "")),
            Fate::Late => tokio::time::sleep(faults.stall_for).await,
            _ => {}
        }
        if method == Method::HEAD && self.headless.load(Ordering::SeqCst) {
            return Ok(refusal(403, "SignatureDoesNotMatch"));
        }
        let bucket = uri.path().split('/').nth(1).unwrap_or_default();
        if !self.root.join(bucket).is_dir() {
            return Ok(refusal(404, "NoSuchBucket"));
        }
        if conditional && self.plain.load(Ordering::SeqCst) {
            return Ok(refusal(501, "NotImplemented"));
        }
        let (mut parts, mut body) = request.into_parts();
        if self.whole.load(Ordering::SeqCst) {
            parts.headers.remove(header::RANGE);
        }
        let mut content = Vec::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(io::Error::other)?.into_data() else { continue };
            pause(data.len(), faults.bytes_per_second).await;
            content.extend_from_slice(&data);
        }
        let whole = Request::from_parts(parts, s3s::Body::from(content));
        let answer = if [Method::GET, Method::HEAD].contains(&method) {
            let _shared = self.order.read().await;
            self.s3.call(whole).await
        } else {
            let _alone = self.order.write().await;
            self.s3.call(whole).await
        };
        if fate == Fate::Lost {
            return Err(cut_off());
        }
        let answer = answer.map_err(|error| io::Error::other(format!("{error:?}")))?;
        let (mut head, body) = answer.into_parts();
        if method == Method::HEAD || !head.status.is_success() {
            let body = body.map_err(|error| io::Error::other(error.to_string()));
            return Ok(Response::from_parts(head, Body::new(body)));
        }
        let all: Bytes = http_body_util::BodyExt::collect(body)
            .await
            .map_err(|error| io::Error::other(error.to_string()))?
            .to_bytes();
        let first =
            range.strip_prefix("bytes=").and_then(|range| range.split('-').next()?.parse().ok()).unwrap_or(0u64);
        let left = self.holds.load(Ordering::SeqCst).saturating_sub(first);
        if left < all.len() as u64 {
            head.headers.insert(header::CONTENT_LENGTH, left.into());
            return Ok(Response::from_parts(
                head,
                sent(vec![Piece::Bytes(all.slice(..left as usize))], 0, Arc::clone(cut)),
            ));
        }
        let pieces = pieces(fate, &all, faults.stall_for, &mut head.headers);
        Ok(Response::from_parts(head, sent(pieces, faults.bytes_per_second, Arc::clone(cut))))
    }
}

enum Piece {
    Bytes(Bytes),
    Pause(Duration),
    Cut,
}

/// Splits a body into the frames that are sent; a differing length goes into the header.
fn pieces(fate: Fate, all: &Bytes, stall_for: Duration, headers: &mut hyper::HeaderMap) -> Vec<Piece> {
    let end = |share: f64| (all.len() as f64 * share) as usize;
    let mut pieces: Vec<Piece> = Vec::new();
    match fate {
        Fate::Reset(at) => {
            pieces.extend([Piece::Bytes(all.slice(..end(at))), Piece::Cut]);
        }
        Fate::Short(at) => {
            headers.insert(header::CONTENT_LENGTH, end(at).into());
            pieces.push(Piece::Bytes(all.slice(..end(at))));
        }
        Fate::Chunked(at) => {
            headers.remove(header::CONTENT_LENGTH);
            pieces.push(Piece::Bytes(all.slice(..end(at))));
        }
        Fate::Stalled(at) => {
            let (first, rest) = (all.slice(..end(at)), all.slice(end(at)..));
            pieces.extend([Piece::Bytes(first), Piece::Pause(stall_for), Piece::Bytes(rest)]);
        }
        _ => pieces.push(Piece::Bytes(all.clone())),
    }
    pieces
}

fn sent(pieces: Vec<Piece>, bytes_per_second: u32, cut: Arc<AtomicBool>) -> Body {
    let pieces = pieces.into_iter().flat_map(move |piece| match piece {
        Piece::Bytes(bytes) if bytes_per_second > 0 => {
            let starts = (0..bytes.len()).step_by(SLOW_BYTES);
            starts.map(|at| Piece::Bytes(bytes.slice(at..(at + SLOW_BYTES).min(bytes.len())))).collect()
        }
        other => vec![other],
    });
    let frames = futures::stream::iter(pieces).filter_map(move |piece| {
        let cut = Arc::clone(&cut);
        async move {
            match piece {
                Piece::Bytes(bytes) => {
                    pause(bytes.len(), bytes_per_second).await;
                    Some(Ok(Frame::data(bytes)))
                }
                Piece::Pause(time) => {
                    tokio::time::sleep(time).await;
                    None
                }
                Piece::Cut => {
                    // Let sent bytes arrive before a reset can overtake them.
                    tokio::time::sleep(Duration::from_millis(2)).await;
                    cut.store(true, Ordering::SeqCst);
                    Some(Err(cut_off()))
                }
            }
        }
    });
    Body::new(StreamBody::new(frames))
}

async fn pause(bytes: usize, bytes_per_second: u32) {
    if bytes_per_second > 0 {
        tokio::time::sleep(Duration::from_secs_f64(bytes as f64 / f64::from(bytes_per_second))).await;
    }
}

fn refusal(status: u16, code: &str) -> Response<Body> {
    let code = match (status, code) {
        (503, "") => "SlowDown",
        (409, "") => "ConditionalRequestConflict",
        (429, "") => "TooManyRequests",
        (_, "") => "InternalError",
        (_, code) => code,
    };
    let text = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>drawn by the test</Message></Error>");
    let body = http_body_util::Full::new(Bytes::from(text)).map_err(|never: Infallible| match never {});
    Response::builder().status(StatusCode::from_u16(status).unwrap()).body(Body::new(body)).unwrap()
}
