//! Fuzzes loading with damaged checkpoints.

use proptest::prelude::*;
use proptest::sample::Index;

use super::tests::{progress, remove_checksums, save_sample, state};
use super::*;
use crate::fuzz::{bounded, config, damage, damaged};

/// Upper bound on memory for a small checkpoint, in bytes: 1 MiB blocks, the header and its parsed form.
const LIMIT: u64 = 4 << 20;

proptest! {
    #![proptest_config(config(500))]

    #[test]
    fn damaged_checkpoint_is_rejected_by_name(
        which in 0..FILES.len(),
        only: Index,
        all in damage(),
        without_checksums: bool,
    ) {
        let (_root, dir) = save_sample();
        if without_checksums {
            remove_checksums(&dir);
        }
        let sound: Vec<Vec<u8>> = FILES.iter().map(|file| fs::read(dir.join(file)).unwrap()).collect();
        let data = damaged(&sound[which..=which], only, &all);
        fs::write(dir.join(FILES[which]), &data).unwrap();
        let unchanged = data == sound[which];
        match bounded(&data, LIMIT, || load(&dir))? {
            Ok((found, at)) => {
                let tensors = FILES[which] != STATE_FILE;
                prop_assert!(unchanged || !tensors || without_checksums, "a changed weight went unnoticed");
                prop_assert!(found.weight.iter().all(|value| value.is_finite()));
                prop_assert!(!unchanged || (found, at) == (state(), progress()));
            }
            Err(error) => prop_assert!(error.to_string().contains("step-12"), "{}", error),
        }
        bounded(&data, LIMIT, || load_head(&dir))?.ok();
    }
}
