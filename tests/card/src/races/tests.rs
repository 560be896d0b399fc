//! The rules by themselves.

use super::*;

/// `wgmma` of a warp reads the first bytes.
fn read_behind(races: &mut Races, bytes: usize, warp: usize, moment: &Moment) -> Option<String> {
    let behind = races.behind(warp, moment, "wgmma");
    races.read_behind(0, bytes, &behind)
}

#[test]
fn barrier_orders_write_before_read() {
    let mut races = Races::new(64, Between::Lanes);
    assert_eq!(races.access(0, 4, 0, 0, Access::Write), None);
    races.meet(0b11, true);
    assert_eq!(races.access(0, 4, 1, 0, Access::Read), None);
}

#[test]
fn read_without_barrier_is_a_race() {
    let mut races = Races::new(64, Between::Lanes);
    races.access(0, 4, 0, 0, Access::Write);
    let why = races.access(2, 2, 1, 0, Access::Read).unwrap();
    assert!(why.contains("behind a write by warp 0"), "{why}");
}

#[test]
fn write_after_reads_of_several_warps_is_a_race() {
    let mut races = Races::new(64, Between::Lanes);
    races.access(8, 8, 0, 0, Access::Read);
    races.access(8, 8, 1, 0, Access::Read);
    assert!(races.access(8, 4, 1, 0, Access::Write).unwrap().contains("behind a read by warp 0"));
}

#[test]
fn barrier_of_other_warps_does_not_order() {
    let mut races = Races::new(64, Between::Lanes);
    races.access(0, 4, 0, 0, Access::Write);
    races.meet(0b110, false);
    assert!(races.access(0, 4, 1, 0, Access::Read).is_some());
}

#[test]
fn mbarrier_carries_the_clock_of_those_that_arrive() {
    let mut races = Races::new(64, Between::Lanes);
    races.access(0, 4, 3, 0, Access::Write);
    races.arrive(32, 3);
    races.pass(32, 1);
    assert!(races.access(0, 4, 1, 0, Access::Read).is_some());
    races.end_phase(32);
    races.pass(32, 2);
    assert_eq!(races.access(0, 4, 2, 0, Access::Read), None);
}

#[test]
fn access_during_a_copy_is_a_race_even_by_its_own_warp() {
    let mut races = Races::new(64, Between::Lanes);
    assert_eq!(races.issue(0, 16, 0, Some(0)), None);
    assert!(races.access(4, 4, 0, 0, Access::Read).unwrap().contains("before a copy"));
    races.complete(0, 16, 0, 0);
    assert_eq!(races.access(4, 4, 0, 0, Access::Read), None);
    assert!(races.access(4, 4, 1, 0, Access::Read).is_some());
}

#[test]
fn tile_may_be_read_behind_its_barrier_only() {
    let mut races = Races::new(64, Between::Lanes);
    races.issue(0, 16, 0, None);
    races.complete_by_engine(0, 16, 32);
    assert!(races.access(0, 4, 1, 0, Access::Read).unwrap().contains("copy engine"));
    races.end_phase(32);
    races.pass(32, 2);
    assert_eq!(races.access(0, 4, 2, 0, Access::Read), None);
}

#[test]
fn atomic_accesses_do_not_race() {
    let mut races = Races::new(64, Between::Lanes);
    races.access(0, 4, 0, 0, Access::Sync);
    assert_eq!(races.access(0, 4, 1, 0, Access::Sync), None);
}

#[test]
fn arrival_at_the_next_phase_is_not_passed_on() {
    let mut races = Races::new(64, Between::Lanes);
    races.end_phase(32);
    races.access(0, 4, 3, 0, Access::Write);
    races.arrive(32, 3);
    races.pass(32, 1);
    assert!(races.access(0, 4, 1, 0, Access::Read).is_some());
}

#[test]
fn fence_stands_between_a_store_and_a_read_by_the_engine() {
    let fenced_by = |fences: [bool; 3]| {
        let mut races = Races::new(64, Between::Lanes);
        if fences[0] {
            races.fence(0);
        }
        races.access(0, 4, 0, 0, Access::Write);
        if fences[1] {
            races.fence(0);
        }
        races.meet(0b11, true);
        if fences[2] {
            races.fence(1);
        }
        let moment = races.moment(1);
        read_behind(&mut races, 4, 1, &moment)
    };
    assert!(fenced_by([true, false, false]).unwrap().contains("without `fence.proxy.async`"));
    assert_eq!(fenced_by([false, true, false]), None);
    assert_eq!(fenced_by([false, false, true]), None);
}

#[test]
fn write_by_the_engine_needs_no_fence() {
    let mut races = Races::new(64, Between::Lanes);
    races.issue(0, 16, 0, None);
    races.complete_by_engine(0, 16, 32);
    races.end_phase(32);
    races.pass(32, 1);
    let moment = races.moment(1);
    assert_eq!(read_behind(&mut races, 16, 1, &moment), None);
}

#[test]
fn late_read_sees_what_was_written_since_its_issue() {
    let mut races = Races::new(64, Between::Lanes);
    races.access(0, 4, 0, 0, Access::Write);
    races.fence(0);
    let moment = races.moment(0);
    assert_eq!(read_behind(&mut races, 4, 0, &moment), None);
    races.access(0, 4, 0, 0, Access::Write);
    assert!(read_behind(&mut races, 4, 0, &moment).unwrap().contains("overwrites before it waits"));
}

#[test]
fn next_block_has_seen_no_step_of_ended_warps() {
    let mut races = Races::new(64, Between::Lanes);
    // Warp 1 has ended.
    races.meet(0b1, true);
    races.restart();
    races.init(32, 1);
    races.access(0, 4, 1, 0, Access::Write);
    assert!(races.access(0, 4, 0, 0, Access::Read).unwrap().contains("behind a write by warp 1"));
    assert!(races.use_barrier(32, 0, false).unwrap().contains("behind its initialisation by warp 1"));
}

#[test]
fn lanes_race_behind_reads_of_several_warps() {
    let mut races = Races::new(64, Between::Lanes);
    races.access(0, 4, 0, 0, Access::Write);
    races.meet(0b11, true);
    races.access(0, 4, 1, 1, Access::Read);
    races.arrive(32, 1);
    races.end_phase(32);
    races.pass(32, 0);
    races.access(0, 4, 0, 1, Access::Read);
    assert_eq!(races.access(0, 2, 0, 1, Access::Write), None);
    assert!(races.access(2, 2, 0, 2, Access::Write).unwrap().contains("behind a read by another lane of warp 0"));
}

#[test]
fn lanes_race_only_if_asked_for() {
    for (between, race) in [(Between::Lanes, true), (Between::Warps, false)] {
        let mut races = Races::new(64, between);
        races.access(0, 4, 0, 1, Access::Write);
        assert_eq!(races.access(0, 4, 0, 2, Access::Read).is_some(), race);
        races.sync_lanes(0);
        assert_eq!(races.access(0, 4, 0, 2, Access::Read), None);
    }
}

#[test]
fn reading_a_byte_is_no_write() {
    let mut races = Races::new(64, Between::Warps);
    races.access(0, 1, 0, 0, Access::Read);
    assert!(races.access(0, 2, 0, 0, Access::Read).unwrap().contains("nothing was written"));
    races.access(0, 1, 0, 0, Access::Write);
    assert_eq!(races.access(0, 2, 0, 0, Access::Read), None);
}

#[test]
fn copy_in_flight_is_seen_by_each_lane() {
    for between in [Between::Warps, Between::Lanes] {
        let mut races = Races::new(64, between);
        assert_eq!(races.issue(0, 16, 0, Some(3)), None);
        assert!(races.issue(8, 8, 0, Some(4)).unwrap().contains("before a copy"));
        races.complete(0, 16, 0, 3);
        assert_eq!(races.issue(8, 8, 0, Some(3)), None);
    }
}

#[test]
fn equal_granules_keep_reads_before_and_behind_an_arrival_apart() {
    let mut races = Races::new(64, Between::Warps);
    races.access(0, 32, 1, 0, Access::Write);
    races.meet(0b11, true);
    races.access(0, 16, 0, 0, Access::Read);
    races.arrive(40, 0);
    races.access(16, 16, 0, 0, Access::Read);
    races.end_phase(40);
    races.pass(40, 1);
    assert_eq!(races.access(0, 16, 1, 0, Access::Write), None);
    assert!(races.access(16, 16, 1, 0, Access::Write).unwrap().contains("behind a read by warp 0"));
}

#[test]
fn lanes_of_equal_granules_race_behind_the_end_of_a_phase_only() {
    let mut races = Races::new(64, Between::Lanes);
    races.access(0, 32, 0, 0, Access::Write);
    races.meet(0b1, true);
    races.access(0, 16, 0, 0, Access::Read);
    races.pass(40, 0);
    races.access(16, 16, 0, 0, Access::Read);
    assert_eq!(races.access(0, 16, 0, 1, Access::Write), None);
    assert!(races.access(16, 16, 0, 1, Access::Write).unwrap().contains("read by another lane"));
}

#[test]
fn late_reads_of_equal_granules_have_their_own_moments() {
    let mut races = Races::new(64, Between::Warps);
    let moments = [(); 2].map(|()| {
        races.access(0, 32, 0, 0, Access::Write);
        races.fence(0);
        races.moment(0)
    });
    let [first, second] = &moments;
    let behind = races.behind(0, second, "wgmma");
    assert_eq!(races.read_behind(0, 16, &behind), None);
    let behind = races.behind(0, first, "wgmma");
    assert!(races.read_behind(16, 16, &behind).unwrap().contains("overwrites before it waits"));
}

#[test]
fn fence_passes_on_no_write_of_an_equal_granule_behind_it() {
    let mut races = Races::new(64, Between::Warps);
    races.access(0, 16, 0, 0, Access::Write);
    races.fence(0);
    races.access(16, 16, 0, 0, Access::Write);
    let moment = races.moment(0);
    let behind = races.behind(0, &moment, "wgmma");
    assert_eq!(races.read_behind(0, 16, &behind), None);
    assert!(races.read_behind(16, 16, &behind).unwrap().contains("without `fence.proxy.async`"));
}

/// Numbers that look random.
struct Noise(u64);

impl Noise {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

/// Warps, and the sizes of their accesses.
struct Threads {
    warps: u64,
    bytes: &'static [u64],
}

/// Does something to shared memory or clocks, and returns what is wrong with it.
fn operation(
    races: &mut Races,
    moments: &mut Vec<(usize, Moment)>,
    noise: &mut Noise,
    among: &Threads,
) -> Option<String> {
    const ACCESSES: [Access; 6] =
        [Access::Read, Access::Write, Access::ReadTogether, Access::WriteTogether, Access::Sync, Access::SyncRead];
    let (warp, lane) = (noise.below(among.warps) as usize, noise.below(3) as usize);
    let (barrier, bytes) = (8 * noise.below(2), among.bytes[noise.below(among.bytes.len() as u64) as usize]);
    let at = noise.below(64 / bytes) * bytes;
    let bytes = bytes as usize;
    match noise.below(25) {
        0..=9 => return races.access(at, bytes, warp, lane, ACCESSES[noise.below(6) as usize]),
        10 => return races.issue(at, bytes, warp, [None, Some(lane)][noise.below(2) as usize]),
        11 => races.complete(at, bytes, warp, lane),
        12 => races.complete_by_engine(at, bytes, barrier),
        13 => moments.push((warp, races.moment(warp))),
        14..=16 => {
            let (warp, moment) = moments.last()?;
            let behind = races.behind(*warp, moment, "wgmma");
            let first = races.read_behind(at, bytes, &behind);
            return first.or_else(|| races.read_behind(0, 64, &behind));
        }
        17 => races.fence(warp),
        18 => races.arrive(barrier, warp),
        19 => races.end_phase(barrier),
        20 => races.pass(barrier, warp),
        21 => races.sync_lanes(warp),
        22 => races.meet(noise.below(8) as u32, false),
        23 => {
            races.restart();
            moments.clear();
        }
        _ => races.meet(7, true),
    }
    None
}

#[test]
fn changes_that_are_kept_are_those_that_would_be_found() {
    // Few warps and places meet again often.
    let (many, few) = (Threads { warps: 3, bytes: &[1, 2, 4, 8, 16, 32] }, Threads { warps: 2, bytes: &[16] });
    for seed in 0..500 {
        let between = [Between::Warps, Between::Lanes][seed as usize % 2];
        let among = if seed % 4 == 0 { &many } else { &few };
        let (mut kept, mut found) = (Races::new(64, between), Races::new(64, between));
        let (mut one, mut two) = (Noise(seed), Noise(seed));
        let (mut kept_moments, mut found_moments) = (Vec::new(), Vec::new());
        for step in 0..500 {
            // Other versions make other keys, so that nothing is known.
            found.next_versions();
            let why = operation(&mut found, &mut found_moments, &mut two, among);
            assert_eq!(operation(&mut kept, &mut kept_moments, &mut one, among), why, "seed {seed}, step {step}");
        }
    }
}
