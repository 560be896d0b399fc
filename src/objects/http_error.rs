//! Failed requests: the HTTP status as a type, whether another attempt may succeed, and the message for people.
//!
//! `object_store` keeps the status of a failed request in a type that it does not export. [`TypedConnector`] sits between
//! `object_store` and its HTTP client and turns each unsuccessful response into an [`HttpError`] whose source is a
//! [`ServerError`]. `object_store` passes that source through inside its own errors.

use std::error::Error as StdError;
use std::sync::Arc;

use async_trait::async_trait;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService, ReqwestConnector,
};
use object_store::{ClientOptions, Error};

use super::StoreError;

/// Hosts that give a cloud machine its credentials: metadata of AWS, Azure and Google, containers of ECS and EKS.
const METADATA_HOSTS: [&str; 4] = ["169.254.169.254", "169.254.170.2", "169.254.170.23", "metadata.google.internal"];

/// Unsuccessful response.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{endpoint}` answers {status}{}", code.as_ref().map_or_else(String::new, |code| format!(" {code}")))]
pub(crate) struct ServerError {
    /// Scheme, host and port of the server.
    endpoint: String,
    status: u16,
    /// Error code in the body of an S3 response, such as `SlowDown`.
    code: Option<String>,
}

impl ServerError {
    /// Whether the same request may succeed later: 408, 425, 429 and 5xx except 501.
    fn is_transient(&self) -> bool {
        match self.status {
            // S3 answers 400 to a body that arrives too slowly, and asks for another attempt.
            400 => self.code.as_ref().is_some_and(|code| code.starts_with("RequestTimeout")),
            501 => false,
            408 | 425 | 429 | 500.. => true,
            _ => false,
        }
    }
}

/// Failure to reach a server or to read its answer.
#[derive(Debug, thiserror::Error)]
#[error("{source}")]
struct NoAnswer {
    /// Scheme, host and port of the server.
    endpoint: String,
    source: HttpError,
}

/// No credentials in the environment, and none from the machine's metadata service.
#[derive(Debug, thiserror::Error)]
#[error("no credentials were found")]
struct NoCredentials;

/// Connects `object_store` to an HTTP client that reports unsuccessful responses as a [`ServerError`].
#[derive(Debug, Default)]
pub(super) struct TypedConnector {
    /// Whether `object_store` answers a 403 of the AWS metadata service with a request of its first version.
    pub(super) imdsv1_fallback: bool,
}

impl HttpConnector for TypedConnector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let client = ReqwestConnector::default().connect(options)?;
        Ok(HttpClient::new(TypedService { client, imdsv1_fallback: self.imdsv1_fallback }))
    }
}

/// Makes a client report unsuccessful responses as a [`ServerError`].
pub(super) fn type_errors(client: HttpClient) -> HttpClient {
    HttpClient::new(TypedService { client, imdsv1_fallback: false })
}

#[derive(Debug)]
struct TypedService {
    client: HttpClient,
    imdsv1_fallback: bool,
}

#[async_trait]
impl HttpService for TypedService {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let metadata = request.uri().host().is_some_and(|host| METADATA_HOSTS.contains(&host));
        let no_credentials = || HttpError::new(HttpErrorKind::Unknown, NoCredentials);
        let uri = request.uri();
        let endpoint = endpoint(uri.scheme_str(), uri.host(), uri.port_u16());
        let response = match self.client.execute(request).await {
            Err(_) if metadata => return Err(no_credentials()),
            Err(source) => return Err(HttpError::new(source.kind(), NoAnswer { endpoint, source })),
            Ok(answer) => answer,
        };
        let status = response.status().as_u16();
        if response.status().is_success() || (metadata && status == 403 && self.imdsv1_fallback) {
            return Ok(response);
        }
        if metadata {
            return Err(no_credentials());
        }
        let body = response.into_body().bytes().await?;
        Err(HttpError::new(HttpErrorKind::Unknown, ServerError { endpoint, status, code: error_code(&body) }))
    }
}

/// Joins scheme, host and port of a URL. The rest of it may hold secrets.
fn endpoint(scheme: Option<&str>, host: Option<&str>, port: Option<u16>) -> String {
    let (scheme, host) = (scheme.unwrap_or("http"), host.unwrap_or_default());
    port.map_or_else(|| format!("{scheme}://{host}"), |port| format!("{scheme}://{host}:{port}"))
}

/// Returns the `<Code>` of an S3 error document.
fn error_code(body: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(body).ok()?;
    Some(text.split("<Code>").nth(1)?.split("</Code>").next()?.to_owned())
}

/// Kind of a failed attempt.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum FailureKind {
    /// Another attempt may succeed: after timeouts, resets, bodies that end early and some statuses.
    Transient,
    /// No further attempt can succeed.
    Permanent,
}

fn causes<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

fn server_error(error: &Error) -> Option<&ServerError> {
    causes(error).find_map(|cause| cause.downcast_ref())
}

fn status(error: &Error) -> Option<u16> {
    server_error(error).map(|answer| answer.status)
}

/// Returns the error of a store of this crate, which already says what to do.
fn known_error(error: &Error) -> Option<&StoreError> {
    causes(error).find_map(|cause| cause.downcast_ref())
}

/// Returns whether a request failed for lack of credentials.
pub(crate) fn is_without_credentials(error: &Error) -> bool {
    causes(error).any(<dyn StdError>::is::<NoCredentials>)
}

/// Returns whether the store itself answered, rather than the connection to it failing.
pub(crate) fn is_answer(error: &Error) -> bool {
    server_error(error).is_some()
}

/// Returns whether the store does not implement the request, such as a conditional write.
pub(crate) fn is_unsupported(error: &Error) -> bool {
    matches!(error, Error::NotImplemented { .. }) || status(error) == Some(501)
}

/// Returns whether the requested range lies outside the object.
pub(crate) fn is_out_of_range(error: &Error) -> bool {
    status(error) == Some(416)
}

/// Returns whether the object does not exist.
pub(crate) fn is_not_found(error: &Error) -> bool {
    matches!(error, Error::NotFound { .. }) || status(error) == Some(404)
}

/// Returns whether the condition of a conditional write did not hold, or another write was in progress.
pub(crate) fn is_conflict(error: &Error) -> bool {
    matches!(status(error), Some(304 | 409 | 412))
}

/// Returns whether a server may refuse `HEAD` for an object that `GET` returns: signed URLs are valid for one method.
pub(crate) fn may_refuse_head(error: &Error) -> bool {
    matches!(status(error), Some(400 | 401 | 403 | 404 | 405 | 501)) || matches!(error, Error::NotFound { .. })
}

/// Returns whether the server redirects; S3 does so, without a location, for a bucket in another region.
fn is_redirect(error: &Error) -> bool {
    matches!(status(error), Some(300..400))
}

/// Decides whether another attempt may succeed.
pub(crate) fn classify(error: &Error) -> FailureKind {
    let transient = match server_error(error) {
        Some(answer) => answer.is_transient(),
        None if is_without_credentials(error) || known_error(error).is_some() => false,
        // Without an answer it is a broken connection or a malformed response, which is mostly a truncated one.
        None => matches!(error, Error::Generic { .. } | Error::JoinError { .. }),
    };
    if transient { FailureKind::Transient } else { FailureKind::Permanent }
}

/// Describes a failure in few words, without the request's URL and headers, which may hold secrets.
pub(crate) fn describe(error: &Error) -> String {
    if is_redirect(error) {
        return "the server redirects the request: check the bucket's region (`AWS_REGION`) and the endpoint"
            .to_owned();
    }
    if let Some(answer) = server_error(error) {
        return answer.to_string();
    }
    for cause in causes(error) {
        if let Some(http) = cause.downcast_ref::<HttpError>() {
            let deepest = causes(http).last().map(ToString::to_string).unwrap_or_default();
            let endpoint = causes(http).find_map(|cause| cause.downcast_ref::<NoAnswer>()).map(|it| &it.endpoint);
            let to = endpoint.map_or_else(String::new, |endpoint| format!(" to `{endpoint}`"));
            return match http.kind() {
                HttpErrorKind::Connect => format!("no connection{to} ({deepest})"),
                HttpErrorKind::Timeout => "no byte arrived before the timeout".to_owned(),
                _ => format!("the connection broke ({deepest})"),
            };
        }
    }
    causes(error).last().map(ToString::to_string).unwrap_or_default()
}

/// Converts a permanent failure into the error that tells a person what to do.
pub(crate) fn explain(url: &str, action: &'static str, error: &Error) -> StoreError {
    if let Some(known) = known_error(error) {
        return known.clone();
    }
    let url = url.to_owned();
    if is_without_credentials(error) {
        let hint = ": no credentials were found in the environment, the profile or the machine's metadata";
        return StoreError::Refused { url, hint: hint.into() };
    }
    let answer = server_error(error).map_or_else(String::new, |answer| format!(" ({answer})"));
    let remote = url.contains("://") && !url.starts_with("file://");
    let hint = || if remote { format!(": check the credentials and their permissions{answer}") } else { String::new() };
    if is_not_found(error) {
        let lacks_bucket = server_error(error).is_some_and(|answer| answer.code.as_deref() == Some("NoSuchBucket"));
        if remote && action == "written" {
            return StoreError::BadUrl { url, reason: format!("its bucket does not exist{answer}") };
        }
        if lacks_bucket {
            return StoreError::NoBucket { url, answer };
        }
        return StoreError::NotFound { url, answer };
    }
    match (error, status(error)) {
        (_, Some(401 | 403)) | (Error::PermissionDenied { .. } | Error::Unauthenticated { .. }, _) => {
            StoreError::Refused { url, hint: hint().into() }
        }
        (_, Some(304 | 412)) | (Error::Precondition { .. } | Error::NotModified { .. }, _) => {
            StoreError::Changed { url }
        }
        _ => {
            let io = causes(error).find_map(|cause| cause.downcast_ref::<std::io::Error>());
            match io.map(std::io::Error::kind) {
                Some(std::io::ErrorKind::PermissionDenied) => StoreError::Refused { url, hint: hint().into() },
                Some(std::io::ErrorKind::NotFound) => StoreError::NotFound { url, answer },
                _ => StoreError::Io { path: url, action, source: Arc::new(std::io::Error::other(describe(error))) },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Error of a request to which the server answered with `status` and an S3 document of `code`.
    fn answer(status: u16, code: &str) -> Error {
        let body = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>m</Message></Error>");
        let code = if code.is_empty() { None } else { error_code(body.as_bytes()) };
        let source = HttpError::new(
            HttpErrorKind::Unknown,
            ServerError { endpoint: "https://s3.test".to_owned(), status, code },
        );
        Error::Generic { store: "S3", source: source.into() }
    }

    #[test]
    fn status_decides_whether_to_retry() {
        for (status, code) in [(429, ""), (500, ""), (503, "SlowDown"), (408, ""), (400, "RequestTimeout")] {
            assert_eq!(classify(&answer(status, code)), FailureKind::Transient, "{status}");
        }
        for (status, code) in [(400, "ExpiredToken"), (301, ""), (404, ""), (416, ""), (501, "NotImplemented")] {
            assert_eq!(classify(&answer(status, code)), FailureKind::Permanent, "{status}");
            assert!(is_answer(&answer(status, code)));
        }
        let broken = HttpError::new(HttpErrorKind::Interrupted, std::io::Error::other("reset"));
        let broken = Error::Generic { store: "S3", source: broken.into() };
        assert_eq!(classify(&broken), FailureKind::Transient);
        assert!(!is_answer(&broken));
        let nobody = HttpError::new(HttpErrorKind::Unknown, NoCredentials);
        assert_eq!(classify(&Error::Generic { store: "S3", source: nobody.into() }), FailureKind::Permanent);
    }

    #[test]
    fn description_names_status_and_code() {
        assert_eq!(describe(&answer(503, "SlowDown")), "`https://s3.test` answers 503 SlowDown");
        assert_eq!(describe(&answer(500, "")), "`https://s3.test` answers 500");
        assert!(describe(&answer(301, "")).contains("AWS_REGION"));
        assert!(is_unsupported(&answer(501, "")) && is_out_of_range(&answer(416, "")));
    }

    #[test]
    fn explanation_says_what_to_do() {
        let explain = |status, action| explain("s3://b/k", action, &answer(status, "X"));
        assert!(matches!(explain(404, "listed"), StoreError::NotFound { .. }));
        assert!(matches!(explain(404, "written"), StoreError::BadUrl { .. }));
        assert!(matches!(explain(403, "listed"), StoreError::Refused { .. }));
        assert!(matches!(explain(412, "read"), StoreError::Changed { .. }));
        let error = explain(409, "written").to_string();
        assert!(error.contains("s3://b/k") && error.contains("`https://s3.test` answers 409 X"), "{error}");
        let error = explain(403, "listed").to_string();
        assert_eq!(
            error,
            "access to `s3://b/k` was refused: check the credentials and their permissions (`https://s3.test` answers 403 X)"
        );
    }
}
