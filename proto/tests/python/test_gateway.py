"""The client of `tidegate_wire` against a gateway: what PROTOCOL.md promises, seen from outside.

Needs TIDEGATE_BIN, the gateway's binary; the gateway runs on its embedded backends, in a folder of the test's own.
"""

import gzip
import json
import os
import random
import subprocess
import tempfile
import threading
import time
import unittest
import urllib.error
import urllib.request

from test_wire import WIRE
from tidegate_wire import SYNC_POSITIONS_MAX, CommandError, Connection, ConnectionClosed, Follower

BINARY = os.environ.get("TIDEGATE_BIN", "")
# No step takes longer, on a machine that does ten other things as well.
DEADLINE_S = 30
LOBBY = "lobby_main"


class Gateway:
    """A process of its own; `tcp` is (host, port), `http` host:port."""

    def __init__(self, *settings: str):
        self.folder = tempfile.TemporaryDirectory(prefix="tidegate-python-")
        self.settings = [word for setting in settings for word in ("--set", setting)]
        self.start("127.0.0.1:0", "127.0.0.1:0")

    def start(self, tcp: str, http: str):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TIDEGATE_")}
        self.process = subprocess.Popen(
            [BINARY, "serve", "--tcp", tcp, "--http", http, "--shards", "1", "--data-dir", "data",
             # A test writes faster than people.
             "--set", "fairness.user_per_s=0", *self.settings],
            cwd=self.folder.name, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        places = {}
        for line in self.process.stdout:
            words = line.split()
            if words and words[0] in ("TCP", "HTTP"):
                places[words[0]] = words[1].removeprefix("http://").split("/")[0]
            if len(places) == 2:
                break
        else:
            raise AssertionError("the gateway did not start")
        # What it says later must not fill the pipe.
        threading.Thread(target=self.process.stdout.read, daemon=True).start()
        host, port = places["TCP"].rsplit(":", 1)
        self.tcp, self.http = (host, int(port)), places["HTTP"]

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self):
        self.kill()
        self.folder.cleanup()

    def call(self, method: str, path: str, token: str = "", body=None):
        headers = {"content-type": "application/json"}
        if token:
            headers["authorization"] = f"Bearer {token}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://{self.http}/api/v1/{path}", data, headers, method=method)
        with urllib.request.urlopen(request, timeout=DEADLINE_S) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def log_in(self, name: str) -> dict:
        """The login's answer; registers the name at its first use."""
        body = {"name": name, "password": "correct horse"}
        try:
            self.call("POST", "register", body=body)
        except urllib.error.HTTPError as error:
            if error.code != 409:
                raise
        return self.call("POST", "login", body=body)

    def connect(self, transport: str = "tcp") -> Connection:
        if transport == "websocket":
            return Connection.websocket(f"ws://{self.http}/ws", WIRE, timeout_s=DEADLINE_S)
        return Connection.tcp(*self.tcp, WIRE, timeout_s=DEADLINE_S)


@unittest.skipUnless(BINARY, "TIDEGATE_BIN is not set")
class WithGateway(unittest.TestCase):
    SETTINGS = ()

    def setUp(self):
        self.gateway = Gateway(*self.SETTINGS)
        self.addCleanup(self.gateway.stop)
        self.anna, self.ben = (self.gateway.log_in(name) for name in ("anna", "ben"))
        low, high = sorted((self.anna["user_id"], self.ben["user_id"]))
        self.private = f"p_{low}_{high}"

    def online(self, user: dict, device: str = "pc", **more) -> Connection:
        connection = self.gateway.connect()
        self.addCleanup(connection.close)
        connection.reply = connection.login(user["token"], device, **more)
        return connection

    def follow_until(self, follower: Follower, conversation_id: str, count: int):
        deadline = time.monotonic() + DEADLINE_S
        while len(follower.shown[conversation_id]) < count:
            follower.pump(deadline - time.monotonic())

    def check(self, follower: Follower, said: dict):
        """Everything that was acknowledged was shown, once and in order."""
        for conversation_id, bodies in said.items():
            shown = follower.shown[conversation_id]
            self.assertEqual([message.seq for message in shown], list(range(1, len(bodies) + 1)), conversation_id)
            self.assertEqual([message.body.decode() for message in shown], bodies, conversation_id)


class StayingInSync(WithGateway):
    def test_nothing_is_missed_over_reconnects(self):
        chance = random.Random(7)
        room = self.gateway.call("POST", "rooms", self.anna["token"], {"name": "den"})
        self.gateway.call("POST", f"rooms/{room['room_id']}/join", self.ben["token"], {})
        anna = self.online(self.anna)
        places = [LOBBY, room["conversation_id"], self.private]
        said = {place: [] for place in places}
        follower = Follower(WIRE, "phone", watch=[LOBBY])
        for turn in range(12):
            # While ben is away, sometimes more than a Sync carries.
            for _ in range(chance.choice([0, 3, 40, 230])):
                place = chance.choice(places)
                said[place].append(f"{len(said[place])}")
                anna.send(place, said[place][-1])
            with self.gateway.connect("websocket" if turn % 2 else "tcp") as connection:
                follower.login(connection, self.ben["token"])
                for _ in range(chance.randint(0, 10)):
                    place = chance.choice(places)
                    said[place].append(f"{len(said[place])}")
                    anna.send(place, said[place][-1])
                for place in places:
                    if chance.random() < 0.7:
                        self.follow_until(follower, place, len(said[place]))
        with self.gateway.connect() as connection:
            follower.login(connection, self.ben["token"])
            for place in places:
                self.follow_until(follower, place, len(said[place]))
            self.check(follower, said)

    def test_a_login_brings_what_was_missed_in_its_reply(self):
        anna = self.online(self.anna)
        for n in range(3):
            anna.send(self.private, f"{n}")
        epoch = self.gateway.log_in("ben")["positions"][0]["epoch"]
        stands = [WIRE.SyncFrom(conversation_id=self.private, epoch=epoch, seq=1),
                  WIRE.SyncFrom(conversation_id="r_99", epoch=epoch, seq=1),
                  WIRE.SyncFrom(conversation_id=LOBBY),
                  WIRE.SyncFrom(conversation_id=self.private, epoch=epoch + 1, seq=1),
                  WIRE.SyncFrom(conversation_id=self.private, epoch=epoch, seq=4)]
        ben = self.online(self.ben, positions=stands)
        whole, not_member, empty, other_epoch, ahead = ben.reply.synced
        self.assertEqual((whole.outcome, whole.last_seq, whole.unread, whole.read_seq), (WIRE.SYNC_OUTCOME_WHOLE, 3, 3, 0))
        self.assertEqual([message.seq for message in whole.messages], [2, 3])
        self.assertEqual(not_member.outcome, WIRE.SYNC_OUTCOME_NOT_MEMBER)
        self.assertEqual((empty.outcome, empty.last_seq), (WIRE.SYNC_OUTCOME_WHOLE, 0))
        for reload in (other_epoch, ahead):
            self.assertEqual((reload.outcome, reload.epoch, reload.last_seq), (WIRE.SYNC_OUTCOME_RELOAD, epoch, 3))
            self.assertFalse(reload.messages)
        self.assertEqual(list(ben.sync(stands).synced), list(ben.reply.synced), "the command says the same")

    def test_a_sync_names_what_its_positions_do_not(self):
        room = self.gateway.call("POST", "rooms", self.anna["token"], {"name": "den"})
        anna = self.online(self.anna)
        for n in range(3):
            anna.send(self.private, f"{n}")
        ben = self.online(self.ben)
        reply = ben.sync([WIRE.SyncFrom(conversation_id=LOBBY)], others=True)
        self.assertEqual([answer.conversation_id for answer in reply.synced], [LOBBY])
        self.assertEqual([(p.conversation_id, p.last_seq, p.unread) for p in reply.others], [(self.private, 3, 3)])
        self.assertFalse(ben.sync([WIRE.SyncFrom(conversation_id=self.private)], others=True).others)
        self.assertFalse(ben.sync([WIRE.SyncFrom(conversation_id=LOBBY)]).others)
        others = anna.sync([], others=True).others
        self.assertEqual({p.conversation_id for p in others}, {self.private, room["conversation_id"]})

    def test_many_positions_are_answered_part_by_part(self):
        anna = self.online(self.anna)
        for _ in range(200):
            anna.send(self.private, "x" * 200)
        stands = [WIRE.SyncFrom(conversation_id=self.private)] * SYNC_POSITIONS_MAX
        ben = self.online(self.ben, positions=stands)
        self.assertLess(len(ben.reply.synced), SYNC_POSITIONS_MAX)
        for answer in (*ben.reply.synced, *ben.sync(stands).synced):
            self.assertEqual([message.seq for message in answer.messages], list(range(1, 201)))

    def test_positions_that_make_no_sense_are_refused_whole(self):
        good = WIRE.SyncFrom(conversation_id=LOBBY)
        bad = [good, WIRE.SyncFrom(conversation_id="p_2_1")]
        many = [good] * (SYNC_POSITIONS_MAX + 1)
        ben = self.online(self.ben)
        for ask in (ben.sync, lambda positions: self.online(self.ben, "tv", positions=positions)):
            for positions, code in ((bad, WIRE.CODE_BAD_CONVERSATION), (many, WIRE.CODE_BAD_PAYLOAD)):
                with self.assertRaises(CommandError) as refused:
                    ask(positions)
                self.assertEqual(refused.exception.code, code)
        with self.assertRaises(CommandError) as refused:
            ben.sync([])
        self.assertEqual(refused.exception.code, WIRE.CODE_BAD_PAYLOAD)
        self.assertEqual(len(ben.sync([good]).synced), 1, "the connection lives")


class FallingBehind(WithGateway):
    # So many messages would be pulled otherwise.
    SETTINGS = ("limits.outbox_bytes_max=131072", "storm.gears=direct")

    def test_a_receiver_that_falls_behind_is_told_and_catches_up(self):
        follower = Follower(WIRE, "phone", watch=[LOBBY])
        with self.gateway.connect() as connection:
            follower.login(connection, self.ben["token"])
            anna, body = self.online(self.anna), "x" * 16000
            # Ben reads nothing: it fills what the kernel takes, then the outbox. The last message is one of those left out.
            said = [f"{n} {body}" for n in range(700)]
            for text in said:
                anna.send(LOBBY, text)
            kinds = set()
            deadline = time.monotonic() + DEADLINE_S
            while len(follower.shown[LOBBY]) < len(said):
                kinds.add(follower.pump(deadline - time.monotonic()))
            self.assertIn("KIND_BEHIND", kinds)
            self.check(follower, {LOBBY: said})
            anna.send(LOBBY, "live again")
            self.follow_until(follower, LOBBY, len(said) + 1)


class Storms(WithGateway):
    # Gears that change soon, and so few bytes for a watcher that messages are left out.
    SETTINGS = ("storm.merged_per_s=5", "storm.signal_per_s=20", "storm.window_ms=500", "storm.calm_ms=300",
                "storm.spread_ms=200", "storm.watcher_bytes_per_s=4096")

    def storm(self, place: str, said: list, count: int):
        """Anna says so much that the place goes to signal gear, by several commands under way."""
        anna = self.online(self.anna)
        under_way = 0
        for _ in range(count):
            said.append(f"{len(said)}")
            anna.send_frame(WIRE.KIND_SEND, WIRE.Send(
                conversation_id=place, client_msg_id=said[-1].encode(), body=said[-1].encode()).SerializeToString())
            under_way += 1
            while under_way > 32:
                under_way -= self.acknowledged(anna)
        while under_way:
            under_way -= self.acknowledged(anna)

    def acknowledged(self, connection: Connection) -> int:
        frame = connection.recv_frame(time.monotonic() + DEADLINE_S)
        self.assertNotEqual(frame.kind, WIRE.KIND_ERROR, connection.decode(frame) if frame.kind == WIRE.KIND_ERROR else "")
        return frame.kind == WIRE.KIND_SEND_ACK

    def follow_through(self, connection: Connection, place: str, watch):
        """Ben follows while anna speaks: every message ends up with him once, though the storm leaves some out."""
        follower, said = Follower(WIRE, "phone", watch=watch), []
        with connection:
            follower.login(connection, self.ben["token"])
            speaker = threading.Thread(target=self.storm, args=(place, said, 3000))
            speaker.start()
            gears, kinds, deadline = [], set(), time.monotonic() + DEADLINE_S
            handle = follower.handle

            def note(kind, push):
                kinds.add(kind)
                if kind == "KIND_GEAR_CHANGED":
                    gears.append(push.gear)
                handle(kind, push)

            follower.handle = note
            while speaker.is_alive() or len(follower.shown[place]) < len(said) or gears[-1:] != [WIRE.GEAR_DIRECT]:
                follower.pump(deadline - time.monotonic())
            speaker.join()
            self.assertIn(WIRE.GEAR_SIGNAL, gears)
            self.assertIn("KIND_NOTIFY_NEW_MESSAGES", kinds)
            self.check(follower, {place: said})
            order = [message.seq for message in follower.live[place]]
            self.assertNotEqual(order, sorted(order), "the newest were on the screen before those that were left out")
            self.assertEqual(sorted(order), list(range(1, len(said) + 1)))
            # And back in direct gear.
            self.online(self.anna, "tv").send(place, "calm")
            said.append("calm")
            self.follow_until(follower, place, len(said))
            self.check(follower, {place: said})

    def test_every_message_of_a_lobby_arrives_once_through_a_storm(self):
        self.follow_through(self.gateway.connect(), LOBBY, [LOBBY])

    def test_a_room_storms_over_websocket_as_well(self):
        room = self.gateway.call("POST", "rooms", self.anna["token"], {"name": "den"})
        self.gateway.call("POST", f"rooms/{room['room_id']}/join", self.ben["token"], {})
        self.follow_through(self.gateway.connect("websocket"), room["conversation_id"], [])

    def http_pull(self, query: str, **headers):
        """Status, headers and body."""
        request = urllib.request.Request(f"http://{self.gateway.http}/api/v1/chat/pull/lobby?{query}")
        request.add_header("authorization", f"Bearer {self.ben['token']}")
        for name, value in headers.items():
            request.add_header(name.replace("_", "-"), value)
        try:
            with urllib.request.urlopen(request, timeout=DEADLINE_S) as answer:
                return answer.status, answer.headers, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.headers, error.read()

    def test_pulls_over_http_are_those_of_a_connection(self):
        said = []
        self.storm(LOBBY, said, 300)
        ben = self.online(self.ben)
        for query, question in (
                (f"lobby={LOBBY}", dict()),
                (f"lobby={LOBBY}&after_seq=299", dict(after_seq=299)),
                (f"lobby={LOBBY}&after_seq=5", dict(after_seq=5)),
                (f"lobby={LOBBY}&after_seq=5&before_seq=200", dict(after_seq=5, before_seq=200))):
            expected = ben.pull(LOBBY, **question)
            with self.subTest(query):
                status, headers, body = self.http_pull(query)
                self.assertEqual((status, headers["content-type"]), (200, "application/x-protobuf"))
                self.assertEqual(WIRE.PullReply.FromString(body), expected)
                self.assertEqual(expected.latest_seq, 300)
                plain = headers["etag"]

                status, headers, zipped = self.http_pull(query, accept_encoding="gzip")
                self.assertEqual((status, headers["content-encoding"]), (200, "gzip"))
                self.assertEqual(gzip.decompress(zipped), body)
                self.assertNotEqual(headers["etag"], plain, "other bytes, another name")

                status, headers, text = self.http_pull(query, accept="application/json")
                self.assertEqual((status, headers["content-type"]), (200, "application/json"))
                self.check_json(json.loads(text), expected)

                for known in (plain, f'"other", {plain}', "*"):
                    status, headers, nothing = self.http_pull(query, if_none_match=known)
                    self.assertEqual((status, headers["etag"], nothing), (304, plain, b""))
        gap = WIRE.PullReply.FromString(self.http_pull(f"lobby={LOBBY}&after_seq=5")[2])
        self.assertTrue(gap.gap and gap.from_seq > 6 and gap.to_seq == 300, gap)
        whole = WIRE.PullReply.FromString(self.http_pull(f"lobby={LOBBY}&after_seq=5&before_seq={gap.from_seq}")[2])
        self.assertLessEqual(whole.from_seq, 6)
        _, headers, _ = self.http_pull(f"lobby={LOBBY}")
        ben.send(LOBBY, "news")
        deadline = time.monotonic() + DEADLINE_S
        while self.http_pull(f"lobby={LOBBY}", if_none_match=headers["etag"])[0] == 304:
            self.assertLess(time.monotonic(), deadline, "the same although there is more")

    def check_json(self, answer: dict, expected):
        names = ("conversation_id", "epoch", "from_seq", "to_seq", "latest_seq", "more", "gap")
        self.assertEqual({name: answer[name] for name in names}, {name: getattr(expected, name) for name in names})
        self.assertEqual([(m["seq"], m["sender_id"], m["text"]) for m in answer["messages"]],
                         [(m.seq, m.sender_id, m.body.decode()) for m in expected.messages])

    def test_pulls_that_make_no_sense_are_refused(self):
        ben = self.online(self.ben)
        for question, code in ((dict(conversation_id=self.private), WIRE.CODE_BAD_CONVERSATION),
                               (dict(conversation_id="lobby_"), WIRE.CODE_BAD_CONVERSATION),
                               (dict(conversation_id="r_99"), WIRE.CODE_NOT_MEMBER),
                               (dict(conversation_id=LOBBY, before_seq=5), WIRE.CODE_BAD_PAYLOAD)):
            with self.subTest(**question), self.assertRaises(CommandError) as refused:
                ben.pull(**question)
            self.assertEqual(refused.exception.code, code)
        for query, status in ((f"lobby={self.private}", 400), ("lobby=lobby_", 400), ("", 400),
                              (f"lobby={LOBBY}&before_seq=5", 400), ("lobby=r_99", 403)):
            with self.subTest(query):
                self.assertEqual(self.http_pull(query)[0], status)
        nothing = ben.pull(LOBBY)
        self.assertEqual((nothing.from_seq, nothing.to_seq, nothing.latest_seq, nothing.gap), (0, 0, 0, False))
        elsewhere = ben.pull(LOBBY, epoch=nothing.epoch + 1, after_seq=70000)
        self.assertEqual(elsewhere, nothing, "of another epoch: as if nothing was known")


class Receipts(WithGateway):
    def test_watermarks_and_counts_are_seen_on_all_sides(self):
        anna = self.online(self.anna)
        for n in range(3):
            anna.send(self.private, f"{n}")
        login = self.gateway.log_in("ben")
        self.assertEqual([(p["last_seq"], p["read_seq"], p["unread"]) for p in login["positions"]], [(3, 0, 3)])
        self.assertEqual([message["seq"] for message in login["recent"]], [1, 2, 3])
        pc, phone = self.online(login, "pc"), self.online(login, "phone")
        self.assertEqual([message.seq for message in pc.reply.recent], [1, 2, 3])
        pc.receipt(self.private, delivered_seq=3, read_seq=2)
        for connection in (anna, phone):
            moved = self.moved(connection)
            self.assertEqual((moved.user_id, moved.delivered_seq, moved.read_seq), (login["user_id"], 3, 2))
        page = anna.history(self.private, watermarks=True)
        marks = {mark.user_id: (mark.delivered_seq, mark.read_seq) for mark in page.watermarks}
        self.assertEqual(marks[login["user_id"]], (3, 2))
        self.assertFalse(anna.history(self.private).watermarks)
        synced = phone.sync([WIRE.SyncFrom(conversation_id=self.private)]).synced[0]
        self.assertEqual((synced.read_seq, synced.unread), (2, 1))

    def moved(self, connection: Connection):
        while True:
            kind, push = connection.recv()
            if kind == "KIND_RECEIPT_MOVED":
                return push


class ConnectingAgain(WithGateway):
    def test_a_session_goes_on_with_its_watches(self):
        first = self.online(self.ben, watch=[LOBBY])
        self.assertEqual((first.reply.resumed, list(first.reply.watching)), (False, [LOBBY]))
        first.close()
        second = self.online(self.ben, resume_session_id=first.reply.session_id)
        self.assertEqual((second.reply.resumed, list(second.reply.watching)), (True, [LOBBY]))
        self.assertEqual(second.reply.session_id, first.reply.session_id)
        self.online(self.anna).send(LOBBY, "hi")
        self.assertEqual(second.recv()[1].body, b"hi")

    def test_what_cannot_go_on_is_a_new_session(self):
        first = self.online(self.ben, watch=[LOBBY])
        first.close()
        session_id = first.reply.session_id
        for user, device, asked in ((self.anna, "pc", session_id), (self.ben, "phone", session_id), (self.ben, "tv", 5)):
            again = self.online(user, device, resume_session_id=asked)
            self.assertFalse(again.reply.resumed)
            self.assertNotEqual(again.reply.session_id, session_id)
            self.assertEqual(list(again.reply.watching), [])

    def test_a_device_has_one_connection(self):
        for resumes in (False, True):
            first = self.online(self.ben)
            second = self.online(self.ben, resume_session_id=first.reply.session_id if resumes else 0)
            with self.assertRaises(ConnectionClosed) as closed:
                first.recv()
            self.assertEqual((closed.exception.code, closed.exception.may_reconnect), (4507, False))
            self.assertEqual(second.reply.resumed, resumes)
            second.ping()
            other = self.online(self.ben, "phone")
            other.ping()
            second.ping()


if __name__ == "__main__":
    unittest.main()
