//! Estimate of the end of a whole run, from the stages that it will have and their progress.

use std::time::Duration;

use super::StageSnapshot;

/// A stage that the run will have, in the order of the run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpectedStage {
    /// Display name of the stage.
    pub name: &'static str,
    /// Stored bytes of the images that it reads; 0 for other inputs. Stages that read images take about the same time per byte.
    pub image_bytes: u64,
}

/// Estimate for a whole run at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RunEstimate {
    /// Stages that have ended.
    pub done: usize,
    /// Time to the end of all stages whose rate is known.
    pub left: Duration,
    /// Stages to come whose rate is not known, in order.
    pub unknown: Vec<String>,
}

/// Estimates the end of a run at the rates so far.
///
/// A stage of images that has not started counts with the rate of another stage of images. The time of other stages to come
/// is unknown, and so is that of a running stage which has no rate yet.
pub fn estimate_run(expected: &[ExpectedStage], snapshots: &[StageSnapshot]) -> RunEstimate {
    let find = |name: &str| snapshots.iter().find(|stage| stage.name == name);
    // A stage that is complete in the run directory does not start again, so a later one that started ends it.
    let first_open = expected.iter().rposition(|stage| find(stage.name).is_some()).unwrap_or(0);
    let mut estimate = RunEstimate::default();
    for (index, stage) in expected.iter().enumerate() {
        let left = match find(stage.name) {
            Some(snapshot) if snapshot.finished => Some(Duration::ZERO),
            Some(snapshot) => snapshot.eta(),
            None if index < first_open => Some(Duration::ZERO),
            None => seconds_per_image_byte(expected, snapshots)
                .filter(|_| stage.image_bytes > 0)
                .map(|seconds| Duration::from_secs_f64((seconds * stage.image_bytes as f64).min(1e9))),
        };
        match left {
            Some(left) if left.is_zero() => estimate.done += 1,
            Some(left) => estimate.left += left,
            None => estimate.unknown.push(stage.name.to_owned()),
        }
    }
    estimate
}

/// Returns the time that this process needed for a stored byte of images, by the latest stage that read some.
fn seconds_per_image_byte(expected: &[ExpectedStage], snapshots: &[StageSnapshot]) -> Option<f64> {
    let is_images = |stage: &&StageSnapshot| expected.iter().any(|one| one.image_bytes > 0 && one.name == stage.name);
    snapshots.iter().rev().filter(is_images).find_map(|stage| {
        let read: u64 = stage.shards.iter().map(|shard| shard.read_bytes).sum();
        // Bytes that an earlier process read took this one no time.
        let new = stage.done - stage.resumed.min(stage.done);
        let bytes = read as f64 * new as f64 / stage.done.max(1) as f64;
        (bytes > 0.0).then(|| stage.elapsed.as_secs_f64() / bytes)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Shard;

    fn snapshot(name: &str, done: u64, total: u64, seconds: u64, finished: bool) -> StageSnapshot {
        StageSnapshot {
            name: name.to_owned(),
            unit: "rows",
            done,
            resumed: 0,
            total: Some(total),
            elapsed: Duration::from_secs(seconds),
            finished,
            parts: Vec::new(),
            shards: vec![Shard { read_bytes: done * 10, ..Shard::default() }],
        }
    }

    fn expected() -> Vec<ExpectedStage> {
        [("pairs", 0), ("images", 1000), ("train", 0), ("test images", 500)]
            .map(|(name, image_bytes)| ExpectedStage { name, image_bytes })
            .to_vec()
    }

    #[test]
    fn images_to_come_take_the_rate_of_earlier_images() {
        // 50 of 100 rows and 500 of 1,000 bytes in 10 s: as long again, and 500 bytes of test images as well.
        let found =
            estimate_run(&expected(), &[snapshot("pairs", 9, 9, 3, true), snapshot("images", 50, 100, 10, false)]);
        assert_eq!((found.done, found.left), (1, Duration::from_secs(20)));
        assert_eq!(found.unknown, ["train"]);
    }

    #[test]
    fn stages_complete_in_the_run_directory_count_as_done() {
        let found = estimate_run(&expected(), &[snapshot("train", 25, 100, 5, false)]);
        assert_eq!((found.done, found.left), (2, Duration::from_secs(15)));
        assert_eq!(found.unknown, ["test images"]);
        assert_eq!(estimate_run(&expected(), &[]).unknown.len(), 4);
    }

    #[test]
    fn finished_run_has_no_time_left() {
        let all = ["pairs", "images", "train", "test images"].map(|name| snapshot(name, 10, 10, 1, true));
        let found = estimate_run(&expected(), &all);
        assert_eq!((found.done, found.left, found.unknown.len()), (4, Duration::ZERO, 0));
    }
}
