//! End of the process that worked on the run before this one.
//!
//! A process that the kernel ends for lack of memory cannot report it. Its last status says how much memory it used, and the
//! control group counts such ends. A restarted container has a new group, whose count starts at 0.

use crate::pipeline::observe::status::{State, Status};
use crate::runtime::Resources;

/// Share of the memory limit from which a silent end counts as a probable lack of memory. The status is up to a second old
/// (10 s on S3), in which the use may have grown further.
const SUSPICIOUS_SHARE: f64 = 0.8;

/// Explains that the kernel ended the previous process for lack of memory; `None` if it ended otherwise.
pub(crate) fn explain_kill(previous: &Status, now: &Resources) -> Option<String> {
    if previous.state != State::Running {
        return None;
    }
    let cause = if is_counted(previous, now) {
        "was ended by the kernel for lack of memory"
    } else if previous.is_short_of_memory() {
        "ended without a report, probably because the kernel ended it for lack of memory"
    } else {
        return None;
    };
    let used = previous.memory_use().map_or_else(String::new, |usage| format!(" ({usage})"));
    Some(format!(
        "the previous process, {}, {cause}{used}: provide more memory, or lower `limits.memory` or `limits.cpu_workers`",
        previous.process
    ))
}

/// Returns whether the kernel has ended a process of this control group since the last status, which came from the same group.
fn is_counted(previous: &Status, now: &Resources) -> bool {
    let (Some(before), Some(after)) = (&previous.container, now.oom_kills) else { return false };
    previous.process.shares_pid_namespace()
        && before.group == now.group
        && before.oom_kills.is_some_and(|before| after > before)
}

impl Status {
    /// Returns whether the process used nearly all the memory that it may use.
    pub fn is_short_of_memory(&self) -> bool {
        self.memory_share().is_some_and(|(used, limit)| used as f64 >= SUSPICIOUS_SHARE * limit as f64)
    }

    /// Describes the use of memory at the last update, where the limit is known.
    fn memory_use(&self) -> Option<String> {
        let (used, limit) = self.memory_share()?;
        Some(format!("it used {} MiB of {} MiB", used >> 20, limit >> 20))
    }

    /// Returns the bytes used and the limit. A control group counts all its processes.
    fn memory_share(&self) -> Option<(u64, u64)> {
        let container = self.container.as_ref()?;
        // The resident memory also counts pages of files, which the kernel can drop; it serves where there is no group.
        Some((container.used_bytes.or(self.memory_bytes)?, container.memory_limit_bytes?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::observe::status::ContainerStatus;
    use crate::run_dir::Process;

    /// A status of this container, at `used` of 512 MiB, with `oom_kills` counted.
    fn status(used_mib: u64, oom_kills: u64) -> Status {
        let container = ContainerStatus {
            memory_limit_bytes: Some(512 << 20),
            used_bytes: Some(used_mib << 20),
            oom_kills: Some(oom_kills),
            group: "/a".to_owned(),
        };
        Status { process: Process::current(), container: Some(container), ..Status::default() }
    }

    fn now(oom_kills: u64) -> Resources {
        Resources { oom_kills: Some(oom_kills), group: "/a".to_owned(), ..Resources::default() }
    }

    #[test]
    fn counted_kill_is_certain() {
        let text = explain_kill(&status(100, 1), &now(2)).unwrap();
        assert!(text.contains("was ended by the kernel for lack of memory (it used 100 MiB of 512 MiB)"), "{text}");
        // Another group has another count.
        let other = Resources { group: "/b".to_owned(), ..now(2) };
        assert_eq!(explain_kill(&status(100, 1), &other), None);
    }

    #[test]
    fn silent_end_near_the_limit_is_probable() {
        let text = explain_kill(&status(500, 0), &now(0)).unwrap();
        assert!(
            text.contains(
                "probably because the kernel ended it for lack of memory (it used 500 MiB of 512 MiB): provide more"
            ),
            "{text}"
        );
        assert_eq!(explain_kill(&status(300, 0), &now(0)), None);
    }

    #[test]
    fn reported_end_needs_no_explanation() {
        for state in [State::Done, State::Stopped, State::Failed] {
            assert_eq!(explain_kill(&Status { state, ..status(512, 0) }, &now(3)), None);
        }
        assert_eq!(explain_kill(&Status::default(), &now(3)), None);
    }
}
