//! The program under test: its synthetic corpus, its runs and its page.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use tokio::process::{Child, Command};

use crate::browser::Step;

/// Caption that would run a script if it were not escaped, and breaks the layout if it may not wrap.
pub const HOSTILE: &str = "<img src=x onerror=window.attacked=1><script>window.attacked=1</script>&amp;";

/// Bytes in place of an image: a picture that would run a script if it were shown as one.
pub const MARKUP: &str =
    "<svg xmlns='http://www.w3.org/2000/svg' onload='window.attacked=1'><script>window.attacked=1</script></svg>";

/// The program and the folder in which it works.
pub struct Program {
    pub path: PathBuf,
    pub dir: PathBuf,
    /// Text encoder with random weights.
    pub encoder: PathBuf,
}

impl Program {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.path);
        command.args(args).current_dir(&self.dir).stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
        command
    }

    /// Runs the program to its end.
    pub async fn run(&self, args: &[&str]) -> Step {
        let out = self.command(args).stderr(Stdio::piped()).output().await.map_err(|error| error.to_string())?;
        if out.status.success() { Ok(()) } else { Err(format!("{args:?}: {}", String::from_utf8_lossy(&out.stderr))) }
    }

    /// Starts the program and waits until its page answers at `port`.
    pub async fn serve(&self, args: &[&str], port: u16) -> Step<Child> {
        let log = std::fs::File::create(self.dir.join("page.log")).map_err(|error| error.to_string())?;
        let mut child = self.command(args).stderr(log).spawn().map_err(|error| error.to_string())?;
        loop {
            if tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
                return Ok(child);
            }
            if child.try_wait().map_err(|error| error.to_string())?.is_some() {
                let log = std::fs::read_to_string(self.dir.join("page.log")).unwrap_or_default();
                return Err(format!("{args:?} ended early: {log}"));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Renders a small corpus in which a word of the captions is hostile.
    pub async fn render_corpus(&self) -> Step {
        self.run(&["sample", "--out", "corpus", "--train-images", "900", "--test-images", "60"]).await?;
        let mut replaced = 0;
        for entry in std::fs::read_dir(self.dir.join("corpus/data")).map_err(|error| error.to_string())? {
            let path = entry.map_err(|error| error.to_string())?.path();
            if path.is_file() {
                // Files of bytes that are not all UTF-8, some of them on purpose.
                let text = std::fs::read(&path).map_err(|error| error.to_string())?;
                let (hostile, count) = replace(&text, b"Kreuz", HOSTILE.as_bytes());
                replaced += count;
                std::fs::write(&path, hostile).map_err(|error| error.to_string())?;
            }
        }
        self.hide_markup()?;
        if replaced == 0 { Err("the corpus has no caption to make hostile".to_owned()) } else { Ok(()) }
    }

    /// Puts markup in place of a test image.
    fn hide_markup(&self) -> Step {
        let folder = self.dir.join("corpus/data/image_data_test/image_pixels");
        let mut names: Vec<PathBuf> = std::fs::read_dir(folder)
            .map_err(|error| error.to_string())?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|extension| extension == "csv"))
            .collect();
        names.sort();
        let path = names.first().ok_or("the corpus has no test images")?;
        let text = std::fs::read(path).map_err(|error| error.to_string())?;
        let mut lines: Vec<Vec<u8>> = text.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
        // A JPEG in base64 starts with these letters.
        let jpeg = |line: &Vec<u8>| line.windows(5).any(|window| window == b"\t/9j/");
        let line = lines.iter_mut().find(|line| jpeg(line)).ok_or("the corpus has no JPEG")?;
        let fields: Vec<&[u8]> = line.split(|byte| *byte == b'\t').collect();
        let markup = base64::engine::general_purpose::STANDARD.encode(MARKUP);
        let changed = [fields[0], markup.as_bytes(), fields.get(2).copied().unwrap_or_default()].join(&b'\t');
        *line = changed;
        std::fs::write(path, lines.join(&b'\n')).map_err(|error| error.to_string())
    }

    /// Writes a pipeline file, and returns its name.
    pub fn write_pipeline(&self, name: &str, head: &str, epochs: u32) -> Step<String> {
        let text = format!(
            r#"
[run]
dir = "{name}"
[captions]
list = "corpus/data/test_caption_list.csv"
classes = "train"
[pairs]
shards = ["corpus/data/train-*-of-00005.tsv"]
[images]
shards = ["corpus/data/image_data_train/image_pixels/*.csv.gz"]
[chunks]
rows = 128
[model]
checkpoint = "corpus/models/vit-tiny"
precision = "f32"
{head}
[train]
epochs = {epochs}
batch_size = 64
validation_fraction = 0.1
log_every = 5
[predict]
images = ["corpus/data/image_data_test/image_pixels/*.csv"]
ids = "corpus/data/test.tsv"
truth = "corpus/data/truth.csv"
"#
        );
        let file = format!("{name}.toml");
        std::fs::write(self.dir.join(&file), text).map_err(|error| error.to_string())?;
        Ok(file)
    }

    /// Returns the section of a text head.
    pub fn text_head(&self) -> String {
        format!("[text]\nencoder = '{}'\nprefix = 'query: '\n[head]\nkind = 'text'\n", self.encoder.display())
    }
}

/// Replaces all occurrences of `from`.
fn replace(text: &[u8], from: &[u8], to: &[u8]) -> (Vec<u8>, usize) {
    let (mut out, mut count, mut at) = (Vec::with_capacity(text.len()), 0, 0);
    while at < text.len() {
        if text[at..].starts_with(from) {
            out.extend_from_slice(to);
            (at, count) = (at + from.len(), count + 1);
        } else {
            out.push(text[at]);
            at += 1;
        }
    }
    (out, count)
}

/// Returns an absolute path.
pub fn absolute(path: &str) -> Step<PathBuf> {
    std::path::absolute(Path::new(path)).map_err(|error| format!("`{path}`: {error}"))
}
