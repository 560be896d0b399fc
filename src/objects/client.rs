//! URL → client: local files, `s3://`, `gs://`, `az://`, `https://`, each bucket or host with one client.
//!
//! Credentials come from the environment, the AWS profile or the machine's metadata alone. Connections have a limit for
//! being set up and one for read_timeout, never one for a whole body: a reader that waits for its consumer is no failure.

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

use super::http_error::{TypedConnector, Verdict, describe, explain, is_answer, is_without_credentials, judge};
use super::http_retry::RetryBudget;
use super::{StoreError, Traffic, profile};

/// Time for a connection to be set up.
pub(crate) const CONNECT: Duration = Duration::from_secs(10);
/// A second of an upload's time for so many bytes, beside the read_timeout that any request may take: the answer comes once all are
/// there, and a slow line is no silent one.
const UPLOAD_BYTES_PER_SECOND: u64 = 64 << 10;

/// How stores are reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreSettings {
    /// S3-compatible endpoint; empty: `AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL` or AWS itself.
    pub endpoint: String,
    /// For how long a request may fail again and again before the run stops.
    pub retry_budget: Duration,
    /// Time without a byte after which a request counts as lost.
    pub read_timeout: Duration,
}

impl Default for StoreSettings {
    fn default() -> Self {
        Self { endpoint: String::new(), retry_budget: Duration::from_mins(5), read_timeout: Duration::from_secs(20) }
    }
}

/// Installs the TLS provider of all HTTP clients, once.
pub fn tls() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Another one may be there already, which is as good.
        rustls::crypto::ring::default_provider().install_default().ok();
    });
}

/// The client of one bucket, container or host, or of the local files.
#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) inner: Arc<dyn ObjectStore>,
    /// Where it is S3: listings page by page, and uploads.
    pub(crate) s3: Option<S3>,
    /// Where it is a web server: bodies that wait for their consumer, whose read_timeout is told from its own by who reads them.
    pub(crate) unhurried: Option<Arc<dyn ObjectStore>>,
    /// What its URLs start with, without the `/` behind it; empty for local files.
    pub(crate) root: String,
    pub(crate) traffic: Arc<Traffic>,
    pub(crate) retry_budget: Duration,
    pub(crate) read_timeout: Duration,
    reached: Arc<AtomicBool>,
}

/// What S3 can do beyond the other stores.
#[derive(Clone)]
pub(crate) struct S3 {
    /// For everything that is small.
    pub(crate) store: Arc<AmazonS3>,
    /// For uploads, whose limit of time depends on their size and is kept here.
    pub(crate) upload: Arc<AmazonS3>,
}

impl std::fmt::Debug for Client {
    /// Nothing of the clients inside, which hold keys and signed queries.
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Client").field("root", &self.root).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Clients {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Clients").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// All clients of a run.
pub(crate) struct Clients {
    settings: StoreSettings,
    pub(crate) traffic: Arc<Traffic>,
    open: Mutex<BTreeMap<String, Client>>,
}

/// The scheme of a name that is a URL of a remote store.
pub(crate) fn scheme(name: &str) -> Option<&str> {
    name.split_once("://").map(|(scheme, _)| scheme).filter(|scheme| *scheme != "file")
}

fn bad(url: &str, reason: impl Into<String>) -> StoreError {
    StoreError::BadUrl { url: shown(url).to_owned(), reason: reason.into() }
}

/// A URL as it may be shown: a query holds signatures.
pub(crate) fn shown(url: &str) -> &str {
    if url.starts_with("http") { url.split('?').next().unwrap_or(url) } else { url }
}

impl Clients {
    pub(crate) fn new(settings: StoreSettings) -> Self {
        Self { settings, traffic: Arc::default(), open: Mutex::default() }
    }

    pub(crate) fn settings(&self) -> &StoreSettings {
        &self.settings
    }

    /// The client of local files.
    pub(crate) fn local(&self) -> Client {
        self.client(Arc::new(LocalFileSystem::new()), None, String::new())
    }

    fn client(&self, inner: Arc<dyn ObjectStore>, s3: Option<S3>, root: String) -> Client {
        let StoreSettings { retry_budget, read_timeout, .. } = self.settings;
        let (traffic, reached) = (Arc::clone(&self.traffic), Arc::default());
        Client { inner, s3, unhurried: None, root, traffic, retry_budget, read_timeout, reached }
    }

    /// The client behind a URL, and the part of the URL that names the object, not decoded.
    ///
    /// # Errors
    /// When the URL or the environment makes no sense.
    pub(crate) fn at<'a>(&self, url: &'a str) -> Result<(Client, &'a str), StoreError> {
        let (scheme, rest) = url.split_once("://").ok_or_else(|| bad(url, "it is no URL"))?;
        let (host, key) = rest.split_once('/').unwrap_or((rest, ""));
        if host.is_empty() {
            return Err(bad(url, "it names no bucket or host"));
        }
        // A query belongs to its one object, for whose sake it was signed.
        let query = if scheme.starts_with("http") { key.split_once('?').map(|(_, query)| query) } else { None };
        let key = if query.is_some() { key.split('?').next().unwrap_or(key) } else { key };
        let root = format!("{scheme}://{host}");
        let name = query.map_or_else(|| root.clone(), |query| format!("{root}?{query}"));
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = open.get(&name) {
            return Ok((client.clone(), key));
        }
        tls();
        let options = unlimited().with_read_timeout(self.settings.read_timeout);
        let failed = |error: Error| bad(&root, describe(&error));
        let client = match scheme {
            "s3" | "s3a" => {
                let store = Arc::new(self.s3(host, options.clone()).map_err(failed)?);
                let upload = Arc::new(self.s3(host, unlimited()).map_err(failed)?);
                let inner: Arc<dyn ObjectStore> = Arc::<AmazonS3>::clone(&store);
                self.client(inner, Some(S3 { store, upload }), root)
            }
            "gs" => {
                let builder = GoogleCloudStorageBuilder::from_env().with_bucket_name(host);
                // Only the key file can name another endpoint than Google's.
                let options = options.with_allow_http(true);
                let store = builder.with_retry(no_retry()).with_client_options(options);
                let store = store.with_http_connector(TypedConnector::default()).build().map_err(failed)?;
                self.client(Arc::new(store), None, root)
            }
            "az" | "azure" => {
                let builder = MicrosoftAzureBuilder::from_env().with_container_name(host);
                let store = builder.with_retry(no_retry()).with_client_options(options);
                let store = store.with_http_connector(TypedConnector::default()).build().map_err(failed)?;
                self.client(Arc::new(store), None, root)
            }
            "http" | "https" => {
                let mut base = Url::parse(&root).map_err(|error| bad(url, error.to_string()))?;
                base.set_query(query);
                let build = |options: ClientOptions| {
                    let options = options.with_allow_http(true);
                    let builder = HttpBuilder::new().with_url(base.clone()).with_retry(no_retry());
                    let builder = builder.with_http_connector(TypedConnector::default());
                    builder.with_client_options(options).build().map_err(failed)
                };
                let (store, unhurried) = (build(options)?, build(unlimited())?);
                Client { unhurried: Some(Arc::new(unhurried)), ..self.client(Arc::new(store), None, root.clone()) }
            }
            other => {
                return Err(bad(
                    url,
                    format!("`{other}` is no known scheme; there are s3, gs, az, https and local paths"),
                ));
            }
        };
        open.insert(name, client.clone());
        Ok((client, key))
    }

    fn s3(&self, bucket: &str, options: ClientOptions) -> Result<AmazonS3, Error> {
        let profile = profile::read();
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
        // An endpoint without TLS was asked for by name.
        let options = options.with_allow_http(plain);
        // Not every store that speaks S3 deletes in bulk, and one that refuses a single deletion says why by its status.
        builder
            .with_retry(no_retry())
            .with_client_options(options)
            .with_disable_bulk_delete(true)
            .with_http_connector(TypedConnector { imdsv1_fallback })
            .build()
    }
}

/// Attempts are made here, by [`super::http_retry`].
fn no_retry() -> RetryConfig {
    RetryConfig { backoff: BackoffConfig::default(), max_retries: 0, retry_timeout: Duration::from_mins(1) }
}

fn unlimited() -> ClientOptions {
    ClientOptions::new().with_connect_timeout(CONNECT).with_timeout_disabled()
}

impl Client {
    pub(crate) fn is_local(&self) -> bool {
        self.root.is_empty()
    }

    /// The URL of one of its objects, for people.
    pub(crate) fn url(&self, location: &Path) -> String {
        format!("{}/{location}", self.root)
    }

    pub(crate) fn retry_budget(&self) -> RetryBudget {
        RetryBudget::new(self.retry_budget, Arc::clone(&self.reached))
    }

    /// The store answered, be it with an error.
    pub(crate) fn reach(&self) {
        self.reached.store(true, Ordering::Relaxed);
    }

    /// What a failure means here; notes whether it was an answer.
    pub(crate) fn judge(&self, error: &Error) -> Verdict {
        if is_answer(error) {
            self.reach();
        }
        if self.is_local() {
            Verdict::Permanent
        } else if self.reached.load(Ordering::Relaxed) && is_without_credentials(error) {
            // They were there, so they will be again.
            Verdict::Transient
        } else {
            judge(error)
        }
    }

    /// Asks again and again until there is an answer that stays; hands the raw error back where that is one.
    pub(crate) async fn answer<T, R: Future<Output = object_store::Result<T>>>(
        &self,
        url: &str,
        action: &'static str,
        mut request: impl FnMut() -> R,
    ) -> Result<object_store::Result<T>, StoreError> {
        let mut retry_budget = self.retry_budget();
        loop {
            if !self.is_local() {
                self.traffic.request(retry_budget.attempts() > 0);
            }
            match request().await {
                Err(error) if self.judge(&error) == Verdict::Transient => {
                    retry_budget.wait(url, action, describe(&error)).await?;
                }
                answer => {
                    if answer.is_ok() {
                        self.reach();
                    }
                    return Ok(answer);
                }
            }
        }
    }

    /// As [`Self::answer`], for an upload of `bytes` bytes. Each attempt first waits for `may_write`.
    pub(crate) async fn upload<T, R, W>(
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
            self.traffic.request(retry_budget.attempts() > 0);
            let reason = match tokio::time::timeout(limit, request()).await {
                Err(_) => "no answer came for too long".to_owned(),
                Ok(Err(error)) if self.judge(&error) == Verdict::Transient => describe(&error),
                Ok(answer) => {
                    if answer.is_ok() {
                        self.reach();
                    }
                    return Ok(answer);
                }
            };
            retry_budget.wait(url, "written", reason).await?;
        }
    }

    /// As [`Self::answer`], with the error explained.
    pub(crate) async fn ask<T, R: Future<Output = object_store::Result<T>>>(
        &self,
        url: &str,
        action: &'static str,
        request: impl FnMut() -> R,
    ) -> Result<T, StoreError> {
        self.answer(url, action, request).await?.map_err(|error| explain(url, action, &error))
    }
}
