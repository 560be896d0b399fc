//! Objects on a web server that does not support ranges: read in one request, and after a failure again from the start.

use bytes::{Bytes, BytesMut};
use futures::stream::{self, BoxStream, StreamExt as _};
use tokio_util::task::AbortOnDropHandle;

use super::super::http_retry::RetryBudget;
use super::super::{Object, StoreError, explain_read};
use super::{AttemptError, open_body, recover};

/// Bytes passed to the consumer at a time.
const BLOCK_BYTES: usize = 1 << 20;

/// Streams the bytes of an object.
pub(super) fn stream_whole(object: Object) -> BoxStream<'static, std::io::Result<Bytes>> {
    let (sender, receiver) = tokio::sync::mpsc::channel(2);
    let task = AbortOnDropHandle::new(tokio::spawn(async move {
        let mut retry_budget = object.client.retry_budget();
        let mut sent = 0;
        while sent < object.size {
            let Err(error) = read_from_start(&object, &mut sent, &mut retry_budget, &sender).await else { return };
            if let Err(error) = recover(&object, &mut retry_budget, error, sent).await {
                sender.send(Err(std::io::Error::other(error))).await.ok();
                return;
            }
        }
    }));
    stream::unfold((receiver, task), |(mut receiver, task)| async { Some((receiver.recv().await?, (receiver, task))) })
        .boxed()
}

/// Makes one attempt at the whole object; bytes that were sent before are skipped.
async fn read_from_start(
    object: &Object,
    sent: &mut u64,
    retry_budget: &mut RetryBudget,
    sender: &tokio::sync::mpsc::Sender<std::io::Result<Bytes>>,
) -> Result<(), AttemptError> {
    let client = &object.client;
    // The HTTP client's own read timeout would include the time that the consumer takes.
    let store = client.without_read_timeout.as_ref().unwrap_or(&client.inner);
    let timed_out = |_| AttemptError::Transient("no byte came for too long".to_owned());
    let answer = tokio::time::timeout(client.read_timeout, open_body(object, store, None, retry_budget));
    let mut body = answer.await.map_err(timed_out)??.into_stream();
    let mut skip = *sent;
    let mut block = BytesMut::new();
    loop {
        let part = tokio::time::timeout(client.read_timeout, body.next())
            .await
            .map_err(timed_out)?
            .transpose()
            .map_err(|error| AttemptError::from_store(object, &error))?;
        let over = part.is_none();
        let part = part.unwrap_or_default();
        let old = skip.min(part.len() as u64);
        skip -= old;
        client.traffic.add_read(part.len());
        block.extend_from_slice(&part[old as usize..]);
        if block.len() >= BLOCK_BYTES || (over && !block.is_empty()) {
            let full = block.split().freeze();
            retry_budget.renew();
            *sent += full.len() as u64;
            if *sent > object.size {
                return Err(AttemptError::Permanent(StoreError::Changed { url: object.url.clone() }));
            }
            if sender.send(Ok(full)).await.is_err() {
                return Ok(());
            }
            // The time that the consumer took does not count.
            retry_budget.renew();
        }
        if over {
            return if *sent == object.size { Ok(()) } else { Err(AttemptError::Truncated) };
        }
    }
}

/// Reads the first bytes of an object.
pub(crate) async fn read_head(object: &Object, bytes: u64) -> Result<Bytes, StoreError> {
    let mut received = BytesMut::new();
    let mut blocks = stream_whole(object.clone());
    while (received.len() as u64) < bytes {
        let Some(block) = blocks.next().await else { break };
        received.extend_from_slice(&block.map_err(|error| explain_read(&object.url, error))?);
    }
    received.truncate(bytes as usize);
    Ok(received.freeze())
}
