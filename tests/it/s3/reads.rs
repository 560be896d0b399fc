//! Reads of one object version over HTTP under connection faults, with and without range support.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use wikicap_pipeline::objects::{Object, Store, StoreError, StoreSettings, explain_read};

use super::faults::Faults;
use super::server::Server;

/// Returns pseudo-random bytes.
fn noise(bytes: usize, seed: u64) -> Vec<u8> {
    let mut noise = vec![0; bytes];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut noise);
    noise
}

fn put(server: &Server, name: &str, content: &[u8]) -> PathBuf {
    let path = server.bucket("bucket").join(name);
    std::fs::write(&path, content).unwrap();
    path
}

fn settings() -> StoreSettings {
    StoreSettings {
        read_timeout: Duration::from_millis(500),
        retry_budget: Duration::from_mins(1),
        ..StoreSettings::default()
    }
}

async fn read(store: &Store, object: &Object) -> Result<Vec<u8>, StoreError> {
    let mut content = Vec::new();
    let mut reader = store.open(object, Arc::default()).await?;
    reader.read_to_end(&mut content).await.map_err(|error| explain_read(&object.url, error))?;
    Ok(content)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn object_survives_resets_truncations_and_stalls() {
    let all = [(1, false), (2, false), (3, true), (4, true)].map(|(seed, whole)| async move {
        let faults = Faults {
            reset: 0.3,
            truncate: 0.3,
            stall: 0.05,
            stall_for: Duration::from_secs(9),
            ..Faults::promised(seed)
        };
        let server = Server::open_to_all(faults);
        server.set_whole(whole);
        let content = noise(18 << 20, seed);
        put(&server, "object", &content);
        let store = Store::new(settings());
        let object = store.find(&format!("{}/bucket/object", server.endpoint())).await.unwrap();
        assert!(read(&store, &object).await.unwrap() == content, "seed {seed}");
        let (requests, faulty) = server.counts();
        assert!(faulty > 0, "seed {seed}: none of {requests} requests went wrong");
        let traffic = store.traffic().snapshot();
        assert!(traffic.retries > 0 && traffic.bytes_read >= content.len() as u64, "{traffic:?}");
    });
    futures::future::join_all(all).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_reader_survives_the_read_timeout() {
    let all = [false, true].map(|whole| async move {
        let server = Server::open_to_all(Faults::default());
        server.set_whole(whole);
        let content = noise(20 << 20, 9);
        put(&server, "object", &content);
        let store = Store::new(StoreSettings {
            read_timeout: Duration::from_secs(2),
            retry_budget: Duration::from_secs(3),
            ..settings()
        });
        let object = store.find(&format!("{}/bucket/object", server.endpoint())).await.unwrap();
        let mut reader = store.open(&object, Arc::default()).await.unwrap();
        let mut first = vec![0; 1 << 20];
        reader.read_exact(&mut first).await.unwrap();
        // Longer than the retry budget and the read timeout.
        tokio::time::sleep(Duration::from_secs(4)).await;
        let mut rest = Vec::new();
        reader.read_to_end(&mut rest).await.unwrap();
        assert!([first, rest].concat() == content);
    });
    futures::future::join_all(all).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replaced_or_deleted_object_is_noticed() {
    let server = Server::open_to_all(Faults::default());
    let store = Store::new(settings());
    let content = noise(18 << 20, 1);
    let path = put(&server, "object", &content);
    let url = format!("{}/bucket/object", server.endpoint());
    let replacements: [&dyn Fn(); 4] = [
        &|| std::fs::write(&path, noise(18 << 20, 2)).unwrap(),
        &|| std::fs::write(&path, noise(3 << 20, 2)).unwrap(),
        &|| std::fs::write(&path, noise(30 << 20, 2)).unwrap(),
        &|| std::fs::remove_file(&path).unwrap(),
    ];
    for (number, replace) in replacements.iter().enumerate() {
        // Replaced before it is opened, and while it is read.
        for read_bytes in [0, 1 << 20] {
            std::fs::write(&path, &content).unwrap();
            let object = store.find(&url).await.unwrap();
            let mut reader = None;
            if read_bytes > 0 {
                let mut open = store.open(&object, Arc::default()).await.unwrap();
                open.read_exact(&mut vec![0; read_bytes]).await.unwrap();
                reader = Some(open);
            }
            replace();
            let error = match reader {
                None => read(&store, &object).await.map(|_| ()).unwrap_err(),
                Some(mut reader) => explain_read(&url, reader.read_to_end(&mut Vec::new()).await.unwrap_err()),
            };
            let gone = number == 3;
            assert!(
                if gone {
                    matches!(error, StoreError::NotFound { .. })
                } else {
                    matches!(error, StoreError::Changed { .. })
                },
                "{number} {read_bytes}: {error}"
            );
            assert!(error.to_string().contains(&url) && error.is_input(), "{error}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn short_object_is_not_requested_forever() {
    let server = Server::open_to_all(Faults::default());
    put(&server, "object", &noise(9 << 20, 1));
    let store = Store::new(settings());
    let object = store.find(&format!("{}/bucket/object", server.endpoint())).await.unwrap();
    server.set_holds(5_000_000);
    let error = read(&store, &object).await.unwrap_err();
    assert!(matches!(error, StoreError::Short { got: 5_000_000, size, .. } if size == 9 << 20), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_that_refuses_head_is_asked_for_the_first_byte() {
    let server = Server::open_to_all(Faults::default());
    server.set_headless(true);
    let content = noise(5 << 20, 2);
    put(&server, "object", &content);
    put(&server, "empty", b"");
    for whole in [false, true] {
        server.set_whole(whole);
        let store = Store::new(settings());
        let url = |name: &str| format!("{}/bucket/{name}", server.endpoint());
        let object = store.list(&[url("object")]).await.unwrap().remove(0);
        assert_eq!(object.size, 5 << 20);
        assert!(read(&store, &object).await.unwrap() == content);
        assert_eq!(store.find(&url("empty")).await.unwrap().size, 0);
        let error = store.find(&url("absent")).await.unwrap_err();
        assert!(matches!(error, StoreError::NotFound { .. }), "{error}");
        assert!(error.to_string().contains(&format!("`{}` answers 404", server.endpoint())), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn url_signatures_are_never_shown() {
    let server = Server::open_to_all(Faults::default());
    put(&server, "object", b"content");
    let store = Store::new(settings());
    let secret = "sv=2026&sig=5ec2e7&token=5ec2e7";
    let there = store.find(&format!("{}/bucket/object?{secret}", server.endpoint())).await.unwrap();
    assert!(!format!("{there:?}").contains("5ec2e7") && !there.name.contains("5ec2e7"), "{there:?}");
    let absent = format!("{}/bucket/absent?{secret}", server.endpoint());
    let error = store.find(&absent).await.unwrap_err();
    assert!(
        error.to_string().contains("/bucket/absent") && !format!("{error:?} {error}").contains("5ec2e7"),
        "{error:?}"
    );
    let nobody = format!("http://127.0.0.1:9/object?{secret}");
    let store = Store::new(StoreSettings { retry_budget: Duration::from_millis(300), ..settings() });
    let error = store.find(&nobody).await.unwrap_err();
    assert!(
        matches!(error, StoreError::Unreachable { .. }) && !format!("{error:?} {error}").contains("5ec2e7"),
        "{error:?}"
    );
    let pattern = format!("{}/bucket/*.csv?{secret}", server.endpoint());
    let error = store.list(&[pattern]).await.unwrap_err();
    assert!(!format!("{error:?} {error}").contains("5ec2e7"), "{error:?}");
}
