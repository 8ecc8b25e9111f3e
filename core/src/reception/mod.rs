//! The reception: answers the commands that need a backend's look-up: Login, Sync and History.
//!
//! In come requests of the shards, out go answers to their mailboxes. A login registers the connection for pushes and its
//! presence *before* it reads positions, so that no message falls between; the shard holds pushes back until the reply is
//! out. At most [`LOOKUPS_MAX`] requests are under way, the rest wait in the bounded queue.

mod sync;

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use prost::Message as _;
use tidegate_proto::v1::{self, CloseCode, Code};
use tidegate_proto::{HEAD_BYTES, Kind, frame};
use tokio::sync::oneshot;

use crate::clock::Clock;
use crate::delivery::{
    Access, Ask, Ground, Identity, Mailboxes, Others, Request, RoomsLookUp, ShardId, ShardInput, SyncFrom, Ticket,
    Watermarks,
};
use crate::event::PushEvent;
use crate::ids::{Attachment, ConversationId, GatewayId, LobbyName, RoomId, Seq, SessionId, UserId};
use crate::limits;
use crate::meter;
use crate::ports::{
    Archive, Backend, End, Hold, HotStore, Page, PortError, PresenceChange, PresenceOutcome, PushQueue as _,
    PushTarget, Seeding, Standing, TokenState, UnreadCount, User, Watermark,
};
use crate::queue::{Closed, Queue};
use crate::storm::{Format, Pulls};

/// Requests under way at once; each may hold a database connection.
const LOOKUPS_MAX: usize = 64;

/// What every login reply says alike.
#[derive(Clone, Debug)]
pub struct Greeting {
    /// This gateway.
    pub gateway: GatewayId,
    /// How clients keep their connection alive.
    pub heartbeat: v1::Heartbeat,
    /// Largest frame.
    pub frame_bytes_max: usize,
    /// Largest body.
    pub body_bytes_max: usize,
    /// Commands without a reply.
    pub in_flight_max: u16,
    /// Lobbies there are.
    pub lobbies: Vec<LobbyName>,
}

/// See the module.
pub struct Reception<B, M, C, S> {
    /// Where to look things up.
    pub backend: Arc<B>,
    /// Where answers go.
    pub mailboxes: M,
    /// For the time in replies.
    pub clock: C,
    /// Gives unique, unpredictable numbers, for sessions and their attachments.
    pub random: S,
    /// What every reply says alike.
    pub greeting: Greeting,
    /// What pulls are answered with.
    pub pulls: Arc<Pulls<B, M, C>>,
}

/// What a Login asks for besides who it is.
struct Wish {
    device: String,
    watch: Vec<LobbyName>,
    positions: Vec<SyncFrom>,
    resume: SessionId,
    ground: Ground,
}

/// Whether a login goes on with a session.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Resumed {
    Yes,
    No,
}

/// Why a request is not answered as asked.
struct Refusal {
    code: Code,
    close: Option<CloseCode>,
}

impl Refusal {
    /// A client that cannot log in now is better off elsewhere, or later: PROTOCOL.md, "States".
    fn of_login(self) -> Self {
        let close = self.close.or((self.code == Code::Unavailable).then_some(CloseCode::Unavailable));
        Self { close, ..self }
    }
}

impl From<PortError> for Refusal {
    fn from(error: PortError) -> Self {
        tracing::warn!(%error, "a request failed");
        let code = match error {
            PortError::Unavailable { .. } => Code::Unavailable,
            PortError::Closed => Code::Draining,
            PortError::Refused { .. } | PortError::Unfit { .. } | PortError::Conflict { .. } => Code::Internal,
        };
        Self { code, close: None }
    }
}

impl<B: Backend, M: Mailboxes, C: Clock, S: Fn() -> u64 + Send + Sync> Reception<B, M, C, S> {
    /// Runs until the queue is closed and everything taken from it has been answered.
    pub async fn run(&self, queue: &Queue<Request>) {
        let mut under_way = FuturesUnordered::new();
        let mut taken = Vec::new();
        let mut open = true;
        while open || !under_way.is_empty() {
            tokio::select! {
                biased;
                Some(()) = under_way.next(), if !under_way.is_empty() => {}
                more = queue.take(LOOKUPS_MAX, &mut taken), if open && under_way.len() < LOOKUPS_MAX => {
                    open = more != Err(Closed);
                    under_way.extend(taken.drain(..).map(|request| self.answer(request)));
                }
            }
        }
    }

    async fn answer(&self, request: Request) {
        let ticket = request.ticket;
        let outcome = match request.ask {
            Ask::Login { token, device, watch, positions, resume, ground } => {
                let wish = Wish { device, watch, positions, resume, ground };
                let outcome = self.login(ticket, &token, wish).await.map_err(Refusal::of_login);
                let label = if let Err(refusal) = &outcome { refusal.code.as_str_name() } else { "ok" };
                metrics::counter!(meter::LOGINS, "outcome" => label).increment(1);
                outcome
            }
            Ask::Sync { user, positions, others } => {
                let reply = self.sync(ticket, user, positions, others).await;
                reply.map(|reply| reply.map(|reply| ShardInput::Answer { ticket, reply }))
            }
            Ask::Pull(pull) => {
                let pulled = self.pulls.pull(pull, Format::Protobuf).await.map_err(Refusal::from);
                pulled.map(|pulled| Some(ShardInput::Pulled { ticket, payload: pulled.body }))
            }
            Ask::History { conversation, page, size, watermarks } => {
                let reply = self.history(ticket, conversation, page, size, watermarks).await;
                reply.map(|reply| Some(ShardInput::Answer { ticket, reply }))
            }
        };
        let input = match outcome {
            Ok(Some(input)) => input,
            Ok(None) => return,
            Err(Refusal { code, close }) => ShardInput::Refused { ticket, code, close },
        };
        self.mailboxes.post(ticket.connection.shard, vec![input]).await;
    }

    async fn login(&self, ticket: Ticket, token: &str, wish: Wish) -> Result<Option<ShardInput>, Refusal> {
        let (hot, archive) = (self.backend.hot(), self.backend.archive());
        let rejected = |code| Refusal { code, close: Some(CloseCode::TokenRejected) };
        let user = match hot.token_states(&[token]).await?.first() {
            Some(TokenState::Valid(user)) => *user,
            Some(TokenState::Expired) => return Err(rejected(Code::TokenExpired)),
            Some(TokenState::Unknown) | None => return Err(rejected(Code::TokenInvalid)),
        };
        // A token may outlive its user, or come from a system that knows other users.
        let user = archive.users(&[user]).await?.pop().ok_or_else(|| rejected(Code::TokenInvalid))?;
        let Wish { device, mut watch, positions, resume, ground } = wish;
        let kept = if resume == SessionId(0) { None } else { hot.resume(user.id, &device, resume).await? };
        let (session, resumed) = match kept {
            Some(kept) => {
                let new =
                    kept.into_iter().filter(|lobby| self.greeting.lobbies.contains(lobby) && !watch.contains(lobby));
                let new: Vec<_> = new.collect();
                watch.extend(new);
                watch.truncate(limits::WATCHES_MAX);
                (resume, Resumed::Yes)
            }
            None => (SessionId((self.random)().max(1)), Resumed::No),
        };
        let attachment = Attachment::new(self.clock.now(), (self.random)());
        let identity = Identity { user: user.id, session, attachment, device, watch, ground };

        let (bound, is_bound) = oneshot::channel();
        let bind = ShardInput::Bind { connection: ticket.connection, identity: identity.clone(), bound };
        self.mailboxes.post(ticket.connection.shard, vec![bind]).await;
        if !matches!(is_bound.await, Ok(true)) {
            return Ok(None);
        }
        // Behind the binding, so that a change of membership reaches the session either way.
        let Some(rooms) = self.find_rooms(ticket, user.id, RoomsLookUp::default()).await? else { return Ok(None) };
        let here = PresenceChange::Here(Hold {
            user: user.id,
            device: identity.device.clone(),
            session,
            attachment,
            watching: identity.watch.clone(),
        });
        match hot.change_presence(&[here]).await?.pop() {
            Some(PresenceOutcome::TakenFrom { gateway, attachment }) => {
                self.replace(user.id, gateway, attachment).await;
            }
            // This login was slow, and its client has connected anew meanwhile: a reason to come again, not to stay away.
            Some(PresenceOutcome::HeldByAnother) => return Err(Refusal { code: Code::Unavailable, close: None }),
            _ => {}
        }
        let positions = self.with_access(user.id, &rooms, positions);
        let reply = self.login_reply(ticket, &user, &identity, resumed, &positions).await?;
        Ok(Some(ShardInput::Welcome { ticket, reply, identity }))
    }

    /// Tells a session the rooms its user is in, and returns them, ascending. `None` if the connection is gone.
    async fn find_rooms(
        &self,
        ticket: Ticket,
        user: UserId,
        look_up: RoomsLookUp,
    ) -> Result<Option<Vec<RoomId>>, Refusal> {
        let rooms = sorted(self.backend.archive().rooms_of(user).await?);
        let (known, is_known) = oneshot::channel();
        let input = ShardInput::Rooms { connection: ticket.connection, look_up, rooms: rooms.clone(), known };
        self.mailboxes.post(ticket.connection.shard, vec![input]).await;
        Ok(is_known.await.is_ok().then_some(rooms))
    }

    /// Ends the connection that had the device. If nobody hears this, its own renewal of presence will tell.
    async fn replace(&self, user: UserId, gateway: GatewayId, attachment: Attachment) {
        if gateway == self.greeting.gateway {
            for shard in (0..self.mailboxes.shards()).map(ShardId) {
                self.mailboxes.post(shard, vec![ShardInput::Replaced { user, attachment }]).await;
            }
            return;
        }
        let replaced = vec![PushEvent::Replaced { user, attachment }];
        if let Err(error) = self.backend.push().publish(vec![(PushTarget::Gateway(gateway), replaced)]).await {
            tracing::warn!(%error, "could not tell a gateway that a device was taken over");
        }
    }

    /// Where the user stands, what the client misses, and what arrived while away, each as far as the frame has room: half
    /// of it for positions, the rest for what is missing, and what is left for recent messages.
    async fn login_reply(
        &self,
        ticket: Ticket,
        user: &User,
        identity: &Identity,
        resumed: Resumed,
        positions: &[(SyncFrom, Access)],
    ) -> Result<Bytes, Refusal> {
        let archive = self.backend.archive();
        // In this order: what is filed after the summary is remembered for the seed, what was before is in the archive.
        let summary = self.backend.hot().take_summary(user.id).await?;
        let standings = archive.standings(user.id, limits::POSITIONS_MAX).await?;
        if let Err(seeding) = summary.unread {
            self.seed_unread(user.id, seeding, &standings).await?;
        }
        let greeting = &self.greeting;
        let mut reply = v1::LoginReply {
            user_id: user.id.0,
            user_name: user.name.clone(),
            session_id: identity.session.0,
            gateway_id: greeting.gateway.to_string(),
            server_time_ms: self.clock.now().0,
            heartbeat: Some(greeting.heartbeat),
            max_frame_bytes: u32::try_from(greeting.frame_bytes_max).unwrap_or(u32::MAX),
            max_body_bytes: u32::try_from(greeting.body_bytes_max).unwrap_or(u32::MAX),
            max_in_flight: greeting.in_flight_max.into(),
            resumed: resumed == Resumed::Yes,
            watching: identity.watch.iter().map(|lobby| lobby.as_str().to_owned()).collect(),
            ..Default::default()
        };
        let frame_bytes = greeting.frame_bytes_max.saturating_sub(HEAD_BYTES);
        let room = |reply: &v1::LoginReply| frame_bytes.saturating_sub(reply.encoded_len());
        reply.positions = first_that_fit(standings.iter().map(position), room(&reply) / 2);
        if !positions.is_empty() {
            reply.synced = sync::synced(archive, user.id, positions, room(&reply), frame_bytes).await?;
        }
        reply.recent = newest_that_fit(&summary.inbox, room(&reply));
        let mut out = BytesMut::new();
        frame::put_message(&mut out, Kind::LoginReply, ticket.correlation, &reply);
        Ok(out.freeze())
    }

    /// What a user in these rooms may read of the positions.
    fn with_access(
        &self,
        user: UserId,
        rooms: &[RoomId],
        positions: impl IntoIterator<Item = SyncFrom>,
    ) -> Vec<(SyncFrom, Access)> {
        let access = |from: SyncFrom| {
            let is_granted = match from.conversation {
                ConversationId::Private { low, high } => user == low || user == high,
                ConversationId::Room(room) => rooms.binary_search(&room).is_ok(),
                ConversationId::Lobby(lobby) => self.greeting.lobbies.contains(&lobby),
            };
            (from, if is_granted { Access::Granted } else { Access::Denied })
        };
        positions.into_iter().map(access).collect()
    }

    async fn sync(
        &self,
        ticket: Ticket,
        user: UserId,
        mut positions: Vec<(SyncFrom, Access)>,
        others: Others,
    ) -> Result<Option<Bytes>, Refusal> {
        let archive = self.backend.archive();
        let frame_bytes = self.greeting.frame_bytes_max.saturating_sub(HEAD_BYTES);
        let mut reply = v1::SyncReply::default();
        if let Others::Named(look_up) = others {
            let Some(rooms) = self.find_rooms(ticket, user, look_up).await? else { return Ok(None) };
            positions = self.with_access(user, &rooms, positions.into_iter().map(|(from, _)| from));
            let named: BTreeSet<_> = positions.iter().map(|(from, _)| from.conversation).collect();
            let standings = archive.standings(user, limits::POSITIONS_MAX).await?;
            let others = standings.iter().filter(|standing| !named.contains(&standing.conversation));
            reply.others = first_that_fit(others.map(position), frame_bytes / 2);
        }
        if !positions.is_empty() {
            let room = frame_bytes.saturating_sub(reply.encoded_len());
            reply.synced = sync::synced(archive, user, &positions, room, room).await?;
        }
        let mut out = BytesMut::new();
        frame::put_message(&mut out, Kind::SyncReply, ticket.correlation, &reply);
        Ok(Some(out.freeze()))
    }

    async fn seed_unread(&self, user: UserId, seeding: Seeding, standings: &[Standing]) -> Result<(), Refusal> {
        let count = |standing: &Standing| UnreadCount {
            conversation: standing.conversation,
            unread: standing.unread,
            counted_to: standing.last,
        };
        let counts: Vec<_> = standings.iter().map(count).collect();
        Ok(self.backend.hot().seed_unread(user, seeding, &counts).await?)
    }

    async fn history(
        &self,
        ticket: Ticket,
        conversation: ConversationId,
        page: Page,
        size: u32,
        watermarks: Watermarks,
    ) -> Result<Bytes, Refusal> {
        let archive = self.backend.archive();
        let marks = async {
            match watermarks {
                Watermarks::Shown => archive.watermarks(std::slice::from_ref(&conversation)).await,
                Watermarks::LeftOut => Ok(Vec::new()),
            }
        };
        // One more than asked tells whether there is more.
        let (stored, ends, marks) = futures_util::future::try_join3(
            archive.history(conversation, page, size + 1),
            archive.ends(std::slice::from_ref(&conversation)),
            marks,
        )
        .await?;
        let End { epoch, last } = ends.first().copied().unwrap_or(End { epoch: archive.epoch(), last: Seq(0) });
        let mut messages: Vec<v1::Message> = stored.iter().map(|message| message.to_wire(epoch)).collect();
        let mut reply = v1::HistoryReply {
            conversation_id: conversation.to_string(),
            epoch: epoch.0,
            last_seq: last.0,
            ..Default::default()
        };
        const REST: usize = HEAD_BYTES + 16;
        let frame_bytes = self.greeting.frame_bytes_max.saturating_sub(REST);
        // A room's thousand members fill half of a frame at most.
        let mark = |mark: Watermark| v1::Watermark {
            user_id: mark.user.0,
            delivered_seq: mark.delivered.0,
            read_seq: mark.read.0,
        };
        reply.watermarks = first_that_fit(marks.into_iter().flatten().map(mark), frame_bytes / 2);
        // The surplus message, and what would not fit a frame, fall off at the far end of the direction asked for.
        let keep = fitting(&messages, page, size as usize, frame_bytes.saturating_sub(reply.encoded_len()));
        reply.more = keep < messages.len();
        match page {
            Page::After(_) => messages.truncate(keep),
            Page::Newest | Page::Before(_) => drop(messages.drain(..messages.len() - keep)),
        }
        reply.messages = messages;
        let mut out = BytesMut::new();
        frame::put_message(&mut out, Kind::HistoryReply, ticket.correlation, &reply);
        Ok(out.freeze())
    }
}

fn position(standing: &Standing) -> v1::Position {
    v1::Position {
        conversation_id: standing.conversation.to_string(),
        epoch: standing.epoch.0,
        last_seq: standing.last.0,
        read_seq: standing.read.0,
        unread: standing.unread,
    }
}

fn sorted<T: Ord>(mut items: Vec<T>) -> Vec<T> {
    items.sort_unstable();
    items
}

/// How many of `messages`, from the near end of the direction asked for, make the page.
fn fitting(messages: &[v1::Message], page: Page, size: usize, bytes_max: usize) -> usize {
    let mut bytes = 0;
    let fits = |message: &&v1::Message| {
        bytes += framed_len(message.encoded_len());
        bytes <= bytes_max
    };
    match page {
        Page::After(_) => messages.iter().take(size).take_while(fits).count(),
        Page::Newest | Page::Before(_) => messages.iter().rev().take(size).take_while(fits).count(),
    }
}

/// The first items that fit together.
fn first_that_fit<M: prost::Message>(items: impl Iterator<Item = M>, room: usize) -> Vec<M> {
    let mut bytes = 0;
    let fits = |item: &M| {
        bytes += framed_len(item.encoded_len());
        bytes <= room
    };
    items.take_while(fits).collect()
}

/// The newest inbox entries that fit, oldest first. An entry that is no Message is left out: the inbox is a convenience.
fn newest_that_fit(inbox: &[Bytes], room: usize) -> Vec<v1::Message> {
    let mut bytes = 0;
    let fits = |payload: &&Bytes| {
        bytes += framed_len(payload.len());
        bytes <= room
    };
    let newest = inbox.iter().rev().take(limits::RECENT_MESSAGES_MAX).take_while(fits);
    let mut messages: Vec<_> = newest.filter_map(|payload| v1::Message::decode(payload.clone()).ok()).collect();
    messages.reverse();
    messages
}

/// Bytes of an embedded message with its field tag and length.
fn framed_len(encoded: usize) -> usize {
    const TAG_AND_LENGTH: usize = 4;
    encoded + TAG_AND_LENGTH
}
