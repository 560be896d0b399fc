//! The run's counters for Prometheus, over HTTP: `/metrics` in the `OpenMetrics` text format, and `/healthz`.
//!
//! On loopback unless told otherwise: the counters hold the names of shards and nothing secret, but nobody asked for them to be
//! on the network. Every scrape reads the board as it is then.

use std::fmt;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs as _};

use bytes::Bytes;
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use crate::runtime::Shutdown;
use crate::telemetry::{Activity, MetricKind, ProgressRegistry, StageSnapshot};

/// Content type of `OpenMetrics` text, by its specification, version 1.0.0.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Binds `PORT` (on loopback), `:PORT` or `HOST:PORT`.
///
/// # Errors
/// Why not, as a sentence.
pub(super) fn bind(address: &str) -> Result<TcpListener, String> {
    let full = match address.strip_prefix(':').unwrap_or(address) {
        port if port.parse::<u16>().is_ok() => format!("127.0.0.1:{port}"),
        _ => address.to_owned(),
    };
    let bound =
        full.to_socket_addrs().and_then(|found| TcpListener::bind(found.collect::<Vec<SocketAddr>>().as_slice()));
    let listener = bound.and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
    listener.map_err(|error| format!("`--metrics {address}`: {error}; give a free `PORT` or `HOST:PORT`"))
}

/// Answers until the runtime ends.
pub(super) async fn serve(listener: TcpListener, board: ProgressRegistry, stop: Shutdown) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::warn!(%error, "metrics are not served");
            return;
        }
    };
    if let Ok(address) = listener.local_addr() {
        tracing::info!("metrics at http://{address}/metrics");
    }
    loop {
        // A connection that could not be accepted is gone; the next one may be.
        let Ok((connection, _)) = listener.accept().await else {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            continue;
        };
        let (board, stop) = (board.clone(), stop.clone());
        tokio::spawn(async move {
            let answering = service_fn(move |request| {
                let response = answer(&request, &board, &stop);
                async move { Ok::<_, std::convert::Infallible>(response) }
            });
            // Who hangs up in the middle needs no answer. Who sends nothing is hung up on.
            http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(std::time::Duration::from_secs(10))
                .serve_connection(TokioIo::new(connection), answering)
                .await
                .ok();
        });
    }
}

fn answer<B>(request: &Request<B>, board: &ProgressRegistry, stop: &Shutdown) -> Response<Full<Bytes>> {
    let text = |status: StatusCode, kind: &'static str, body: String| {
        let mut response = Response::new(Full::new(Bytes::from(body)));
        *response.status_mut() = status;
        response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
        response
    };
    let plain = |status, body: &str| text(status, "text/plain; charset=utf-8", body.to_owned());
    if ![Method::GET, Method::HEAD].contains(request.method()) {
        return plain(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
    }
    match request.uri().path() {
        "/metrics" => text(StatusCode::OK, OPEN_METRICS, metrics(board)),
        "/healthz" if stop.is_raised() => plain(StatusCode::SERVICE_UNAVAILABLE, "stopping\n"),
        "/healthz" => plain(StatusCode::OK, "ok\n"),
        _ => plain(StatusCode::NOT_FOUND, "there are /metrics and /healthz\n"),
    }
}

/// The board as `OpenMetrics` text.
fn metrics(board: &ProgressRegistry) -> String {
    let mut registry = Registry::with_prefix("wikicap");
    registry.register_collector(Box::new(Scrape(board.clone())));
    let mut text = String::new();
    // Writing into a string cannot fail.
    prometheus_client::encoding::text::encode(&mut text, &registry).ok();
    text
}

#[derive(Debug)]
struct Scrape(ProgressRegistry);

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let stages = self.0.snapshots();
        let labels = |stage: &StageSnapshot| [("stage", stage.name.clone()), ("unit", stage.unit.to_owned())];
        let mut done = encoder.encode_descriptor(
            "stage_done",
            "Units done, those of earlier processes included",
            None,
            MetricType::Gauge,
        )?;
        for stage in &stages {
            gauge(&mut done, &labels(stage), stage.done as f64)?;
        }
        let help = "Units in all, where known; estimated while inputs are read";
        let mut total = encoder.encode_descriptor("stage_total", help, None, MetricType::Gauge)?;
        for stage in &stages {
            if let Some(units) = stage.total {
                gauge(&mut total, &labels(stage), units as f64)?;
            }
        }
        let help = "Units per second of this process";
        let mut rate = encoder.encode_descriptor("stage_rate", help, None, MetricType::Gauge)?;
        for stage in &stages {
            gauge(&mut rate, &labels(stage), stage.rate())?;
        }
        let help = "Seconds that the parts of a stage were busy, starved of input or blocked by their output";
        let mut parts = encoder.encode_descriptor("part_seconds", help, None, MetricType::Gauge)?;
        for stage in &stages {
            for part in &stage.parts {
                for (word, doing) in
                    [("busy", Activity::Busy), ("starved", Activity::Starved), ("blocked", Activity::Blocked)]
                {
                    let labels =
                        [("stage", stage.name.clone()), ("part", part.name.to_owned()), ("state", word.to_owned())];
                    let seconds = part.share(doing) * part.elapsed.as_secs_f64() * f64::from(part.workers);
                    gauge(&mut parts, &labels, seconds)?;
                }
            }
        }
        let help = "Rows of a stage's shards by what became of them";
        let mut rows = encoder.encode_descriptor("rows", help, None, MetricType::Gauge)?;
        for stage in stages.iter().filter(|stage| !stage.shards.is_empty()) {
            for (word, count) in [
                ("kept", stage.shards.iter().map(|shard| shard.kept).sum::<u64>()),
                ("skipped", stage.shards.iter().map(|shard| shard.skipped).sum()),
                ("quarantined", stage.shards.iter().map(|shard| shard.quarantined).sum()),
            ] {
                gauge(&mut rows, &[("stage", stage.name.clone()), ("outcome", word.to_owned())], count as f64)?;
            }
        }
        let help = "Shards of a stage, and how many of them are committed";
        let mut shards = encoder.encode_descriptor("shards", help, None, MetricType::Gauge)?;
        for stage in stages.iter().filter(|stage| !stage.shards.is_empty()) {
            let done = stage.shards.iter().filter(|shard| shard.done).count();
            for (word, count) in [("all", stage.shards.len()), ("done", done)] {
                gauge(&mut shards, &[("stage", stage.name.clone()), ("state", word.to_owned())], count as f64)?;
            }
        }
        for reading in self.0.readings() {
            match reading.kind {
                MetricKind::Counter => {
                    let counter = ConstCounter::new(reading.value);
                    let metric = encoder.encode_descriptor(reading.name, reading.help, None, counter.metric_type())?;
                    counter.encode(metric)?;
                }
                MetricKind::Gauge => {
                    let value = ConstGauge::new(reading.value as f64);
                    let metric = encoder.encode_descriptor(reading.name, reading.help, None, value.metric_type())?;
                    value.encode(metric)?;
                    if let Some(limit) = reading.limit {
                        let (name, help) = (format!("{}_limit", reading.name), format!("{}: the most", reading.help));
                        let value = ConstGauge::new(limit as f64);
                        value.encode(encoder.encode_descriptor(&name, &help, None, value.metric_type())?)?;
                    }
                }
            }
        }
        Ok(())
    }
}

fn gauge(family: &mut MetricEncoder<'_>, labels: &[(&str, String)], value: f64) -> fmt::Result {
    // The encoder writes values as they are; a submission's name may hold anything.
    let escaped = |text: &String| text.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n");
    let labels: Vec<(&str, String)> = labels.iter().map(|(name, value)| (*name, escaped(value))).collect();
    ConstGauge::new(value).encode(family.encode_family(&labels)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::StageTimer;

    #[test]
    fn a_port_alone_is_on_loopback() {
        for address in ["0", ":0", "localhost:0"] {
            let listener = bind(address).unwrap();
            assert!(listener.local_addr().unwrap().ip().is_loopback(), "{address}");
        }
        let taken = bind("0").unwrap();
        let error = bind(&taken.local_addr().unwrap().port().to_string()).unwrap_err();
        assert!(error.contains("--metrics") && error.contains("free"), "{error}");
        assert!(bind("nowhere").unwrap_err().contains("HOST:PORT"));
    }

    #[test]
    fn a_scrape_has_every_stage_part_and_reading() {
        let board = ProgressRegistry::default();
        let meter = board.stage("test \"images\"", "rows", 10);
        meter.add(3);
        meter.part(StageTimer::serial("read rows"));
        board.gauge("in_flight_bytes", "Bytes in flight", Some(9), || Some(5));
        board.counter("store_requests", "Requests", || 7);
        let text = metrics(&board);
        for line in [
            "wikicap_stage_done{stage=\"test \\\"images\\\"\",unit=\"rows\"} 3.0",
            "wikicap_stage_total{stage=\"test \\\"images\\\"\",unit=\"rows\"} 10.0",
            "wikicap_in_flight_bytes 5.0",
            "wikicap_in_flight_bytes_limit 9.0",
            "wikicap_store_requests_total 7",
            "# EOF",
        ] {
            assert!(text.contains(line), "{line} is not in:\n{text}");
        }
        assert!(text.contains("part=\"read rows\",state=\"starved\"} 0.0"), "{text}");
    }

    #[test]
    fn health_ends_with_the_wish_to_stop() {
        let (board, stop) = (ProgressRegistry::default(), Shutdown::default());
        let ask = |path: &str| answer(&Request::get(path).body(()).unwrap(), &board, &stop).status();
        assert_eq!(
            (ask("/healthz"), ask("/metrics"), ask("/x")),
            (StatusCode::OK, StatusCode::OK, StatusCode::NOT_FOUND)
        );
        stop.raise(crate::runtime::Signal::Terminate);
        assert_eq!(ask("/healthz"), StatusCode::SERVICE_UNAVAILABLE);
    }
}
