//! The overview of a run as server-sent events, whenever it changes.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::response::sse::{Event, KeepAlive, Sse};
use futures::stream::{self, Stream};

use super::run::{Overview, Run};
use super::{App, Failure};
use crate::runtime::Shutdown;

/// Time between two looks at a local directory.
const LOCAL_INTERVAL: Duration = Duration::from_secs(1);
/// Time between two looks at a remote directory, each of which is several paid requests.
const REMOTE_INTERVAL: Duration = Duration::from_secs(10);

/// State of a connection.
struct Follower {
    run: Run,
    shown: Option<Overview>,
    shutdown: Shutdown,
}

/// Sends `overview` events, and `unreadable` events with a sentence when the directory cannot be read.
pub(super) async fn follow(
    State(app): State<App>,
    Path(number): Path<usize>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Failure> {
    let follower = Follower { run: app.run(number)?, shown: None, shutdown: app.shutdown };
    let events = stream::unfold(follower, |mut follower| async {
        let event = follower.next_event().await?;
        Some((Ok(event), follower))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::default()))
}

impl Follower {
    /// Waits for the next change; `None` at shutdown.
    async fn next_event(&mut self) -> Option<Event> {
        let interval = if self.run.is_remote() { REMOTE_INTERVAL } else { LOCAL_INTERVAL };
        let mut pause = self.shown.is_some();
        loop {
            if pause {
                tokio::select! {
                    () = tokio::time::sleep(interval) => {}
                    () = self.shutdown.raised() => return None,
                }
            }
            pause = true;
            let run = self.run.clone();
            match super::read(move || run.overview()).await {
                Ok(overview) if self.shown.as_ref() == Some(&overview) => {}
                Ok(overview) => {
                    let event = Event::default().event("overview").data(serde_json::to_string(&overview).ok()?);
                    self.shown = Some(overview);
                    return Some(event);
                }
                Err(failure) => {
                    self.shown = self.shown.take().or_else(|| Some(Overview::default()));
                    return Some(Event::default().event("unreadable").data(failure.message.replace(['\r', '\n'], " ")));
                }
            }
        }
    }
}
