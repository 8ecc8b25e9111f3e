"""`tidegate_wire.Follower` against a model of a server: whatever is pushed, left out or restarted, it shows each once in order."""

import random
import unittest

from test_wire import WIRE, hello
from tidegate_wire import SYNC_MESSAGES_MAX, SYNC_POSITIONS_MAX, CommandError, Follower, WireError

LOBBY = "lobby_main"
DIRECT, MERGED, SIGNAL = WIRE.GEAR_DIRECT, WIRE.GEAR_MERGED, WIRE.GEAR_SIGNAL


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
        # Of what is newest a Pull brings so many; and the Pulls there were, each as (after_seq, before_seq).
        self.newest_max = 10
        self.pulled = []
        self.too_early = False
        # Answers are shared: they may be older, begin earlier and end later than is best for this client.
        self.stale = lambda: 0
        self.early = lambda: 0

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

    def pull(self, id, epoch, after_seq, before_seq=0):
        self.pulled.append((after_seq, before_seq))
        if self.too_early and not before_seq:
            self.too_early = False
            raise CommandError(WIRE.Error(code=WIRE.CODE_SLOW_DOWN, retry_after_ms=700))
        if epoch not in (0, self.epochs[id]):
            after_seq, before_seq = None, 0
        latest = len(self.stored[id])
        if before_seq:
            first, last = after_seq + 1 - self.early(), min(after_seq + 1 + self.newest_max, latest)
            more, gap = last < before_seq - 1, False
        else:
            latest = max(latest - self.stale(), 0)
            least = latest - self.newest_max + 1
            first, last, more = max(least, latest + 1 if after_seq is None else after_seq + 1 - self.early()), latest, False
            gap = after_seq is not None and first > after_seq + 1
        messages = [self.message(id, seq) for seq in range(max(first, 1), last + 1)]
        return WIRE.PullReply(
            conversation_id=id, epoch=self.epochs[id], latest_seq=latest, more=more, gap=gap, messages=messages,
            from_seq=messages[0].seq if messages else 0, to_seq=messages[-1].seq if messages else 0)

    def history(self, id, after_seq, page_size):
        missing = self.messages(id, after_seq)
        return WIRE.HistoryReply(conversation_id=id, epoch=self.epochs[id], last_seq=len(self.stored[id]),
                                 messages=missing[:page_size], more=len(missing) > page_size)


class Following(unittest.TestCase):
    def setUp(self):
        self.server = Server()
        self.waits = []
        self.now = 1000.0
        self.follower = Follower(WIRE, "desk-1", watch=[LOBBY], sleep=self.waits.append, clock=lambda: self.now)

    def log_in(self):
        return self.follower.login(self.server, "token")

    def check(self):
        """Everything that is stored was shown, once and in order, and nothing else."""
        stored = {id: [(self.server.epochs[id], seq + 1) for seq in range(len(texts))] for id, texts in self.server.stored.items()}
        shown = {id: [(m.epoch, m.seq) for m in messages] for id, messages in self.follower.shown.items() if messages}
        self.assertEqual(shown, {id: seqs for id, seqs in stored.items() if seqs})
        for id, messages in self.follower.live.items():
            self.assertEqual(sorted(m.seq for m in messages), [m.seq for m in self.follower.shown[id]], f"{id} on the screen")

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

    # ---- storms

    def notice(self, id=LOBBY, spread_ms=1000):
        self.follower.handle("KIND_NOTIFY_NEW_MESSAGES", WIRE.NotifyNewMessages(
            conversation_id=id, epoch=self.server.epochs[id], latest_seq=len(self.server.stored[id]), spread_ms=spread_ms))

    def shift(self, gear, id=LOBBY):
        self.follower.handle("KIND_GEAR_CHANGED", WIRE.GearChanged(
            conversation_id=id, epoch=self.server.epochs[id], gear=gear, from_seq=len(self.server.stored[id]) + 1))

    def wait(self, seconds):
        self.now += seconds
        self.follower.pull()

    def on_screen(self, id=LOBBY):
        return [message.seq for message in self.follower.live[id]]

    def test_merged_messages_are_taken_as_if_each_had_come_alone(self):
        self.log_in()
        self.server.say(LOBBY, 5)
        together = WIRE.Messages(messages=self.server.messages(LOBBY, 0))
        for _ in range(2):
            self.follower.handle("KIND_MESSAGES", together)
        self.server.say(LOBBY, 2)
        self.follower.handle("KIND_MESSAGES", WIRE.Messages(messages=[self.server.message(LOBBY, 7)]))
        self.check()
        self.assertEqual(self.server.asked, [[LOBBY]])

    def test_pulls_come_once_per_spread_and_at_one_phase(self):
        self.log_in()
        self.server.say(LOBBY, 3)
        self.follower._phase = 0.25
        self.now = 1000.6
        self.notice()
        for seconds in (0.0, 0.6):
            self.wait(seconds)
            self.assertEqual(self.server.pulled, [])
        self.wait(0.1)
        self.assertEqual(self.server.pulled, [(0, 0)])
        self.server.say(LOBBY, 3)
        self.notice()
        self.notice()
        self.wait(0.9)
        self.assertEqual(len(self.server.pulled), 1, "at the next phase")
        self.wait(0.07)
        self.assertEqual(self.server.pulled[1:], [(3, 0)])
        self.notice()
        self.server.say(LOBBY)
        self.wait(1)
        self.assertEqual(self.server.pulled[2:], [(6, 0)], "while something comes no notice is needed")
        self.wait(1)
        self.wait(5)
        self.assertEqual(self.server.pulled[3:], [(7, 0)], "nothing came")
        self.server.say(LOBBY)
        self.server.too_early = True
        self.notice()
        self.wait(1)
        self.wait(0.6)
        self.assertEqual(len(self.server.pulled), 5)
        self.wait(0.2)
        self.assertEqual(len(self.server.pulled), 6, "after the wait of a refusal")
        self.check()

    def test_a_storm_shows_the_newest_and_fills_the_gaps_when_it_is_over(self):
        self.log_in()
        self.follower.handle("KIND_MESSAGE", self.server.say(LOBBY))
        self.shift(SIGNAL)
        for _ in range(3):
            self.server.say(LOBBY, 40)
            self.notice()
            self.wait(2)
        self.assertEqual(self.on_screen(), [1, *range(32, 42), *range(72, 82), *range(112, 122)])
        self.assertEqual([m.seq for m in self.follower.shown[LOBBY]], [1])
        self.assertEqual(self.follower.positions([LOBBY])[0].seq, 1, "last stays before the gap")
        self.server.say(LOBBY, 4)
        self.shift(MERGED)
        self.follower.handle("KIND_MESSAGES", WIRE.Messages(messages=[self.server.say(LOBBY)]))
        self.assertEqual(self.server.asked, [], "the last Pull brings what lies between")
        self.wait(2)
        self.check()
        self.assertEqual(self.on_screen()[31:36], [122, 123, 124, 125, 126])
        self.assertEqual(self.on_screen()[36:], [*range(2, 32), *range(42, 72), *range(82, 112)])
        self.follower.handle("KIND_MESSAGE", self.server.say(LOBBY))
        self.check()
        self.assertEqual(self.server.asked, [])

    def test_the_system_speaks_ahead(self):
        self.log_in()
        self.server.say(LOBBY, 20)
        self.shift(SIGNAL)
        said = self.server.say(LOBBY)
        said.sender_id = 0
        for _ in range(2):
            self.follower.handle("KIND_MESSAGE", said)
        self.assertEqual((self.on_screen(), self.server.asked), ([21], []))
        self.notice()
        self.wait(2)
        self.assertEqual(self.on_screen(), [21, *range(12, 21)])
        self.shift(DIRECT)
        self.wait(2)
        self.check()

    def test_a_push_says_that_a_storm_is_over_if_nothing_else_does(self):
        self.server.say(LOBBY)
        self.log_in()
        self.server.say(LOBBY, 50)
        self.notice()
        self.wait(2)
        self.server.say(LOBBY, 3)
        self.follower.handle("KIND_BEHIND", WIRE.Behind(conversation_id=LOBBY))
        self.wait(2)
        self.follower.handle("KIND_MESSAGE", self.server.say(LOBBY))
        self.wait(2)
        self.check()
        self.assertEqual(self.server.asked, [])

    def test_a_reconnect_in_a_storm_asks_from_before_the_gap(self):
        self.log_in()
        self.server.say(LOBBY, 50)
        self.notice()
        self.wait(2)
        self.server.say(LOBBY, 400)
        self.log_in()
        self.check()
        self.server.say(LOBBY)
        self.notice()
        self.wait(2)
        self.check()

    def test_a_new_epoch_in_a_storm_begins_anew(self):
        self.log_in()
        self.server.say(LOBBY, 50)
        self.notice()
        self.wait(2)
        self.server.stored[LOBBY].clear()
        self.server.epochs[LOBBY] = 2
        self.server.say(LOBBY, 30)
        self.notice()
        self.wait(2)
        self.shift(DIRECT)
        self.wait(2)
        self.check()

    def test_a_reply_that_hides_a_gap_is_an_offence(self):
        self.server.say(LOBBY)
        self.log_in()
        honest = self.server.pull
        for change in (dict(gap=False), dict(from_seq=7), dict(conversation_id="r_7")):
            def pull(*question, change=change):
                answer = honest(*question)
                answer.MergeFrom(WIRE.PullReply(**change))
                answer.gap = change.get("gap", answer.gap)
                return answer

            self.server.pull = pull
            self.server.say(LOBBY, 50)
            self.notice()
            with self.subTest(**change), self.assertRaises(WireError):
                self.wait(2)

    def test_any_losses_repetitions_and_reconnects_in_storms(self):
        for seed in range(200):
            chance = random.Random(seed)
            self.setUp()
            ids, gears, merging = [LOBBY, "r_7"], {}, {LOBBY: [], "r_7": []}
            self.server.stale = lambda: chance.choice([0, 0, 1, 3])
            self.server.early = lambda: chance.choice([0, 0, 1, 3])
            self.log_in()
            with self.subTest(seed=seed):
                for _ in range(80):
                    id = chance.choice(ids)
                    gear = gears.get(id, DIRECT)
                    match chance.randint(0, 11):
                        case 0:
                            self.log_in()
                        case 1 if id in self.server.stored:
                            self.follower.handle("KIND_BEHIND", WIRE.Behind(
                                conversation_id=id, epoch=1, last_seq=len(self.server.stored[id])))
                        case 2 | 3 if id in self.server.stored:
                            if merging[id] and chance.random() < 0.7:
                                self.follower.handle("KIND_MESSAGES", WIRE.Messages(messages=merging[id]))
                            merging[id].clear()
                            gears[id] = chance.choice({DIRECT: [MERGED], MERGED: [DIRECT, SIGNAL], SIGNAL: [MERGED]}[gear])
                            self.shift(gears[id], id)
                        case 4:
                            said = self.server.say(id)
                            said.sender_id = 0
                            self.follower.handle("KIND_MESSAGE", said)
                        case 5 | 6:
                            self.wait(chance.random())
                        case _ if gear == SIGNAL:
                            self.server.say(id, chance.choice([1, 5, 40, 300]))
                            if chance.random() < 0.7:
                                self.notice(id)
                        case _ if gear == MERGED:
                            merging[id].append(self.server.say(id))
                        case _:
                            said = self.server.say(id)
                            if chance.random() < 0.8:
                                self.follower.handle("KIND_MESSAGE", said)
                self.server.stale = lambda: 0
                for id in self.server.stored:
                    self.shift(DIRECT, id)
                for _ in range(4):
                    self.wait(1)
                self.check()

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
