//! Metrics of a run over HTTP: `/metrics` in the `OpenMetrics` text format, and the health check `/healthz`.
//!
//! The server listens on localhost unless the address names another host. Every scrape reads the current state. Metrics that
//! only grow are counters, whose exposed names end in `_total`; all others are gauges.

use std::fmt;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs as _};

use bytes::Bytes;
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeCounterValue, EncodeMetric as _, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use crate::runtime::Shutdown;
use crate::telemetry::{Activity, Metric, MetricKind, ProgressRegistry, StageSnapshot};
use crate::types::Part;

/// Content type of `OpenMetrics` text, by its specification, version 1.0.0.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Binds `PORT` or `:PORT` on localhost, or `HOST:PORT`.
///
/// # Errors
/// When the address is malformed, not local or in use.
pub(super) fn bind(address: &str) -> Result<TcpListener, String> {
    let full = match address.strip_prefix(':').unwrap_or(address) {
        port if port.parse::<u16>().is_ok() => format!("127.0.0.1:{port}"),
        _ => address.to_owned(),
    };
    let bound =
        full.to_socket_addrs().and_then(|found| TcpListener::bind(found.collect::<Vec<SocketAddr>>().as_slice()));
    let listener = bound.and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
    listener.map_err(|error| format!("`--metrics {address}`: {error}; use a free `PORT` or `HOST:PORT`"))
}

/// Answers requests until the runtime ends.
pub(super) async fn serve(listener: TcpListener, registry: ProgressRegistry, part: Option<Part>, shutdown: Shutdown) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::warn!(%error, "metrics are not available");
            return;
        }
    };
    if let Ok(address) = listener.local_addr() {
        tracing::info!("metrics at http://{address}/metrics");
    }
    loop {
        // A failed accept loses one connection; the next may succeed.
        let Ok((connection, _)) = listener.accept().await else {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            continue;
        };
        let (registry, shutdown) = (registry.clone(), shutdown.clone());
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let response = respond(&request, &registry, part, &shutdown);
                async move { Ok::<_, std::convert::Infallible>(response) }
            });
            // Errors of one connection concern nobody else. The time limit closes connections that send nothing.
            http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(std::time::Duration::from_secs(10))
                .serve_connection(TokioIo::new(connection), service)
                .await
                .ok();
        });
    }
}

fn respond<B>(
    request: &Request<B>,
    registry: &ProgressRegistry,
    part: Option<Part>,
    shutdown: &Shutdown,
) -> Response<Full<Bytes>> {
    let text = |status: StatusCode, kind: &'static str, body: String| {
        let mut response = Response::new(Full::new(Bytes::from(body)));
        *response.status_mut() = status;
        response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
        response
    };
    let plain = |status, body: &str| text(status, "text/plain; charset=utf-8", body.to_owned());
    if ![Method::GET, Method::HEAD].contains(request.method()) {
        return plain(StatusCode::METHOD_NOT_ALLOWED, "only GET is allowed\n");
    }
    match request.uri().path() {
        "/metrics" => text(StatusCode::OK, OPEN_METRICS, encode_metrics(registry, part)),
        "/healthz" if shutdown.is_raised() => plain(StatusCode::SERVICE_UNAVAILABLE, "stopping\n"),
        "/healthz" => plain(StatusCode::OK, "ok\n"),
        _ => plain(StatusCode::NOT_FOUND, "not found; see /metrics and /healthz\n"),
    }
}

/// Encodes all metrics as `OpenMetrics` text. Those of a process that works on a part have the label `run_part`.
fn encode_metrics(progress: &ProgressRegistry, part: Option<Part>) -> String {
    let label = part.map(|part| ("run_part".into(), part.to_string().into()));
    let mut registry = Registry::with_prefix_and_labels("wikicap", label.into_iter());
    registry.register_collector(Box::new(Scrape(progress.clone())));
    let mut text = String::new();
    // Writing to a string cannot fail.
    prometheus_client::encoding::text::encode(&mut text, &registry).ok();
    text
}

/// Collector of the current metrics.
#[derive(Debug)]
struct Scrape(ProgressRegistry);

type Labels<'a> = Vec<(&'a str, String)>;

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let stages = self.0.snapshots();
        encode_stages(&mut encoder, &stages)?;
        encode_shards(&mut encoder, &stages)?;
        for reading in self.0.readings() {
            encode_reading(&mut encoder, &reading)?;
        }
        Ok(())
    }
}

/// Encodes units, rates and times of all stages.
fn encode_stages(encoder: &mut DescriptorEncoder<'_>, stages: &[StageSnapshot]) -> fmt::Result {
    let labels =
        |stage: &StageSnapshot| -> Labels<'_> { vec![("stage", stage.name.clone()), ("unit", stage.unit.to_owned())] };
    let help = "Units done, including those of earlier processes of the run";
    let mut done = encoder.encode_descriptor("stage_done", help, None, MetricType::Counter)?;
    for stage in stages {
        encode_counter(&mut done, labels(stage), stage.done)?;
    }
    let help = "Units in all, where known; an estimate while inputs are read";
    let mut total = encoder.encode_descriptor("stage_total", help, None, MetricType::Gauge)?;
    for stage in stages {
        if let Some(units) = stage.total {
            encode_gauge(&mut total, labels(stage), units as f64)?;
        }
    }
    let help = "Units per second of this process, averaged over the stage";
    let mut rate = encoder.encode_descriptor("stage_rate", help, None, MetricType::Gauge)?;
    for stage in stages {
        encode_gauge(&mut rate, labels(stage), stage.rate())?;
    }
    let help = "Seconds that the parts of a stage were busy, starved of input or blocked by their output";
    let mut seconds = encoder.encode_descriptor("part_seconds", help, None, MetricType::Counter)?;
    for stage in stages {
        for part in &stage.parts {
            for (state, activity) in
                [("busy", Activity::Busy), ("starved", Activity::Starved), ("blocked", Activity::Blocked)]
            {
                let labels =
                    vec![("stage", stage.name.clone()), ("part", part.name.to_owned()), ("state", state.to_owned())];
                let value = part.share(activity) * part.elapsed.as_secs_f64() * f64::from(part.workers);
                encode_counter(&mut seconds, labels, value)?;
            }
        }
    }
    Ok(())
}

/// Encodes rows and shards of the stages that read shards.
fn encode_shards(encoder: &mut DescriptorEncoder<'_>, stages: &[StageSnapshot]) -> fmt::Result {
    let with_shards = || stages.iter().filter(|stage| !stage.shards.is_empty());
    let help = "Saved rows of a stage's shards, by outcome";
    let mut rows = encoder.encode_descriptor("rows", help, None, MetricType::Counter)?;
    for stage in with_shards() {
        for (outcome, value) in [
            ("kept", stage.shards.iter().map(|shard| shard.kept).sum::<u64>()),
            ("skipped", stage.shards.iter().map(|shard| shard.skipped).sum()),
            ("quarantined", stage.shards.iter().map(|shard| shard.quarantined).sum()),
        ] {
            encode_counter(&mut rows, vec![("stage", stage.name.clone()), ("outcome", outcome.to_owned())], value)?;
        }
    }
    let help = "Shards of a stage: all of them, and those that are done";
    let mut shards = encoder.encode_descriptor("shards", help, None, MetricType::Gauge)?;
    for stage in with_shards() {
        let done = stage.shards.iter().filter(|shard| shard.done).count();
        for (state, value) in [("all", stage.shards.len()), ("done", done)] {
            let labels = vec![("stage", stage.name.clone()), ("state", state.to_owned())];
            encode_gauge(&mut shards, labels, value as f64)?;
        }
    }
    Ok(())
}

/// Encodes a value that the stages share, and its limit.
fn encode_reading(encoder: &mut DescriptorEncoder<'_>, reading: &Metric) -> fmt::Result {
    match reading.kind {
        MetricKind::Counter => {
            let counter = ConstCounter::new(reading.value);
            counter.encode(encoder.encode_descriptor(reading.name, reading.help, None, counter.metric_type())?)
        }
        MetricKind::Gauge => {
            let gauge = ConstGauge::new(reading.value as f64);
            gauge.encode(encoder.encode_descriptor(reading.name, reading.help, None, gauge.metric_type())?)?;
            let Some(limit) = reading.limit else { return Ok(()) };
            let (name, help) = (format!("{}_limit", reading.name), format!("{}: upper limit", reading.help));
            let gauge = ConstGauge::new(limit as f64);
            gauge.encode(encoder.encode_descriptor(&name, &help, None, gauge.metric_type())?)
        }
    }
}

fn encode_gauge(family: &mut MetricEncoder<'_>, labels: Labels<'_>, value: f64) -> fmt::Result {
    ConstGauge::new(value).encode(family.encode_family(&escape_labels(labels))?)
}

fn encode_counter<N: EncodeCounterValue>(family: &mut MetricEncoder<'_>, labels: Labels<'_>, value: N) -> fmt::Result {
    ConstCounter::new(value).encode(family.encode_family(&escape_labels(labels))?)
}

/// Escapes label values, which the encoder writes as they are; the name of a submission may hold any character.
fn escape_labels(mut labels: Labels<'_>) -> Labels<'_> {
    for (_, value) in &mut labels {
        *value = value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n");
    }
    labels
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::StageTimer;

    #[test]
    fn port_without_host_is_on_localhost() {
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
    fn scrape_has_every_stage_part_and_reading() {
        let registry = ProgressRegistry::default();
        let stage = registry.stage("test \"images\"", "rows", 10);
        stage.add(3);
        stage.part(StageTimer::serial("read rows"));
        registry.gauge("in_flight_bytes", "Bytes in flight", Some(9), || Some(5));
        registry.counter("store_requests", "Requests", || 7);
        let text = encode_metrics(&registry, None);
        for line in [
            "# TYPE wikicap_stage_done counter",
            "wikicap_stage_done_total{stage=\"test \\\"images\\\"\",unit=\"rows\"} 3",
            "wikicap_stage_total{stage=\"test \\\"images\\\"\",unit=\"rows\"} 10.0",
            "# TYPE wikicap_part_seconds counter",
            "# TYPE wikicap_rows counter",
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
    fn health_check_fails_after_a_stop_request() {
        let (registry, shutdown) = (ProgressRegistry::default(), Shutdown::default());
        let get = |path: &str| respond(&Request::get(path).body(()).unwrap(), &registry, None, &shutdown).status();
        assert_eq!(
            (get("/healthz"), get("/metrics"), get("/x")),
            (StatusCode::OK, StatusCode::OK, StatusCode::NOT_FOUND)
        );
        shutdown.raise(crate::runtime::Signal::Terminate);
        assert_eq!(get("/healthz"), StatusCode::SERVICE_UNAVAILABLE);
    }
}
