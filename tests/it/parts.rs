//! Several processes on one run directory, each with a part of the shards: the same bytes as one process.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng as _};

use crate::support::{artefacts, corpus, differences, pipeline, program, run, stderr_of, write};

/// Writes two more shards, which repeat URLs of the corpus, of each other and of themselves. The first row of one URL is
/// not an image.
fn write_planted_shards(dir: &Path) {
    let pairs = std::fs::read_to_string(corpus().join("data/train-00000-of-00005.tsv")).unwrap();
    let column = pairs.lines().next().unwrap().split('\t').position(|name| name == "image_url").unwrap();
    let mut urls: Vec<&str> = pairs.lines().skip(1).filter_map(|line| line.split('\t').nth(column)).collect();
    urls.dedup();
    let images = corpus().join("data/image_data_test/image_pixels/test_image_pixels_part-00000.csv");
    let images = std::fs::read_to_string(images).unwrap();
    let images: Vec<&str> = images.lines().filter_map(|line| line.split('\t').nth(1)).take(20).collect();
    let image = |row: usize| images[row % images.len()];
    for (shard, urls) in [("extra-0.csv", &urls[..60]), ("extra-1.csv", &urls[40..90])] {
        let mut text = String::new();
        for (row, url) in urls.iter().enumerate() {
            let data = if row % 10 == 5 { "bm8gaW1hZ2U=" } else { image(row) };
            writeln!(text, "{url}\t{data}\tm").unwrap();
            if row % 5 == 0 {
                writeln!(text, "{url}\t{}\tm", image(row + 1)).unwrap();
            }
        }
        std::fs::write(dir.join(shard), text).unwrap();
    }
}

/// Returns a pipeline over the corpus and the planted shards, with little training.
fn planted(dir: &Path, run_dir: &Path) -> String {
    let shards = format!("image_pixels/*.csv.gz\", \"{}/extra-*.csv\"]", dir.display());
    pipeline(run_dir, &[("epochs = 12", "epochs = 2"), ("image_pixels/*.csv.gz\"]", &shards)])
}

/// A corpus with planted duplicates, and the artefacts of a whole run on it.
struct Setup {
    dir: tempfile::TempDir,
    whole: BTreeMap<String, Vec<u8>>,
}

impl Setup {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        write_planted_shards(dir.path());
        let run_dir = dir.path().join("whole");
        let out = run(&["run", "--config", &write(dir.path(), &planted(dir.path(), &run_dir))]);
        assert!(out.status.success(), "{}", stderr_of(&out));
        let report: serde_json::Value =
            serde_json::from_slice(&std::fs::read(run_dir.join("report.json")).unwrap()).unwrap();
        assert!(report["images"]["duplicates"].as_u64() > Some(20), "{}", report["images"]);
        Self { whole: artefacts(&run_dir), dir }
    }

    /// Writes the pipeline file of a run directory below the setup's folder.
    fn config(&self, name: &str) -> String {
        let folder = self.dir.path().join(format!("{name}-files"));
        std::fs::create_dir_all(&folder).unwrap();
        write(&folder, &planted(self.dir.path(), &self.dir.path().join(name)))
    }

    fn differences(&self, name: &str) -> Vec<String> {
        differences(&self.whole, &artefacts(&self.dir.path().join(name)))
    }

    fn has(&self, name: &str, file: &str) -> bool {
        self.dir.path().join(name).join(file).exists()
    }
}

fn part(config: &str, part: &str) -> Command {
    let mut command = program();
    command.args(["run", "--config", config, "--part", part]).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

fn succeeds(command: &mut Command) {
    let out = command.output().unwrap();
    assert!(out.status.success(), "{command:?}: {}", stderr_of(&out));
}

fn all_succeed(children: Vec<Child>) {
    for child in children {
        let out = child.wait_with_output().unwrap();
        assert!(out.status.success(), "{}", stderr_of(&out));
    }
}

#[test]
fn parts_one_after_another_give_the_bytes_of_a_whole_run() {
    let setup = Setup::new();
    for count in [1, 2, 3, 7] {
        let name = format!("parts-{count}");
        let config = setup.config(&name);
        for index in (0..count).rev() {
            assert!(!setup.has(&name, "submission.csv"), "part {} of {count} did not wait for the others", index + 1);
            succeeds(&mut part(&config, &format!("{index}/{count}")));
        }
        assert_eq!(setup.differences(&name), Vec::<String>::new(), "{count} parts");
    }
}

#[test]
fn parts_at_once_give_the_bytes_of_a_whole_run() {
    let setup = Setup::new();
    for count in [2, 3] {
        let name = format!("at-once-{count}");
        let config = setup.config(&name);
        all_succeed((0..count).map(|index| part(&config, &format!("{index}/{count}")).spawn().unwrap()).collect());
        assert_eq!(setup.differences(&name), Vec::<String>::new(), "{count} parts");
        let statuses = setup.dir.path().join(&name).join("parts");
        assert_eq!(std::fs::read_dir(statuses).unwrap().count(), count);
    }
}

#[test]
fn killed_parts_and_another_partition_change_no_byte() {
    let setup = Setup::new();
    let mut random = ChaCha8Rng::seed_from_u64(11);
    let config = setup.config("killed");
    // Kills before and after each kind of commit, then of three parts at once, each at a random step of its next chunk. Kills
    // after a time would miss a fast run.
    let plans =
        ["linked journal/catalog 1", "renamed features/ 2", "fill journal/features 2", "linked journal/features 3"];
    for (index, plan) in plans.iter().enumerate() {
        part(&config, &format!("{}/3", index % 3)).env("WIKICAP_KILL_AT", plan).output().unwrap();
    }
    let steps = ["renamed features/ 1", "fill journal/features 1", "linked journal/features 1"];
    let mut die = |index: u32| {
        let step = steps[random.next_u32() as usize % steps.len()];
        part(&config, &format!("{index}/3")).arg("--part-only").env("WIKICAP_KILL_AT", step).spawn().unwrap()
    };
    let children: Vec<Child> = (0..3).map(&mut die).collect();
    let ends: Vec<bool> = children.into_iter().map(|mut child| child.wait().unwrap().success()).collect();
    assert!(ends.contains(&false), "no part was killed");
    // Another partition, one of whose parts dies while it finishes the run.
    succeeds(&mut part(&config, "0/2"));
    part(&config, "1/2").env("WIKICAP_KILL_AT", "rename checkpoints/ 1").output().unwrap();
    assert!(!setup.has("killed", "submission.csv"));
    succeeds(program().args(["run", "--config", &config]));
    assert_eq!(setup.differences("killed"), Vec::<String>::new());
}

#[test]
fn one_of_the_parts_that_end_last_finishes_the_run() {
    let setup = Setup::new();
    let config = setup.config("last");
    for index in 0..2 {
        succeeds(part(&config, &format!("{index}/2")).arg("--part-only"));
    }
    assert!(!setup.has("last", "submission.csv") && !setup.has("last", "checkpoints"));
    // Both find all parts complete; one trains, and the other one ends at once.
    all_succeed((0..2).map(|index| part(&config, &format!("{index}/2")).spawn().unwrap()).collect());
    let until = Instant::now() + Duration::from_mins(1);
    while !setup.has("last", "report.json") && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(setup.differences("last"), Vec::<String>::new());
}

#[test]
fn competitors_of_a_live_part_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    let config = write(dir.path(), &pipeline(&run_dir, &[("epochs = 12", "epochs = 1")]));
    // While another part prepares the run, this one waits.
    std::fs::create_dir_all(&run_dir).unwrap();
    let lock = std::fs::File::create(run_dir.join("lock")).unwrap();
    lock.try_lock().unwrap();
    std::fs::write(run_dir.join("lock"), "process 1 on there since 2026-01-01T00:00:00Z\nsettings and catalog\n")
        .unwrap();
    let mut waiting = part(&config, "0/2").spawn().unwrap();
    let until = Instant::now() + Duration::from_mins(1);
    while !run_dir.join("parts/0-of-2/status.json").exists() {
        assert!(Instant::now() < until, "the part does not start");
        std::thread::sleep(Duration::from_millis(10));
    }
    let refused = |command: &mut Command, holder: &str| {
        let out = command.output().unwrap();
        let text = stderr_of(&out);
        assert_eq!(out.status.code(), Some(4), "{text}");
        assert!(text.contains(holder), "{holder}: {text}");
    };
    let holder = format!("is in use by process {}", waiting.id());
    refused(&mut part(&config, "0/2"), &holder);
    refused(&mut part(&config, "1/3"), &holder);
    // A whole run names the part, whether or not another one holds the lock of the run.
    refused(program().args(["run", "--config", &config]), &holder);
    drop(lock);
    refused(program().args(["run", "--config", &config]), &holder);
    waiting.kill().unwrap();
    waiting.wait().unwrap();
}

#[test]
fn cards_of_one_machine_give_the_bytes_of_a_whole_run() {
    let setup = Setup::new();
    let out = program().args(["run", "--config", &setup.config("cards"), "--cards", "0,1"]).output().unwrap();
    assert!(out.status.success(), "{}", stderr_of(&out));
    assert!(String::from_utf8_lossy(&out.stdout).contains("submission.csv"));
    assert_eq!(setup.differences("cards"), Vec::<String>::new());
    assert!(setup.has("cards", "parts/1-of-2/report.json"));
}

#[test]
fn parts_that_start_at_once_render_one_corpus() {
    let dir = tempfile::tempdir().unwrap();
    let demo = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/pipelines/demo.toml")).unwrap();
    let mut text = demo.replace("demo/", &format!("{}/", dir.path().display()));
    for (from, to) in [("[sample] ", "[sample]\ntrain_images = 200\ntest_images = 20 "), ("epochs = 10", "epochs = 1")]
    {
        assert!(text.contains(from), "{from}");
        text = text.replace(from, to);
    }
    let config = write(dir.path(), &text);
    all_succeed((0..3).map(|index| part(&config, &format!("{index}/3")).spawn().unwrap()).collect());
    let rendered: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(rendered.len(), 3, "the corpus, the run and the pipeline: {rendered:?}");
    let corpus = dir.path().join("corpus");
    let again = dir.path().join("again");
    let size = ["--train-images", "200", "--test-images", "20", "--out"];
    succeeds(program().arg("sample").args(size).arg(&again).stdout(Stdio::null()));
    assert_eq!(differences(&artefacts(&again), &artefacts(&corpus)), Vec::<String>::new());
}

#[test]
fn impossible_parts_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let config = write(dir.path(), &pipeline(&dir.path().join("run"), &[]));
    for (args, expected) in [
        (vec!["--part", "2/2"], "`2/2` is not a part"),
        (vec!["--part", "0/2", "--fresh"], "--fresh"),
        (vec!["--part", "0/2", "--from", "train"], "--from"),
        (vec!["--part-only"], "--part"),
        (vec!["--part", "auto"], "no job array"),
        (vec!["--cards", "0,0"], "nor a list of different cards"),
        (vec!["--cards", "0,1", "--part", "0/2"], "--part"),
    ] {
        let out = run(&[&["run", "--config", &config][..], &args].concat());
        assert_eq!(out.status.code(), Some(2), "{args:?}");
        assert!(stderr_of(&out).contains(expected), "{args:?}: {}", stderr_of(&out));
    }
    assert!(!dir.path().join("run").exists());
}

#[test]
fn part_of_a_slurm_array_streams_its_shards() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    let text = format!(
        "[run]\ndir = '{}'\n[images]\nshards = ['{}/data/image_data_train/image_pixels/*.csv.gz']\n\
         [chunks]\nrows = 50\n[preprocess]\nsize_px = 16\n",
        run_dir.display(),
        corpus().display()
    );
    let config = write(dir.path(), &text);
    let slurm = [("SLURM_ARRAY_TASK_ID", "3"), ("SLURM_ARRAY_TASK_COUNT", "3"), ("SLURM_ARRAY_TASK_MIN", "1")];
    succeeds(part(&config, "auto").envs(slurm));
    let chunks = artefacts(&run_dir.join("chunks"));
    assert!(!chunks.is_empty() && chunks.keys().all(|name| name.starts_with("00002-")), "{:?}", chunks.keys());
    assert!(!run_dir.join("duplicates.parquet").exists());
    for index in 0..2 {
        succeeds(&mut part(&config, &format!("{index}/3")));
    }
    assert!(run_dir.join("duplicates.parquet").exists());
}
