//! Listing, and errors of unreachable or unreadable inputs: one sentence, soon, and without a secret.

use std::time::{Duration, Instant};

use super::faults::Faults;
use super::runs::{command, machine, with_corpus};
use super::server::{KEYS, Server};
use crate::support::{program, stderr_of, write};

fn images(pattern: &str, run_dir: &str) -> String {
    format!(
        "[run]\ndir = '{run_dir}'\n[images]\nshards = ['{pattern}']\n[chunks]\nrows = 20\n[preprocess]\nsize_px = 16\n"
    )
}

const TEST_IMAGES: &str = "s3://corpus/data/image_data_test/image_pixels/*.csv";

#[test]
fn listing_resumes_after_failed_page() {
    let dir = tempfile::tempdir().unwrap();
    let server = with_corpus(Faults { seed: 1, fail: 0.4, ..Faults::default() });
    let bucket = server.bucket("many");
    for number in 0..3300 {
        std::fs::write(bucket.join(format!("{number:04}.note")), "").unwrap();
    }
    let rows = crate::support::corpus().join("data/image_data_test/image_pixels/test_image_pixels_part-00000.csv");
    std::fs::copy(rows, bucket.join("3141.csv")).unwrap();
    let out = command(&server, dir.path(), &images("s3://many/*.csv", "s3://runs/run"), "").output().unwrap();
    assert!(out.status.success(), "{}", stderr_of(&out));
    let pages = server.log().iter().filter(|line| line.as_str() == "GET /many").count();
    assert!((4..40).contains(&pages), "{pages} requests for 4 pages");
}

/// Runs a command that must fail; returns exit code, standard error and time.
fn fails(server: &Server, text: &str, store: &str, variables: &[(&str, &str)]) -> (i32, String, Duration) {
    let dir = tempfile::tempdir().unwrap();
    let mut command = command(server, dir.path(), text, store);
    command.envs(variables.iter().copied());
    let since = Instant::now();
    let out = command.output().unwrap();
    let text = stderr_of(&out);
    assert!(!text.contains(KEYS.1) && !text.contains("panicked"), "{text}");
    let error = text.lines().filter(|line| line.starts_with("error: ")).count();
    assert_eq!(error, 1, "{text}");
    (out.status.code().unwrap(), text, since.elapsed())
}

#[test]
fn unreachable_stores_fail_fast_in_one_sentence() {
    let server = with_corpus(Faults::default());
    let soon = Duration::from_secs(10);
    let run = "s3://runs/run";

    let (code, text, took) = fails(&server, &images(TEST_IMAGES, run), "", &[("AWS_SECRET_ACCESS_KEY", "wrong")]);
    assert_eq!(code, 4, "{text}");
    assert!(
        text.contains("access to `s3://runs/run/run.toml` was refused: check the credentials") && took < soon,
        "{text}"
    );
    assert!(text.contains(&format!("(`{}` answers 403", server.endpoint())), "{text}");

    let (code, text, took) = fails(&server, &images("s3://no-such-bucket/*.csv", run), "", &[]);
    assert_eq!(code, 3, "{text}");
    assert!(text.contains("the bucket of `s3://no-such-bucket/*.csv` does not exist") && took < soon, "{text}");
    assert!(text.contains(&format!("(`{}` answers 404 NoSuchBucket)", server.endpoint())), "{text}");

    let (code, text, _) = fails(&server, &images(TEST_IMAGES, "s3://no-such-bucket/run"), "", &[]);
    assert_eq!(code, 4, "{text}");
    assert!(text.contains("`s3://no-such-bucket/run` cannot be used: its bucket does not exist"), "{text}");

    let (code, text, _) = fails(&server, &images("s3://corpus/data/none-*.csv", run), "", &[]);
    assert_eq!(code, 3, "{text}");
    assert!(text.contains("`s3://corpus/data/none-*.csv` matches no file"), "{text}");

    let (code, text, _) = fails(&server, &images("ftp://host/*.csv", run), "", &[]);
    assert_eq!(code, 2, "{text}");
    assert!(text.contains("`images.shards`") && text.contains("`ftp://host/*.csv`"), "{text}");

    // A gzip file that was truncated before its upload.
    let whole =
        crate::support::corpus().join("data/image_data_train/image_pixels/train_image_pixels_part-00000.csv.gz");
    let whole = std::fs::read(whole).unwrap();
    std::fs::write(server.bucket("broken").join("cut.csv.gz"), &whole[..whole.len() / 3]).unwrap();
    let (code, text, _) = fails(&server, &images("s3://broken/*.gz", run), "", &[]);
    assert_eq!(code, 3, "{text}");
    assert!(text.contains("`s3://broken/cut.csv.gz` ends in the middle of its compressed data"), "{text}");
}

#[test]
fn retry_budget_bounds_refusals_and_silence() {
    std::thread::scope(|scope| {
        // The server answers, so the configured retry budget applies although nothing ever succeeded.
        scope.spawn(|| {
            let server = with_corpus(Faults { fail: 1.0, ..Faults::default() });
            let text = images(TEST_IMAGES, "s3://runs/run");
            let (code, text, took) = fails(&server, &text, "retry_budget = '18 s'", &[]);
            assert_eq!(code, 4, "{text}");
            assert!(
                text.contains("`s3://runs/run/run.toml` cannot be read") && text.contains("gave up after"),
                "{text}"
            );
            assert!(text.contains("the same command resumes"), "{text}");
            assert!((Duration::from_secs(18)..Duration::from_secs(40)).contains(&took), "{took:?}");
        });
        // No server ever answered.
        scope.spawn(|| {
            let server = with_corpus(Faults::default());
            let text = images(TEST_IMAGES, "s3://runs/run");
            let (code, text, took) = fails(&server, &text, "endpoint = 'http://127.0.0.1:9'", &[]);
            assert_eq!(code, 4, "{text}");
            assert!(text.contains("no connection to `http://127.0.0.1:9`") && text.contains("gave up after"), "{text}");
            assert!((Duration::from_secs(14)..Duration::from_secs(30)).contains(&took), "{took:?}");
        });
    });
}

#[test]
fn credentials_region_and_endpoint_come_from_profile() {
    let dir = tempfile::tempdir().unwrap();
    let server = with_corpus(Faults::default());
    let home = dir.path().join("home/.aws");
    std::fs::create_dir_all(&home).unwrap();
    let endpoint = server.endpoint();
    std::fs::write(home.join("config"), format!("[profile lab]\nregion = eu-x\nendpoint_url = {endpoint}\n")).unwrap();
    let keys = format!("[lab]\naws_access_key_id = {}\naws_secret_access_key = {}\n", KEYS.0, KEYS.1);
    std::fs::write(home.join("credentials"), keys).unwrap();
    let mut run = program();
    let config = write(dir.path(), &images(TEST_IMAGES, "s3://runs/run"));
    run.args(["-vv", "run", "--config", &config, "--machine", &machine(dir.path(), "")]);
    for name in ["AWS_REGION", "AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"] {
        run.env_remove(name);
    }
    let out = run.env("HOME", dir.path().join("home")).env("AWS_PROFILE", "lab").output().unwrap();
    assert!(out.status.success(), "{}", stderr_of(&out));
    // The most verbose log shows no secret either.
    assert!(!stderr_of(&out).contains(KEYS.1));
}
