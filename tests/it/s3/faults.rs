//! What goes wrong between a client and a server of HTTP, drawn from a seed.
//!
//! Each request's fate is a function of the seed, of what it asks for, and of how often that was asked before, and of nothing
//! else: neither the time nor the order of requests plays a part, so a seed that failed fails again.

use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng as _};

/// How often what goes wrong. Shares are of 1.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Faults {
    pub(crate) seed: u64,
    /// An error of the server's (500, 503, 429), or a connection that ends without an answer; nothing was done.
    pub(crate) fail: f64,
    /// A write was done, and its answer never comes.
    pub(crate) lose: f64,
    /// A conditional write meets another one (409); nothing was done.
    pub(crate) conflict: f64,
    /// A body breaks off: the connection is reset.
    pub(crate) reset: f64,
    /// A body ends early, as if it were whole.
    pub(crate) truncate: f64,
    /// No byte comes for `stall_for`, before the answer or in its body.
    pub(crate) stall: f64,
    pub(crate) stall_for: Duration,
    /// An answer is late by up to so much.
    pub(crate) latency: Duration,
    /// Bodies come and go no faster than this; 0: as fast as they can.
    pub(crate) bytes_per_second: u32,
}

/// What becomes of one request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Fate {
    /// It is served.
    Served,
    /// An error of this status.
    Status(u16),
    /// The connection ends without an answer, and nothing was done.
    Unheard,
    /// Done, and the connection ends without an answer.
    Lost,
    /// The body ends after this share of it, with a reset.
    Reset(f64),
    /// The body ends after this share of it, under a `Content-Length` that fits.
    Short(f64),
    /// The body ends after this share of it, sent in chunks without a length.
    Chunked(f64),
    /// Nothing comes for a while, then the answer.
    Late,
    /// The body stalls after this share of it, and goes on.
    Stalled(f64),
}

/// What is asked for, as far as its fate depends on it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub(crate) method: &'a str,
    /// Path and query without what differs from run to run.
    pub(crate) path: &'a str,
    pub(crate) range: &'a str,
    pub(crate) conditional: bool,
    /// How often it was asked before.
    pub(crate) attempt: u64,
}

impl Faults {
    /// The figures of the promise: 10 % of requests fail, 5 % of bodies are reset, 1 % are truncated; and a few of the rest.
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

    fn dice(&self, asked: Asked<'_>) -> ChaCha8Rng {
        let Asked { method, path, range, attempt, .. } = asked;
        let text = format!("{} {method} {path} {range} {attempt}", self.seed);
        ChaCha8Rng::from_seed(*blake3::hash(text.as_bytes()).as_bytes())
    }

    /// How late the answer is.
    pub(crate) fn lateness(&self, asked: Asked<'_>) -> Duration {
        let mut dice = self.dice(asked);
        dice.set_stream(1);
        self.latency.mul_f64(share(&mut dice))
    }

    /// Decides.
    pub(crate) fn fate(&self, asked: Asked<'_>) -> Fate {
        let mut dice = self.dice(asked);
        let mut falls = |likelihood: f64| share(&mut dice) < likelihood;
        let (reads, writes) = (asked.method == "GET", ["PUT", "POST", "DELETE"].contains(&asked.method));
        if falls(self.fail) {
            let which = dice.next_u32() % 5;
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
        if falls(self.conflict) && asked.conditional {
            return Fate::Status(409);
        }
        if falls(self.reset) && reads {
            return Fate::Reset(share(&mut dice));
        }
        if falls(self.truncate) && reads {
            let at = share(&mut dice);
            return if dice.next_u32().is_multiple_of(2) { Fate::Short(at) } else { Fate::Chunked(at) };
        }
        if falls(self.stall) {
            return if reads { Fate::Stalled(share(&mut dice)) } else { Fate::Late };
        }
        Fate::Served
    }
}

fn share(dice: &mut ChaCha8Rng) -> f64 {
    f64::from(dice.next_u32()) / f64::from(u32::MAX)
}

#[test]
fn a_seed_draws_the_same_faults_again_and_as_many_as_were_asked_for() {
    let faults = Faults { truncate: 0.05, stall: 0.05, ..Faults::promised(3) };
    let fates = |method: &str| -> Vec<Fate> {
        (0..20_000u64)
            .map(|attempt| faults.fate(Asked { method, path: "/b/k", range: "", conditional: true, attempt }))
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
