//! To be written.

#[test]
#[ignore = "by hand"]
fn serve() {
    let server = super::runs::with_corpus(super::faults::Faults::default());
    println!("ENDPOINT {} {}", server.endpoint(), crate::support::corpus().display());
    let mut seen = 0;
    loop {
        std::thread::sleep(std::time::Duration::from_millis(200));
        let log = server.log();
        for line in &log[seen..] {
            println!("{line}");
        }
        seen = log.len();
        server.set_plain(std::path::Path::new("/tmp/serve-plain").exists());
    }
}
