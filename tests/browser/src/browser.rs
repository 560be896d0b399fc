//! A browser session: Chromium by its WebDriver, with the commands of Chromium that the standard lacks.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use base64::Engine as _;
use fantoccini::wd::WebDriverCompatibleCommand;
use fantoccini::{Client, ClientBuilder};
use serde_json::{Value, json};
use tokio::process::{Child, Command};

/// Result of a step; the error says what was expected.
pub type Step<T = ()> = Result<T, String>;

/// Time in which a page has to show something. It is an upper bound; nothing sleeps for it.
const PATIENCE: Duration = Duration::from_secs(60);

/// Sizes of the window.
const WIDTHS: [(u32, u32); 3] = [(400, 900), (900, 1100), (1600, 1200)];

/// A command of Chromium's driver beyond the standard.
#[derive(Debug)]
struct Extension {
    path: &'static str,
    body: Value,
}

impl WebDriverCompatibleCommand for Extension {
    fn endpoint(&self, base: &url::Url, session: Option<&str>) -> Result<url::Url, url::ParseError> {
        base.join(&format!("session/{}/{}", session.unwrap_or_default(), self.path))
    }

    fn method_and_body(&self, _: &url::Url) -> (http::Method, Option<String>) {
        (http::Method::POST, Some(self.body.to_string()))
    }
}

/// A browser and its driver.
pub struct Browser {
    client: Client,
    driver: Child,
    axe: String,
    /// Folder of the screenshots.
    shots: PathBuf,
    /// Messages of the console that a test expects, such as those of a lost connection.
    pub expected: Vec<&'static str>,
}

impl Browser {
    /// Starts the driver and a browser. `axe` is the file of the accessibility rules.
    pub async fn start(axe: &Path, shots: &Path) -> Step<Self> {
        let port = free_port()?;
        let mut driver = Command::new("chromedriver");
        driver.arg(format!("--port={port}")).kill_on_drop(true).stdout(std::process::Stdio::null());
        let driver = driver.spawn().map_err(|error| {
            format!("`chromedriver` does not start ({error}): install Debian's chromium and chromium-driver")
        })?;
        let options = json!({ "args": ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--force-prefers-reduced-motion"] });
        let capabilities = json!({ "goog:chromeOptions": options, "goog:loggingPrefs": { "browser": "ALL" } });
        let Value::Object(capabilities) = capabilities else { return Err("no capabilities".to_owned()) };
        let started = Instant::now();
        let client = loop {
            let mut builder = ClientBuilder::new(hyper_http());
            match builder.capabilities(capabilities.clone()).connect(&format!("http://127.0.0.1:{port}")).await {
                Ok(client) => break client,
                Err(error) if started.elapsed() > PATIENCE => return Err(format!("no browser session: {error}")),
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        };
        let axe = std::fs::read_to_string(axe).map_err(|error| format!("`{}`: {error}", axe.display()))?;
        std::fs::create_dir_all(shots).map_err(|error| error.to_string())?;
        Ok(Self { client, driver, axe, shots: shots.to_owned(), expected: Vec::new() })
    }

    /// Ends browser and driver.
    pub async fn end(mut self) {
        self.client.close().await.ok();
        self.driver.kill().await.ok();
    }

    async fn extension(&self, path: &'static str, body: Value) -> Step<Value> {
        self.client.issue_cmd(Extension { path, body }).await.map_err(|error| format!("{path}: {error}"))
    }

    async fn devtools(&self, command: &str, parameters: Value) -> Step<Value> {
        self.extension("goog/cdp/execute", json!({ "cmd": command, "params": parameters })).await
    }

    /// Sets the size of the page and the preferred colours.
    pub async fn appearance(&self, width: u32, height: u32, colours: &str) -> Step {
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.devtools("Emulation.setDeviceMetricsOverride", size).await?;
        let media = json!({ "features": [{ "name": "prefers-color-scheme", "value": colours }] });
        self.devtools("Emulation.setEmulatedMedia", media).await?;
        Ok(())
    }

    /// Opens an address.
    pub async fn open(&self, url: &str) -> Step {
        self.client.goto(url).await.map_err(|error| format!("{url}: {error}"))
    }

    /// Runs a script in the page and returns its result.
    pub async fn run(&self, script: &str) -> Step<Value> {
        self.client.execute(script, Vec::new()).await.map_err(|error| format!("`{script}`: {error}"))
    }

    /// Presses a key, named as in `KeyboardEvent.key`.
    pub async fn press(&self, key: &str) -> Step {
        let text = if key == "Enter" { "\r" } else { "" };
        for kind in ["keyDown", "keyUp"] {
            let code = json!({ "type": kind, "key": key, "code": key, "text": if kind == "keyDown" { text } else { "" },
                "windowsVirtualKeyCode": match key { "Enter" => 13, "Escape" => 27, _ => 9 } });
            self.devtools("Input.dispatchKeyEvent", code).await?;
        }
        Ok(())
    }

    /// Waits until an expression is true in the page.
    pub async fn wait(&self, what: &str, expression: &str) -> Step {
        let started = Instant::now();
        loop {
            let found = self.run(&format!("return Boolean({expression})")).await?;
            if found == true {
                return Ok(());
            }
            if started.elapsed() > PATIENCE {
                let text = self.run("return document.body.innerText").await?;
                return Err(format!("{what} is never shown; the page says:\n{}", text.as_str().unwrap_or_default()));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Checks the console: no error and no warning but the expected ones.
    pub async fn check_console(&self) -> Step {
        let log = self.extension("se/log", json!({ "type": "browser" })).await?;
        let entries = log.as_array().into_iter().flatten();
        let bad: Vec<&str> = entries
            .filter(|entry| entry["level"] == "SEVERE" || entry["level"] == "WARNING")
            .filter_map(|entry| entry["message"].as_str())
            .filter(|message| !self.expected.iter().any(|expected| message.contains(expected)))
            .collect();
        if bad.is_empty() { Ok(()) } else { Err(format!("the console has errors:\n{}", bad.join("\n"))) }
    }

    /// Checks the page with the rules of axe-core.
    pub async fn check_accessibility(&self) -> Step {
        self.client.execute(&self.axe, Vec::new()).await.map_err(|error| format!("axe-core: {error}"))?;
        let script = "const done = arguments[arguments.length - 1]; axe.run({ resultTypes: ['violations'] }).then((found) => \
             done(found.violations.map((rule) => `${rule.id}: ${rule.help}: ${rule.nodes[0].html}`)), (error) => done([String(error)]));";
        let found =
            self.client.execute_async(script, Vec::new()).await.map_err(|error| format!("axe-core: {error}"))?;
        let violations: Vec<&str> = found.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        if violations.is_empty() { Ok(()) } else { Err(format!("accessibility:\n{}", violations.join("\n"))) }
    }

    /// Keeps a picture of the present page at three widths in both colours. Texts of a chart must be large enough to read.
    pub async fn look_at_picture(&self, name: &str) -> Step {
        for (width, height) in WIDTHS {
            for colours in ["light", "dark"] {
                self.appearance(width, height, colours).await?;
                let smallest = self
                    .run("return Math.min(...[...document.querySelectorAll('text')].map((text) => text.getBoundingClientRect().height))")
                    .await?;
                if smallest.as_f64().is_none_or(|smallest| smallest < 11.0) {
                    return Err(format!("{name} has text {smallest} px high at {width} px"));
                }
                self.shoot(&format!("{name}-{width}-{colours}")).await?;
            }
        }
        self.appearance(1200, 1000, "light").await
    }

    /// Keeps a picture of what the window shows.
    pub async fn shoot(&self, name: &str) -> Step {
        let shot = self.devtools("Page.captureScreenshot", json!({ "format": "png" })).await?;
        let data = shot["data"].as_str().ok_or("no screenshot")?;
        let bytes = base64::engine::general_purpose::STANDARD.decode(data).map_err(|error| error.to_string())?;
        std::fs::write(self.shots.join(format!("{name}.png")), bytes).map_err(|error| error.to_string())
    }

    /// Checks the present page at three widths in both colours, and keeps a picture of each.
    pub async fn look(&self, name: &str) -> Step {
        for (width, height) in WIDTHS {
            for colours in ["light", "dark"] {
                self.appearance(width, height, colours).await?;
                let inner = self.run("return document.documentElement.scrollWidth").await?;
                if inner.as_u64().is_none_or(|inner| inner > u64::from(width)) {
                    return Err(format!("{name} is {inner} px wide at {width} px"));
                }
                self.check_accessibility().await.map_err(|error| format!("{name}, {width} px, {colours}: {error}"))?;
                self.shoot(&format!("{name}-{width}-{colours}")).await?;
            }
        }
        self.appearance(1200, 1000, "light").await
    }
}

/// Returns a connector for plain HTTP.
fn hyper_http() -> hyper_util::client::legacy::connect::HttpConnector {
    hyper_util::client::legacy::connect::HttpConnector::new()
}

/// Returns a free port of this machine.
pub fn free_port() -> Step<u16> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").map_err(|error| error.to_string())?;
    listener.local_addr().map(|address| address.port()).map_err(|error| error.to_string())
}
