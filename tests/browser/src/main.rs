//! Tests of the page of `serve` and `run --serve` in a real browser.
//!
//!     browser-tests PROGRAM ENCODER AXE FOLDER
//!
//! `ENCODER` is the directory of a small text encoder, `AXE` the file `axe.min.js` of axe-core, and `FOLDER` receives the
//! screenshots. Prints one line for each test, and how many passed and failed.

mod browser;
mod program;

use std::process::ExitCode;

use tokio::process::Child;

use browser::{Browser, Step, free_port};
use program::{HOSTILE, Program, absolute};

/// State that the tests share: one browser, one program, one page.
struct Tests {
    browser: Browser,
    program: Program,
    port: u16,
    /// The process that serves the page.
    page: Option<Child>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let outcome = run_all().await;
    match outcome {
        Ok((passed, failed)) => {
            println!("{passed} passed, {failed} failed");
            if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            println!("the browser tests cannot run: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run_all() -> Step<(u32, u32)> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [program, encoder, axe, folder] = args.as_slice() else {
        return Err("usage: browser-tests PROGRAM ENCODER AXE FOLDER".to_owned());
    };
    let dir = std::env::temp_dir().join(format!("wikicap-browser-{}", std::process::id()));
    std::fs::create_dir_all(&dir).map_err(|error| error.to_string())?;
    let program = Program { path: absolute(program)?, dir: dir.clone(), encoder: absolute(encoder)? };
    program.render_corpus().await?;
    let browser = Browser::start(&absolute(axe)?, &absolute(folder)?).await?;
    let mut tests = Tests { browser, program, port: free_port()?, page: None };
    let (mut passed, mut failed) = (0, 0);
    macro_rules! test {
        ($name:literal, $test:ident) => {
            let outcome = tests.$test().await;
            let outcome = match outcome {
                Ok(()) => tests.browser.check_console().await,
                failed => failed,
            };
            match outcome {
                Ok(()) => passed += 1,
                Err(_) => failed += 1,
            }
            println!(
                "{} {}{}",
                if outcome.is_ok() { "ok    " } else { "FAILED" },
                $name,
                outcome.err().map_or_else(String::new, |error| format!(": {error}"))
            );
        };
    }
    test!("page follows a run to its end", follows_a_run);
    test!("connection that is lost comes back", connection_comes_back);
    test!("run view is accessible at all widths", run_view);
    test!("pictures show their captions", pictures);
    test!("dropped picture finds itself", search_by_picture);
    test!("text and rows are searched for", search_by_text);
    test!("classifier says that it knows no texts", search_of_classifier);
    test!("hostile captions stay text", hostile_captions);
    test!("quarantine and comparison are accessible", other_views);
    test!("quarantined rows are shown and never run", quarantined_rows);
    test!("snapshots are readable at all widths", snapshots);
    test!("open page goes on when its server is restarted", restarted_server);
    test!("runs without results say what is missing", empty_states);
    if let Some(mut page) = tests.page.take() {
        page.kill().await.ok();
    }
    tests.browser.end().await;
    std::fs::remove_dir_all(&dir).ok();
    Ok((passed, failed))
}

impl Tests {
    fn url(&self, place: &str) -> String {
        format!("http://127.0.0.1:{}/#/{place}", self.port)
    }

    /// A run with a classifier, from its first second to its last, on one page that is never reloaded.
    async fn follows_a_run(&mut self) -> Step {
        let pipeline = self.program.write_pipeline("classes", "", 100_000)?;
        let port = self.port.to_string();
        let mut run = self.program.serve(&["run", "--config", &pipeline, "--serve", &port], self.port).await?;
        self.browser.appearance(1200, 1000, "light").await?;
        self.browser.open(&self.url("0/run")).await?;
        self.browser.run("window.same = true").await?;
        self.browser
            .wait("the state of a run under way", "document.querySelector('.state-running')?.innerText === 'running'")
            .await?;
        self.browser
            .wait(
                "a stage with its rate",
                "[...document.querySelectorAll('td')].some((cell) => /\\d\\/s$/.test(cell.innerText))",
            )
            .await?;
        self.browser.wait("the training curve", "document.querySelector('svg.chart path')").await?;
        // A training that long ends by a signal.
        let id = run.id().ok_or("the run has ended by itself")?.to_string();
        tokio::process::Command::new("kill").args(["-TERM", &id]).status().await.map_err(|error| error.to_string())?;
        run.wait().await.map_err(|error| error.to_string())?;
        // The page ends with the run.
        self.browser.expected.push("ERR_CONNECTION_REFUSED");
        self.browser.expected.push("ERR_INCOMPLETE_CHUNKED_ENCODING");
        self.browser.wait("a lost connection", "document.querySelector('#connection.lost')").await?;
        self.browser.wait("the page as it was", "window.same && document.querySelector('svg.chart')").await
    }

    /// Another process serves the run at the same address; the page connects by itself.
    async fn connection_comes_back(&mut self) -> Step {
        let classes = self.program.write_pipeline("classes", "", 4)?;
        self.program.run(&["run", "--config", &classes, "--from", "train"]).await?;
        let pipeline = self.program.write_pipeline("text", &self.program.text_head(), 4)?;
        self.program.run(&["run", "--config", &pipeline]).await?;
        self.serve(&["classes", "text"]).await?;
        self.browser.wait("the connection", "!document.querySelector('#connection.lost') && document.querySelector('#connection').innerText === 'not running'").await?;
        self.browser
            .wait("the score of the finished run", "window.same && /Test NDCG@5/.test(document.body.innerText)")
            .await?;
        self.browser.expected.clear();
        // What the console said meanwhile was expected.
        self.browser.expected.push("ERR_CONNECTION_REFUSED");
        self.browser.expected.push("ERR_INCOMPLETE_CHUNKED_ENCODING");
        Ok(())
    }

    async fn run_view(&mut self) -> Step {
        self.browser.expected.clear();
        self.browser.open("about:blank").await?;
        self.browser.open(&self.url("1/run")).await?;
        self.browser.wait("the training curve", "document.querySelector('svg.chart path')").await?;
        self.browser.look("run").await
    }

    async fn pictures(&mut self) -> Step {
        self.browser.open(&self.url("1/pictures")).await?;
        self.browser.wait("a picture", "document.querySelector('.card img')?.naturalWidth > 0").await?;
        self.browser.wait("a right caption", "document.querySelector('.card li.right')").await?;
        self.browser.look("pictures").await?;
        // By keyboard: open the picture, then close it.
        self.browser.run("document.querySelector('.card button').focus()").await?;
        self.browser.press("Enter").await?;
        self.browser.wait("both renditions", "[...document.querySelectorAll('dialog[open] figure')].filter((figure) => figure.querySelector('.missing') || figure.querySelector('img')?.naturalWidth > 0).length === 2").await?;
        self.browser.look("picture").await?;
        self.browser.press("Escape").await?;
        self.browser.wait("a closed dialog", "!document.querySelector('dialog')").await?;
        self.browser.open(&self.url("0/pictures?order=worst&images=held-out")).await?;
        self.browser
            .wait(
                "pictures of a classifier",
                "/logits/.test(document.body.innerText) && document.querySelector('.card img')?.naturalWidth > 0",
            )
            .await
    }

    async fn search_by_picture(&mut self) -> Step {
        self.browser.open(&self.url("1/search")).await?;
        self.browser.wait("the place to drop a picture", "document.querySelector('.drop')").await?;
        let drop = "const address = '/api/runs/1/picture?images=held-out&row=3&kind=model';
            fetch(address).then((answer) => answer.blob()).then((blob) => {
              const data = new DataTransfer();
              data.items.add(new File([blob], 'dropped.png', { type: 'image/png' }));
              document.querySelector('.drop').dispatchEvent(new DragEvent('drop', { dataTransfer: data, bubbles: true, cancelable: true }));
            });";
        self.browser.run(drop).await?;
        self.browser
            .wait(
                "ranked captions",
                "/Results for/.test(document.body.innerText) && document.querySelector('section ol li')",
            )
            .await?;
        self.browser.wait("the picture itself", "document.querySelector('.tiles li a')?.href.includes('row=3') && document.querySelector('.tiles img')?.naturalWidth > 0").await?;
        self.browser.look("search-picture").await
    }

    async fn search_by_text(&mut self) -> Step {
        self.browser.open(&self.url("1/search")).await?;
        self.browser.wait("the field for a text", "document.querySelector('input[name=text]')").await?;
        self.browser.run("const field = document.querySelector('input[name=text]'); field.value = 'دائرة حمراء'; field.form.requestSubmit();").await?;
        self.browser.wait("nearest images", "document.querySelector('.tiles img')?.naturalWidth > 0").await?;
        self.browser.run("document.querySelector('.check input').click()").await?;
        self.browser.wait("languages side by side", "document.querySelectorAll('.languages h3').length > 4").await?;
        self.browser.look("search-languages").await?;
        self.browser.run("document.querySelector('.languages a').click()").await?;
        self.browser
            .wait("more like a caption", "/caption \\S+ of its list/.test(document.querySelector('.asked')?.innerText)")
            .await
    }

    async fn search_of_classifier(&mut self) -> Step {
        self.browser.open(&self.url("0/search")).await?;
        self.browser.wait("why a text is not searched for", "/needs a text head/.test(document.body.innerText) && document.querySelector('input[name=text]').disabled").await
    }

    async fn hostile_captions(&mut self) -> Step {
        let text = HOSTILE.split('<').nth(1).unwrap_or_default().to_owned();
        self.browser.open(&self.url("1/pictures?text=onerror")).await?;
        let shown = format!(
            "document.querySelector('.card .text')?.innerText && document.body.innerText.includes('{}')",
            text.trim_end_matches('>')
        );
        self.browser.wait("the caption as text", &shown).await?;
        let markup = self
            .browser
            .run("return document.querySelectorAll('main script, main img[onerror], main img[src=x]').length")
            .await?;
        if markup != 0 || self.browser.run("return Boolean(window.attacked)").await? != false {
            return Err("a caption became markup".to_owned());
        }
        self.browser.look("hostile").await
    }

    async fn other_views(&mut self) -> Step {
        self.browser.open(&self.url("0/quarantine")).await?;
        self.browser.wait("quarantined rows", "document.querySelector('tbody tr')").await?;
        self.browser.look("quarantine").await?;
        self.browser.open(&self.url("0/compare")).await?;
        self.browser.wait("the comparison", "document.querySelectorAll('tbody tr').length > 2").await?;
        self.browser.look("compare").await
    }

    /// Serves runs at the address of the page.
    async fn serve(&mut self, runs: &[&str]) -> Step {
        let port = self.port.to_string();
        let args = [&["serve"], runs, &["--address", &port]].concat();
        self.page = Some(self.program.serve(&args, self.port).await?);
        Ok(())
    }

    /// Rows of the input as a browser can show them; one is markup that would run a script.
    async fn quarantined_rows(&mut self) -> Step {
        self.browser.open(&self.url("0/quarantine?stream=submission")).await?;
        self.browser.wait("quarantined rows", "document.querySelector('tbody button')").await?;
        let count = self.browser.run("return document.querySelectorAll('tbody button').length").await?;
        let mut has_markup = false;
        for row in 0..count.as_u64().unwrap_or(0) {
            self.browser.run(&format!("document.querySelectorAll('tbody button')[{row}].click()")).await?;
            self.browser
                .wait("the row's bytes", "document.querySelector('dialog[open] .dump, dialog[open] .error')")
                .await?;
            let text = self.browser.run("return document.querySelector('dialog').innerText").await?;
            has_markup |= text.as_str().is_some_and(|text| text.contains("<svg xmlns='http"));
            self.browser.press("Escape").await?;
            self.browser.wait("a closed dialog", "!document.querySelector('dialog')").await?;
        }
        if !has_markup {
            return Err("the row of markup is not among those shown".to_owned());
        }
        if self.browser.run("return Boolean(window.attacked)").await? != false {
            return Err("bytes of a row were run".to_owned());
        }
        // A picture that breaks off; the browser shows its beginning, or says that it cannot.
        self.browser.open(&self.url("0/quarantine?stream=train&reason=truncated")).await?;
        self.browser.wait("a truncated row", "document.querySelector('tbody button')").await?;
        self.browser.run("document.querySelector('tbody button').click()").await?;
        self.browser.wait("the picture", "document.querySelector('dialog figure img')?.complete || /cannot show/.test(document.querySelector('dialog figure')?.innerText)").await?;
        self.browser.look("quarantine-row").await?;
        self.browser.press("Escape").await?;
        self.browser.wait("a closed dialog", "!document.querySelector('dialog')").await
    }

    /// The files that a run leaves for people.
    async fn snapshots(&mut self) -> Step {
        for run in ["classes", "text"] {
            let file = |name: &str| format!("file://{}/{run}/{name}", self.program.dir.display());
            self.browser.open(&file("examples.html")).await?;
            self.browser
                .wait("an example with its picture", "document.querySelector('.card img')?.naturalWidth > 0")
                .await?;
            self.browser.look(&format!("examples-{run}")).await?;
            self.browser.open(&file("training.svg")).await?;
            self.browser.wait("the curve", "document.querySelector('path.line')").await?;
            self.browser.look_at_picture(&format!("training-{run}")).await?;
        }
        Ok(())
    }

    /// The server is killed and started again at its address while a view is open.
    async fn restarted_server(&mut self) -> Step {
        self.browser.open(&self.url("1/pictures")).await?;
        self.browser.wait("a picture", "document.querySelector('.card img')?.naturalWidth > 0").await?;
        self.browser.run("window.same = true").await?;
        let mut page = self.page.take().ok_or("nothing is served")?;
        page.kill().await.map_err(|error| error.to_string())?;
        for message in ["ERR_CONNECTION_REFUSED", "ERR_INCOMPLETE_CHUNKED_ENCODING", "ERR_CONNECTION_RESET"] {
            self.browser.expected.push(message);
        }
        self.browser.wait("a lost connection", "document.querySelector('#connection.lost')").await?;
        self.browser.run("location.hash = '#/1/pictures?order=worst'").await?;
        self.browser
            .wait("why nothing is shown", "/does not answer/.test(document.querySelector('main .error')?.innerText)")
            .await?;
        self.browser.look("lost").await?;
        self.serve(&["classes", "text"]).await?;
        let shown = "window.same && !document.querySelector('#connection.lost') && document.querySelector('select option[value=worst]')?.selected && document.querySelector('.card img')?.naturalWidth > 0";
        self.browser.wait("the view that was asked for", shown).await
    }

    /// A run that has only started, and one whose rows are all usable.
    async fn empty_states(&mut self) -> Step {
        // Pictures of the view before may still be loading.
        self.browser.open("about:blank").await?;
        if let Some(mut page) = self.page.take() {
            page.kill().await.map_err(|error| error.to_string())?;
        }
        let empty = self.program.dir.join("empty");
        std::fs::create_dir_all(&empty).map_err(|error| error.to_string())?;
        std::fs::write(empty.join("run.toml"), "[stages]\n").map_err(|error| error.to_string())?;
        self.serve(&["empty"]).await?;
        for (view, text) in [
            ("run", "No stage has started"),
            ("pictures", "run.toml|configuration|not started"),
            ("search", "run.toml|configuration|not started"),
            ("quarantine", "could be used"),
        ] {
            self.browser.open(&self.url(&format!("0/{view}"))).await?;
            self.browser
                .wait(&format!("what {view} lacks"), &format!("/{text}/.test(document.body.innerText)"))
                .await?;
            // The others look alike.
            if ["run", "pictures"].contains(&view) {
                self.browser.look(&format!("empty-{view}")).await?;
            }
        }
        // The console repeats the status of an answer that explains what is missing.
        self.browser.expected.push("409 (Conflict)");
        Ok(())
    }
}
