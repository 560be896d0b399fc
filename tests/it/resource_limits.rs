//! Memory and disk use, measured from outside while the real program runs.

use std::path::Path;
use std::process::{Child, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::support::{artefacts, corpus, differences, program, run, stderr_of, write};

/// Peak use of a process.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Peak {
    pub(crate) resident_bytes: u64,
    pub(crate) disk_bytes: u64,
}

/// Returns the size of all files below a folder.
fn disk(folder: &Path) -> u64 {
    let mut total = 0;
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        // Files come and go meanwhile.
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(metadata) if metadata.is_dir() => folders.push(entry.path()),
                Ok(metadata) => total += metadata.len(),
                Err(_) => {}
            }
        }
    }
    total
}

fn resident(child: &Child) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
    let kib =
        status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.trim().parse().ok());
    1024 * kib.unwrap_or(0u64)
}

/// Runs to the end, sampling memory and scratch disk every few milliseconds.
pub(crate) fn watched(args: &[&str], scratch: &Path) -> Peak {
    let (peak, out) = watched_to_any_end(args, scratch);
    assert!(out.status.success(), "{}", stderr_of(&out));
    peak
}

/// As [`watched`], for any exit code. The run may take two minutes.
pub(crate) fn watched_to_any_end(args: &[&str], scratch: &Path) -> (Peak, Output) {
    let mut child = program().args(args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let (over, most) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let looking = std::thread::spawn({
        let (over, most, scratch) = (Arc::clone(&over), Arc::clone(&most), scratch.to_owned());
        move || {
            while !over.load(Ordering::SeqCst) {
                most.fetch_max(disk(&scratch), Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    });
    let mut peak = Peak::default();
    let started = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if started.elapsed() > Duration::from_mins(2) {
            child.kill().unwrap();
            panic!("it does not end: {}", stderr_of(&child.wait_with_output().unwrap()));
        }
        peak.resident_bytes = peak.resident_bytes.max(resident(&child));
        std::thread::sleep(Duration::from_millis(10));
    }
    over.store(true, Ordering::SeqCst);
    looking.join().unwrap();
    peak.disk_bytes = most.load(Ordering::SeqCst);
    (peak, child.wait_with_output().unwrap())
}

/// Writes `copies` shards with the rows of the synthetic corpus, each with its own URLs.
fn multiplied(dir: &Path, copies: usize) {
    let source = corpus().join("data/image_data_test/image_pixels/test_image_pixels_part-00000.csv");
    let rows = std::fs::read(source).unwrap();
    std::fs::create_dir_all(dir).unwrap();
    for copy in 0..copies {
        let mut shard = Vec::with_capacity(rows.len() * 5);
        for part in 0..5 {
            for row in rows.split_inclusive(|byte| *byte == b'\n') {
                shard.extend(format!("https://copy/{copy}/{part}/").into_bytes());
                shard.extend_from_slice(row);
            }
        }
        std::fs::write(dir.join(format!("part-{copy:03}.csv")), shard).unwrap();
    }
}

fn pipeline(dir: &Path, name: &str, model: bool) -> String {
    let model = if model {
        format!("[model]\ncheckpoint = '{}/models/vit-tiny'\n[preprocess]\nmax_pixels = 1000000\n", corpus().display())
    } else {
        "[preprocess]\nsize_px = 64\n".to_owned()
    };
    let text = format!(
        "[run]\ndir = '{0}/{name}-run'\n[images]\nshards = ['{0}/{name}/*.csv']\n[chunks]\nrows = 40\n{model}",
        dir.display()
    );
    let path = dir.join(format!("{name}.toml"));
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

pub(crate) fn machine(dir: &Path, limits: &str) -> String {
    let path = dir.join("machine.toml");
    std::fs::write(&path, format!("[limits]\n{limits}\n[scratch]\ndir = '{}/scratch'\n", dir.display())).unwrap();
    path.display().to_string()
}

/// Peaks scatter, because the set of buffers in use at once is random and a longer run has more chances. So both sides read
/// the same number of rows, in ten short runs or in one long run.
#[test]
fn memory_and_disk_do_not_grow_with_the_corpus() {
    let dir = tempfile::tempdir().unwrap();
    // Small limits, which even the small corpus fills.
    let limits = "memory = '256 MiB'\ndisk = '4 MiB'\ncpu_workers = 2";
    let machine = machine(dir.path(), limits);
    let peaks_of = |name: &str, copies, runs| -> Vec<Peak> {
        multiplied(&dir.path().join(name), copies);
        let config = pipeline(dir.path(), name, true);
        let args = ["run", "--config", &config, "--machine", &machine, "--fresh"];
        (0..runs).map(|_| watched(&args, &dir.path().join("scratch"))).collect()
    };
    let (small, large) = (peaks_of("small", 4, 10), peaks_of("large", 40, 1)[0]);
    let memory: Vec<u64> = small.iter().map(|peak| peak.resident_bytes).collect();
    assert!(
        large.resident_bytes as f64 <= 1.1 * memory.iter().copied().max().unwrap() as f64,
        "ten times the corpus took {} instead of {memory:?} bytes of memory",
        large.resident_bytes,
    );
    for peak in small.iter().chain([&large]) {
        assert!(peak.disk_bytes <= 4 << 20, "{} bytes of scratch disk", peak.disk_bytes);
    }
    assert!(large.disk_bytes > 1 << 20, "the ring was hardly used: {} bytes", large.disk_bytes);
}

/// Runs a script on its own file system, in a mount namespace that ends with the process.
pub(crate) fn on_a_full_disk(size: &str, script: &str, args: &[&str]) -> Option<Output> {
    let mount = format!("mount -t tmpfs -o size={size} none \"$0\" && {script}");
    let mut command = std::process::Command::new("unshare");
    command.args(["--map-root-user", "--user", "--mount", "--", "sh", "-c", &mount]).args(args);
    command.env_remove("RUST_LOG").stdin(Stdio::null());
    let probe = std::process::Command::new("unshare")
        .args(["--map-root-user", "--user", "--mount", "--", "mount", "-t", "tmpfs", "none", "/mnt"])
        .output();
    if !probe.is_ok_and(|out| out.status.success()) {
        return None;
    }
    Some(command.output().unwrap())
}

#[test]
fn run_resumes_after_full_disk() {
    let dir = tempfile::tempdir().unwrap();
    multiplied(&dir.path().join("rows"), 6);
    let expected_config = pipeline(dir.path(), "rows", false);
    assert!(run(&["run", "--config", &expected_config]).status.success());
    let expected = artefacts(&dir.path().join("rows-run"));
    let volume = dir.path().join("volume");
    std::fs::create_dir(&volume).unwrap();
    let config = write(
        dir.path(),
        &format!(
            "[run]\ndir = '{}/run'\n[images]\nshards = ['{}/rows/*.csv']\n[chunks]\nrows = 40\n[preprocess]\nsize_px = 64\n",
            volume.display(),
            dir.path().display()
        ),
    );
    // Twice on the full disk, then with room; the result is copied out of the namespace.
    let script = r#""$1" run --config "$2"; echo "first $?" >&2; "$1" run --config "$2"; echo "second $?" >&2
        mount -o remount,size=200m "$0" && "$1" run --config "$2"; echo "third $?" >&2; cp -a "$0/run" "$3""#;
    let out = on_a_full_disk(
        "4m",
        script,
        &[
            volume.to_str().unwrap(),
            env!("CARGO_BIN_EXE_wikicap-pipeline"),
            &config,
            dir.path().join("after").to_str().unwrap(),
        ],
    );
    let Some(out) = out else {
        // Without user namespaces, check only the sentence.
        let error = wikicap_pipeline::objects::StoreError::io("x", "written", std::io::Error::from_raw_os_error(28));
        assert!(error.to_string().contains("no space is left"));
        return;
    };
    let text = stderr_of(&out);
    for word in ["first 4", "second 4", "third 0"] {
        assert!(text.contains(word), "{word} is not in:\n{text}");
    }
    assert_eq!(text.matches("no space is left on the disk of").count(), 2, "{text}");
    assert_eq!(differences(&expected, &artefacts(&dir.path().join("after"))), Vec::<String>::new());
}
