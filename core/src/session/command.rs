//! The commands of a session, each decoded, checked and turned into what it starts.

use bytes::Bytes;
use prost::Message as _;
use tidegate_proto::Kind;
use tidegate_proto::v1::{self, Code};

use super::{Actions, Interest, Member, Refusal, SessionContext};
use crate::delivery::{Accepting, Access, Ask, Ground, Others, Pull, Request, SyncFrom, Ticket, Watermarks};
use crate::event::{Accepted, IngestEvent, ReceiptMoved};
use crate::ids::{ClientMsgId, ConversationId, Epoch, LobbyName, MessageId, Millis, Place, Seq, SessionId};
use crate::limits;
use crate::ports::Page;

const BAD_PAYLOAD: Refusal = Refusal::new(Code::BadPayload, "the payload is not what its kind says");
const BAD_CONVERSATION: Refusal = Refusal::new(Code::BadConversation, "not a conversation id");
const NOT_MEMBER: Refusal = Refusal::new(Code::NotMember, "the conversation is none of yours");

/// Reads a Login.
pub(super) fn login(payload: &Bytes, context: &SessionContext) -> Result<Ask, Refusal> {
    let login = v1::Login::decode(payload.clone()).map_err(|_| BAD_PAYLOAD)?;
    let in_bounds = (1..=limits::TOKEN_BYTES_MAX).contains(&login.token.len())
        && (1..=limits::DEVICE_ID_BYTES_MAX).contains(&login.device_id.len())
        && login.device_class.len() <= limits::DEVICE_CLASS_BYTES_MAX
        && login.client.len() <= limits::CLIENT_NAME_BYTES_MAX
        && login.watch.len() <= limits::WATCHES_MAX;
    if !in_bounds {
        return Err(Refusal::new(Code::BadPayload, "a field of Login is missing or too long"));
    }
    let mut watch = Vec::with_capacity(login.watch.len());
    for name in &login.watch {
        let lobby = lobby(name, context)?;
        if !watch.contains(&lobby) {
            watch.push(lobby);
        }
    }
    let positions = positions(&login.positions)?;
    let resume = SessionId(login.resume_session_id);
    let ground = ground(login.background);
    Ok(Ask::Login { token: login.token, device: login.device_id, watch, positions, resume, ground })
}

fn ground(is_background: bool) -> Ground {
    if is_background { Ground::Background } else { Ground::Foreground }
}

fn positions(wire: &[v1::SyncFrom]) -> Result<Vec<SyncFrom>, Refusal> {
    if wire.len() > limits::SYNC_POSITIONS_MAX {
        return Err(Refusal::new(Code::BadPayload, "too many positions at once"));
    }
    let position = |from: &v1::SyncFrom| {
        let conversation = from.conversation_id.parse().map_err(|_| BAD_CONVERSATION)?;
        Ok(SyncFrom { conversation, epoch: Epoch(from.epoch), seq: Seq(from.seq) })
    };
    wire.iter().map(position).collect()
}

impl Member {
    pub(super) fn handle_command(
        &mut self,
        now: Millis,
        kind: Kind,
        ticket: Ticket,
        payload: Bytes,
        context: &SessionContext,
        actions: &mut Actions,
    ) -> Result<(), Refusal> {
        if self.in_flight >= context.in_flight_max {
            return Err(Refusal::new(Code::Overloaded, "too many commands wait for their reply"));
        }
        match kind {
            Kind::Send => self.send(now, ticket, payload, context, actions),
            Kind::Receipt => self.receipt(ticket, payload, actions, context),
            Kind::History => self.history(ticket, payload, actions, context),
            Kind::Watch => self.watch(ticket, payload, actions, context),
            Kind::Sync => self.sync(ticket, payload, actions, context),
            Kind::Pull => self.pull(ticket, payload, actions, context),
            _ => Err(Refusal::new(Code::UnknownKind, "not a command of this version")),
        }
    }

    fn send(
        &mut self,
        now: Millis,
        ticket: Ticket,
        payload: Bytes,
        context: &SessionContext,
        actions: &mut Actions,
    ) -> Result<(), Refusal> {
        let send = v1::Send::decode(payload).map_err(|_| BAD_PAYLOAD)?;
        let conversation = self.conversation(&send.conversation_id, context)?;
        if send.body.len() > context.body_bytes_max {
            return Err(Refusal::new(Code::BodyTooLarge, "the body is larger than max_body_bytes"));
        }
        let content_type = v1::ContentType::try_from(send.content_type)
            .map_err(|_| Refusal::new(Code::BadPayload, "no such content type"))?;
        let client_msg_id = ClientMsgId::new(send.client_msg_id)
            .map_err(|_| Refusal::new(Code::BadPayload, "client_msg_id has 1 to 64 bytes"))?;
        let event = IngestEvent::Accepted(Accepted {
            message_id: MessageId::derive(self.user, &client_msg_id),
            conversation,
            sender: self.user,
            session: self.session,
            gateway: context.gateway.clone(),
            accepted_at: now,
            content_type,
            body: send.body,
        });
        self.in_flight += 1;
        actions.accepted.push_back(Accepting { ticket, event, peer: conversation.peer_of(self.user) });
        Ok(())
    }

    fn receipt(
        &mut self,
        ticket: Ticket,
        payload: Bytes,
        actions: &mut Actions,
        context: &SessionContext,
    ) -> Result<(), Refusal> {
        let receipt = v1::Receipt::decode(payload).map_err(|_| BAD_PAYLOAD)?;
        let conversation = self.conversation(&receipt.conversation_id, context)?;
        if matches!(conversation, ConversationId::Lobby(_)) {
            return Err(Refusal::new(Code::BadConversation, "lobbies keep no receipts"));
        }
        let event = IngestEvent::ReceiptMoved(ReceiptMoved {
            conversation,
            user: self.user,
            // Reading implies delivery.
            delivered: Seq(receipt.delivered_seq.max(receipt.read_seq)),
            read: Seq(receipt.read_seq),
        });
        self.in_flight += 1;
        actions.accepted.push_back(Accepting { ticket, event, peer: conversation.peer_of(self.user) });
        Ok(())
    }

    fn history(
        &mut self,
        ticket: Ticket,
        payload: Bytes,
        actions: &mut Actions,
        context: &SessionContext,
    ) -> Result<(), Refusal> {
        let history = v1::History::decode(payload).map_err(|_| BAD_PAYLOAD)?;
        let conversation = self.conversation(&history.conversation_id, context)?;
        let page = match (history.after_seq, history.before_seq) {
            (Some(after), _) => Page::After(Seq(after)),
            (None, 0) => Page::Newest,
            (None, before) => Page::Before(Seq(before)),
        };
        let size = match history.page_size {
            0 => limits::HISTORY_PAGE_DEFAULT,
            size => size.min(limits::HISTORY_PAGE_MAX),
        };
        let watermarks = if history.watermarks { Watermarks::Shown } else { Watermarks::LeftOut };
        self.in_flight += 1;
        actions.requests.push_back(Request { ticket, ask: Ask::History { conversation, page, size, watermarks } });
        Ok(())
    }

    fn pull(
        &mut self,
        ticket: Ticket,
        payload: Bytes,
        actions: &mut Actions,
        context: &SessionContext,
    ) -> Result<(), Refusal> {
        let pull = v1::Pull::decode(payload).map_err(|_| BAD_PAYLOAD)?;
        let conversation = self.conversation(&pull.conversation_id, context)?;
        if matches!(conversation, ConversationId::Private { .. }) {
            return Err(Refusal::new(Code::BadConversation, "private conversations are not pulled"));
        }
        // Archives count in signed 64 bits.
        let seq = |seq: u64| Seq(seq.min(i64::MAX as u64));
        let after = pull.after_seq.map(|after| Place { epoch: Epoch(pull.epoch), seq: seq(after) });
        let before = (pull.before_seq > 0).then(|| seq(pull.before_seq));
        if before.is_some() && after.is_none() {
            return Err(Refusal::new(Code::BadPayload, "before_seq needs after_seq"));
        }
        self.in_flight += 1;
        actions.pulls.push_back((ticket, Pull { conversation, after, before }));
        Ok(())
    }

    /// A conversation that is none of the user's does not refuse the others: it gets an outcome of its own.
    fn sync(
        &mut self,
        ticket: Ticket,
        payload: Bytes,
        actions: &mut Actions,
        context: &SessionContext,
    ) -> Result<(), Refusal> {
        let sync = v1::Sync::decode(payload).map_err(|_| BAD_PAYLOAD)?;
        if sync.positions.is_empty() && !sync.others {
            return Err(Refusal::new(Code::BadPayload, "Sync asks for nothing"));
        }
        let with_access = |from: SyncFrom| {
            let access = if self.may_use(from.conversation, context) { Access::Granted } else { Access::Denied };
            (from, access)
        };
        let positions = positions(&sync.positions)?.into_iter().map(with_access).collect();
        let others = if sync.others { Others::Named(self.begin_look_up()) } else { Others::LeftOut };
        self.in_flight += 1;
        actions.requests.push_back(Request { ticket, ask: Ask::Sync { user: self.user, positions, others } });
        Ok(())
    }

    /// Answered at once: interest is the shard's own matter.
    fn watch(
        &mut self,
        ticket: Ticket,
        payload: Bytes,
        actions: &mut Actions,
        context: &SessionContext,
    ) -> Result<(), Refusal> {
        let watch = v1::Watch::decode(payload).map_err(|_| BAD_PAYLOAD)?;
        let parse = |names: &[String]| names.iter().map(|name| lobby(name, context)).collect::<Result<Vec<_>, _>>();
        let (begin, end) = (parse(&watch.watch)?, parse(&watch.unwatch)?);
        // Checked as a whole first, so that a refused Watch changes nothing.
        let mut watching: Vec<LobbyName> = self.watching.iter().copied().filter(|lobby| !end.contains(lobby)).collect();
        for lobby in begin {
            if !watching.contains(&lobby) {
                watching.push(lobby);
            }
        }
        if watching.len() > limits::WATCHES_MAX {
            return Err(Refusal::new(Code::BadPayload, "too many lobbies at once"));
        }
        let ended = self.watching.iter().filter(|lobby| !watching.contains(lobby));
        actions.interests.extend(ended.map(|lobby| Interest::Ends(ConversationId::Lobby(*lobby))));
        let begun = watching.iter().filter(|lobby| !self.watching.contains(lobby));
        actions.interests.extend(begun.map(|lobby| Interest::Begins(ConversationId::Lobby(*lobby))));
        let names = watching.iter().map(|lobby| lobby.as_str().to_owned()).collect();
        actions.is_hold_changed |= self.watching != watching;
        self.watching = watching;
        if let Some(is_background) = watch.background {
            self.ground = ground(is_background);
            actions.ground = Some(self.ground);
        }
        let reply = v1::WatchReply { watching: names, background: self.ground == Ground::Background };
        actions.reply(Kind::WatchReply, ticket.correlation, &reply);
        Ok(())
    }

    fn conversation(&self, text: &str, context: &SessionContext) -> Result<ConversationId, Refusal> {
        let conversation: ConversationId = text.parse().map_err(|_| BAD_CONVERSATION)?;
        if self.may_use(conversation, context) { Ok(conversation) } else { Err(NOT_MEMBER) }
    }
}

fn lobby(name: &str, context: &SessionContext) -> Result<LobbyName, Refusal> {
    let lobby: LobbyName = name.parse().map_err(|_| Refusal::new(Code::BadConversation, "not a lobby's name"))?;
    if context.lobbies.contains(&lobby) { Ok(lobby) } else { Err(NOT_MEMBER) }
}
