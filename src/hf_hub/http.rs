//! Requests to the hub: who may see the token, which redirects are followed, what an answer means.
//!
//! The token goes to the scheme, host and port of the endpoint alone; large files lie elsewhere, behind a redirect to a
//! URL that is signed for a short time, so each attempt asks the endpoint anew. Neither that URL nor a header is ever put
//! into a message. Redirects are followed here and not by the client, since a file's size and hash stand in the answer
//! that redirects.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use reqwest::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONTENT_LENGTH, ETAG, HeaderMap, HeaderName, HeaderValue, LOCATION, RANGE,
};
use reqwest::{Method, Response};
use serde::Deserialize;
use url::Url;

use super::cache::is_commit;
use super::settings::Settings;
use crate::objects::client::CONNECT_TIMEOUT;
use crate::objects::http_retry::RetryBudget;
use crate::objects::{StoreError, Traffic, install_tls_provider};

/// Redirects in a row that are followed.
const MOST_HOPS: usize = 10;
/// Largest answer that is read into memory: listings and indices.
const MOST_BYTES: usize = 64 << 20;
/// Hosts that state a file's size and hash as the endpoint does: mirrors may redirect to them.
const HUBS: [&str; 2] = ["huggingface.co", "hf.co"];

const LINKED_ETAG: HeaderName = HeaderName::from_static("x-linked-etag");
const LINKED_SIZE: HeaderName = HeaderName::from_static("x-linked-size");
const REPO_COMMIT: HeaderName = HeaderName::from_static("x-repo-commit");
const ERROR_CODE: HeaderName = HeaderName::from_static("x-error-code");

/// Why a request brought nothing.
#[derive(Debug)]
pub(super) enum Broken {
    /// It may pass.
    Passing(String),
    /// It stays.
    Final(StoreError),
    /// The range lies behind the end of the file.
    BehindTheEnd,
}

/// What the hub states about a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stated {
    /// SHA-256 of a large file, git's name of a small one; the name of its blob.
    pub(super) etag: String,
    pub(super) size: u64,
}

/// The files of a repository at one commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Listing {
    pub(super) commit: String,
    pub(super) files: Vec<String>,
}

/// A client of one hub.
#[derive(Debug)]
pub(super) struct Http {
    client: reqwest::Client,
    endpoint: Url,
    authorization: Option<HeaderValue>,
    traffic: Arc<Traffic>,
    retry_budget: Duration,
    reached: Arc<AtomicBool>,
}

impl Http {
    /// # Errors
    /// When the endpoint or the token makes no sense.
    pub(super) fn open(
        settings: &Settings,
        retry_budget: Duration,
        read_timeout: Duration,
        traffic: Arc<Traffic>,
    ) -> Result<Self, StoreError> {
        let bad = |reason: String| StoreError::BadUrl { url: "HF_ENDPOINT".to_owned(), reason };
        let endpoint = Url::parse(&settings.endpoint)
            .ok()
            .filter(|url| ["http", "https"].contains(&url.scheme()) && url.has_host())
            .ok_or_else(|| bad("it must be a URL that starts with `https://` or `http://`".to_owned()))?;
        install_tls_provider();
        let client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(read_timeout)
            .user_agent(concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| bad(deepest(&error)))?;
        let authorization = settings.authorization()?;
        Ok(Self { client, endpoint, authorization, traffic, retry_budget, reached: Arc::default() })
    }

    pub(super) fn retry_budget(&self) -> RetryBudget {
        RetryBudget::new(self.retry_budget, Arc::clone(&self.reached))
    }

    /// For how long a request may fail again and again.
    pub(super) fn set_retry_budget(&mut self, retry_budget: Duration) {
        self.retry_budget = retry_budget;
    }

    pub(super) fn traffic(&self) -> &Traffic {
        &self.traffic
    }

    /// The hub's name for a person: without credentials that its URL may hold.
    pub(super) fn host(&self) -> String {
        self.endpoint.origin().ascii_serialization()
    }

    /// The URL under the endpoint, which may have a path of its own, of these components.
    fn url(&self, components: &[&str]) -> Url {
        let mut url = self.endpoint.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            // A `/` inside a component is encoded, which is how a revision that has one must be written.
            path.pop_if_empty().extend(components);
        }
        url
    }

    fn file_url(&self, repo: &str, commit: &str, file: &str) -> Url {
        let mut components: Vec<&str> = repo.split('/').collect();
        components.extend(["resolve", commit]);
        components.extend(file.split('/'));
        self.url(&components)
    }

    /// One request, with its redirects.
    ///
    /// `anywhere`: follows redirects to other hosts too; else the answer that redirects there is handed back.
    async fn send(&self, method: Method, mut url: Url, from: u64, anywhere: bool) -> Result<Response, Broken> {
        for _ in 0..MOST_HOPS {
            let ours = url.origin() == self.endpoint.origin();
            // Sizes and hashes are those of the bytes as they are.
            let mut request = self.client.request(method.clone(), url.clone()).header(ACCEPT_ENCODING, "identity");
            if let Some(value) = self.authorization.as_ref().filter(|_| ours) {
                request = request.header(AUTHORIZATION, value.clone());
            }
            if from > 0 {
                request = request.header(RANGE, format!("bytes={from}-"));
            }
            let response = request.send().await.map_err(|error| Broken::Passing(brief(&error, &url)))?;
            let status = response.status();
            if status.is_server_error() || [408, 425, 429].contains(&status.as_u16()) {
                return Err(Broken::Passing(format!("{} answers {}", name(&url), status.as_u16())));
            }
            self.reached.store(true, Ordering::Relaxed);
            if !status.is_redirection() {
                if !ours && !status.is_success() && status.as_u16() != 416 {
                    // A signature that ran out, say: the endpoint gives a new one to the next attempt.
                    return Err(Broken::Passing(format!("{} answers {}", name(&url), status.as_u16())));
                }
                return Ok(response);
            }
            let to = response.headers().get(LOCATION).and_then(|to| to.to_str().ok()).and_then(|to| url.join(to).ok());
            let to = to.ok_or_else(|| self.no_hub("it redirects to nowhere"))?;
            let stays = to.origin() == self.endpoint.origin() || to.host_str().is_some_and(|host| HUBS.contains(&host));
            if !stays && !anywhere {
                return Ok(response);
            }
            url = to;
        }
        Err(self.no_hub("it redirects in circles").into())
    }

    /// The endpoint answers, but not as a hub does.
    fn no_hub(&self, why: &str) -> StoreError {
        let reason = format!("{why}, so it is no Hugging Face hub or a proxy answers for it: check HF_ENDPOINT");
        StoreError::BadUrl { url: self.host(), reason }
    }

    /// Sorts an answer that is an error; `subject` is what was asked for, `file` its part inside the repository.
    fn explain(&self, response: &Response, repo: &str, subject: &str) -> StoreError {
        let code = response.headers().get(ERROR_CODE).and_then(|code| code.to_str().ok()).unwrap_or_default();
        let refused = |hint: &'static str| StoreError::Refused { url: repo.to_owned(), hint };
        let absent = |what: String| StoreError::NotOnHub { repo: repo.to_owned(), what };
        match (response.status().as_u16(), code) {
            (_, "RevisionNotFound") => absent("has no such revision: check the name after `@`".to_owned()),
            (_, "EntryNotFound") => StoreError::NotFound { url: subject.to_owned() },
            (_, "GatedRepo") => refused(
                ": the repository is gated; accept its terms on the hub and set HF_TOKEN to a token of that account",
            ),
            (401, _) if self.authorization.is_none() => refused(
                ": it is private or does not exist; check the name, or set HF_TOKEN to a token that may read it",
            ),
            (401 | 403, _) => refused(": the token of HF_TOKEN, or the stored one, is not valid or may not read it"),
            (404, _) => absent(format!(
                "is not at {}: check the name and revision, or set HF_TOKEN if the repository is private",
                self.host()
            )),
            (status, _) => self.no_hub(&format!("it answers {status}")),
        }
    }

    /// Asks again and again until there is an answer that stays.
    async fn ask(&self, method: Method, url: &Url, repo: &str, subject: &str) -> Result<Response, StoreError> {
        let anywhere = method == Method::GET;
        let mut retry_budget = self.retry_budget();
        loop {
            self.traffic.add_request(retry_budget.attempts() > 0);
            match self.send(method.clone(), url.clone(), 0, anywhere).await {
                Ok(response) if response.status().is_client_error() => {
                    return Err(self.explain(&response, repo, subject));
                }
                Ok(response) => return Ok(response),
                Err(Broken::Passing(reason)) => retry_budget.wait(subject, "downloaded", reason).await?,
                Err(Broken::Final(error)) => return Err(error),
                Err(Broken::BehindTheEnd) => return Err(self.no_hub("it knows no file of any length")),
            }
        }
    }

    /// A small answer's body.
    async fn body(&self, url: &Url, repo: &str, subject: &str) -> Result<Vec<u8>, StoreError> {
        let mut retry_budget = self.retry_budget();
        'attempt: loop {
            let mut response = self.ask(Method::GET, url, repo, subject).await?;
            let mut body = Vec::new();
            loop {
                match response.chunk().await {
                    Ok(Some(part)) if body.len() + part.len() > MOST_BYTES => {
                        return Err(self.no_hub("its answer does not end"));
                    }
                    Ok(Some(part)) => {
                        self.traffic.add_read(part.len());
                        body.extend_from_slice(&part);
                    }
                    Ok(None) => return Ok(body),
                    Err(error) => {
                        retry_budget.wait(subject, "downloaded", brief(&error, url)).await?;
                        continue 'attempt;
                    }
                }
            }
        }
    }

    /// The files of a repository at a revision.
    ///
    /// # Errors
    /// When there is no such repository or revision, or it cannot be had.
    pub(super) async fn list(&self, repo: &str, revision: &str, shown: &str) -> Result<Listing, StoreError> {
        #[derive(Deserialize)]
        struct Raw {
            sha: String,
            siblings: Vec<Sibling>,
        }
        #[derive(Deserialize)]
        struct Sibling {
            rfilename: String,
        }
        let mut components = vec!["api", "models"];
        components.extend(repo.split('/'));
        components.extend(["revision", revision]);
        let body = self.body(&self.url(&components), shown, shown).await?;
        let raw: Raw = serde_json::from_slice(&body).map_err(|_| self.no_hub("its answer is no listing of files"))?;
        if !is_commit(&raw.sha) {
            return Err(self.no_hub("it names no commit"));
        }
        Ok(Listing { commit: raw.sha, files: raw.siblings.into_iter().map(|file| file.rfilename).collect() })
    }

    /// Size and hash of a file.
    ///
    /// # Errors
    /// When there is no such file, or the hub does not state both.
    pub(super) async fn stated(&self, repo: &str, commit: &str, file: &str, shown: &str) -> Result<Stated, StoreError> {
        let subject = format!("{shown}/{file}");
        let response = self.ask(Method::HEAD, &self.file_url(repo, commit, file), shown, &subject).await?;
        stated(response.headers(), response.status().is_redirection(), commit)
            .map_err(|why| self.no_hub(&format!("{why} for `{file}`")))
    }

    /// The content of a small file.
    ///
    /// # Errors
    /// When it cannot be had.
    pub(super) async fn read(&self, repo: &str, commit: &str, file: &str, shown: &str) -> Result<Vec<u8>, StoreError> {
        self.body(&self.file_url(repo, commit, file), shown, &format!("{shown}/{file}")).await
    }

    /// Opens a file's bytes from an offset on; says from which one they are.
    pub(super) async fn open_file(
        &self,
        (repo, commit, file): (&str, &str, &str),
        shown: &str,
        from: u64,
        repeated: bool,
    ) -> Result<(Response, u64), Broken> {
        self.traffic.add_request(repeated);
        let response = self.send(Method::GET, self.file_url(repo, commit, file), from, true).await?;
        match response.status().as_u16() {
            206 if starts_at(response.headers()) == Some(from) => Ok((response, from)),
            206 => Err(self.no_hub("it answers another range than it was asked for").into()),
            416 => Err(Broken::BehindTheEnd),
            // A server that knows no ranges starts over.
            200..300 => Ok((response, 0)),
            _ => Err(self.explain(&response, shown, &format!("{shown}/{file}")).into()),
        }
    }
}

impl From<StoreError> for Broken {
    fn from(error: StoreError) -> Self {
        Self::Final(error)
    }
}

/// What an answer to HEAD states.
fn stated(headers: &HeaderMap, redirects: bool, commit: &str) -> Result<Stated, &'static str> {
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    if text(REPO_COMMIT).is_some_and(|other| other != commit) {
        return Err("it answers with another commit");
    }
    let etag = text(LINKED_ETAG).or_else(|| text(ETAG)).ok_or("it states no hash")?;
    let etag = etag.strip_prefix("W/").unwrap_or(etag).trim_matches('"');
    // It names a file in the cache.
    let plain = |c: char| c.is_ascii_alphanumeric() || ['-', '_', '.'].contains(&c);
    if etag.is_empty() || etag.len() > 128 || etag.starts_with('.') || !etag.chars().all(plain) {
        return Err("it states no usable hash");
    }
    // The length of an answer that redirects is its own.
    let size = text(LINKED_SIZE).or_else(|| text(CONTENT_LENGTH).filter(|_| !redirects));
    let size = size.and_then(|size| size.parse().ok()).ok_or("it states no size")?;
    Ok(Stated { etag: etag.to_owned(), size })
}

/// The first byte of a `Content-Range: bytes FIRST-LAST/SIZE`.
fn starts_at(headers: &HeaderMap) -> Option<u64> {
    let value = headers.get(reqwest::header::CONTENT_RANGE)?.to_str().ok()?;
    value.strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok()
}

/// A server for a person: no path, no query.
fn name(url: &Url) -> String {
    url.origin().ascii_serialization()
}

/// The innermost cause, which never holds the URL.
fn deepest(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.last().map(ToString::to_string).unwrap_or_default()
}

/// What went wrong, in few words that hold no secret.
pub(super) fn brief(error: &reqwest::Error, url: &Url) -> String {
    let server = name(url);
    match (error.is_connect(), error.is_timeout()) {
        (true, true) => format!("no connection to {server} in {} s", CONNECT_TIMEOUT.as_secs()),
        (true, false) => format!("no connection to {server} ({})", deepest(error)),
        (false, true) => format!("no byte came from {server} for too long"),
        (false, false) => format!("the connection to {server} broke ({})", deepest(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn headers(list: &[(&'static str, &'static str)]) -> HeaderMap {
        list.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn size_and_hash_are_those_of_the_file_and_not_of_the_answer() {
        let stated = |list: &[(&'static str, &'static str)], redirects| {
            stated(&headers(list), redirects, COMMIT).map(|found| (found.etag, found.size))
        };
        let small = [("etag", "\"abc\""), ("content-length", "12"), ("x-repo-commit", COMMIT)];
        assert_eq!(stated(&small, false), Ok(("abc".into(), 12)));
        assert_eq!(stated(&[("etag", "W/\"abc\""), ("content-length", "12")], false), Ok(("abc".into(), 12)));
        let large = [
            ("etag", "\"of-the-redirect\""),
            ("x-linked-etag", "\"f00\""),
            ("content-length", "99"),
            ("x-linked-size", "5000000000"),
        ];
        assert_eq!(stated(&large, true), Ok(("f00".into(), 5_000_000_000)));
        assert_eq!(stated(&[("etag", "\"abc\""), ("content-length", "99")], true), Err("it states no size"));
        assert_eq!(stated(&[("content-length", "12")], false), Err("it states no hash"));
        for etag in ["\"../../x\"", "\"\"", "\"a/b\"", "\".a\""] {
            let list = [("etag", etag), ("content-length", "1")];
            assert_eq!(super::stated(&headers(&list), false, COMMIT), Err("it states no usable hash"));
        }
        let other = [("etag", "\"abc\""), ("content-length", "12"), ("x-repo-commit", "f00")];
        assert_eq!(stated(&other, false), Err("it answers with another commit"));
    }

    #[test]
    fn an_endpoint_may_have_a_path_and_a_revision_a_slash() {
        let endpoint = Url::parse("https://mirror.example/api/hf").unwrap();
        install_tls_provider();
        let http = Http {
            client: reqwest::Client::new(),
            endpoint,
            authorization: None,
            traffic: Arc::default(),
            retry_budget: Duration::ZERO,
            reached: Arc::default(),
        };
        assert_eq!(
            http.url(&["api", "models", "org", "name", "revision", "refs/pr/1"]).as_str(),
            "https://mirror.example/api/hf/api/models/org/name/revision/refs%2Fpr%2F1"
        );
        assert_eq!(
            http.file_url("name", COMMIT, "config.json").as_str(),
            format!("https://mirror.example/api/hf/name/resolve/{COMMIT}/config.json")
        );
    }

    #[test]
    fn a_range_says_where_it_starts() {
        assert_eq!(starts_at(&headers(&[("content-range", "bytes 100-199/200")])), Some(100));
        assert_eq!(starts_at(&headers(&[("content-range", "items 1-2/3")])), None);
    }
}
