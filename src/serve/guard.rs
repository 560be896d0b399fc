//! Requests that are answered, and the security headers of every answer.
//!
//! A page of any site can send requests to a server on localhost. Two checks keep other sites out: the `Host` header
//! must name this server, so that a name which an attacker points at 127.0.0.1 is refused (DNS rebinding), and a request
//! that names its origin or its site must come from this server's own page.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

use super::Failure;

/// Policy of the page: its own files only, no inline scripts, no frames.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Headers of every answer.
const HEADERS: &[(&str, &str)] = &[
    ("content-security-policy", CONTENT_SECURITY_POLICY),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("x-frame-options", "DENY"),
    ("cache-control", "no-store"),
    ("cross-origin-resource-policy", "same-origin"),
];

/// Names by which this server may be addressed.
#[derive(Debug)]
pub(super) struct Guard {
    /// Host name of the address on the command line.
    name: String,
    is_loopback: bool,
}

impl Guard {
    /// Creates a guard for a server that is bound to `bound`, by an address as given on the command line.
    pub(super) fn new(bound: SocketAddr, address: &str) -> Self {
        Self { name: host_name(address).to_ascii_lowercase(), is_loopback: bound.ip().is_loopback() }
    }

    /// Returns whether a `Host` header names this server: `localhost`, an address of this machine, or the given name.
    fn accepts_host(&self, host: &str) -> bool {
        let name = host_name(host).to_ascii_lowercase();
        match name.trim_matches(['[', ']']).parse::<IpAddr>() {
            Ok(address) => address.is_loopback() || !self.is_loopback,
            Err(_) => name == "localhost" || (name == self.name && !name.is_empty()),
        }
    }

    fn check(&self, method: &Method, headers: &HeaderMap) -> Result<(), Failure> {
        let refuse = |status, message: &str| Err(Failure { status, message: message.to_owned() });
        let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let Some(host) = text(header::HOST) else {
            return refuse(StatusCode::BAD_REQUEST, "the request names no host");
        };
        if !self.accepts_host(host) {
            return refuse(StatusCode::FORBIDDEN, "this server does not answer under that name; use its address");
        }
        if let Some(origin) = text(header::ORIGIN)
            && origin.split_once("://").map(|(_, origin_host)| origin_host) != Some(host)
        {
            return refuse(StatusCode::FORBIDDEN, "requests of other sites are refused");
        }
        // A browser says which site a request comes from. A link to the page may be anywhere; other sites may load nothing.
        let site = text(header::HeaderName::from_static("sec-fetch-site"));
        // Frames and embedded objects navigate, too; a link opens a document.
        let is_link = text(header::HeaderName::from_static("sec-fetch-mode")) == Some("navigate")
            && text(header::HeaderName::from_static("sec-fetch-dest")).is_none_or(|dest| dest == "document");
        if site.is_some_and(|site| !["same-origin", "none"].contains(&site)) && !is_link {
            return refuse(StatusCode::FORBIDDEN, "requests of other sites are refused");
        }
        if ![Method::GET, Method::HEAD, Method::POST].contains(method) {
            return refuse(StatusCode::METHOD_NOT_ALLOWED, "only GET, HEAD and POST are allowed");
        }
        Ok(())
    }
}

/// Removes the port from `HOST:PORT`.
fn host_name(address: &str) -> &str {
    match address.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) && !name.ends_with(':') => name,
        _ => address,
    }
}

/// Checks a request, and adds the security headers to its answer.
pub(super) async fn check(State(guard): State<Arc<Guard>>, request: Request, next: Next) -> Response {
    let mut response = match guard.check(request.method(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(failure) => failure.into_response(),
    };
    for (name, value) in HEADERS {
        // Bytes of a corpus have a stricter policy of their own.
        response.headers_mut().entry(*name).or_insert(HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard(bound: &str, address: &str) -> Guard {
        Guard::new(bound.parse().unwrap(), address)
    }

    #[test]
    fn other_sites_may_link_but_load_nothing() {
        let guard = guard("127.0.0.1:8080", "127.0.0.1:8080");
        let status = |site: &str, mode: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, "127.0.0.1:8080".parse().unwrap());
            headers.insert("sec-fetch-site", site.parse().unwrap());
            headers.insert("sec-fetch-mode", mode.parse().unwrap());
            guard.check(&Method::GET, &headers).map_or_else(|failure| failure.status, |()| StatusCode::OK)
        };
        assert_eq!(status("same-origin", "no-cors"), StatusCode::OK);
        assert_eq!(status("none", "navigate"), StatusCode::OK);
        assert_eq!(status("cross-site", "navigate"), StatusCode::OK);
        assert_eq!(status("cross-site", "no-cors"), StatusCode::FORBIDDEN);
        assert_eq!(status("same-site", "no-cors"), StatusCode::FORBIDDEN);
    }

    fn status(guard: &Guard, host: &str, origin: Option<&str>) -> StatusCode {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, host.parse().unwrap());
        if let Some(origin) = origin {
            headers.insert(header::ORIGIN, origin.parse().unwrap());
        }
        guard.check(&Method::GET, &headers).map_or_else(|failure| failure.status, |()| StatusCode::OK)
    }

    #[test]
    fn foreign_host_names_are_refused() {
        let local = guard("127.0.0.1:8080", "8080");
        for host in ["localhost:8080", "127.0.0.1:8080", "[::1]:8080", "LOCALHOST"] {
            assert_eq!(status(&local, host, None), StatusCode::OK, "{host}");
        }
        for host in ["evil.example:8080", "192.168.1.5:8080", "localhost.evil.example", ""] {
            assert_eq!(status(&local, host, None), StatusCode::FORBIDDEN, "{host}");
        }
        let public = guard("0.0.0.0:8080", "gpu7.example:8080");
        for host in ["10.0.0.3:8080", "gpu7.example:8080", "localhost:8080"] {
            assert_eq!(status(&public, host, None), StatusCode::OK, "{host}");
        }
        assert_eq!(status(&public, "evil.example", None), StatusCode::FORBIDDEN);
    }

    #[test]
    fn foreign_origins_are_refused() {
        let local = guard("127.0.0.1:8080", "127.0.0.1:8080");
        assert_eq!(status(&local, "localhost:8080", Some("http://localhost:8080")), StatusCode::OK);
        for origin in ["http://evil.example", "null", "http://localhost:9090"] {
            assert_eq!(status(&local, "localhost:8080", Some(origin)), StatusCode::FORBIDDEN, "{origin}");
        }
    }
}
