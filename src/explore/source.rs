//! A picture as it was, from the run's inputs.
//!
//! A feature chunk names the shard and the source rows it covers, so the reader looks for the URL among those rows. A
//! compressed shard is read from its start. Requests that wait are grouped, so that a page of pictures reads each shard once.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use base64_simd::STANDARD;
use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder as _};
use tokio::sync::{mpsc, oneshot};

use super::encode::Encoders;
use super::images::{ImageIndex, Stream};
use super::opened::OpenRun;
use super::{internal, lock};
use crate::chunk::{ChunkId, features};
use crate::config::RunConfig;
use crate::corpus::{EncodedImage, ImageRow};
use crate::decode::jpeg_thumbnail;
use crate::objects::{Object, ReadStats, Store};
use crate::pipeline::PipelineError;
use crate::pipeline::inputs::{ImageInput, ImageReader, NextRow as _, ReadLimits, list_images};

/// Requests that wait for the reader.
const WAITING: usize = 64;
/// Time in which the pictures of one shard are read.
pub(super) const READ_TIMEOUT: Duration = Duration::from_mins(1);
/// Bytes of small pictures that stay in memory.
const CACHE_BYTES: usize = 16 << 20;

/// Form of a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rendition {
    /// A small JPEG.
    Thumbnail,
    /// The bytes of the input.
    Original,
    /// The square that the model received, as PNG.
    Model,
}

/// A picture to read.
struct Request {
    is_test: bool,
    chunk: ChunkId,
    url: String,
    reply: oneshot::Sender<Result<Vec<u8>, PipelineError>>,
}

/// Reads pictures from the run's inputs, one shard at a time.
pub(super) struct SourceReader {
    run: Arc<OpenRun>,
    requests: OnceLock<mpsc::Sender<Request>>,
    thumbnails: Mutex<Cache>,
}

/// Small pictures by set and row, the oldest of which make room for new ones.
#[derive(Default)]
struct Cache {
    pictures: BTreeMap<(String, u32), Vec<u8>>,
    order: VecDeque<(String, u32)>,
    bytes: usize,
}

impl Cache {
    fn insert(&mut self, key: (String, u32), picture: Vec<u8>) {
        self.bytes += picture.len();
        if let Some(before) = self.pictures.insert(key.clone(), picture) {
            self.bytes -= before.len();
        } else {
            self.order.push_back(key);
        }
        while self.bytes > CACHE_BYTES {
            let Some(oldest) = self.order.pop_front() else { return };
            self.bytes -= self.pictures.remove(&oldest).map_or(0, |picture| picture.len());
        }
    }
}

impl SourceReader {
    pub(super) fn new(run: Arc<OpenRun>) -> Self {
        Self { run, requests: OnceLock::new(), thumbnails: Mutex::default() }
    }

    /// Returns the content type and bytes of a picture.
    ///
    /// # Errors
    /// When the picture cannot be read or decoded, or browsers do not show its format.
    pub(super) async fn render(
        &self,
        encoders: &Encoders,
        stream: Stream,
        index: &ImageIndex,
        row: u32,
        rendition: Rendition,
    ) -> Result<(&'static str, Vec<u8>), PipelineError> {
        let record = index.record(row)?;
        let (chunk, file) = index.chunk(&record)?;
        let is_test = matches!(stream, Stream::Test(_));
        let key = (stream.name(), row);
        if rendition == Rendition::Thumbnail {
            if let Some(picture) = lock(&self.thumbnails).pictures.get(&key) {
                return Ok(("image/jpeg", picture.clone()));
            }
            let (run, name, url) = (Arc::clone(&self.run), file.name.clone(), record.url.clone());
            let stored = tokio::task::spawn_blocking(move || read_stored(&run, &name, &url)).await??;
            if let Some(stored) = stored {
                lock(&self.thumbnails).insert(key, stored.clone());
                return Ok(("image/jpeg", stored));
            }
        }
        let bytes = self.fetch(is_test, chunk, record.url).await?;
        match rendition {
            Rendition::Original => Ok((content_type(&bytes)?, bytes)),
            Rendition::Model => {
                let (pixels, side) = (encoders.decode(bytes).await?, encoders.spec().await?.geometry.output_px());
                let mut png = Vec::new();
                let encoded = PngEncoder::new(&mut png).write_image(&pixels, side, side, ExtendedColorType::Rgb8);
                encoded.map_err(|error| internal(&error.to_string()))?;
                Ok(("image/png", png))
            }
            Rendition::Thumbnail => {
                let (pixels, side) = (encoders.decode(bytes).await?, encoders.spec().await?.geometry.output_px());
                let small = jpeg_thumbnail(&pixels, side).ok_or_else(|| internal("a thumbnail cannot be made"))?;
                lock(&self.thumbnails).insert(key, small.clone());
                Ok(("image/jpeg", small))
            }
        }
    }

    /// Reads the encoded bytes of a picture.
    async fn fetch(&self, is_test: bool, chunk: ChunkId, url: String) -> Result<Vec<u8>, PipelineError> {
        let requests = self.requests.get_or_init(|| {
            let (sender, receiver) = mpsc::channel(WAITING);
            tokio::spawn(serve(Arc::clone(&self.run), receiver));
            sender
        });
        let ended = || internal("the reader of pictures has ended");
        let (reply, answer) = oneshot::channel();
        requests.send(Request { is_test, chunk, url, reply }).await.map_err(|_| ended())?;
        answer.await.map_err(|_| ended())?
    }
}

/// Reads the thumbnail of an image from its feature chunk; `None` if the chunk has none.
fn read_stored(run: &OpenRun, name: &str, url: &str) -> Result<Option<Vec<u8>>, PipelineError> {
    let mut found = None;
    features::read_thumbnails(&run.dir.fetch(name)?, |other, bytes| {
        if other == url && found.is_none() {
            found = Some(bytes.to_vec());
        }
    })?;
    Ok(found)
}

/// Returns the content type of a picture that browsers show.
pub(super) fn content_type(bytes: &[u8]) -> Result<&'static str, PipelineError> {
    use image::ImageFormat::{Bmp, Gif, Jpeg, Png, Tiff, WebP};
    match image::guess_format(bytes) {
        Ok(format @ (Bmp | Gif | Jpeg | Png | WebP)) => Ok(format.to_mime_type()),
        Ok(Tiff) => {
            Err(PipelineError::Input("browsers show no TIFF files; look at the picture as the model saw it".to_owned()))
        }
        _ => Err(PipelineError::Input("the bytes of the input are no picture that browsers show".to_owned())),
    }
}

/// Shards of the training or the test images.
pub(super) type Shards = (ImageInput, Vec<Object>);

/// Answers requests until all senders are dropped.
async fn serve(run: Arc<OpenRun>, mut requests: mpsc::Receiver<Request>) {
    let mut inputs: BTreeMap<bool, Arc<Shards>> = BTreeMap::new();
    while let Some(first) = requests.recv().await {
        let mut groups: BTreeMap<(bool, u32), Vec<Request>> = BTreeMap::new();
        groups.entry((first.is_test, first.chunk.shard)).or_default().push(first);
        while let Ok(next) = requests.try_recv() {
            groups.entry((next.is_test, next.chunk.shard)).or_default().push(next);
        }
        for ((is_test, shard), mut group) in groups {
            group.retain(|request| !request.reply.is_closed());
            if group.is_empty() {
                continue;
            }
            let read = async {
                let shards = match inputs.get(&is_test) {
                    Some(shards) => Arc::clone(shards),
                    None => Arc::new(list_shards(&run.config, &run.store, is_test).await?),
                };
                inputs.insert(is_test, Arc::clone(&shards));
                read_group(&run, &shards, shard, &mut group).await
            };
            let why = match tokio::time::timeout(READ_TIMEOUT, read).await {
                Ok(Ok(())) => {
                    "the inputs no longer hold this image where the run found it: they have changed since".to_owned()
                }
                Ok(Err(error)) => format!("the run's input cannot be read: {}", crate::pipeline::chain(&error)),
                Err(_) => format!(
                    "reading the shard up to this image takes over {} s, since a compressed shard is read from its start",
                    READ_TIMEOUT.as_secs()
                ),
            };
            for request in group {
                // A caller that is gone wants no answer.
                request.reply.send(Err(PipelineError::Input(why.clone()))).ok();
            }
        }
    }
}

/// Lists the shards of a run's training or test images.
///
/// # Errors
/// When the configuration names none, or they cannot be listed.
pub(super) async fn list_shards(config: &RunConfig, store: &Store, is_test: bool) -> Result<Shards, PipelineError> {
    let images = config.images();
    let columns = images.map(|images| images.columns.clone()).unwrap_or_default();
    let absent = || PipelineError::Input("the configuration of the run names no such images".to_owned());
    if is_test {
        let predict = config.predict().ok_or_else(absent)?;
        return list_images(store, &predict.images, predict.format, &columns).await;
    }
    let images = images.ok_or_else(absent)?;
    list_images(store, &images.shards, images.format, &columns).await
}

/// Reads the pictures of one shard and answers their requests. Those that are not found stay in `group`.
async fn read_group(
    run: &OpenRun,
    (input, objects): &Shards,
    shard: u32,
    group: &mut Vec<Request>,
) -> Result<(), PipelineError> {
    let missing = || PipelineError::Input("the inputs have fewer shards than the run read".to_owned());
    let object = objects.get(shard as usize).ok_or_else(missing)?;
    let chunk_rows = u64::from(run.config.chunks().rows);
    let first = group.iter().map(|request| request.chunk.row).min().unwrap_or(0);
    let end = group.iter().map(|request| request.chunk.row + chunk_rows).max().unwrap_or(0);
    let limits = ReadLimits::alone(run.config.preprocess().max_encoded.0);
    let stats = Arc::<ReadStats>::default();
    let mut reader = ImageReader::open(&run.store, object, input, limits, (first, None), &stats).await?;
    loop {
        let more = reader.fill().await?;
        while let Some(row) = reader.next()? {
            let ImageRow::Ok { row: number, image_url, image } = row else { continue };
            if number >= end {
                return Ok(());
            }
            let wants = |request: &Request| {
                request.url == image_url && (request.chunk.row..request.chunk.row + chunk_rows).contains(&number)
            };
            while let Some(place) = group.iter().position(wants) {
                group.swap_remove(place).reply.send(decode_text(&image)).ok();
            }
            if group.is_empty() {
                return Ok(());
            }
        }
        if !more {
            return Ok(());
        }
        // Decompression never yields by itself.
        tokio::task::yield_now().await;
        group.retain(|request| !request.reply.is_closed());
        if group.is_empty() {
            return Ok(());
        }
    }
}

/// Returns the bytes of a picture, which may be in base64.
pub(super) fn decode_text(image: &EncodedImage<'_>) -> Result<Vec<u8>, PipelineError> {
    match image {
        EncodedImage::File(bytes) => Ok(bytes.to_vec()),
        EncodedImage::Base64(text) => {
            let text: Vec<u8> = text.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
            let refused = |_| PipelineError::Input("the input holds no base64 here".to_owned());
            STANDARD.decode_to_vec(text).map_err(refused)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cache_of_thumbnails_is_bounded() {
        let mut cache = Cache::default();
        for row in 0..40 {
            cache.insert(("train".to_owned(), row), vec![0; 1 << 20]);
            cache.insert(("train".to_owned(), row), vec![1; 1 << 20]);
        }
        assert!(cache.bytes <= CACHE_BYTES && cache.pictures.len() == cache.order.len());
        assert!(cache.pictures.contains_key(&("train".to_owned(), 39)));
    }

    #[test]
    fn markup_is_no_picture() {
        for bytes in [&b"<svg xmlns='http://www.w3.org/2000/svg'><script/></svg>"[..], b"<html>", b"", b"GIF"] {
            assert!(content_type(bytes).is_err());
        }
        assert_eq!(content_type(b"\xff\xd8\xff\xe0\0\x10JFIF\0").unwrap(), "image/jpeg");
    }
}
