//! Tests of the model of several machines.

use super::*;

fn settings() -> ClusterSettings {
    ClusterSettings {
        cores: None,
        forward_per_s: None,
        source_mb_per_s: 1e6,
        network_mb_per_s: 1e6,
        start_s: 10.0,
        machine_price: 2.0,
        images: None,
        shards: None,
    }
}

fn measured(shard_bytes: &[u64]) -> Measured {
    Measured {
        shard_bytes: shard_bytes.to_vec(),
        stored_bytes: 10_000.0,
        cores_per_s: 1000.0,
        shard_per_s: 1e6,
        forward: None,
        pairs: (0, 0.0),
        chunk_rows: 100.0,
        pixel_bytes: Some(1.0),
    }
}

/// 100,000 images in equal shards.
fn equal(shards: u64) -> Measured {
    measured(&vec![1_000_000_000 / shards; shards as usize])
}

#[test]
fn one_machine_starts_once_and_streams_all_images() {
    let one = &equal(8).model(&settings()).forecasts[0];
    assert_eq!((one.machines, one.parts, one.bottleneck), (1, 1, "cores"));
    assert!((one.seconds - 110.0).abs() < 1e-6, "{}", one.seconds);
    assert!((one.starting - 10.0 / 110.0).abs() < 1e-9 && one.idle.abs() < 1e-9, "{one:?}");
    assert!((one.images_per_s - 100_000.0 / 110.0).abs() < 1e-6);
    // 125 MB in ranges of 4 MiB, for each of 8 shards; four writes for each of 8 × 125 chunks.
    assert_eq!(one.reads, 8 * 30 + 50);
    assert_eq!(one.writes, 4 * 8 * 125 + 10 + (110.0_f64 / 3.0 + 110.0 / 10.0) as u64);
    let price = 110.0 / 3600.0 * 2.0 + 290.0 * 0.4e-6 + one.writes as f64 * 5e-6;
    assert!((one.usd - price).abs() < 1e-4, "{}", one.usd);
}

#[test]
fn machines_that_wait_for_the_last_part_are_idle() {
    // One shard holds half of the images.
    let machines = measured(&[500_000_000, 250_000_000, 125_000_000, 125_000_000]);
    let forecasts = machines.model(&settings()).forecasts;
    assert_eq!(forecasts.iter().map(|one| one.machines).collect::<Vec<_>>(), [1, 2, 4]);
    let four = &forecasts[2];
    assert!((four.seconds - 60.0).abs() < 1e-6, "{}", four.seconds);
    assert!((four.idle - (240.0 - 140.0) / 240.0).abs() < 1e-9, "{}", four.idle);
    // Two machines take 50,000 images and 25,000 + 12,500 + 12,500.
    assert!((forecasts[1].seconds - 80.0).abs() < 1e-6, "{}", forecasts[1].seconds);
}

#[test]
fn each_limit_is_named() {
    let named = |measured: Measured, settings: ClusterSettings, machines: usize| {
        let forecast = measured.model(&settings).forecasts[machines].clone();
        (forecast.bottleneck, forecast.images_per_s)
    };
    let no_start = || ClusterSettings { start_s: 0.0, ..settings() };
    let near = |found: (&str, f64), name: &str, rate: f64| {
        assert!(found.0 == name && (found.1 / rate - 1.0).abs() < 1e-6, "{found:?}, not {name} {rate}");
    };
    // 8 machines share a source of 20 MB/s, which are 2,000 images/s.
    near(named(equal(16), ClusterSettings { source_mb_per_s: 20.0, ..no_start() }, 3), "source", 2000.0);
    near(named(equal(16), ClusterSettings { network_mb_per_s: 5.0, ..no_start() }, 3), "network", 4000.0);
    near(named(Measured { shard_per_s: 100.0, ..equal(16) }, no_start(), 3), "reading of a shard", 800.0);
    near(named(Measured { forward: Some((250.0, false)), ..equal(16) }, no_start(), 0), "device", 250.0);
    near(named(Measured { forward: Some((1000.0, true)), ..equal(16) }, no_start(), 0), "cores", 500.0);
}

#[test]
fn catalog_comes_first_and_grows_with_the_corpus() {
    let with_pairs = || Measured { pairs: (500_000_000, 3.0), ..equal(8) };
    let seconds = |settings: &ClusterSettings| with_pairs().model(settings).forecasts[0].seconds;
    assert!((seconds(&settings()) - 113.0).abs() < 1e-6);
    let slow = ClusterSettings { network_mb_per_s: 100.0, ..settings() };
    assert!((seconds(&slow) - 115.0).abs() < 1e-6);
    let larger = ClusterSettings { images: Some(200_000), ..slow };
    assert!((seconds(&larger) - 220.0).abs() < 1e-6);
}

#[test]
fn sample_stands_for_a_larger_corpus() {
    let larger = ClusterSettings { images: Some(6_000_000), shards: Some(200), ..settings() };
    let cluster = equal(4).model(&larger);
    assert_eq!(cluster.forecasts.last().map(|most| (most.machines, most.parts)), Some((64, 128)));
    assert!((cluster.forecasts[0].seconds - 6010.0).abs() < 1e-3, "{}", cluster.forecasts[0].seconds);
    assert!(cluster.assumptions[0].contains("6000000 images of 10.0 kB in 200 shards of equal size"));
    // 128 parts of 200 shards: those of two shards last twice as long as the others.
    let idle = cluster.forecasts.last().map(|most| most.idle);
    assert!(idle.is_some_and(|idle| idle > 0.0 && idle < 0.3), "{idle:?}");
}

proptest::proptest! {
    #[test]
    fn more_machines_stream_every_image_and_take_no_longer(
        sizes in proptest::collection::vec(1_u64..2_000_000_000, 1..80), start_s in 0.0..100.0_f64, catalog_s in 0.0..100.0_f64
    ) {
        let measured = Measured { pairs: (0, catalog_s), ..measured(&sizes) };
        let cluster = measured.model(&ClusterSettings { start_s, ..settings() });
        let images: f64 = sizes.iter().map(|bytes| *bytes as f64 / 10_000.0).sum();
        for forecast in &cluster.forecasts {
            let machines = f64::from(forecast.machines);
            let least = images / 1000.0 / machines + start_s + catalog_s;
            proptest::prop_assert!(forecast.seconds >= least * (1.0 - 1e-9), "{forecast:?}");
            // All machines together work as long as all parts take.
            let work = images / 1000.0 + f64::from(forecast.parts) * start_s;
            let busy = machines * forecast.seconds * (1.0 - forecast.idle);
            proptest::prop_assert!((busy - work).abs() <= 1e-6 * work.max(1.0), "{forecast:?}: {busy}, not {work}");
        }
    }
}
