"""A small Tidegate client, written from PROTOCOL.md alone so that it tests the document as much as the server.

    wire = load_schema()
    with Connection.tcp("127.0.0.1", 7000, wire) as connection:
        reply = connection.login(token, "device-1", watch=["lobby_main"])
        connection.send("lobby_main", "hello")
        kind, push = connection.recv(timeout_s=5)

A Follower keeps in sync over many connections:

    follower = Follower(wire, "device-1", watch=["lobby_main"])
    follower.login(connection, token)
    follower.pump(timeout_s=5)
    follower.shown["lobby_main"]

It blocks, and one thread uses it at a time. Sections named below are those of PROTOCOL.md.
"""

from __future__ import annotations

import atexit
import collections
import functools
import importlib
import random
import shutil
import socket
import struct
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import NamedTuple

SCHEMA_DIR = Path(__file__).resolve().parents[2] / "schema"

# Section "Opening".
MAGIC = b"TIDE"
VERSION = 1
# Section "Frames": kind, flags, correlation, bytes of payload.
HEAD = struct.Struct(">BBHI")
FRAME_BYTES_MAX = 64 * 1024
# Section "Kinds".
REPLY_OFFSET = 0x40
KIND_ERROR = 0x7F
KIND_CLOSE = 0xBF
# Section "Storms".
GEAR_SIGNAL = 2
# Section "Bounds".
SYNC_POSITIONS_MAX = 500
SYNC_MESSAGES_MAX = 200
HISTORY_PAGE_MAX = 200


class WireError(Exception):
    """The server sent bytes that PROTOCOL.md does not allow."""


class CommandError(Exception):
    """The server answered a command with an Error reply."""

    def __init__(self, error):
        super().__init__(f"{error.code}: {error.text}")
        self.code = error.code
        self.text = error.text
        self.retry_after_ms = error.retry_after_ms

    @property
    def may_retry(self) -> bool:
        return 1000 <= self.code <= 1999


class ConnectionClosed(Exception):
    """The connection ended. `code` is the close code, or None if the stream ended without a Close frame."""

    def __init__(self, code: int | None, text: str = ""):
        super().__init__(f"{code}: {text}")
        self.code = code
        self.text = text

    @property
    def may_reconnect(self) -> bool:
        return self.code is None or 4000 <= self.code <= 4499


class Frame(NamedTuple):
    kind: int
    correlation: int
    payload: bytes


@functools.cache
def load_schema(schema_dir: Path = SCHEMA_DIR):
    """Generates the Protobuf module from the schema into a directory that lives as long as this process."""
    from grpc_tools import protoc

    out = tempfile.mkdtemp(prefix="tidegate-schema-")
    atexit.register(shutil.rmtree, out, ignore_errors=True)
    files = ["tidegate/v1/client.proto", "tidegate/event/v1/event.proto"]
    status = protoc.main(["protoc", f"--proto_path={schema_dir}", f"--python_out={out}", *files])
    if status != 0:
        raise RuntimeError(f"protoc ended with status {status}")
    sys.path.insert(0, out)
    return importlib.import_module("tidegate.v1.client_pb2")


def encode_opening(version: int = VERSION) -> bytes:
    return MAGIC + bytes([version, 0, 0, 0])


def encode_frame(frame: Frame) -> bytes:
    return HEAD.pack(frame.kind, 0, frame.correlation, len(frame.payload)) + frame.payload


class FrameReader:
    """Cuts frames out of chunks that may begin and end anywhere."""

    def __init__(self, frame_bytes_max: int = FRAME_BYTES_MAX):
        self._frame_bytes_max = frame_bytes_max
        self._unread = bytearray()

    def feed(self, chunk: bytes) -> list[Frame]:
        self._unread += chunk
        frames = []
        while len(self._unread) >= HEAD.size:
            kind, flags, correlation, payload_bytes = HEAD.unpack_from(self._unread)
            if flags != 0:
                raise WireError(f"reserved flags {flags:#04x}")
            end = HEAD.size + payload_bytes
            if end > self._frame_bytes_max:
                raise WireError(f"a frame of {end} bytes")
            if len(self._unread) < end:
                break
            frames.append(Frame(kind, correlation, bytes(self._unread[HEAD.size : end])))
            del self._unread[:end]
        return frames

    @property
    def unread_bytes(self) -> int:
        return len(self._unread)


class _Tcp:
    def __init__(self, host: str, port: int, timeout_s: float):
        self.socket = socket.create_connection((host, port), timeout=timeout_s)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def write(self, data: bytes) -> None:
        self.socket.sendall(data)

    def read(self, timeout_s: float) -> bytes:
        self.socket.settimeout(timeout_s)
        chunk = self.socket.recv(64 * 1024)
        if not chunk:
            raise ConnectionClosed(None, "the stream ended")
        return chunk

    def close(self) -> None:
        self.socket.close()


class _WebSocket:
    """Section "WebSocket": every write is one binary message of whole frames."""

    def __init__(self, url: str, timeout_s: float):
        from websockets.sync.client import connect

        self.socket = connect(url, open_timeout=timeout_s, compression=None, max_size=None)

    def write(self, data: bytes) -> None:
        from websockets.exceptions import ConnectionClosed as Closed

        try:
            self.socket.send(data)
        except Closed as closed:
            raise _closed(closed) from closed

    def read(self, timeout_s: float) -> bytes:
        from websockets.exceptions import ConnectionClosed as Closed

        try:
            message = self.socket.recv(timeout=timeout_s)
        except Closed as closed:
            raise _closed(closed) from closed
        if isinstance(message, str):
            raise WireError("a text message")
        return message

    def close(self) -> None:
        self.socket.close()


def _closed(closed) -> ConnectionClosed:
    return ConnectionClosed(closed.rcvd.code, closed.rcvd.reason) if closed.rcvd else ConnectionClosed(None, str(closed))


class Connection:
    """One connection. Commands block until their reply; pushes that arrive meanwhile wait for `recv`."""

    def __init__(self, transport, wire, timeout_s: float = 10):
        self.transport = transport
        self.wire = wire
        self.timeout_s = timeout_s
        self._reader = FrameReader()
        self._arrived: collections.deque[Frame] = collections.deque()
        self._pushes: collections.deque[Frame] = collections.deque()
        self._correlation = 0
        self._opening_to_send = encode_opening()

    @classmethod
    def tcp(cls, host: str, port: int, wire, timeout_s: float = 10) -> Connection:
        return cls(_Tcp(host, port, timeout_s), wire, timeout_s)

    @classmethod
    def websocket(cls, url: str, wire, timeout_s: float = 10) -> Connection:
        return cls(_WebSocket(url, timeout_s), wire, timeout_s)

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        self.transport.close()

    # ---- commands

    def login(self, token: str, device_id: str, device_class: str = "desktop", client: str = "tidegate_wire", watch=(),
              resume_session_id: int = 0, positions=(), background: bool = False):
        """Sends the opening and logs in; `positions` are SyncFrom. Returns the LoginReply."""
        return self.command("LOGIN", self.wire.Login(
            token=token, device_id=device_id, device_class=device_class, client=client, watch=watch,
            resume_session_id=resume_session_id, positions=positions, background=background))

    def sync(self, positions, others: bool = False):
        """Asks what is missing above each SyncFrom. The reply answers a first part of them, in their order."""
        return self.command("SYNC", self.wire.Sync(positions=positions, others=others))

    def send(self, conversation_id: str, body: str | bytes, client_msg_id: bytes | None = None):
        """Sends a message and returns its SendAck. Give the same client_msg_id again to repeat it."""
        is_text = isinstance(body, str)
        return self.command("SEND", self.wire.Send(
            conversation_id=conversation_id,
            client_msg_id=client_msg_id or uuid.uuid4().bytes,
            content_type=self.wire.CONTENT_TYPE_TEXT if is_text else self.wire.CONTENT_TYPE_BINARY,
            body=body.encode() if is_text else body))

    def history(self, conversation_id: str, before_seq: int = 0, after_seq: int | None = None, page_size: int = 0,
                watermarks: bool = False):
        return self.command("HISTORY", self.wire.History(
            conversation_id=conversation_id, before_seq=before_seq, after_seq=after_seq, page_size=page_size,
            watermarks=watermarks))

    def receipt(self, conversation_id: str, delivered_seq: int = 0, read_seq: int = 0):
        return self.command("RECEIPT", self.wire.Receipt(
            conversation_id=conversation_id, delivered_seq=delivered_seq, read_seq=read_seq))

    def watch(self, watch=(), unwatch=(), background: bool | None = None):
        return self.command("WATCH", self.wire.Watch(watch=watch, unwatch=unwatch, background=background))

    def pull(self, conversation_id: str, epoch: int = 0, after_seq: int | None = None, before_seq: int = 0):
        """What is newest above after_seq; with before_seq what lies between the two, oldest first."""
        return self.command("PULL", self.wire.Pull(
            conversation_id=conversation_id, epoch=epoch, after_seq=after_seq, before_seq=before_seq))

    def ping(self):
        return self.command("PING", self.wire.Ping())

    def command(self, name: str, message):
        """Sends command KIND_<name> and returns its decoded reply; raises CommandError for an Error reply."""
        kind = self.wire.Kind.Value(f"KIND_{name}")
        correlation = self.send_frame(kind, message.SerializeToString())
        deadline = time.monotonic() + self.timeout_s
        while True:
            frame = self.recv_frame(deadline)
            if frame.correlation != correlation or not 0x40 <= frame.kind <= 0x7F:
                self._pushes.append(frame)
            elif frame.kind == KIND_ERROR:
                raise CommandError(self.decode(frame))
            elif frame.kind == kind + REPLY_OFFSET:
                return self.decode(frame)
            else:
                raise WireError(f"kind {frame.kind:#x} answers kind {kind:#x}")

    # ---- pushes and replies nobody waits for

    def recv(self, timeout_s: float | None = None):
        """The next push as (name of its kind, message); raises TimeoutError, or ConnectionClosed at the end."""
        deadline = time.monotonic() + (self.timeout_s if timeout_s is None else timeout_s)
        while True:
            frame = self._pushes.popleft() if self._pushes else self.recv_frame(deadline)
            # Section "Kinds": a client skips pushes it does not know.
            if frame.kind in self.wire.Kind.values():
                return self.wire.Kind.Name(frame.kind), self.decode(frame)

    # ---- frames and bytes, for tests that misbehave

    def send_frame(self, kind: int, payload: bytes, correlation: int | None = None) -> int:
        if correlation is None:
            self._correlation = self._correlation % 0xFFFF + 1
            correlation = self._correlation
        self.send_bytes(self._opening_to_send + encode_frame(Frame(kind, correlation, payload)))
        self._opening_to_send = b""
        return correlation

    def send_bytes(self, data: bytes) -> None:
        """Writes bytes as they are; over WebSocket as one message. The opening is the caller's business here."""
        try:
            self.transport.write(data)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise ConnectionClosed(None, str(error)) from error

    def recv_frame(self, deadline: float) -> Frame:
        """The next frame of any kind until `deadline` (time.monotonic); a Close frame raises ConnectionClosed."""
        while not self._arrived:
            timeout_s = deadline - time.monotonic()
            if timeout_s <= 0:
                raise TimeoutError("nothing arrived in time")
            try:
                self._arrived.extend(self._reader.feed(self.transport.read(timeout_s)))
            except ConnectionResetError as error:
                raise ConnectionClosed(None, str(error)) from error
        frame = self._arrived.popleft()
        if frame.kind == KIND_CLOSE:
            close = self.decode(frame)
            raise ConnectionClosed(close.code, close.text)
        return frame

    def decode(self, frame: Frame):
        """The Protobuf message of a frame whose kind the schema knows."""
        return message_type(self.wire, frame.kind).FromString(frame.payload)


class _Place:
    """Where the client stands in a conversation, and the messages that wait for those before them."""

    def __init__(self, epoch: int = 0, last: int = 0):
        self.epoch = epoch
        self.last = last  # Up to here everything is shown.
        self.aside = {}
        # Section "Storms".
        self.newest = last  # The newest that is shown, maybe behind a gap.
        self.beyond = {}  # Shown behind a gap.
        self.gear = 0
        self.spread_ms = 1000
        self.pull_at: float | None = None
        self.pulled_at = float("-inf")

    @property
    def pulls(self) -> bool:
        """What is missing at the end comes by a Pull that is due or will be."""
        return self.pull_at is not None or self.gear == GEAR_SIGNAL


class Follower:
    """Sections "Staying in sync", "Storms" and "Connecting again": follows a device's conversations over its connections.

    `shown` has, per conversation, everything that was said: each message once and in order. It follows each conversation
    from its first message. `live` has the same messages in the order in which they came onto the screen: in a storm the
    newest first, and what it left out when it is over. An answer that is not what PROTOCOL.md promises is a WireError.
    """

    ASIDE_MAX = 1000
    BEYOND_MAX = 20_000

    def __init__(self, wire, device_id: str, watch=(), sleep=time.sleep, clock=time.monotonic):
        self.wire = wire
        self.device_id = device_id
        self.watch = list(watch)
        self.session_id = 0
        self.user_id = 0
        self.shown = collections.defaultdict(list)
        self.live = collections.defaultdict(list)
        self.unread = {}
        self._sleep = sleep
        self._clock = clock
        self._phase = random.random()
        self._places: dict[str, _Place] = {lobby: _Place() for lobby in watch}
        self._due: dict[str, None] = {}
        self._others_due = False

    def login(self, connection, token: str):
        """Logs in over a new connection, goes on with the session, and is in sync when it returns the LoginReply."""
        self.connection = connection
        self._phase = random.random()
        for place in self._places.values():
            # Another connection says anew how messages travel, and the positions ask for what is missing.
            place.gear, place.pull_at, place.pulled_at = 0, None, float("-inf")
        positions = self.positions(self._places)
        asked = positions[:SYNC_POSITIONS_MAX]
        reply = connection.login(token, self.device_id, watch=self.watch, resume_session_id=self.session_id, positions=asked)
        if reply.resumed and reply.session_id != self.session_id:
            raise WireError("another session was resumed")
        if not set(self.watch) <= set(reply.watching):
            raise WireError("a lobby is not watched")
        self.session_id, self.user_id = reply.session_id, reply.user_id
        self._due = dict.fromkeys(position.conversation_id for position in positions[len(asked) :])
        self._others_due = False
        self._found(reply.positions)
        self._answered(asked, reply.synced)
        self.sync()
        return reply

    def positions(self, conversation_ids):
        known = ((id, self._places[id]) for id in conversation_ids if id in self._places)
        return [self.wire.SyncFrom(conversation_id=id, epoch=place.epoch, seq=place.last) for id, place in known]

    def pump(self, timeout_s: float | None = None) -> str:
        """Handles the next push and closes the gap it may have shown, or pulls. Returns the name of the push's kind, or ""."""
        deadline = self._clock() + (self.connection.timeout_s if timeout_s is None else timeout_s)
        while True:
            due = min((place.pull_at for place in self._places.values() if place.pull_at is not None), default=deadline)
            try:
                kind, push = self.connection.recv(min(due, deadline) - self._clock())
            except TimeoutError:
                if self.pull():
                    return ""
                if self._clock() >= deadline:
                    raise
                continue
            self.handle(kind, push)
            return kind

    def handle(self, kind: str, push) -> None:
        if kind in ("KIND_MESSAGE", "KIND_MESSAGES"):
            for message in [push] if kind == "KIND_MESSAGE" else push.messages:
                self._end_of_signal(message)
                self._take(message)
        elif kind == "KIND_NOTIFY_NEW_MESSAGES":
            self._notified(push)
        elif kind == "KIND_GEAR_CHANGED":
            self._shifted(push)
        elif kind == "KIND_BEHIND":
            self._behind(push)
        elif kind == "KIND_MEMBERSHIP_CHANGED" and push.user_id == self.user_id:
            if push.joined:
                self._place(push.conversation_id)
                self._due[push.conversation_id] = None
            elif push.conversation_id in self._places:
                self._forget(push.conversation_id)
        self.sync()

    def sync(self) -> None:
        """Asks about every conversation in which something may be missing, and applies the answers."""
        while self._due or self._others_due:
            asked = self.positions(self._due)[:SYNC_POSITIONS_MAX]
            others, self._others_due = self._others_due, False
            if not asked and not others:  # All of them were forgotten.
                self._due.clear()
                return
            for position in asked:
                del self._due[position.conversation_id]
            reply = self.connection.sync(asked, others)
            if asked and not reply.synced:
                raise WireError("a SyncReply that answers nothing")
            self._answered(asked, reply.synced)
            self._found(reply.others)

    def _behind(self, behind) -> None:
        id = behind.conversation_id
        if id:
            place = self._place(id)
            if behind.last_seq and (place.epoch, place.last) >= (behind.epoch, behind.last_seq):
                return
            if place.pulls:
                self._pull_soon(place)
                return
            self._due[id] = None
        else:
            self._due.update(dict.fromkeys(self._places))
            self._others_due = True
        self._sleep(random.uniform(0, behind.spread_ms / 1000))

    def _found(self, positions) -> None:
        """What a login or an answer names; of what is new everything is asked for."""
        for position in positions:
            self.unread[position.conversation_id] = position.unread
            if position.conversation_id not in self._places:
                self._place(position.conversation_id)
                self._due[position.conversation_id] = None

    def _answered(self, asked, synced) -> None:
        if len(synced) > len(asked):
            raise WireError("more answers than questions")
        for question in asked[len(synced) :]:
            self._due[question.conversation_id] = None
        for question, answer in zip(asked, synced):
            if answer.conversation_id != question.conversation_id:
                raise WireError(f"{answer.conversation_id} answers {question.conversation_id}")
            self._apply(question, answer)

    def _apply(self, question, answer) -> None:
        id, wire = question.conversation_id, self.wire
        place = self._places.get(id)
        if place is None:
            return
        if place.epoch != question.epoch:
            self._due[id] = None
        elif answer.outcome == wire.SYNC_OUTCOME_WHOLE:
            seqs = [message.seq for message in answer.messages]
            if seqs != list(range(question.seq + 1, answer.last_seq + 1)) or question.epoch not in (0, answer.epoch):
                raise WireError(f"a part of {id} that looks whole")
            place.epoch = answer.epoch
            self.unread[id] = answer.unread
            for message in answer.messages:
                self._take(message)
            if place.aside:
                raise WireError(f"a message of {id} was pushed before it was stored")
        elif answer.messages:
            raise WireError(f"messages of {id} with an outcome that has none")
        elif answer.outcome == wire.SYNC_OUTCOME_RELOAD:
            if answer.epoch != place.epoch:
                self._restart(id, answer.epoch)
            self.unread[id] = answer.unread
            self._page(id)
        else:
            self._forget(id)

    def _take(self, message) -> None:
        """The rule for messages."""
        id = message.conversation_id
        place = self._place(id)
        if message.epoch > place.epoch:
            self._restart(id, message.epoch)
        if message.epoch < place.epoch or message.seq <= place.last or message.seq in place.beyond:
            return
        if message.seq == place.last + 1:
            self._show(id, place, message)
        elif message.sender_id == 0:
            # The system speaks ahead of others.
            self.live[id].append(message)
            place.beyond[message.seq] = message
        elif message.seq == place.newest + 1:
            self._show_beyond(id, place, message)
        else:
            if len(place.aside) < self.ASIDE_MAX:
                place.aside[message.seq] = message
            if place.pulls:
                self._pull_soon(place)
            else:
                self._due[id] = None

    def _show(self, id: str, place: _Place, message) -> None:
        """The next message, and those behind it that are here."""
        self.live[id].append(message)
        while message:
            self.shown[id].append(message)
            place.last = message.seq
            place.aside.pop(place.last, None)
            message = place.beyond.pop(place.last + 1, None)
            if message is None and (message := place.aside.pop(place.last + 1, None)):
                self.live[id].append(message)
        place.newest = max(place.newest, place.last)

    def _show_beyond(self, id: str, place: _Place, message) -> None:
        """The next one behind a gap."""
        while message:
            if message.seq not in place.beyond:
                self.live[id].append(message)
                place.beyond[message.seq] = message
            place.newest = message.seq
            message = place.aside.pop(place.newest + 1, None) or place.beyond.get(place.newest + 1)
        if len(place.beyond) > self.BEYOND_MAX:
            self._fill(id)

    # ---- section "Storms"

    def _notified(self, notice) -> None:
        place = self._place(notice.conversation_id)
        if notice.epoch < place.epoch:
            return
        place.gear, place.spread_ms = GEAR_SIGNAL, max(notice.spread_ms, 1)
        if (notice.epoch, notice.latest_seq) > (place.epoch, place.newest):
            self._pull_soon(place)

    def _shifted(self, changed) -> None:
        place = self._place(changed.conversation_id)
        if changed.epoch < place.epoch:
            return
        place.gear = changed.gear
        is_missing = (changed.epoch, changed.from_seq) > (place.epoch, place.newest + 1)
        if is_missing or place.beyond and place.gear != GEAR_SIGNAL:
            self._pull_soon(place)  # And what was left out with it.

    def _end_of_signal(self, message) -> None:
        """Only the system's messages are pushed in signal gear: a new one of somebody's says that the gear has changed."""
        place = self._place(message.conversation_id)
        if place.gear == GEAR_SIGNAL and message.sender_id and message.epoch == place.epoch and message.seq > place.newest:
            place.gear = 0
            if place.beyond or message.seq > place.newest + 1:
                self._pull_soon(place)

    def _pull_soon(self, place: _Place) -> None:
        """At the next phase that the last Pull, which may have been late, was not meant for."""
        if place.pull_at is None:
            spread_s = place.spread_ms / 1000
            start = max(self._clock(), place.pulled_at + spread_s / 2)
            place.pull_at = start + (self._phase * spread_s - start) % spread_s

    def pull(self) -> bool:
        """Pulls where it is due. Returns whether it was anywhere."""
        due = [id for id, place in self._places.items() if place.pull_at is not None and place.pull_at <= self._clock()]
        for id in due:
            self._pull(id)
        self.sync()
        return bool(due)

    def _pull(self, id: str) -> None:
        place = self._places[id]
        after = place.newest
        place.pull_at, place.pulled_at = None, self._clock()
        try:
            reply = self.connection.pull(id, place.epoch, after)
        except CommandError as error:
            if not error.may_retry:
                raise
            place.pull_at = self._clock() + max(error.retry_after_ms, 100) / 1000
            return
        self._check_pulled(id, reply)
        if reply.epoch < place.epoch:
            return self._pull_soon(place)
        if reply.epoch > place.epoch:
            self._restart(id, reply.epoch)
        elif reply.messages and not reply.gap and reply.from_seq > after + 1:
            raise WireError(f"a gap in {id} that is not named")
        for message in reply.messages:
            if message.seq == place.last + 1:
                self._show(id, place, message)
            elif message.seq > place.newest:
                self._show_beyond(id, place, message)
        if reply.more and reply.to_seq > after:
            return self._pull(id)
        if place.gear == GEAR_SIGNAL:
            if place.newest > after or reply.latest_seq > place.newest:
                self._pull_soon(place)
            return
        self._fill(id)
        if place.aside or reply.latest_seq > place.newest:
            self._due[id] = None

    def _fill(self, id: str) -> None:
        """What was left out, all of it."""
        place, tries = self._places[id], 0
        while ahead := [seq for seq in place.beyond if seq > place.last]:
            before, last = min(ahead), place.last
            reply = self.connection.pull(id, place.epoch, last, before)
            self._check_pulled(id, reply)
            if reply.epoch != place.epoch:
                self._due[id] = None
                return
            for message in reply.messages:
                if message.seq == place.last + 1:
                    self._show(id, place, message)
            tries = tries + 1 if place.last == last else 0
            if tries > 10:
                raise WireError(f"{id} is not filled above {last}")
            if tries:
                self._sleep(0.1)

    def _check_pulled(self, id: str, reply) -> None:
        seqs = [message.seq for message in reply.messages]
        if reply.conversation_id != id:
            raise WireError(f"{reply.conversation_id} answers a Pull of {id}")
        if seqs != list(range(reply.from_seq, reply.to_seq + 1)) and (seqs or reply.from_seq or reply.to_seq):
            raise WireError(f"a pulled part of {id} with a gap in it")
        if any(message.epoch != reply.epoch for message in reply.messages):
            raise WireError(f"messages of several epochs were pulled from {id}")

    def _page(self, id: str) -> None:
        place, more = self._places[id], True
        while more:
            page = self.connection.history(id, after_seq=place.last, page_size=HISTORY_PAGE_MAX)
            if page.epoch < place.epoch:
                self._due[id] = None
                return
            if page.epoch > place.epoch:
                self._restart(id, page.epoch)
                continue
            if page.more and not page.messages:
                raise WireError("an empty page before the end")
            for message in page.messages:
                self._take(message)
            more = page.more

    def _place(self, id: str) -> _Place:
        return self._places.setdefault(id, _Place())

    def _restart(self, id: str, epoch: int) -> None:
        place = self._places[id]
        place.epoch, place.last, place.aside, place.newest, place.beyond = epoch, 0, {}, 0, {}
        self.shown.pop(id, None)
        self.live.pop(id, None)

    def _forget(self, id: str) -> None:
        del self._places[id]
        self._due.pop(id, None)
        self.unread.pop(id, None)
        self.shown.pop(id, None)
        self.live.pop(id, None)


def message_type(wire, kind: int):
    """The message of a kind has the kind's name: KIND_SEND_ACK is a SendAck."""
    name = wire.Kind.Name(kind).removeprefix("KIND_")
    return getattr(wire, "".join(word.capitalize() for word in name.split("_")))
