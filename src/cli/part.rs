//! `run --part`: the part of a process, from the command line or from its job array.

use crate::types::Part;

/// A job array: its name, and the variables with the number of the task, the number of tasks and the smallest number.
struct JobArray {
    name: &'static str,
    index: &'static str,
    count: &'static str,
    first: Option<&'static str>,
}

/// Job arrays that `auto` knows, in the order in which it looks for them.
const JOB_ARRAYS: [JobArray; 3] = [
    JobArray { name: "AWS Batch", index: "AWS_BATCH_JOB_ARRAY_INDEX", count: "AWS_BATCH_JOB_ARRAY_SIZE", first: None },
    JobArray {
        name: "Slurm",
        index: "SLURM_ARRAY_TASK_ID",
        count: "SLURM_ARRAY_TASK_COUNT",
        first: Some("SLURM_ARRAY_TASK_MIN"),
    },
    JobArray { name: "SkyPilot", index: "SKYPILOT_JOB_RANK", count: "SKYPILOT_NUM_JOBS", first: None },
];

/// Parses `I/N`, or finds the part in the environment for `auto`.
pub(super) fn parse(text: &str) -> Result<Part, String> {
    if text == "auto" {
        return find_in(|name| std::env::var(name).ok());
    }
    text.parse().map_err(|error| format!("--part: {error}"))
}

fn find_in(variable: impl Fn(&str) -> Option<String>) -> Result<Part, String> {
    let arrays = JOB_ARRAYS.iter().filter_map(|array| Some((array, variable(array.index)?)));
    let Some((array, index)) = arrays.into_iter().next() else {
        let names: Vec<String> = JOB_ARRAYS.iter().map(|array| format!("{} ({})", array.name, array.index)).collect();
        return Err(format!(
            "--part auto: this process is in no job array of {}; write --part I/N, in Kubernetes \
             `--part $(JOB_COMPLETION_INDEX)/N`",
            names.join(", ")
        ));
    };
    let number = |name: &str, text: &str| {
        text.trim().parse::<u32>().map_err(|_| format!("--part auto: {name} is `{text}`, which is not a number"))
    };
    let count = variable(array.count)
        .ok_or_else(|| format!("--part auto: {} is set, but {} is not; write --part I/N", array.index, array.count))?;
    let first = match array.first.and_then(|name| Some((name, variable(name)?))) {
        Some((name, text)) => number(name, &text)?,
        None => 0,
    };
    let (index, count) = (number(array.index, &index)?, number(array.count, &count)?);
    index.checked_sub(first).and_then(|index| Part::new(index, count)).ok_or_else(|| {
        format!(
            "--part auto: {} = {index} and {} = {count} are not a part; number the tasks of the array without gaps",
            array.index, array.count
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(variables: &[(&str, &str)]) -> Result<String, String> {
        let value = |name: &str| variables.iter().find(|(own, _)| *own == name).map(|(_, value)| (*value).to_owned());
        find_in(value).map(|part| part.to_string())
    }

    #[test]
    fn part_is_found_in_each_job_array() {
        let batch = [("AWS_BATCH_JOB_ARRAY_INDEX", "3"), ("AWS_BATCH_JOB_ARRAY_SIZE", "8")];
        assert_eq!(find(&batch).unwrap(), "3/8");
        let slurm = [("SLURM_ARRAY_TASK_ID", "5"), ("SLURM_ARRAY_TASK_COUNT", "4"), ("SLURM_ARRAY_TASK_MIN", "2")];
        assert_eq!(find(&slurm).unwrap(), "3/4");
        assert_eq!(find(&[("SKYPILOT_JOB_RANK", "0"), ("SKYPILOT_NUM_JOBS", "1")]).unwrap(), "0/1");
    }

    #[test]
    fn missing_and_impossible_variables_are_named() {
        for (variables, expected) in [
            (&[][..], "no job array of AWS Batch"),
            (&[("SLURM_ARRAY_TASK_ID", "5")], "SLURM_ARRAY_TASK_COUNT is not"),
            (&[("SLURM_ARRAY_TASK_ID", "5"), ("SLURM_ARRAY_TASK_COUNT", "4")], "without gaps"),
            (&[("SKYPILOT_JOB_RANK", "x"), ("SKYPILOT_NUM_JOBS", "4")], "SKYPILOT_JOB_RANK is `x`"),
        ] {
            let text = find(variables).unwrap_err();
            assert!(text.contains(expected), "{text}");
        }
        assert!(parse("4/4").unwrap_err().starts_with("--part: `4/4` is not a part"));
    }
}
