//! Clients of local files, `s3://`, `gs://`, `az://`, `https://` and the schemes of providers: one for each bucket or host.
//!
//! Credentials come from the environment, the AWS profile or the machine's metadata service. A connection has a timeout for
//! its setup and one for each read, but none for a whole body, because a reader may wait for its consumer.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::time::Duration;

use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::http::HttpBuilder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{BackoffConfig, ClientOptions, Error, ObjectStore, RetryConfig};
use url::Url;

use super::http_error::{FailureKind, TypedConnector, classify, describe, explain, is_answer, is_without_credentials};
use super::http_retry::RetryBudget;
use super::web::WebConnector;
use super::{Provider, StoreError, Traffic, profile};

/// Timeout for setting up a connection.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Slowest accepted upload. The server answers only after the last byte, so the timeout of an upload grows with its size.
const UPLOAD_BYTES_PER_SECOND: u64 = 64 << 10;

/// Settings of the connections to stores.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreSettings {
    /// S3-compatible endpoint; if empty, `AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL` or AWS itself.
    pub endpoint: String,
    /// Time for which a request may fail again and again before the run stops.
    pub retry_budget: Duration,
    /// Time without a byte after which a request has failed.
    pub read_timeout: Duration,
}

impl Default for StoreSettings {
    fn default() -> Self {
        Self { endpoint: String::new(), retry_budget: Duration::from_mins(5), read_timeout: Duration::from_secs(20) }
    }
}

/// Installs the TLS provider of all HTTP clients; only the first call has an effect.
pub fn install_tls_provider() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // It fails where another provider is installed, which serves as well.
        rustls::crypto::ring::default_provider().install_default().ok();
    });
}

/// Client of one bucket, container or host, or of the local files.
#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) inner: Arc<dyn ObjectStore>,
    /// Additional clients of S3.
    pub(crate) s3: Option<S3>,
    /// Client of a web server for bodies that may wait for their consumer; the caller measures the read timeout.
    pub(crate) without_read_timeout: Option<Arc<dyn ObjectStore>>,
    /// Start of all its URLs, without the final `/`; empty for local files.
    pub(crate) root: String,
    pub(crate) traffic: Arc<Traffic>,
    pub(crate) retry_budget: Duration,
    pub(crate) read_timeout: Duration,
    reached: Arc<AtomicBool>,
}

/// Clients of S3 for requests that other stores do not have.
#[derive(Clone)]
pub(crate) struct S3 {
    /// Client for small requests.
    pub(crate) store: Arc<AmazonS3>,
    /// Client for uploads, whose timeout depends on their size and is applied by [`Client::retry_upload`].
    pub(crate) upload: Arc<AmazonS3>,
}

impl std::fmt::Debug for Client {
    /// Omits the inner clients, which hold keys and signed queries.
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Client").field("root", &self.root).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Clients {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Clients").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// All clients of a run, by bucket or host.
pub(crate) struct Clients {
    settings: StoreSettings,
    pub(crate) traffic: Arc<Traffic>,
    open: Mutex<BTreeMap<String, Client>>,
    providers: Vec<Arc<dyn Provider>>,
}

/// Returns the scheme of a remote URL; `None` for local names.
pub(crate) fn remote_scheme(name: &str) -> Option<&str> {
    name.split_once("://").map(|(scheme, _)| scheme).filter(|scheme| *scheme != "file")
}

fn bad_url(url: &str, reason: impl Into<String>) -> StoreError {
    StoreError::BadUrl { url: redact(url).to_owned(), reason: reason.into() }
}

/// Returns a web URL without its query, which may hold a signature.
pub(crate) fn redact(url: &str) -> &str {
    if url.starts_with("http") { url.split('?').next().unwrap_or(url) } else { url }
}

impl Clients {
    pub(crate) fn new(settings: StoreSettings, providers: Vec<Arc<dyn Provider>>) -> Self {
        Self { settings, traffic: Arc::default(), open: Mutex::default(), providers }
    }

    pub(crate) fn settings(&self) -> &StoreSettings {
        &self.settings
    }

    /// Returns the client of local files.
    pub(crate) fn local(&self) -> Client {
        self.client(Arc::new(LocalFileSystem::new()), None, String::new())
    }

    fn client(&self, inner: Arc<dyn ObjectStore>, s3: Option<S3>, root: String) -> Client {
        let StoreSettings { retry_budget, read_timeout, .. } = self.settings;
        let (traffic, reached) = (Arc::clone(&self.traffic), Arc::default());
        Client { inner, s3, without_read_timeout: None, root, traffic, retry_budget, read_timeout, reached }
    }

    /// Returns the client of a URL and the part of the URL that names the object, not decoded.
    ///
    /// # Errors
    /// When the URL or the environment is invalid.
    pub(crate) fn client_for<'a>(&self, url: &'a str) -> Result<(Client, &'a str), StoreError> {
        let (scheme, rest) = url.split_once("://").ok_or_else(|| bad_url(url, "it is not a URL"))?;
        if let Some(provider) = self.providers.iter().find(|provider| provider.scheme() == scheme) {
            return self.provided(provider.as_ref(), url);
        }
        let (host, key) = rest.split_once('/').unwrap_or((rest, ""));
        if host.is_empty() {
            return Err(bad_url(url, "it names no bucket or host"));
        }
        if let ("http" | "https", Some((_, host))) = (scheme, host.rsplit_once('@')) {
            let reason = "a user name or password in a URL is not supported, because URLs are shown and recorded";
            return Err(bad_url(&format!("{scheme}://{host}"), reason));
        }
        // A signed query is valid for one object, so it has a client of its own.
        let query = if scheme.starts_with("http") { key.split_once('?').map(|(_, query)| query) } else { None };
        let key = if query.is_some() { key.split('?').next().unwrap_or(key) } else { key };
        let root = format!("{scheme}://{host}");
        let name = query.map_or_else(|| root.clone(), |query| format!("{root}?{query}"));
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = open.get(&name) {
            return Ok((client.clone(), key));
        }
        install_tls_provider();
        let options = without_read_timeout().with_read_timeout(self.settings.read_timeout);
        let failed = |error: Error| bad_url(&root, describe(&error));
        let client = match scheme {
            "s3" | "s3a" => {
                let store = Arc::new(self.s3(host, options.clone()).map_err(failed)?);
                let upload = Arc::new(self.s3(host, without_read_timeout()).map_err(failed)?);
                let inner: Arc<dyn ObjectStore> = Arc::<AmazonS3>::clone(&store);
                self.client(inner, Some(S3 { store, upload }), root)
            }
            "gs" => {
                let builder = GoogleCloudStorageBuilder::from_env().with_bucket_name(host);
                // Only a key file can name another endpoint than Google's.
                let options = options.with_allow_http(true);
                let store = builder.with_retry(retries_off()).with_client_options(options);
                let store = store.with_http_connector(TypedConnector::default()).build().map_err(failed)?;
                self.client(Arc::new(store), None, root)
            }
            "az" | "azure" => {
                let builder = MicrosoftAzureBuilder::from_env().with_container_name(host);
                let store = builder.with_retry(retries_off()).with_client_options(options);
                let store = store.with_http_connector(TypedConnector::default()).build().map_err(failed)?;
                self.client(Arc::new(store), None, root)
            }
            "http" | "https" => {
                let mut base = Url::parse(&root).map_err(|error| bad_url(url, error.to_string()))?;
                base.set_query(query);
                let build = |read_timeout| {
                    let builder = HttpBuilder::new().with_url(base.clone()).with_retry(retries_off());
                    builder.with_http_connector(WebConnector { read_timeout }).build().map_err(failed)
                };
                let (store, without_read_timeout) = (build(Some(self.settings.read_timeout))?, build(None)?);
                Client {
                    without_read_timeout: Some(Arc::new(without_read_timeout)),
                    ..self.client(Arc::new(store), None, root.clone())
                }
            }
            other => {
                return Err(bad_url(
                    url,
                    format!("the scheme `{other}` is not supported; use s3, gs, az, https, hf or a local path"),
                ));
            }
        };
        open.insert(name, client.clone());
        Ok((client, key))
    }

    /// Returns the client of a URL whose scheme another module implements.
    fn provided<'a>(&self, provider: &dyn Provider, url: &'a str) -> Result<(Client, &'a str), StoreError> {
        let (root, key) = provider.split(url)?;
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = open.get(&root) {
            return Ok((client.clone(), key));
        }
        let client = self.client(provider.open(&root, &self.settings, &self.traffic)?, None, root.clone());
        open.insert(root, client.clone());
        Ok((client, key))
    }

    fn s3(&self, bucket: &str, options: ClientOptions) -> Result<AmazonS3, Error> {
        let profile = profile::read_profile();
        let mut builder = AmazonS3Builder::from_env().with_bucket_name(bucket);
        let missing = |builder: &AmazonS3Builder, key| builder.get_config_value(&key).is_none();
        if let (true, Some(key)) = (missing(&builder, AmazonS3ConfigKey::AccessKeyId), &profile.access_key_id) {
            builder = builder.with_access_key_id(key);
            builder = builder.with_secret_access_key(profile.secret_access_key.as_deref().unwrap_or_default());
            if let Some(token) = &profile.session_token {
                builder = builder.with_token(token);
            }
        }
        if missing(&builder, AmazonS3ConfigKey::Region) && std::env::var_os("AWS_DEFAULT_REGION").is_none() {
            builder = builder.with_region(profile.region.as_deref().unwrap_or("us-east-1"));
        }
        if !self.settings.endpoint.is_empty() {
            builder = builder.with_config(AmazonS3ConfigKey::S3Endpoint, &self.settings.endpoint);
        } else if let (true, Some(endpoint)) = (missing(&builder, AmazonS3ConfigKey::Endpoint), &profile.endpoint_url) {
            builder = builder.with_endpoint(endpoint);
        }
        let plain = [AmazonS3ConfigKey::S3Endpoint, AmazonS3ConfigKey::Endpoint]
            .into_iter()
            .find_map(|key| builder.get_config_value(&key))
            .is_some_and(|endpoint| endpoint.starts_with("http://"));
        let imdsv1_fallback = builder
            .get_config_value(&AmazonS3ConfigKey::ImdsV1Fallback)
            .is_some_and(|value| ["1", "true", "on", "yes", "y"].contains(&value.to_ascii_lowercase().as_str()));
        // The endpoint's own scheme permits a connection without TLS.
        let options = options.with_allow_http(plain);
        // Some S3-compatible stores lack bulk deletion, and single deletions report their status.
        builder
            .with_retry(retries_off())
            .with_client_options(options)
            .with_disable_bulk_delete(true)
            .with_http_connector(TypedConnector { imdsv1_fallback })
            .build()
    }
}

/// Switches the retries of `object_store` off; [`super::http_retry`] replaces them.
fn retries_off() -> RetryConfig {
    RetryConfig { backoff: BackoffConfig::default(), max_retries: 0, retry_timeout: Duration::from_mins(1) }
}

fn without_read_timeout() -> ClientOptions {
    ClientOptions::new().with_connect_timeout(CONNECT_TIMEOUT).with_timeout_disabled()
}

impl Client {
    pub(crate) fn is_local(&self) -> bool {
        self.root.is_empty()
    }

    /// Returns whether the objects are on a web server.
    pub(crate) fn is_web(&self) -> bool {
        self.root.starts_with("http")
    }

    /// Returns the URL of an object, for messages.
    pub(crate) fn url(&self, location: &Path) -> String {
        format!("{}/{location}", self.root)
    }

    pub(crate) fn retry_budget(&self) -> RetryBudget {
        RetryBudget::new(self.retry_budget, Arc::clone(&self.reached))
    }

    /// Records that the store has answered, if only with an error.
    pub(crate) fn mark_reached(&self) {
        self.reached.store(true, Ordering::Relaxed);
    }

    /// Decides whether another attempt may succeed, and records whether the failure was an answer.
    pub(crate) fn classify(&self, error: &Error) -> FailureKind {
        if is_answer(error) {
            self.mark_reached();
        }
        if self.is_local() {
            FailureKind::Permanent
        } else if self.reached.load(Ordering::Relaxed) && is_without_credentials(error) {
            // Credentials were found earlier, so the metadata service may return.
            FailureKind::Transient
        } else {
            classify(error)
        }
    }

    /// Repeats a request until it succeeds or fails permanently, and returns the result as it is.
    ///
    /// # Errors
    /// When the retry budget is spent.
    pub(crate) async fn retry<T, R: Future<Output = object_store::Result<T>>>(
        &self,
        url: &str,
        action: &'static str,
        mut request: impl FnMut() -> R,
    ) -> Result<object_store::Result<T>, StoreError> {
        let mut retry_budget = self.retry_budget();
        loop {
            if !self.is_local() {
                self.traffic.add_request(retry_budget.attempts() > 0);
            }
            match request().await {
                Err(error) if self.classify(&error) == FailureKind::Transient => {
                    retry_budget.wait(url, action, describe(&error)).await?;
                }
                answer => {
                    if answer.is_ok() {
                        self.mark_reached();
                    }
                    return Ok(answer);
                }
            }
        }
    }

    /// Repeats an upload of `bytes` bytes like [`Self::retry`]; each attempt first awaits `may_write`.
    pub(crate) async fn retry_upload<T, R, W>(
        &self,
        url: &str,
        bytes: usize,
        mut may_write: impl FnMut() -> W,
        mut request: impl FnMut() -> R,
    ) -> Result<object_store::Result<T>, StoreError>
    where
        R: Future<Output = object_store::Result<T>>,
        W: Future<Output = Result<(), StoreError>>,
    {
        let limit = self.read_timeout + Duration::from_secs(bytes as u64 / UPLOAD_BYTES_PER_SECOND);
        let mut retry_budget = self.retry_budget();
        loop {
            may_write().await?;
            self.traffic.add_request(retry_budget.attempts() > 0);
            let reason = match tokio::time::timeout(limit, request()).await {
                Err(_) => "no answer arrived before the timeout".to_owned(),
                Ok(Err(error)) if self.classify(&error) == FailureKind::Transient => describe(&error),
                Ok(answer) => {
                    if answer.is_ok() {
                        self.mark_reached();
                    }
                    return Ok(answer);
                }
            };
            retry_budget.wait(url, "written", reason).await?;
        }
    }

    /// Repeats a request like [`Self::retry`] and converts a permanent failure to a [`StoreError`].
    pub(crate) async fn request<T, R: Future<Output = object_store::Result<T>>>(
        &self,
        url: &str,
        action: &'static str,
        request: impl FnMut() -> R,
    ) -> Result<T, StoreError> {
        self.retry(url, action, request).await?.map_err(|error| explain(url, action, &error))
    }
}
