//! Requests to the hub: where the token goes, which redirects are followed, how answers are read.
//!
//! The token is sent only to the scheme, host and port of the endpoint. Large files are on other hosts, behind a redirect to
//! a URL that is signed for a short time, so each attempt starts at the endpoint. Messages contain neither that URL nor
//! headers. Redirects are followed here rather than by the client, because the redirecting answer states the file's size
//! and hash.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use reqwest::header::{ACCEPT_ENCODING, AUTHORIZATION, HeaderName, HeaderValue, LOCATION, RANGE};
use reqwest::{Method, Response};
use serde::Deserialize;
use url::Url;

use super::cache::is_commit;
use super::headers::{FileMetadata, next_page, parse_metadata, range_start};
use super::settings::Settings;
use crate::objects::client::CONNECT_TIMEOUT;
use crate::objects::http_retry::RetryBudget;
use crate::objects::{StoreError, Traffic, install_tls_provider};

/// Upper bound on consecutive redirects.
const MAX_REDIRECTS: usize = 10;
/// Upper bound on an answer that is read into memory: a listing or an index.
const MAX_BODY_BYTES: usize = 64 << 20;
/// Hosts that state a file's size and hash like the endpoint; mirrors may redirect to them.
const HUBS: [&str; 2] = ["huggingface.co", "hf.co"];

const ERROR_CODE: HeaderName = HeaderName::from_static("x-error-code");

/// Failure of a request.
#[derive(Debug)]
pub(super) enum RequestError {
    /// Another attempt may succeed.
    Transient(String),
    /// No further attempt can succeed.
    Permanent(StoreError),
    /// The range lies beyond the end of the file.
    OutOfRange,
}

/// Files of a repository at one commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Listing {
    pub(super) commit: String,
    pub(super) files: Vec<String>,
}

/// HTTP client of one hub.
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
    /// Creates a client of the endpoint.
    ///
    /// # Errors
    /// When the endpoint or the token is invalid.
    pub(super) fn open(
        settings: &Settings,
        retry_budget: Duration,
        read_timeout: Duration,
        traffic: Arc<Traffic>,
    ) -> Result<Self, StoreError> {
        let invalid = |reason: String| StoreError::BadUrl { url: "HF_ENDPOINT".to_owned(), reason };
        let endpoint = Url::parse(&settings.endpoint)
            .ok()
            .filter(|url| ["http", "https"].contains(&url.scheme()) && url.has_host())
            .ok_or_else(|| invalid("it must be a URL that starts with `https://` or `http://`".to_owned()))?;
        install_tls_provider();
        let client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(read_timeout)
            .user_agent(concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| invalid(deepest(&error)))?;
        let authorization = settings.authorization()?;
        Ok(Self { client, endpoint, authorization, traffic, retry_budget, reached: Arc::default() })
    }

    pub(super) fn retry_budget(&self) -> RetryBudget {
        RetryBudget::new(self.retry_budget, Arc::clone(&self.reached))
    }

    /// Sets the time for which a request may fail again and again.
    pub(super) fn set_retry_budget(&mut self, retry_budget: Duration) {
        self.retry_budget = retry_budget;
    }

    pub(super) fn traffic(&self) -> &Traffic {
        &self.traffic
    }

    /// Returns the hub's name for messages, without credentials that its URL may hold.
    pub(super) fn host(&self) -> String {
        self.endpoint.origin().ascii_serialization()
    }

    /// Returns the URL of a path below the endpoint, which may have a path of its own.
    pub(super) fn url(&self, components: &[&str]) -> Url {
        let mut url = self.endpoint.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            // A `/` inside a component is percent-encoded, as the hub requires for revisions.
            path.pop_if_empty().extend(components);
        }
        url
    }

    pub(super) fn file_url(&self, repo: &str, commit: &str, file: &str) -> Url {
        let mut components: Vec<&str> = repo.split('/').collect();
        components.extend(["resolve", commit]);
        components.extend(file.split('/'));
        self.url(&components)
    }

    /// Sends one request and follows its redirects.
    ///
    /// Without `follow_all`, an answer that redirects to another host is returned itself.
    pub(super) async fn send(
        &self,
        method: Method,
        mut url: Url,
        range: Option<&str>,
        follow_all: bool,
    ) -> Result<Response, RequestError> {
        for _ in 0..MAX_REDIRECTS {
            let ours = url.origin() == self.endpoint.origin();
            // Sizes and hashes are those of the uncompressed bytes.
            let mut request = self.client.request(method.clone(), url.clone()).header(ACCEPT_ENCODING, "identity");
            if let Some(value) = self.authorization.as_ref().filter(|_| ours) {
                request = request.header(AUTHORIZATION, value.clone());
            }
            if let Some(range) = range {
                request = request.header(RANGE, range);
            }
            let response = request.send().await.map_err(|error| RequestError::Transient(describe(&error, &url)))?;
            let status = response.status();
            if status.is_server_error() || [408, 425, 429].contains(&status.as_u16()) {
                return Err(RequestError::Transient(format!("{} answers {}", name(&url), status.as_u16())));
            }
            self.reached.store(true, Ordering::Relaxed);
            if !status.is_redirection() {
                if !ours && !status.is_success() && status.as_u16() != 416 {
                    // A signature may have expired; the next attempt gets a new one from the endpoint.
                    return Err(RequestError::Transient(format!("{} answers {}", name(&url), status.as_u16())));
                }
                return Ok(response);
            }
            let to = response.headers().get(LOCATION).and_then(|to| to.to_str().ok()).and_then(|to| url.join(to).ok());
            let to = to.ok_or_else(|| self.not_a_hub("it redirects to nowhere"))?;
            let stays = to.origin() == self.endpoint.origin() || to.host_str().is_some_and(|host| HUBS.contains(&host));
            if !stays && !follow_all {
                return Ok(response);
            }
            url = to;
        }
        Err(self.not_a_hub("it redirects in circles").into())
    }

    /// Returns the error for an endpoint that does not answer like a hub.
    pub(super) fn not_a_hub(&self, why: &str) -> StoreError {
        let reason = format!("{why}, so it is not a Hugging Face hub, or a proxy answers for it: check HF_ENDPOINT");
        StoreError::BadUrl { url: self.host(), reason }
    }

    /// Converts an error answer; `subject` names the requested file or repository.
    pub(super) fn explain(&self, response: &Response, repo: &str, subject: &str) -> StoreError {
        let code = response.headers().get(ERROR_CODE).and_then(|code| code.to_str().ok()).unwrap_or_default();
        let refused = |hint: &'static str| StoreError::Refused { url: repo.to_owned(), hint: hint.into() };
        let absent = |what: String| StoreError::NotOnHub { repo: repo.to_owned(), what };
        match (response.status().as_u16(), code) {
            (_, "RevisionNotFound") => absent("has no such revision: check the name after `@`".to_owned()),
            (_, "EntryNotFound") => StoreError::NotFound { url: subject.to_owned(), answer: String::new() },
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
            (status, _) => self.not_a_hub(&format!("it answers {status}")),
        }
    }

    /// Repeats a request until it succeeds or fails permanently.
    async fn request(&self, method: Method, url: &Url, repo: &str, subject: &str) -> Result<Response, StoreError> {
        let follow_all = method == Method::GET;
        let mut retry_budget = self.retry_budget();
        loop {
            self.traffic.add_request(retry_budget.attempts() > 0);
            match self.send(method.clone(), url.clone(), None, follow_all).await {
                Ok(response) if response.status().is_client_error() => {
                    return Err(self.explain(&response, repo, subject));
                }
                Ok(response) => return Ok(response),
                Err(RequestError::Transient(reason)) => retry_budget.wait(subject, "downloaded", reason).await?,
                Err(RequestError::Permanent(error)) => return Err(error),
                Err(RequestError::OutOfRange) => {
                    return Err(self.not_a_hub("it answers 416 to a request without a range"));
                }
            }
        }
    }

    /// Reads the body of a small answer.
    pub(super) async fn body(&self, url: &Url, repo: &str, subject: &str) -> Result<Vec<u8>, StoreError> {
        Ok(self.page(url, repo, subject).await?.0)
    }

    /// Reads the body of a small answer, and the URL of the next page of a listing.
    pub(super) async fn page(
        &self,
        url: &Url,
        repo: &str,
        subject: &str,
    ) -> Result<(Vec<u8>, Option<Url>), StoreError> {
        let mut retry_budget = self.retry_budget();
        'attempt: loop {
            let mut response = self.request(Method::GET, url, repo, subject).await?;
            let next = next_page(response.headers()).and_then(|next| url.join(next).ok());
            let mut body = Vec::new();
            loop {
                match response.chunk().await {
                    Ok(Some(part)) if body.len() + part.len() > MAX_BODY_BYTES => {
                        return Err(self.not_a_hub("its answer does not end"));
                    }
                    Ok(Some(part)) => {
                        self.traffic.add_read(part.len());
                        body.extend_from_slice(&part);
                    }
                    Ok(None) => return Ok((body, next)),
                    Err(error) => {
                        retry_budget.wait(subject, "downloaded", describe(&error, url)).await?;
                        continue 'attempt;
                    }
                }
            }
        }
    }

    /// Lists the files of a repository at a revision.
    ///
    /// # Errors
    /// When the repository or the revision does not exist, or the hub cannot be asked.
    pub(super) async fn list(&self, repo: &str, revision: &str, label: &str) -> Result<Listing, StoreError> {
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
        let body = self.body(&self.url(&components), label, label).await?;
        let raw: Raw =
            serde_json::from_slice(&body).map_err(|_| self.not_a_hub("its answer is not a list of files"))?;
        if !is_commit(&raw.sha) {
            return Err(self.not_a_hub("it names no commit"));
        }
        Ok(Listing { commit: raw.sha, files: raw.siblings.into_iter().map(|file| file.rfilename).collect() })
    }

    /// Returns the size and hash of a file.
    ///
    /// # Errors
    /// When the file does not exist, or the hub does not state both.
    pub(super) async fn file_metadata(
        &self,
        repo: &str,
        commit: &str,
        file: &str,
        label: &str,
    ) -> Result<FileMetadata, StoreError> {
        let subject = format!("{label}/{file}");
        let response = self.request(Method::HEAD, &self.file_url(repo, commit, file), label, &subject).await?;
        parse_metadata(response.headers(), response.status().is_redirection(), commit)
            .map_err(|why| self.not_a_hub(&format!("{why} for `{file}`")))
    }

    /// Reads the content of a small file.
    ///
    /// # Errors
    /// When it cannot be downloaded.
    pub(super) async fn read(&self, repo: &str, commit: &str, file: &str, label: &str) -> Result<Vec<u8>, StoreError> {
        self.body(&self.file_url(repo, commit, file), label, &format!("{label}/{file}")).await
    }

    /// Opens a file at an offset; returns the offset at which the answer starts.
    pub(super) async fn open_file(
        &self,
        (repo, commit, file): (&str, &str, &str),
        label: &str,
        from: u64,
        repeated: bool,
    ) -> Result<(Response, u64), RequestError> {
        self.traffic.add_request(repeated);
        let range = (from > 0).then(|| format!("bytes={from}-"));
        let response = self.send(Method::GET, self.file_url(repo, commit, file), range.as_deref(), true).await?;
        match response.status().as_u16() {
            206 if range_start(response.headers()) == Some(from) => Ok((response, from)),
            206 => Err(self.not_a_hub("it answers with another range than the requested one").into()),
            416 => Err(RequestError::OutOfRange),
            // A server without ranges starts from the beginning.
            200..300 => Ok((response, 0)),
            _ => Err(self.explain(&response, label, &format!("{label}/{file}")).into()),
        }
    }
}

impl From<StoreError> for RequestError {
    fn from(error: StoreError) -> Self {
        Self::Permanent(error)
    }
}

/// Returns a server's name for messages, without path and query.
pub(super) fn name(url: &Url) -> String {
    url.origin().ascii_serialization()
}

/// Returns the innermost cause, which never contains the URL.
fn deepest(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.last().map(ToString::to_string).unwrap_or_default()
}

/// Describes a failure in few words, without secrets.
pub(super) fn describe(error: &reqwest::Error, url: &Url) -> String {
    let server = name(url);
    match (error.is_connect(), error.is_timeout()) {
        (true, true) => format!("no connection to {server} in {} s", CONNECT_TIMEOUT.as_secs()),
        (true, false) => format!("no connection to {server} ({})", deepest(error)),
        (false, true) => format!("no byte arrived from {server} before the timeout"),
        (false, false) => format!("the connection to {server} broke ({})", deepest(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    #[test]
    fn url_joins_endpoint_path_and_encodes_revision() {
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
}
