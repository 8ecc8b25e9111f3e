"""`tidegate_wire.Connection` against a scripted peer that sends golden bytes, over TCP and over WebSocket."""

import socket
import threading
import unittest

from test_follower import stands_at
from test_wire import CLIENT_MSG_ID, MESSAGE_ID, TOKEN, WIRE, encode, golden, hello
from tidegate_wire import CommandError, Connection, ConnectionClosed, Follower


class TcpPeer(threading.Thread):
    """Accepts one connection and plays (bytes to wait for, bytes to answer) in turn, then ends the stream."""

    def __init__(self, script):
        super().__init__(daemon=True)
        self.script = script
        self.got = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.start()

    def run(self):
        stream, _ = self.listener.accept()
        with stream, self.listener:
            for expected, answer in self.script:
                got = b""
                while len(got) < len(expected):
                    chunk = stream.recv(len(expected) - len(got))
                    if not chunk:
                        break
                    got += chunk
                self.got.append(got)
                for index in range(len(answer)):  # One byte per segment: frames may arrive in any pieces.
                    stream.sendall(answer[index : index + 1])

    def check(self, test: unittest.TestCase):
        self.join(timeout=5)
        test.assertEqual([got.hex(" ") for got in self.got], [expected.hex(" ") for expected, _ in self.script])


def with_correlation(data: bytes, correlation: int) -> bytes:
    return data[:2] + correlation.to_bytes(2, "big") + data[4:]


def frame(kind: str, correlation: int, message) -> bytes:
    return encode((kind, correlation, message))


def golden_login() -> bytes:
    """The golden login_resume, with what this client says about itself in any case."""
    login = WIRE.Login.FromString(golden("login_resume")[8:])
    login.device_class, login.client = "desktop", "tidegate_wire"
    return frame("LOGIN", 1, login)


LOGIN = dict(token=TOKEN, device_id="desk-1", client="golden/1.0", watch=["lobby_main", "lobby_eu-west"])


class OverTcp(unittest.TestCase):
    def test_login_send_push_and_close(self):
        peer = TcpPeer([
            (golden("opening") + golden("login"), golden("login_reply")),
            # The push of the own message overtakes its acknowledgement.
            (with_correlation(golden("send"), 2), golden("message") + with_correlation(golden("send_ack"), 2)),
            (with_correlation(golden("ping"), 3), with_correlation(golden("error_slow_down"), 3)),
            (b"", golden("close_draining")),
        ])
        with Connection.tcp("127.0.0.1", peer.port, WIRE, timeout_s=5) as connection:
            self.assertEqual(connection.login(**LOGIN).heartbeat.max_interval_s, 180)
            self.assertEqual(connection.send("p_17_42", "héllo", CLIENT_MSG_ID).message_id, MESSAGE_ID)
            kind, push = connection.recv()
            self.assertEqual((kind, push.body.decode()), ("KIND_MESSAGE", "héllo"))
            with self.assertRaises(CommandError) as refused:
                connection.ping()
            self.assertEqual((refused.exception.may_retry, refused.exception.retry_after_ms), (True, 1500))
            with self.assertRaises(ConnectionClosed) as closed:
                connection.recv()
            self.assertEqual((closed.exception.code, closed.exception.may_reconnect), (4001, True))
        peer.check(self)

    def test_a_refused_login_is_an_error_and_then_a_close(self):
        peer = TcpPeer([(golden("opening") + golden("login"), golden("error_token_expired_then_close"))])
        with Connection.tcp("127.0.0.1", peer.port, WIRE, timeout_s=5) as connection:
            with self.assertRaises(CommandError) as refused:
                connection.login(**LOGIN)
            self.assertEqual((refused.exception.code, refused.exception.may_retry), (WIRE.CODE_TOKEN_EXPIRED, False))
            with self.assertRaises(ConnectionClosed) as closed:
                connection.recv()
            self.assertEqual((closed.exception.code, closed.exception.may_reconnect), (4506, False))

    def test_a_reconnect_brings_what_is_missing_and_behind_asks_for_it(self):
        follower = Follower(WIRE, "desk-1", watch=["lobby_main"])
        stands_at(follower, resumed_at=0x0123456789ABCDEF, places={
            "p_17_42": (1, 1), "lobby_main": (1, 69000), "r_7": (2, 5), "r_8": (0, 0)})
        page = WIRE.HistoryReply(conversation_id="lobby_main", epoch=1, last_seq=70000, messages=[
            hello(conversation_id="lobby_main", seq=seq) for seq in range(69001, 69101)])
        rest = WIRE.SyncReply(synced=[WIRE.Synced(conversation_id="r_8", epoch=2)])
        peer = TcpPeer([
            (golden("opening") + golden_login(), golden("login_reply_resumed")),
            (frame("HISTORY", 2, WIRE.History(conversation_id="lobby_main", after_seq=69000, page_size=200)),
             frame("HISTORY_REPLY", 2, page)),
            (frame("SYNC", 3, WIRE.Sync(positions=[WIRE.SyncFrom(conversation_id="r_8")])),
             frame("SYNC_REPLY", 3, rest) + golden("behind")),
            (frame("SYNC", 4, WIRE.Sync(positions=[WIRE.SyncFrom(conversation_id="lobby_main", epoch=1, seq=69100)])),
             frame("SYNC_REPLY", 4, WIRE.SyncReply(synced=[WIRE.Synced(
                 conversation_id="lobby_main", outcome=WIRE.SYNC_OUTCOME_NOT_MEMBER)]))),
        ])
        with Connection.tcp("127.0.0.1", peer.port, WIRE, timeout_s=5) as connection:
            follower.login(connection, TOKEN)
            self.assertEqual([message.seq for message in follower.shown["p_17_42"]], [2, 3])
            self.assertEqual(len(follower.shown["lobby_main"]), 100)
            self.assertEqual(follower.unread["p_17_42"], 1)
            self.assertEqual(follower.pump(), "KIND_BEHIND")
            self.assertNotIn("lobby_main", follower.shown)
        peer.check(self)

    def test_silence_is_a_timeout(self):
        peer = TcpPeer([(b"x", b"")])
        with Connection.tcp("127.0.0.1", peer.port, WIRE) as connection, self.assertRaises(TimeoutError):
            connection.recv(timeout_s=0.05)


class OverWebSocket(unittest.TestCase):
    def test_login_and_close(self):
        from websockets.sync.server import serve

        got = []

        def play(socket):
            got.append(socket.recv())
            socket.send(golden("login_reply") + golden("message"))  # Several frames share a message.
            socket.close(4001, "this gateway is going away, connect to another")

        with serve(play, "127.0.0.1", 0) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            url = f"ws://127.0.0.1:{server.socket.getsockname()[1]}/ws"
            with Connection.websocket(url, WIRE, timeout_s=5) as connection:
                self.assertEqual(connection.login(**LOGIN).user_id, 17)
                self.assertEqual(connection.recv()[0], "KIND_MESSAGE")
                with self.assertRaises(ConnectionClosed) as closed:
                    connection.recv()
                self.assertEqual((closed.exception.code, closed.exception.may_reconnect), (4001, True))
            server.shutdown()
        self.assertEqual(got, [golden("opening") + golden("login")])


if __name__ == "__main__":
    unittest.main()
