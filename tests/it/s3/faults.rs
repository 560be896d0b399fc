//! Faults between an HTTP client and a server, derived from a seed.
//!
//! The fate of a request is a function of the seed, the request and the number of its earlier attempts. It depends on
//! neither time nor order, so a seed that failed once fails again.

use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng as _};

/// Frequency of each fault, as a share of 1.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Faults {
    pub(crate) seed: u64,
    /// A server error (500, 503, 429), or a connection closed without a response; nothing was done.
    pub(crate) fail: f64,
    /// A write that was done and never acknowledged.
    pub(crate) lose: f64,
    /// A conditional write that conflicts with another one (409); nothing was done.
    pub(crate) conflict: f64,
    /// A body cut by a connection reset.
    pub(crate) reset: f64,
    /// A body that ends early as if complete.
    pub(crate) truncate: f64,
    /// No byte for `stall_for`, before the response or inside its body.
    pub(crate) stall: f64,
    pub(crate) stall_for: Duration,
    /// Largest delay of a response.
    pub(crate) latency: Duration,
    /// Transfer rate of bodies; 0 is unlimited.
    pub(crate) bytes_per_second: u32,
}

/// The fate of one request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Fate {
    /// Served normally.
    Served,
    /// An error response with this status.
    Status(u16),
    /// The connection closes without a response, and nothing was done.
    Unheard,
    /// Done, but the connection closes without a response.
    Lost,
    /// The body ends after this share with a reset.
    Reset(f64),
    /// The body ends after this share, under a matching `Content-Length`.
    Short(f64),
    /// The body ends after this share, in chunked encoding.
    Chunked(f64),
    /// A pause before the response.
    Late,
    /// A pause inside the body after this share.
    Stalled(f64),
}

/// The parts of a request that decide its fate.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RequestKey<'a> {
    pub(crate) method: &'a str,
    /// Path and query without parts that differ between runs.
    pub(crate) path: &'a str,
    pub(crate) range: &'a str,
    pub(crate) conditional: bool,
    /// Number of earlier equal requests.
    pub(crate) attempt: u64,
}

impl Faults {
    /// Returns the promised fault rates: 10 % of requests fail, 5 % of bodies are reset, 1 % are truncated, and a few others.
    pub(crate) fn promised(seed: u64) -> Self {
        Self {
            seed,
            fail: 0.10,
            lose: 0.03,
            conflict: 0.03,
            reset: 0.05,
            truncate: 0.01,
            latency: Duration::from_millis(3),
            ..Self::default()
        }
    }

    fn rng(&self, request: RequestKey<'_>) -> ChaCha8Rng {
        let RequestKey { method, path, range, attempt, .. } = request;
        let text = format!("{} {method} {path} {range} {attempt}", self.seed);
        ChaCha8Rng::from_seed(*blake3::hash(text.as_bytes()).as_bytes())
    }

    /// Returns the delay of the response.
    pub(crate) fn lateness(&self, request: RequestKey<'_>) -> Duration {
        let mut rng = self.rng(request);
        rng.set_stream(1);
        self.latency.mul_f64(share(&mut rng))
    }

    /// Decides the fate of a request.
    pub(crate) fn fate(&self, request: RequestKey<'_>) -> Fate {
        let mut rng = self.rng(request);
        let mut falls = |likelihood: f64| share(&mut rng) < likelihood;
        let (reads, writes) = (request.method == "GET", ["PUT", "POST", "DELETE"].contains(&request.method));
        if falls(self.fail) {
            let which = rng.next_u32() % 5;
            return match which {
                0 => Fate::Unheard,
                1 => Fate::Status(500),
                2 => Fate::Status(429),
                _ => Fate::Status(503),
            };
        }
        if falls(self.lose) && writes {
            return Fate::Lost;
        }
        if falls(self.conflict) && request.conditional {
            return Fate::Status(409);
        }
        if falls(self.reset) && reads {
            return Fate::Reset(share(&mut rng));
        }
        if falls(self.truncate) && reads {
            let at = share(&mut rng);
            return if rng.next_u32().is_multiple_of(2) { Fate::Short(at) } else { Fate::Chunked(at) };
        }
        if falls(self.stall) {
            return if reads { Fate::Stalled(share(&mut rng)) } else { Fate::Late };
        }
        Fate::Served
    }
}

fn share(rng: &mut ChaCha8Rng) -> f64 {
    f64::from(rng.next_u32()) / f64::from(u32::MAX)
}

#[test]
fn faults_are_reproducible_and_as_frequent_as_asked() {
    let faults = Faults { truncate: 0.05, stall: 0.05, ..Faults::promised(3) };
    let fates = |method: &str| -> Vec<Fate> {
        (0..20_000u64)
            .map(|attempt| faults.fate(RequestKey { method, path: "/b/k", range: "", conditional: true, attempt }))
            .collect()
    };
    assert_eq!(fates("GET"), fates("GET"));
    let share = |fates: &[Fate], wanted: &dyn Fn(&Fate) -> bool| {
        fates.iter().filter(|fate| wanted(fate)).count() as f64 / fates.len() as f64
    };
    let (reads, writes) = (fates("GET"), fates("PUT"));
    let failed = |fate: &Fate| matches!(fate, Fate::Status(500 | 503 | 429) | Fate::Unheard);
    let near = |actual: f64, wanted: f64| (actual - wanted).abs() < 0.012;
    assert!(near(share(&reads, &failed), 0.10) && near(share(&writes, &failed), 0.10));
    assert!(near(share(&reads, &|fate| matches!(fate, Fate::Reset(_))), 0.05));
    assert!(near(share(&reads, &|fate| matches!(fate, Fate::Short(_) | Fate::Chunked(_))), 0.05));
    assert!(near(share(&writes, &|fate| *fate == Fate::Lost), 0.03));
    assert!(near(share(&writes, &|fate| *fate == Fate::Status(409)), 0.03));
}
