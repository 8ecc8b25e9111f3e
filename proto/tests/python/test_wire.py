"""Checks the golden files both ways in a second language: bytes to values, values to the same bytes.

The values are written out here once more and not shared with the Rust tests, so that the two agree only through the bytes.
"""

import re
import unittest
from pathlib import Path

import tidegate_wire
from tidegate_wire import Frame, FrameReader, WireError, encode_frame, encode_opening, load_schema, message_type

GOLDEN_DIR = Path(__file__).resolve().parents[1] / "golden"
PROTOCOL = Path(__file__).resolve().parents[2] / "PROTOCOL.md"
WIRE = load_schema()

TOKEN = "3f2b8a9c-0d7e-4b61-9f35-6f1f3e0a2c11"
CLIENT_MSG_ID = bytes.fromhex("018f3a5c9e7b7c0d8a1b2c3d4e5f6071")
MESSAGE_ID = bytes.fromhex("a687157f72a84d13e1df361696144e0b")

OTHER_MESSAGE_ID = bytes(range(16))


def hello(**changes):
    values = dict(conversation_id="p_17_42", seq=3, epoch=1, message_id=MESSAGE_ID, sender_id=17,
                  sent_at_ms=1767225600250, content_type=WIRE.CONTENT_TYPE_TEXT, body="héllo".encode())
    return WIRE.Message(**{**values, **changes})


def earlier():
    return hello(message_id=OTHER_MESSAGE_ID, sender_id=42, seq=2, sent_at_ms=1767225590000)


def in_lobby(seq: int, message_id: bytes):
    return hello(conversation_id="lobby_main", seq=seq, message_id=message_id)


def pull_reply(**values):
    return WIRE.PullReply(conversation_id="lobby_main", epoch=1, **values)


# File name: what it holds, in order; ("opening", version) or (kind, correlation, message).
CASES = {
    "opening": [("opening", 1)],
    "login": [("LOGIN", 1, WIRE.Login(
        token=TOKEN, device_id="desk-1", device_class="desktop", client="golden/1.0", watch=["lobby_main", "lobby_eu-west"]))],
    "login_reply": [("LOGIN_REPLY", 1, WIRE.LoginReply(
        user_id=17, user_name="ann", session_id=0x0123456789ABCDEF, gateway_id="gw-1", server_time_ms=1767225600000,
        heartbeat=WIRE.Heartbeat(min_interval_s=5, max_interval_s=180, probe_count=3),
        max_frame_bytes=65536, max_body_bytes=8192, max_in_flight=64,
        positions=[WIRE.Position(conversation_id="p_17_42", epoch=1, last_seq=3, read_seq=1, unread=2),
                   WIRE.Position(conversation_id="r_7", epoch=2)],
        recent=[earlier()]))],
    "login_resume": [("LOGIN", 1, WIRE.Login(
        token=TOKEN, device_id="desk-1", watch=["lobby_main"], resume_session_id=0x0123456789ABCDEF,
        positions=[WIRE.SyncFrom(conversation_id="p_17_42", epoch=1, seq=1),
                   WIRE.SyncFrom(conversation_id="lobby_main", epoch=1, seq=69000),
                   WIRE.SyncFrom(conversation_id="r_7", epoch=2, seq=5), WIRE.SyncFrom(conversation_id="r_8")]))],
    "login_reply_resumed": [("LOGIN_REPLY", 1, WIRE.LoginReply(
        user_id=17, user_name="ann", session_id=0x0123456789ABCDEF, gateway_id="gw-1", server_time_ms=1767225600000,
        heartbeat=WIRE.Heartbeat(min_interval_s=5, max_interval_s=180, probe_count=3),
        max_frame_bytes=65536, max_body_bytes=8192, max_in_flight=64,
        positions=[WIRE.Position(conversation_id="p_17_42", epoch=1, last_seq=3, read_seq=1, unread=1)],
        resumed=True, watching=["lobby_eu-west", "lobby_main"],
        synced=[WIRE.Synced(conversation_id="p_17_42", epoch=1, last_seq=3, outcome=WIRE.SYNC_OUTCOME_WHOLE,
                            messages=[earlier(), hello()], read_seq=1, unread=1),
                WIRE.Synced(conversation_id="lobby_main", epoch=1, last_seq=70000, outcome=WIRE.SYNC_OUTCOME_RELOAD),
                WIRE.Synced(conversation_id="r_7", outcome=WIRE.SYNC_OUTCOME_NOT_MEMBER)]))],
    "login_background": [("LOGIN", 1, WIRE.Login(token=TOKEN, device_id="phone-1", watch=["lobby_main"], background=True))],
    "ping": [("PING", 2, WIRE.Ping())],
    "pong": [("PONG", 2, WIRE.Pong(server_time_ms=1767225600100))],
    "send": [("SEND", 3, WIRE.Send(
        conversation_id="p_17_42", client_msg_id=CLIENT_MSG_ID, content_type=WIRE.CONTENT_TYPE_TEXT, body="héllo".encode()))],
    "send_binary": [("SEND", 0xFFFF, WIRE.Send(
        conversation_id="r_7", client_msg_id=b"\x01", content_type=WIRE.CONTENT_TYPE_BINARY, body=bytes([0, 255])))],
    "send_ack": [("SEND_ACK", 3, WIRE.SendAck(message_id=MESSAGE_ID, accepted_at_ms=1767225600250))],
    "receipt": [("RECEIPT", 4, WIRE.Receipt(conversation_id="p_17_42", read_seq=3))],
    "receipt_ack": [("RECEIPT_ACK", 4, WIRE.ReceiptAck())],
    "history_newest": [("HISTORY", 5, WIRE.History(conversation_id="p_17_42"))],
    "history_after": [("HISTORY", 5, WIRE.History(conversation_id="p_17_42", after_seq=0, page_size=200))],
    "history_reply": [("HISTORY_REPLY", 5, WIRE.HistoryReply(
        conversation_id="p_17_42", epoch=1, last_seq=3,
        messages=[earlier(), hello()], more=True))],
    "history_watermarks": [("HISTORY", 5, WIRE.History(conversation_id="p_17_42", page_size=1, watermarks=True))],
    "history_reply_watermarks": [("HISTORY_REPLY", 5, WIRE.HistoryReply(
        conversation_id="p_17_42", epoch=1, last_seq=3, messages=[hello()], more=True,
        watermarks=[WIRE.Watermark(user_id=17, delivered_seq=3, read_seq=3),
                    WIRE.Watermark(user_id=42, delivered_seq=3, read_seq=2)]))],
    "watch": [("WATCH", 6, WIRE.Watch(watch=["lobby_main"], unwatch=["lobby_eu-west"]))],
    "watch_reply": [("WATCH_REPLY", 6, WIRE.WatchReply(watching=["lobby_main"]))],
    "watch_background": [("WATCH", 9, WIRE.Watch(background=True))],
    "watch_foreground": [("WATCH", 10, WIRE.Watch(background=False))],
    "watch_reply_background": [("WATCH_REPLY", 9, WIRE.WatchReply(watching=["lobby_main"], background=True))],
    "sync": [("SYNC", 7, WIRE.Sync(positions=[
        WIRE.SyncFrom(conversation_id="r_8"), WIRE.SyncFrom(conversation_id="p_17_42", epoch=1, seq=3)]))],
    "sync_reply": [("SYNC_REPLY", 7, WIRE.SyncReply(synced=[
        WIRE.Synced(conversation_id="r_8", epoch=2),
        WIRE.Synced(conversation_id="p_17_42", epoch=1, last_seq=3, read_seq=1, unread=1)]))],
    "sync_others": [("SYNC", 8, WIRE.Sync(
        positions=[WIRE.SyncFrom(conversation_id="p_17_42", epoch=1, seq=3)], others=True))],
    "sync_reply_others": [("SYNC_REPLY", 8, WIRE.SyncReply(
        synced=[WIRE.Synced(conversation_id="p_17_42", epoch=1, last_seq=3, read_seq=1, unread=1)],
        others=[WIRE.Position(conversation_id="p_5_17", epoch=1, last_seq=2, unread=2)]))],
    "pull": [("PULL", 11, WIRE.Pull(conversation_id="lobby_main", epoch=1, after_seq=70000))],
    "pull_newest": [("PULL", 12, WIRE.Pull(conversation_id="lobby_main"))],
    "pull_reply": [("PULL_REPLY", 11, pull_reply(
        from_seq=70320, to_seq=70321, latest_seq=70321, gap=True,
        messages=[in_lobby(70320, OTHER_MESSAGE_ID), in_lobby(70321, MESSAGE_ID)]))],
    "pull_fill": [("PULL", 13, WIRE.Pull(conversation_id="lobby_main", epoch=1, after_seq=70000, before_seq=70320))],
    "pull_reply_fill": [("PULL_REPLY", 13, pull_reply(
        from_seq=70001, to_seq=70001, latest_seq=70400, more=True, messages=[in_lobby(70001, MESSAGE_ID)]))],
    "pull_reply_nothing": [("PULL_REPLY", 12, pull_reply())],
    "error_slow_down": [("ERROR", 7, WIRE.Error(code=WIRE.CODE_SLOW_DOWN, text="slow down", retry_after_ms=1500))],
    "error_unknown_kind": [("ERROR", 8, WIRE.Error(code=WIRE.CODE_UNKNOWN_KIND, text="no such command"))],
    "error_token_expired_then_close": [
        ("ERROR", 1, WIRE.Error(code=WIRE.CODE_TOKEN_EXPIRED, text="the token's time is over")),
        ("CLOSE", 0, WIRE.Close(code=WIRE.CLOSE_CODE_TOKEN_REJECTED, text="the token is not valid, log in again"))],
    "message": [("MESSAGE", 0, hello())],
    "send_rejected": [("SEND_REJECTED", 0, WIRE.SendRejected(
        message_id=MESSAGE_ID, conversation_id="r_7", code=WIRE.CODE_CONFLICT, text="used before"))],
    "receipt_moved": [("RECEIPT_MOVED", 0, WIRE.ReceiptMoved(
        conversation_id="p_17_42", user_id=42, delivered_seq=3, read_seq=2))],
    "membership_changed": [("MEMBERSHIP_CHANGED", 0, WIRE.MembershipChanged(
        conversation_id="r_7", user_id=42, joined=True))],
    "behind": [("BEHIND", 0, WIRE.Behind(conversation_id="lobby_main", epoch=1, after_seq=70000, last_seq=70321))],
    "behind_everywhere": [("BEHIND", 0, WIRE.Behind(spread_ms=5000))],
    "message_system": [("MESSAGE", 0, WIRE.Message(
        conversation_id="lobby_main", seq=70310, epoch=1, message_id=MESSAGE_ID, sent_at_ms=1767225600250,
        body=b"back in an hour"))],
    "messages": [("MESSAGES", 0, WIRE.Messages(
        messages=[in_lobby(70299, OTHER_MESSAGE_ID), in_lobby(70300, MESSAGE_ID)]))],
    "notify_new_messages": [("NOTIFY_NEW_MESSAGES", 0, WIRE.NotifyNewMessages(
        conversation_id="lobby_main", epoch=1, latest_seq=70321, spread_ms=1500))],
    "gear_changed": [("GEAR_CHANGED", 0, WIRE.GearChanged(
        conversation_id="lobby_main", epoch=1, gear=WIRE.GEAR_SIGNAL, from_seq=70301))],
    "gear_changed_direct": [("GEAR_CHANGED", 0, WIRE.GearChanged(conversation_id="lobby_main", epoch=1, from_seq=70401))],
    "counts": [("COUNTS", 0, WIRE.Counts(counts=[
        WIRE.Count(conversation_id="p_17_42", epoch=1, last_seq=3, new_messages=1),
        WIRE.Count(conversation_id="lobby_main", epoch=1, last_seq=70321, new_messages=312)]))],
    "close_draining": [("CLOSE", 0, WIRE.Close(
        code=WIRE.CLOSE_CODE_DRAINING, text="this gateway is going away, connect to another"))],
    "close_unsupported_version": [("CLOSE", 0, WIRE.Close(
        code=WIRE.CLOSE_CODE_UNSUPPORTED_VERSION, text="this version of the protocol is not spoken here"))],
    "several_frames": [
        ("opening", 1),
        ("LOGIN", 1, WIRE.Login(token=TOKEN, device_id="desk-1")),
        ("PING", 2, WIRE.Ping()),
        ("SEND", 3, WIRE.Send(conversation_id="lobby_main", client_msg_id=CLIENT_MSG_ID, body=b"hi"))],
}

# File name: what is wrong with it.
BAD = {
    "bad_flags": "reserved flags",
    "bad_too_large": "a frame of 65537 bytes",
}
BAD_OPENINGS = {"bad_opening_magic", "bad_opening_version", "bad_opening_reserved"}


def read_hex(text: str) -> bytes:
    return bytes.fromhex("".join(line.partition("#")[0] for line in text.splitlines()))


def golden(name: str) -> bytes:
    return read_hex((GOLDEN_DIR / f"{name}.hex").read_text())


def encode(case) -> bytes:
    if case[0] == "opening":
        return encode_opening(case[1])
    name, correlation, message = case
    return encode_frame(Frame(WIRE.Kind.Value(f"KIND_{name}"), correlation, message.SerializeToString(deterministic=True)))


class GoldenFiles(unittest.TestCase):
    def test_every_file_is_known_here(self):
        files = {path.stem for path in GOLDEN_DIR.glob("*.hex") if not path.stem.startswith("ws_")}
        self.assertEqual(files, set(CASES) | set(BAD) | BAD_OPENINGS)

    def test_values_encode_to_the_golden_bytes(self):
        for name, items in CASES.items():
            with self.subTest(name):
                self.assertEqual(b"".join(map(encode, items)).hex(" "), golden(name).hex(" "))

    def test_golden_bytes_decode_to_the_values_at_any_split(self):
        for name, items in CASES.items():
            data = golden(name)
            if items[0][0] == "opening":
                items, data = items[1:], data[len(encode_opening()) :]
            expected = [(WIRE.Kind.Value(f"KIND_{kind}"), correlation, message) for kind, correlation, message in items]
            for split in range(len(data) + 1):
                with self.subTest(name, split=split):
                    reader = FrameReader()
                    frames = reader.feed(data[:split]) + reader.feed(data[split:])
                    got = [(f.kind, f.correlation, message_type(WIRE, f.kind).FromString(f.payload)) for f in frames]
                    self.assertEqual(got, expected)
                    self.assertEqual(reader.unread_bytes, 0)

    def test_bad_frames_are_refused(self):
        for name, offence in BAD.items():
            with self.subTest(name), self.assertRaisesRegex(WireError, offence):
                FrameReader().feed(golden(name))

    def test_bad_openings_are_not_ours(self):
        for name in BAD_OPENINGS:
            with self.subTest(name):
                self.assertNotEqual(golden(name)[:8], encode_opening())


class WebSocketFiles(unittest.TestCase):
    """The ws_ files, seen by the websockets library: a second opinion on what RFC 6455 says."""

    def parse(self, name: str, role: str):
        from websockets.frames import Frame as WsFrame
        from websockets.streams import StreamReader

        reader = StreamReader()
        reader.feed_data(golden(name))
        reader.feed_eof()
        frames = []
        while reader.buffer:
            parser = WsFrame.parse(reader.read_exact, mask=role == "server", max_size=None)
            try:
                next(parser)
            except StopIteration as done:
                frames.append(done.value)
            else:
                self.fail("an unfinished frame")
        return frames

    def test_valid_frames_say_what_the_files_claim(self):
        from websockets.frames import Opcode

        cases = {
            ("ws_rfc_masked_pong", "server"): [(Opcode.PONG, True, b"Hello")],
            ("ws_rfc_unmasked_ping", "client"): [(Opcode.PING, True, b"Hello")],
            ("ws_rfc_unmasked_text", "client"): [(Opcode.TEXT, True, b"Hello")],
            ("ws_rfc_masked_text", "server"): [(Opcode.TEXT, True, b"Hello")],
            ("ws_rfc_fragmented_text", "client"): [(Opcode.TEXT, False, b"Hel"), (Opcode.CONT, True, b"lo")],
            ("ws_rfc_binary_256", "client"): [(Opcode.BINARY, True, bytes(range(256)))],
            ("ws_client_first_message", "server"): [(Opcode.BINARY, True, golden("opening") + golden("ping"))],
            ("ws_client_fragments", "server"): [
                (Opcode.BINARY, False, golden("send")[:10]), (Opcode.PING, True, b"?"), (Opcode.CONT, True, golden("send")[10:])],
            ("ws_server_message", "client"): [(Opcode.BINARY, True, golden("pong"))],
            ("ws_server_close", "client"): [
                (Opcode.BINARY, True, golden("close_draining")),
                (Opcode.CLOSE, True, b"\x0f\xa1this gateway is going away, connect to another")],
            ("ws_client_close", "server"): [(Opcode.CLOSE, True, b"\x03\xe8bye")],
        }
        for (name, role), expected in cases.items():
            with self.subTest(name):
                frames = self.parse(name, role)
                self.assertEqual([(frame.opcode, frame.fin, bytes(frame.data)) for frame in frames], expected)


class Protocol(unittest.TestCase):
    """What this client takes from PROTOCOL.md is really written there."""

    def test_constants_are_those_of_the_document(self):
        text = PROTOCOL.read_text()
        for name, value in {
            "largest frame": tidegate_wire.FRAME_BYTES_MAX,
            "sync positions": tidegate_wire.SYNC_POSITIONS_MAX,
            "sync messages": tidegate_wire.SYNC_MESSAGES_MAX,
            "history page": tidegate_wire.HISTORY_PAGE_MAX,
        }.items():
            self.assertRegex(text, re.escape(f"| {name} | {value} "))

    def test_the_schema_follows_the_rules_of_kinds(self):
        for name, kind in WIRE.Kind.items():
            if 0 < kind < 0x40:
                reply = WIRE.Kind.Name(kind + tidegate_wire.REPLY_OFFSET)
                self.assertIn(reply, {f"{name}_REPLY", f"{name}_ACK", "KIND_PONG"})
            if kind:
                self.assertTrue(message_type(WIRE, kind), name)


if __name__ == "__main__":
    unittest.main()
