"""`tidegate_wire.Follower` against a model of a server: whatever is pushed, left out or restarted, it shows each once in order."""

import random
import unittest

from test_wire import WIRE, hello
from tidegate_wire import SYNC_MESSAGES_MAX, SYNC_POSITIONS_MAX, Follower, WireError

LOBBY = "lobby_main"


def stands_at(follower: Follower, places: dict, resumed_at: int = 0) -> None:
    """Puts the follower where an earlier run left it: conversation -> (epoch, last)."""
    follower.session_id = resumed_at
    follower._places.clear()
    for conversation_id, (epoch, last) in places.items():
        place = follower._place(conversation_id)
        place.epoch, place.last = epoch, last


class Server:
    """What a connection to a server does, by the document. `stored` has the texts of each conversation from seq 1."""

    def __init__(self, frame_entries: int = 3):
        self.stored = {}
        self.epochs = {}
        self.frame_entries = frame_entries
        self.asked = []

    def say(self, id: str, count: int = 1):
        self.epochs.setdefault(id, 1)
        texts = self.stored.setdefault(id, [])
        texts.extend(range(count))
        return self.message(id, len(texts))

    def message(self, id: str, seq: int):
        return hello(conversation_id=id, epoch=self.epochs[id], seq=seq)

    def messages(self, id: str, after: int):
        return [self.message(id, seq) for seq in range(after + 1, len(self.stored[id]) + 1)]

    def synced(self, question):
        id = question.conversation_id
        if id not in self.stored:
            return WIRE.Synced(conversation_id=id, outcome=WIRE.SYNC_OUTCOME_NOT_MEMBER)
        answer = WIRE.Synced(conversation_id=id, epoch=self.epochs[id], last_seq=len(self.stored[id]))
        missing = answer.last_seq - question.seq
        if question.epoch in (0, answer.epoch) and 0 <= missing <= SYNC_MESSAGES_MAX:
            answer.messages.extend(self.messages(id, question.seq))
        else:
            answer.outcome = WIRE.SYNC_OUTCOME_RELOAD
        return answer

    def login(self, token, device_id, watch, resume_session_id, positions):
        synced = [self.synced(question) for question in positions[: self.frame_entries]]
        return WIRE.LoginReply(
            user_id=17, session_id=7, resumed=resume_session_id == 7, watching=watch, synced=synced, positions=self.places())

    def places(self):
        return [WIRE.Position(conversation_id=id, epoch=self.epochs[id], last_seq=len(texts))
                for id, texts in self.stored.items() if not id.startswith("lobby_")]

    def sync(self, positions, others):
        if len(positions) > SYNC_POSITIONS_MAX:
            raise AssertionError("too many positions")
        self.asked.append([position.conversation_id for position in positions])
        named = {position.conversation_id for position in positions}
        return WIRE.SyncReply(
            synced=[self.synced(question) for question in positions[: self.frame_entries]],
            others=[position for position in self.places() if others and position.conversation_id not in named])

    def history(self, id, after_seq, page_size):
        missing = self.messages(id, after_seq)
        return WIRE.HistoryReply(conversation_id=id, epoch=self.epochs[id], last_seq=len(self.stored[id]),
                                 messages=missing[:page_size], more=len(missing) > page_size)


class Following(unittest.TestCase):
    def setUp(self):
        self.server = Server()
        self.waits = []
        self.follower = Follower(WIRE, "desk-1", watch=[LOBBY], sleep=self.waits.append)

    def log_in(self):
        return self.follower.login(self.server, "token")

    def check(self):
        """Everything that is stored was shown, once and in order, and nothing else."""
        stored = {id: [(self.server.epochs[id], seq + 1) for seq in range(len(texts))] for id, texts in self.server.stored.items()}
        shown = {id: [(m.epoch, m.seq) for m in messages] for id, messages in self.follower.shown.items() if messages}
        self.assertEqual(shown, {id: seqs for id, seqs in stored.items() if seqs})

    def test_a_login_brings_everything_whatever_fits_its_reply(self):
        for number in range(1, 12):
            self.server.say(f"r_{number}", number)
        self.server.say(LOBBY, 1000)
        self.assertFalse(self.log_in().resumed)
        self.check()
        for number in range(1, 12):
            self.server.say(f"r_{number}", number * 30)  # Some more than a Sync carries.
        self.assertTrue(self.log_in().resumed)
        self.check()

    def test_more_positions_than_one_command_takes(self):
        self.server.frame_entries = SYNC_POSITIONS_MAX
        for number in range(1, 1200):
            self.server.say(f"r_{number}")
        self.log_in()
        for number in range(1, 1200):
            self.server.say(f"r_{number}")
        self.log_in()
        self.server.say(LOBBY)
        self.follower.handle("KIND_MESSAGE", self.server.message(LOBBY, 1))
        self.check()

    def test_a_gap_is_closed_before_what_came_after_it(self):
        self.server.say(LOBBY)
        self.log_in()
        self.server.say(LOBBY)
        self.follower.handle("KIND_MESSAGE", self.server.say(LOBBY))
        self.check()
        self.assertEqual(self.server.asked, [[LOBBY]])

    def test_behind_tells_of_a_gap_at_the_end(self):
        self.server.say(LOBBY)
        self.server.say("r_7")
        self.log_in()
        self.server.say(LOBBY, 2)
        self.server.say("r_7")
        self.server.asked.clear()
        self.follower.handle("KIND_BEHIND", WIRE.Behind(conversation_id=LOBBY, epoch=1, after_seq=1, last_seq=3))
        self.assertEqual(self.server.asked, [[LOBBY]])
        self.follower.handle("KIND_BEHIND", WIRE.Behind(conversation_id=LOBBY, epoch=1, after_seq=2, last_seq=3))
        self.assertEqual(self.server.asked, [[LOBBY]], "known already")
        self.follower.handle("KIND_BEHIND", WIRE.Behind(conversation_id=LOBBY))
        self.assertEqual(self.server.asked.pop(), [LOBBY], "still a member?")
        self.follower.handle("KIND_BEHIND", WIRE.Behind(spread_ms=2000))
        self.assertEqual(sorted(self.server.asked[1]), [LOBBY, "r_7"])
        self.check()
        self.assertTrue(all(0 <= wait <= 2 for wait in self.waits), self.waits)

    def test_behind_anywhere_finds_what_has_begun(self):
        self.log_in()
        self.server.say("p_5_17", 2)
        self.follower.handle("KIND_BEHIND", WIRE.Behind())
        self.check()

    def test_a_new_epoch_begins_anew(self):
        for number in (7, 8, 9):
            self.server.say(f"r_{number}", 5)
        self.log_in()
        for number, count in ((7, 3), (8, 5), (9, 300)):
            self.server.stored[f"r_{number}"].clear()
            self.server.epochs[f"r_{number}"] = 2
            self.server.say(f"r_{number}", count)
        # One by a push, the others by the answer to a login.
        self.follower.handle("KIND_MESSAGE", self.server.message("r_7", 2))
        self.log_in()
        self.check()

    def test_an_answer_to_an_earlier_epoch_is_asked_for_again(self):
        self.server.say("r_7", 5)
        self.log_in()
        stale = self.server.synced(WIRE.SyncFrom(conversation_id="r_7", epoch=1, seq=5))
        self.server.stored["r_7"].clear()
        self.server.epochs["r_7"] = 2
        self.follower.handle("KIND_MESSAGE", self.server.say("r_7"))
        self.follower._apply(WIRE.SyncFrom(conversation_id="r_7", epoch=1, seq=5), stale)
        self.server.say("r_7")
        self.follower.sync()
        self.check()

    def test_a_conversation_of_others_is_forgotten(self):
        self.server.say("r_7")
        self.log_in()
        del self.server.stored["r_7"]
        self.log_in()
        self.check()
        self.assertEqual(self.follower.positions(["r_7"]), [])

    def test_a_room_is_followed_from_joining_to_leaving(self):
        self.log_in()
        self.server.say("r_7", 3)
        changed = dict(conversation_id="r_7", user_id=17)
        self.follower.handle("KIND_MEMBERSHIP_CHANGED", WIRE.MembershipChanged(joined=True, **changed))
        self.check()
        self.follower.handle("KIND_MEMBERSHIP_CHANGED", WIRE.MembershipChanged(joined=True, conversation_id="r_8", user_id=5))
        del self.server.stored["r_7"]
        self.follower.handle("KIND_MEMBERSHIP_CHANGED", WIRE.MembershipChanged(joined=False, **changed))
        self.check()
        self.assertEqual(self.follower.positions(["r_7", "r_8"]), [])

    def test_a_part_that_looks_whole_is_an_offence(self):
        self.server.say(LOBBY, 3)
        whole = self.server.synced
        for cut in (0, 1, 2):
            def partial(question, cut=cut):
                answer = whole(question)
                del answer.messages[cut]
                return answer

            self.server.synced = partial
            with self.subTest(cut=cut), self.assertRaisesRegex(WireError, "looks whole"):
                self.log_in()

    def test_any_losses_repetitions_and_reconnects(self):
        for seed in range(200):
            chance = random.Random(seed)
            self.setUp()
            self.server.frame_entries = chance.randint(1, 4)
            ids = [LOBBY, "r_7", "r_8", "p_17_42"]
            self.log_in()
            with self.subTest(seed=seed):
                for _ in range(60):
                    id = chance.choice(ids)
                    match chance.randint(0, 9):
                        case 0:
                            self.log_in()
                        case 1:
                            self.follower.handle("KIND_BEHIND", WIRE.Behind())
                        case 2 if id in self.server.stored:
                            self.follower.handle("KIND_MESSAGE", self.server.message(id, chance.randint(1, len(self.server.stored[id]))))
                        case 3:
                            self.server.say(id, chance.choice([1, 2, SYNC_MESSAGES_MAX + 1]))
                        case 4 if id in self.server.stored:
                            self.server.stored[id].clear()
                            self.server.epochs[id] += 1
                            self.follower.handle("KIND_MESSAGE", self.server.say(id))
                        case _:
                            self.follower.handle("KIND_MESSAGE", self.server.say(id))
                self.log_in()
                self.check()


if __name__ == "__main__":
    unittest.main()
