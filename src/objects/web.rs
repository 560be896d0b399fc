//! HTTP client of web servers.
//!
//! A web server may redirect to another host, which must not learn the signed query of the first URL. The `Referer` header,
//! which would hold it, is switched off.

use std::time::Duration;

use object_store::client::{HttpClient, HttpConnector};
use object_store::{ClientOptions, Error};

use super::client::CONNECT_TIMEOUT;
use super::http_error::type_errors;

/// Connects `object_store` to the client; the options of `object_store` have no effect.
#[derive(Debug)]
pub(super) struct WebConnector {
    /// Time without a byte after which a request has failed; `None` for bodies that may wait for their consumer.
    pub(super) read_timeout: Option<Duration>,
}

impl HttpConnector for WebConnector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        let mut builder = reqwest::Client::builder()
            .referer(false)
            .connect_timeout(CONNECT_TIMEOUT)
            .user_agent(concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION")));
        if let Some(read_timeout) = self.read_timeout {
            builder = builder.read_timeout(read_timeout);
        }
        let client = builder.build().map_err(|error| Error::Generic { store: "HTTP", source: Box::new(error) })?;
        Ok(type_errors(HttpClient::new(client)))
    }
}
