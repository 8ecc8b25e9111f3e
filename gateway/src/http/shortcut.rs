//! Ahead of the router: pulls that can be answered at once.
//!
//! In goes each request, out comes an answer if it is a plain pull of a lobby's newest messages by somebody whose token was
//! good a moment ago, and the gateway has them in memory; else nothing, and the router takes the request. In a storm that is
//! nearly every request there is: layers, extractors, spans and timers would cost more than the answer.
//!
//! Always: whatever is unusual is left to the router, so there is one place for errors; an answer from here is the router's,
//! header by header; nothing waits here.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::http::{Method, Request, Response};
use bytes::Bytes;
use futures_util::FutureExt as _;
use http_body_util::Full;
use tidegate_core::delivery::Pull;
use tidegate_core::ids::{ConversationId, Epoch, Place};
use tidegate_core::meter;
use tidegate_core::ports::Backend;

use super::{Api, PULL_PATH, envelope, extract, pull};

/// Between two times of telling how many answers there were.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// See the module.
pub(super) struct Shortcut<B: Backend> {
    api: Arc<Api<B>>,
    /// Not told yet.
    answers: AtomicU64,
}

impl<B: Backend> Shortcut<B> {
    pub(super) fn new(api: Arc<Api<B>>) -> Self {
        Self { api, answers: AtomicU64::new(0) }
    }

    /// The answer, unless it takes more than a look into memory.
    pub(super) fn answer<T>(&self, request: &Request<T>) -> Option<Response<Full<Bytes>>> {
        let uri = request.uri();
        if uri.path() != PULL_PATH || request.method() != Method::GET {
            return None;
        }
        let (conversation, after) = plain_query(uri.query()?)?;
        // Who may see a room, the archive says.
        let ConversationId::Lobby(_) = conversation else { return None };
        let headers = request.headers();
        let user = self.api.tokens.known(extract::token(headers)?)?;
        self.api.chat.admit(user, conversation).now_or_never()?.ok()?;
        let format = pull::format(headers);
        let pulled = self.api.pulls.known(Pull { conversation, after, before: None }, format)?;
        self.answers.fetch_add(1, Ordering::Relaxed);
        let mut response = pull::response(pulled, format, headers);
        envelope::seal(response.headers_mut(), envelope::request_id(headers));
        Some(response)
    }

    /// Tells how many answers there were, once a second, for ever.
    pub(super) async fn report(&self) {
        let answers = metrics::counter!(meter::PULL_ANSWERS, "from" => "http");
        let mut interval = tokio::time::interval(REPORT_INTERVAL);
        loop {
            interval.tick().await;
            answers.increment(self.answers.swap(0, Ordering::Relaxed));
        }
    }
}

/// Reads `lobby=`, `after_seq=` and `epoch=`, each at most once and with nothing escaped; `None` for anything else.
fn plain_query(query: &str) -> Option<(ConversationId, Option<Place>)> {
    let (mut lobby, mut after, mut epoch) = (None, None, None);
    for pair in query.split('&') {
        let (name, value) = pair.split_once('=')?;
        let is_first = match name {
            "lobby" => lobby.replace(value.parse().ok()?).is_none(),
            "after_seq" => after.replace(number(value)?).is_none(),
            "epoch" => epoch.replace(u32::try_from(number(value)?).ok()?).is_none(),
            _ => return None,
        };
        if !is_first {
            return None;
        }
    }
    let epoch = Epoch(epoch.unwrap_or_default());
    let place = |after: u64| Place { epoch, seq: pull::seq(after) };
    Some((lobby?, after.map(place)))
}

/// Digits, and nothing else that a number's text may hold.
fn number(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use tidegate_core::ids::Seq;

    use super::*;

    #[test]
    fn a_plain_query_is_read_and_anything_else_is_left_to_the_router() {
        let lobby = "lobby_main".parse().expect("a lobby");
        let at = |epoch, seq| Some(Place { epoch: Epoch(epoch), seq: Seq(seq) });
        for (query, expected) in [
            ("lobby=lobby_main", None),
            ("lobby=lobby_main&epoch=3", None),
            ("lobby=lobby_main&after_seq=7", at(0, 7)),
            ("after_seq=7&epoch=3&lobby=lobby_main", at(3, 7)),
            // Archives count in signed 64 bits.
            ("lobby=lobby_main&after_seq=18446744073709551615", at(0, i64::MAX as u64)),
        ] {
            assert_eq!(plain_query(query), Some((lobby, expected)), "{query}");
        }
        for query in [
            "",
            "lobby",
            "lobby=",
            "lobby=nonsense",
            "lobby=lobby%5Fmain",
            "lobby=lobby_main&",
            "lobby=lobby_main&lobby=lobby_main",
            "lobby=lobby_main&after_seq=",
            "lobby=lobby_main&after_seq=+7",
            "lobby=lobby_main&after_seq=-7",
            "lobby=lobby_main&after_seq=7&after_seq=7",
            "lobby=lobby_main&after_seq=99999999999999999999",
            "lobby=lobby_main&epoch=4294967296",
            "lobby=lobby_main&after_seq=7&before_seq=9",
            "lobby=lobby_main&page=1",
        ] {
            assert_eq!(plain_query(query), None, "{query}");
        }
    }
}
