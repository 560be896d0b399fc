//! A server of the hub's protocol, with a second port for large files and injectable failures.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{AUTHORIZATION, HOST, RANGE, REFERER};
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use sha1::Sha1;
use sha2::{Digest, Sha256};

type Answer = Response<BoxBody<Bytes, std::io::Error>>;

/// Injected failures; each `u32` counts down.
#[derive(Debug, Clone, Default)]
pub(crate) struct Faults {
    /// Responses with status 503.
    pub(crate) unavailable: u32,
    /// Connections broken in the middle of a large file.
    pub(crate) resets: u32,
    /// Large files with one byte changed.
    pub(crate) corrupt: u32,
    /// Bytes removed from, or added to, a large file.
    pub(crate) longer_by: i64,
    /// Bytes of a large file sent every 20 ms.
    pub(crate) throttle: Option<usize>,
    pub(crate) no_ranges: bool,
    /// Whether the port of the large files refuses connections.
    pub(crate) signature_expired: u32,
    /// Status and `X-Error-Code` of every response of the hub itself.
    pub(crate) refuses: Option<(u16, &'static str)>,
}

/// A received request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) port: &'static str,
    pub(crate) line: String,
    pub(crate) range: Option<String>,
    pub(crate) authorization: Option<String>,
    pub(crate) referer: Option<String>,
    pub(crate) body_bytes: usize,
}

#[derive(Debug, Default)]
struct State {
    cdn: String,
    /// Old name → repository.
    renamed: BTreeMap<String, String>,
    /// Repository → revision → commit.
    revisions: BTreeMap<String, BTreeMap<String, String>>,
    /// Commit → files.
    commits: BTreeMap<String, BTreeMap<String, Bytes>>,
    faults: Faults,
    seen: Vec<Seen>,
}

pub(crate) struct Server {
    pub(crate) endpoint: String,
    state: Arc<Mutex<State>>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Counter for loopback addresses: every server has its own, because a closed port may be reused at once.
static SERVERS: AtomicU8 = AtomicU8::new(2);

impl Server {
    pub(crate) fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let host = format!("127.0.0.{}:0", SERVERS.fetch_add(1, Ordering::Relaxed));
        let listen = |port: &'static str| {
            let listener = runtime.block_on(tokio::net::TcpListener::bind(&host)).unwrap();
            let address = format!("http://{}", listener.local_addr().unwrap());
            let state = Arc::clone(&state);
            runtime.spawn(async move {
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    let state = Arc::clone(&state);
                    tokio::spawn(async move {
                        let service = service_fn(move |request: Request<Incoming>| {
                            let answer = answer(&state, port, &request);
                            async move { Ok::<_, Infallible>(answer) }
                        });
                        // A killed client is not a failure of the server.
                        hyper::server::conn::http1::Builder::new()
                            .serve_connection(TokioIo::new(stream), service)
                            .await
                            .ok();
                    });
                }
            });
            address
        };
        let endpoint = listen("hub");
        let cdn = listen("cdn");
        state.lock().unwrap().cdn = cdn;
        Self { endpoint, state, runtime: Some(runtime) }
    }

    /// Stops accepting connections.
    pub(crate) fn stop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_millis(100));
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Publishes files under a revision; returns the commit.
    pub(crate) fn publish(&self, repo: &str, revision: &str, files: &[(&str, Vec<u8>)]) -> String {
        let files: BTreeMap<String, Bytes> =
            files.iter().map(|(name, content)| ((*name).to_owned(), content.clone().into())).collect();
        let mut hash = Sha1::new().chain_update(repo);
        for (name, content) in &files {
            hash.update(name);
            hash.update(content);
        }
        let commit = hex(&hash.finalize());
        let mut state = self.state();
        state.commits.insert(commit.clone(), files);
        state.revisions.entry(repo.to_owned()).or_default().insert(revision.to_owned(), commit.clone());
        commit
    }

    /// Publishes the files of a directory, and some that no client should request.
    pub(crate) fn publish_dir(&self, repo: &str, revision: &str, dir: &Path) -> String {
        let mut names: BTreeSet<String> = BTreeSet::new();
        let mut folders = vec![dir.to_owned()];
        while let Some(folder) = folders.pop() {
            for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
                if path.is_dir() {
                    folders.push(path);
                } else {
                    names.insert(path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned());
                }
            }
        }
        let mut files: Vec<(&str, Vec<u8>)> =
            names.iter().map(|name| (name.as_str(), std::fs::read(dir.join(name)).unwrap())).collect();
        files.push(("pytorch_model.bin", b"pickle".to_vec()));
        files.push(("onnx/model.onnx", b"graph".to_vec()));
        files.push(("README.md", b"# words".to_vec()));
        self.publish(repo, revision, &files)
    }

    /// Redirects an old repository name.
    pub(crate) fn rename(&self, old: &str, repo: &str) {
        self.state().renamed.insert(old.to_owned(), repo.to_owned());
    }

    pub(crate) fn fail(&self, faults: Faults) {
        self.state().faults = faults;
    }

    /// Returns the requests since the last call.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.state().seen)
    }
}

impl State {
    /// Returns a page of the files and folders directly in a folder, and the start of the next page.
    fn datasets_tree(&self, rest: &str, query: &str) -> Option<(serde_json::Value, Option<usize>)> {
        const PAGE: usize = 3;
        let (repo, rest) = rest.split_once("/tree/")?;
        let (revision, folder) = rest.split_once('/').unwrap_or((rest, ""));
        let files = &self.commits[&commit(self.revisions.get(&format!("datasets/{repo}"))?, revision)?];
        let prefix = if folder.is_empty() { String::new() } else { format!("{folder}/") };
        let mut entries = BTreeMap::new();
        for (path, content) in files {
            let Some(name) = path.strip_prefix(&prefix) else { continue };
            let (path, mut entry) = match name.split_once('/') {
                Some((folder, _)) => {
                    (format!("{prefix}{folder}"), serde_json::json!({ "type": "directory", "oid": "0", "size": 0 }))
                }
                None => (
                    path.clone(),
                    serde_json::json!({ "type": "file", "oid": etag("git", content), "size": content.len() }),
                ),
            };
            if entry["type"] == "file" && is_large(&path) {
                entry["lfs"] =
                    serde_json::json!({ "oid": etag(&path, content), "size": content.len(), "pointerSize": 9 });
            }
            entry["path"] = path.clone().into();
            entries.insert(path, entry);
        }
        let from: usize = query.strip_prefix("cursor=").map_or(0, |cursor| cursor.parse().unwrap());
        let next = (from + PAGE < entries.len()).then_some(from + PAGE);
        Some((entries.into_values().skip(from).take(PAGE).collect(), next))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

fn is_large(name: &str) -> bool {
    name.rsplit('.').next().is_some_and(|ending| ["safetensors", "bin", "parquet", "gz", "tar"].contains(&ending))
}

/// Returns the hash by which the hub identifies a file.
pub(crate) fn etag(name: &str, content: &[u8]) -> String {
    if is_large(name) {
        hex(&Sha256::digest(content))
    } else {
        hex(&Sha1::new().chain_update(format!("blob {}\0", content.len())).chain_update(content).finalize())
    }
}

fn text(status: u16, body: &str) -> Answer {
    let body = Full::new(Bytes::copy_from_slice(body.as_bytes())).map_err(|never| match never {}).boxed();
    let mut answer = Response::new(body);
    *answer.status_mut() = hyper::StatusCode::from_u16(status).unwrap();
    answer
}

fn insert_header(answer: &mut Answer, name: &'static str, value: &str) {
    answer.headers_mut().insert(name, value.parse().unwrap());
}

fn answer(state: &Mutex<State>, port: &'static str, request: &Request<Incoming>) -> Answer {
    let mut state = state.lock().unwrap();
    let header = |name| request.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
    let range = header(RANGE);
    state.seen.push(Seen {
        port,
        line: format!("{} {}", request.method(), request.uri().path()),
        range: range.clone(),
        authorization: header(AUTHORIZATION),
        referer: header(REFERER),
        body_bytes: 0,
    });
    let path = request.uri().path().trim_start_matches('/').replace("%2F", "/");
    let ends: Vec<Option<usize>> =
        range.iter().flat_map(|range| range["bytes=".len()..].split('-')).map(|end| end.parse().ok()).collect();
    let range = (ends.first().copied().flatten().unwrap_or(0), ends.get(1).copied().flatten());
    let query = request.uri().query().unwrap_or_default();
    let answer = if port == "cdn" {
        cdn(&mut state, &path, query, range)
    } else if let Some(rest) = path.strip_prefix("api/datasets/").filter(|rest| rest.contains("/tree/")) {
        let host = header(HOST).unwrap_or_default();
        state.datasets_tree(rest, query).map(|(entries, next)| {
            if entries.as_array().is_some_and(Vec::is_empty) {
                let mut answer = text(404, "no such folder");
                insert_header(&mut answer, "x-error-code", "EntryNotFound");
                return answer;
            }
            let mut answer = text(200, &entries.to_string());
            if let Some(cursor) = next {
                insert_header(&mut answer, "link", &format!("<http://{host}/{path}?cursor={cursor}>; rel=\"next\""));
            }
            answer
        })
    } else {
        hub(&mut state, request.method(), &path)
    };
    answer.unwrap_or_else(|| text(500, "the server does not know what this is"))
}

fn cdn(state: &mut State, path: &str, query: &str, (from, last): (usize, Option<usize>)) -> Option<Answer> {
    if query != "signature=of-a-moment" || take_one(&mut state.faults.signature_expired) {
        return Some(text(403, "no signature"));
    }
    let (commit, name) = path.split_once('/')?;
    let mut content = state.commits.get(commit)?.get(name)?.to_vec();
    let longer = state.faults.longer_by;
    if longer != 0 {
        content.resize((content.len() as i64 + longer) as usize, 0);
    }
    if take_one(&mut state.faults.corrupt) {
        let middle = content.len() / 2;
        content[middle] ^= 1;
    }
    let size = content.len();
    let (from, last) = if state.faults.no_ranges { (0, None) } else { (from, last) };
    let until = last.map_or(size, |last| size.min(last + 1));
    if from >= size {
        return Some(text(416, "behind the end"));
    }
    let mut content = Bytes::from(content).slice(from..until);
    let whole = content.len();
    let reset = take_one(&mut state.faults.resets);
    if reset {
        content.truncate(whole / 2);
    }
    state.seen.last_mut()?.body_bytes = content.len();
    let (block, pause) = state.faults.throttle.map_or((64 << 10, 0), |bytes| (bytes, 20));
    let blocks: Vec<Bytes> =
        (0..content.len()).step_by(block).map(|at| content.slice(at..(at + block).min(content.len()))).collect();
    let blocks = futures::stream::iter(blocks).then(move |block| async move {
        tokio::time::sleep(Duration::from_millis(pause)).await;
        Ok(Frame::data(block))
    });
    let end = futures::stream::iter(reset.then_some(())).then(|()| async {
        // Closing the connection would discard buffered bytes.
        tokio::time::sleep(Duration::from_millis(50)).await;
        Err(std::io::Error::other("reset"))
    });
    let mut answer = Response::new(BoxBody::new(StreamBody::new(blocks.chain(end))));
    insert_header(&mut answer, "content-length", &whole.to_string());
    if from > 0 || last.is_some() {
        *answer.status_mut() = hyper::StatusCode::PARTIAL_CONTENT;
        insert_header(&mut answer, "content-range", &format!("bytes {from}-{}/{size}", until - 1));
    }
    Some(answer)
}

fn take_one(count: &mut u32) -> bool {
    let some = *count > 0;
    *count = count.saturating_sub(1);
    some
}

fn hub(state: &mut State, method: &Method, path: &str) -> Option<Answer> {
    if take_one(&mut state.faults.unavailable) {
        return Some(text(503, "later"));
    }
    if let Some((status, code)) = state.faults.refuses {
        let mut answer = text(status, "no");
        insert_header(&mut answer, "x-error-code", code);
        return Some(answer);
    }
    if let Some((old, new)) = state.renamed.iter().find(|(old, _)| path.contains(&format!("{old}/"))) {
        let mut answer = text(307, "renamed");
        insert_header(&mut answer, "location", &format!("/{}", path.replace(old, new)));
        return Some(answer);
    }
    let refuse = |code: &str| {
        let mut answer = text(404, code);
        insert_header(&mut answer, "x-error-code", code);
        Some(answer)
    };
    if let Some(rest) = path.strip_prefix("api/models/").or_else(|| path.strip_prefix("api/")) {
        let (repo, rest) = rest.split_once("/revision/").or_else(|| rest.split_once("/tree/"))?;
        let Some(revisions) = state.revisions.get(repo) else { return refuse("RepoNotFound") };
        let Some(commit) = commit(revisions, rest) else { return refuse("RevisionNotFound") };
        let files = &state.commits[&commit];
        let value = if path.contains("/tree/") {
            let entry = |(name, content): (&String, &Bytes)| {
                let mut entry = serde_json::json!({
                    "type": "file", "path": name, "size": content.len(), "oid": etag("git", content)
                });
                if is_large(name) {
                    entry["lfs"] =
                        serde_json::json!({ "oid": etag(name, content), "size": content.len(), "pointerSize": 134 });
                }
                entry
            };
            files.iter().map(entry).collect()
        } else {
            let siblings: Vec<_> = files.keys().map(|name| serde_json::json!({ "rfilename": name })).collect();
            serde_json::json!({ "id": repo, "sha": commit, "private": false, "tags": [], "downloads": 0, "siblings": siblings })
        };
        return Some(text(200, &value.to_string()));
    }
    let (repo, rest) = path.split_once("/resolve/")?;
    let Some(revisions) = state.revisions.get(repo) else { return refuse("RepoNotFound") };
    let (revision, name) = rest.split_once('/')?;
    let Some(commit) = commit(revisions, revision) else { return refuse("RevisionNotFound") };
    let Some(content) = state.commits[&commit].get(name) else { return refuse("EntryNotFound") };
    let tag = format!("\"{}\"", etag(name, content));
    let mut answer = if is_large(name) {
        let mut answer = text(302, "elsewhere");
        insert_header(&mut answer, "location", &format!("{}/{commit}/{name}?signature=of-a-moment", state.cdn));
        insert_header(&mut answer, "etag", "\"of-the-redirect\"");
        insert_header(&mut answer, "x-linked-etag", &tag);
        insert_header(&mut answer, "x-linked-size", &content.len().to_string());
        answer
    } else {
        let body = if method == Method::HEAD { Bytes::new() } else { content.clone() };
        let mut answer = Response::new(Full::new(body).map_err(|never| match never {}).boxed());
        insert_header(&mut answer, "content-length", &content.len().to_string());
        insert_header(&mut answer, "etag", &tag);
        answer
    };
    insert_header(&mut answer, "x-repo-commit", &commit);
    Some(answer)
}

fn commit(revisions: &BTreeMap<String, String>, revision: &str) -> Option<String> {
    let known = |commit: &&String| *commit == revision;
    revisions.get(revision).or_else(|| revisions.values().find(known)).cloned()
}
