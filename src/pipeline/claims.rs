//! Locks of a run directory: `lock` for a whole run, `parts/I-of-N/lock` for each process that works on a part.
//!
//! A whole run and a part refuse to work beside each other, and so do parts of different partitions: each takes its own
//! lock first and then looks for the others. A part also takes `lock` for a while, for work that only one of them may do.

use crate::objects::StoreError;
use crate::run_dir::{Directory, Lock};
use crate::types::Part;

/// The lock of a whole run.
const RUN_LOCK: &str = "lock";
/// Folder with a folder for each part.
pub(crate) const PARTS_FOLDER: &str = "parts";

/// Returns the folder of a part, relative to the run directory.
pub(crate) fn part_folder(part: Part) -> String {
    format!("{PARTS_FOLDER}/{}", part.folder())
}

fn part_lock(part: Part) -> String {
    format!("{}/lock", part_folder(part))
}

/// Claims a run directory for a whole run. Blocks the thread.
///
/// # Errors
/// [`StoreError::InUse`] if another process works on the run or on a part of it.
pub(crate) fn claim_run(dir: &Directory) -> Result<Lock, StoreError> {
    // First without the lock, so that a process that waits does not keep parts from starting or finishing.
    refuse_live_parts(dir, |_| true)?;
    let lock = dir.lock(RUN_LOCK, "")?;
    refuse_live_parts(dir, |_| true)?;
    Ok(lock)
}

/// Claims a part of a run. Blocks the thread.
///
/// # Errors
/// [`StoreError::InUse`] if another process works on this part, on the whole run, or on a part of another partition.
pub(crate) fn claim_part(dir: &Directory, part: Part) -> Result<Lock, StoreError> {
    let lock = dir.lock(&part_lock(part), &format!("part {part}"))?;
    let whole_run = |watch| -> Result<_, StoreError> {
        let holder = dir.holders(&[RUN_LOCK.to_owned()], watch)?.pop().flatten();
        Ok(holder.filter(|holder| holder.work.is_empty()))
    };
    // Parts may hold this lock too; only that of a whole run is worth a wait.
    if whole_run(false)?.is_some()
        && let Some(holder) = whole_run(true)?
    {
        return Err(StoreError::InUse { path: dir.display(""), holder: holder.to_string() });
    }
    refuse_live_parts(dir, |other| other.count() != part.count())?;
    Ok(lock)
}

fn refuse_live_parts(dir: &Directory, is_rival: impl Fn(Part) -> bool) -> Result<(), StoreError> {
    let folders = dir.list(PARTS_FOLDER)?;
    let rivals = folders.iter().filter_map(|name| Part::from_folder(name)).filter(|part| is_rival(*part));
    let locks: Vec<String> = rivals.map(part_lock).collect();
    match dir.holders(&locks, true)?.into_iter().flatten().next() {
        Some(holder) => Err(StoreError::InUse { path: dir.display(""), holder: holder.to_string() }),
        None => Ok(()),
    }
}

/// Takes the run's lock for `work` that only one part may do; the holder's description if another process has it. Blocks
/// the thread.
///
/// # Errors
/// When the lock cannot be read or written.
pub(crate) fn try_claim(dir: &Directory, work: &str) -> Result<Result<Lock, String>, StoreError> {
    match dir.lock(RUN_LOCK, work) {
        Ok(lock) => Ok(Ok(lock)),
        Err(StoreError::InUse { holder, .. }) => Ok(Err(holder)),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run_dir::LocalDirectory;

    #[test]
    fn whole_run_and_other_partitions_are_refused_beside_a_part() {
        let dir = tempfile::tempdir().unwrap();
        let dir: Directory = LocalDirectory::create(dir.path()).unwrap().into();
        let part = |index, count| Part::new(index, count).unwrap();
        let first = claim_part(&dir, part(0, 3)).unwrap();
        let refused = |claimed: Result<Lock, StoreError>, name: &str| {
            let text = claimed.unwrap_err().to_string();
            assert!(text.contains("is in use by process") && text.contains(name), "{text}");
        };
        refused(claim_part(&dir, part(0, 3)), "(part 0/3)");
        refused(claim_part(&dir, part(1, 2)), "(part 0/3)");
        refused(claim_run(&dir), "(part 0/3)");
        let second = claim_part(&dir, part(1, 3)).unwrap();
        drop((first, second));
        // A part that sets up or finishes the run does not keep parts away; a whole run does.
        let setup = dir.lock(RUN_LOCK, "settings and catalog").unwrap();
        drop(claim_part(&dir, part(1, 2)).unwrap());
        drop(setup);
        let run = claim_run(&dir).unwrap();
        refused(claim_part(&dir, part(1, 2)), "process");
        drop(run);
        claim_part(&dir, part(1, 2)).unwrap();
    }
}
