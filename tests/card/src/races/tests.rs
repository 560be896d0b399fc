//! The rules by themselves.

use super::*;

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
        races.read_behind(0, 4, 1, &moment, "wgmma")
    };
    assert!(fenced_by([true, false, false]).unwrap().contains("without `fence.proxy.async`"));
    assert_eq!(fenced_by([false, true, false]), None);
    assert_eq!(fenced_by([false, false, true]), None);
}

#[test]
fn what_the_engine_wrote_needs_no_fence() {
    let mut races = Races::new(64, Between::Lanes);
    races.issue(0, 16, 0, None);
    races.complete_by_engine(0, 16, 32);
    races.end_phase(32);
    races.pass(32, 1);
    let moment = races.moment(1);
    assert_eq!(races.read_behind(0, 16, 1, &moment, "wgmma"), None);
}

#[test]
fn late_read_sees_what_was_written_since_its_issue() {
    let mut races = Races::new(64, Between::Lanes);
    races.access(0, 4, 0, 0, Access::Write);
    races.fence(0);
    let moment = races.moment(0);
    assert_eq!(races.read_behind(0, 4, 0, &moment, "wgmma"), None);
    races.access(0, 4, 0, 0, Access::Write);
    assert!(races.read_behind(0, 4, 0, &moment, "wgmma").unwrap().contains("overwrites before it waits"));
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
