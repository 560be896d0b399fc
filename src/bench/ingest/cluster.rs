//! Model of a run in parts on 1 to 64 machines: time until all features or pixels are stored, idle machines, requests, price.
//!
//! The model follows the parts from event to event. A machine takes the next part when it is free, as the queue of an engine
//! hands them out, and starts up before the first image of each. A part is then as fast as the slowest of its cores and
//! device, the serial reading of its open shards, its network, and an equal share of the source.
//!
//! Training and prediction follow on one machine. The model leaves them out.

use serde::Serialize;

use crate::objects::Store;
use crate::pipeline::images::MAX_OPEN_SHARDS;
use crate::types::Part;

/// Numbers of machines in the table.
const MACHINES: [u32; 7] = [1, 2, 4, 8, 16, 32, 64];
/// Parts for each machine, as the documentation advises.
const PARTS_PER_MACHINE: u32 = 2;
/// Time between two updates of a remote run directory by each process, in seconds: the lease, and `status.json`.
const UPDATES_S: [f64; 2] = [3.0, 10.0];
/// Reads and writes of a part beside its images and updates: locks, lists, settings, catalog, report. Counted on a server.
const PART_REQUESTS: [f64; 2] = [50.0, 10.0];
/// Writes of a chunk beside its content: the journal's entry, the hashes of its URLs, unusable rows.
const CHUNK_WRITES: f64 = 3.0;
/// Bytes of a chunk that one request uploads.
const UPLOAD_BYTES: f64 = 8.0 * 1024.0 * 1024.0;
/// List prices of S3 Standard in us-east-1, in USD: a read, a write.
const REQUEST_USD: [f64; 2] = [0.4e-6, 5e-6];

/// Assumptions about the machines and the storage.
#[derive(Debug, Clone)]
pub struct ClusterSettings {
    /// Cores of each machine. Default: the threads of this one.
    pub cores: Option<usize>,
    /// Rate of each machine's device, in images/s. Default: measured here, with the cores busy if the device is the CPU.
    pub forward_per_s: Option<f64>,
    /// Rate of the source for all machines together, in MB/s.
    pub source_mb_per_s: f64,
    /// Rate of each machine's network, in MB/s.
    pub network_mb_per_s: f64,
    /// Time before the first image of a part: the program, the model, the catalog. In seconds.
    pub start_s: f64,
    /// Price of a machine, in USD per hour.
    pub machine_price: f64,
    /// Images of the corpus, if the pipeline names a sample of it. Default: those of the pipeline.
    pub images: Option<u64>,
    /// Shards of equal size that hold these images. Default: the shards of the pipeline.
    pub shards: Option<u32>,
}

/// Measurements of this machine that the model needs.
#[derive(Debug, Clone)]
pub(super) struct Measured {
    /// Stored bytes of each shard.
    pub(super) shard_bytes: Vec<u64>,
    /// Mean stored bytes of an image.
    pub(super) stored_bytes: f64,
    /// Images per second that the cores of a machine decode and store.
    pub(super) cores_per_s: f64,
    /// Images per second that one open shard gives.
    pub(super) shard_per_s: f64,
    /// Images per second of the device, and whether it is the CPU. `None`: no model, or its rate is unknown.
    pub(super) forward: Option<(f64, bool)>,
    /// Stored bytes of the pairs, and the time in which a core parses them, in seconds.
    pub(super) pairs: (u64, f64),
    /// Images in a chunk.
    pub(super) chunk_rows: f64,
    /// Bytes of a stored image; `None` for features, whose chunks take one request.
    pub(super) pixel_bytes: Option<f64>,
}

/// Forecast for a number of machines.
#[derive(Debug, Clone, Serialize)]
pub struct ClusterForecast {
    /// Number of machines.
    pub machines: u32,
    /// Number of parts.
    pub parts: u32,
    /// Time from the start of the first machine to the end of the last part, in seconds.
    pub seconds: f64,
    /// Images per second over all of that time.
    pub images_per_s: f64,
    /// The limit under which most images are read.
    pub bottleneck: &'static str,
    /// Share of the machines' time that starts take.
    pub starting: f64,
    /// Share of the machines' time in which they wait for the catalog or for the last parts.
    pub idle: f64,
    /// Reads from remote storage, if images and run directory are there.
    pub reads: u64,
    /// Writes to remote storage, likewise.
    pub writes: u64,
    /// Price of machines and requests, in USD.
    pub usd: f64,
}

/// The model's table and what it assumes.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Cluster {
    /// Assumptions, as sentences.
    pub assumptions: Vec<String>,
    /// Forecasts for rising numbers of machines.
    pub forecasts: Vec<ClusterForecast>,
}

/// Images and open shards of a part.
#[derive(Debug, Clone, Copy)]
struct Load {
    images: f64,
    open: f64,
}

/// A part at work.
struct Running {
    starting_s: f64,
    images: f64,
    limit_per_s: f64,
    limit: &'static str,
}

/// Course of a run in parts.
struct Course {
    seconds: f64,
    starting_s: f64,
    streaming_s: f64,
    bottleneck: &'static str,
}

impl Measured {
    /// Returns the largest rate of a part with some open shards, and what limits it; the source is not considered.
    fn part_limit(&self, settings: &ClusterSettings, open: f64) -> (f64, &'static str) {
        let cores = self.cores_per_s;
        let computing = match self.forward {
            Some((forward, true)) => (1.0 / (1.0 / cores + 1.0 / forward), "cores"),
            Some((forward, false)) if forward < cores => (forward, "device"),
            Some((_, false)) | None => (cores, "cores"),
        };
        let reading = (open * self.shard_per_s, "reading of a shard");
        let network = (settings.network_mb_per_s * 1e6 / self.stored_bytes, "network");
        [computing, reading, network]
            .into_iter()
            .fold((f64::INFINITY, ""), |least, limit| if limit.0 < least.0 { limit } else { least })
    }

    /// Returns the images of each shard.
    fn shard_images(&self, settings: &ClusterSettings) -> Vec<f64> {
        let own: Vec<f64> = self.shard_bytes.iter().map(|bytes| *bytes as f64 / self.stored_bytes).collect();
        let total = settings.images.map_or_else(|| own.iter().sum(), |images| images as f64);
        if let Some(shards) = settings.shards {
            return vec![total / f64::from(shards); shards as usize];
        }
        let scale = total / own.iter().sum::<f64>().max(f64::MIN_POSITIVE);
        own.into_iter().map(|images| images * scale).collect()
    }

    /// Returns the time in which one machine builds the catalog: it reads the pairs through its network and parses them. A
    /// larger corpus has more pairs in proportion.
    fn catalog_s(&self, settings: &ClusterSettings, images: f64) -> f64 {
        let (bytes, parsing_s) = self.pairs;
        let own = self.shard_bytes.iter().sum::<u64>() as f64 / self.stored_bytes;
        let read_per_s = settings.network_mb_per_s.min(settings.source_mb_per_s) * 1e6;
        parsing_s.max(bytes as f64 / read_per_s) * images / own.max(f64::MIN_POSITIVE)
    }

    /// Models a run on each number of machines.
    pub(super) fn model(&self, settings: &ClusterSettings) -> Cluster {
        let shards = self.shard_images(settings);
        let most = u32::try_from(shards.len()).unwrap_or(u32::MAX).max(1);
        let numbers = MACHINES.into_iter().filter(|machines| *machines <= most);
        let forecasts = numbers.map(|machines| self.forecast(settings, &shards, machines)).collect();
        Cluster { assumptions: self.assumptions(settings, &shards), forecasts }
    }

    fn forecast(&self, settings: &ClusterSettings, shards: &[f64], machines: u32) -> ClusterForecast {
        let most = u32::try_from(shards.len()).unwrap_or(u32::MAX).max(1);
        let parts = if machines == 1 { 1 } else { (PARTS_PER_MACHINE * machines).min(most) };
        let course = self.follow(settings, &divide(shards, parts), machines);
        let machine_s = f64::from(machines) * course.seconds;
        let images: f64 = shards.iter().sum();
        let chunk = self.pixel_bytes.map_or(1.0, |bytes| (bytes * self.chunk_rows / UPLOAD_BYTES).ceil());
        // A chunk in several pieces takes two more requests, to begin and to end.
        let chunk = chunk + CHUNK_WRITES + if chunk > 1.0 { 2.0 } else { 0.0 };
        let chunks: f64 = shards.iter().map(|images| (images / self.chunk_rows).ceil()).sum();
        let updates: f64 = UPDATES_S.iter().map(|every_s| (course.starting_s + course.streaming_s) / every_s).sum();
        let writes = chunks * chunk + updates + f64::from(parts) * PART_REQUESTS[1];
        let ranges = |images: &f64| (images * self.stored_bytes / Store::RANGE_BYTES as f64).ceil();
        let reads = shards.iter().map(ranges).sum::<f64>() + f64::from(parts) * PART_REQUESTS[0];
        let usd = machine_s / 3600.0 * settings.machine_price + reads * REQUEST_USD[0] + writes * REQUEST_USD[1];
        ClusterForecast {
            machines,
            parts,
            seconds: course.seconds,
            images_per_s: images / course.seconds,
            bottleneck: course.bottleneck,
            starting: course.starting_s / machine_s,
            idle: 1.0 - (course.starting_s + course.streaming_s) / machine_s,
            reads: reads as u64,
            writes: writes as u64,
            usd,
        }
    }

    /// Follows the parts from event to event: a part has started up, or is complete.
    fn follow(&self, settings: &ClusterSettings, parts: &[Load], machines: u32) -> Course {
        let source_per_s = settings.source_mb_per_s * 1e6 / self.stored_bytes;
        let mut waiting = parts.iter().map(|part| {
            let (limit_per_s, limit) = self.part_limit(settings, part.open);
            Running { starting_s: settings.start_s, images: part.images, limit_per_s, limit }
        });
        let catalog_s = self.catalog_s(settings, parts.iter().map(|part| part.images).sum());
        let mut course = Course { seconds: catalog_s, starting_s: 0.0, streaming_s: 0.0, bottleneck: "" };
        let mut limited: Vec<(&'static str, f64)> = Vec::new();
        let mut running: Vec<Running> = Vec::new();
        loop {
            let free = (machines as usize).saturating_sub(running.len());
            running.extend(waiting.by_ref().take(free));
            if running.is_empty() {
                break;
            }
            let streaming = running.iter().filter(|part| part.starting_s <= 0.0).count();
            let share = source_per_s / streaming.max(1) as f64;
            let until = |part: &Running| {
                if part.starting_s > 0.0 { part.starting_s } else { part.images / part.limit_per_s.min(share) }
            };
            let step = running.iter().map(until).fold(f64::INFINITY, f64::min);
            course.seconds += step;
            for part in &mut running {
                if part.starting_s > 0.0 {
                    course.starting_s += step;
                    part.starting_s -= step;
                    continue;
                }
                course.streaming_s += step;
                let (rate, limit) =
                    if share < part.limit_per_s { (share, "source") } else { (part.limit_per_s, part.limit) };
                part.images -= rate * step;
                match limited.iter_mut().find(|(name, _)| *name == limit) {
                    Some((_, images)) => *images += rate * step,
                    None => limited.push((limit, rate * step)),
                }
            }
            // A step ends an event exactly up to rounding.
            running.iter_mut().filter(|part| part.starting_s < 1e-9).for_each(|part| part.starting_s = 0.0);
            running.retain(|part| part.starting_s > 0.0 || part.images > 1e-6);
        }
        course.bottleneck = limited.iter().max_by(|one, other| one.1.total_cmp(&other.1)).map_or("", |(name, _)| *name);
        course
    }

    fn assumptions(&self, settings: &ClusterSettings, shards: &[f64]) -> Vec<String> {
        let ClusterSettings { source_mb_per_s, network_mb_per_s, start_s, machine_price, .. } = settings;
        let images: f64 = shards.iter().sum();
        let equal = if settings.shards.is_some() { " of equal size" } else { "" };
        let forward = match self.forward {
            None if self.pixel_bytes.is_some() => "no model".to_owned(),
            None => "a device that is never the limit, because its rate is unknown: see --forward-rate".to_owned(),
            Some((rate, true)) => format!("a model at {rate:.1} images/s on the same cores"),
            Some((rate, false)) => format!("a device of {rate:.0} images/s beside them"),
        };
        vec![
            format!(
                "{images:.0} images of {:.1} kB in {} shards{equal}, all of them decoded",
                self.stored_bytes / 1e3,
                shards.len()
            ),
            format!("a machine: cores that decode and store {:.0} images/s; {forward}", self.cores_per_s),
            format!("one shard gives at most {:.0} images/s, {MAX_OPEN_SHARDS} are open at once", self.shard_per_s),
            format!(
                "the source gives {source_mb_per_s} MB/s to all machines, a network {network_mb_per_s} MB/s to each"
            ),
            format!(
                "the catalog takes {:.0} s on one machine, for which the others wait",
                self.catalog_s(settings, images)
            ),
            format!("a part starts up in {start_s} s; a machine takes the next part when it is free"),
            format!(
                "a machine costs {machine_price} USD an hour, a million reads {:.2} USD, a million writes {:.2} USD",
                REQUEST_USD[0] * 1e6,
                REQUEST_USD[1] * 1e6
            ),
            "training and prediction, which follow on one machine, are left out".to_owned(),
        ]
    }
}

/// Divides shards among parts as a run does.
fn divide(shards: &[f64], count: u32) -> Vec<Load> {
    let of = |index: u32| {
        let part = Part::new(index, count).unwrap_or(Part::WHOLE);
        let own: Vec<f64> =
            shards.iter().zip(0..).filter(|(_, shard)| part.contains(*shard)).map(|(images, _)| *images).collect();
        Load { images: own.iter().sum(), open: own.len().clamp(1, MAX_OPEN_SHARDS) as f64 }
    };
    (0..count).map(of).collect()
}

#[cfg(test)]
mod tests;
