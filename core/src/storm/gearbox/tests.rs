use super::*;

const LOBBY: &str = "lobby_main";

fn lobby() -> ConversationId {
    LOBBY.parse().expect("a lobby")
}

/// A lobby with a steady rate, a turn every hundred milliseconds.
struct Walk {
    gearbox: Gearbox,
    now: Millis,
    seq: u64,
    /// Parts of a message that are due.
    due: f64,
    shifts: Vec<(Gear, Gear)>,
}

impl Walk {
    fn by(rule: &str) -> Self {
        let mut rules = StormRules::default();
        rules.add(&format!("{LOBBY} {rule}")).expect("a legal rule");
        let gearbox = Gearbox::new(Arc::new(rules));
        Self { gearbox, now: Millis(1_700_000_000_000), seq: 0, due: 0.0, shifts: Vec::new() }
    }

    fn go(&mut self, per_s: f64, seconds: f64) -> Gear {
        let steps = (seconds * 10.0) as u64;
        for _ in 0..steps {
            self.now.0 += 100;
            self.due += per_s / 10.0;
            let count = self.due as u64;
            self.due -= count as f64;
            let shift = if count > 0 {
                let (first, last) = (Seq(self.seq + 1), Seq(self.seq + count));
                self.seq += count;
                self.gearbox.committed(self.now, lobby(), Epoch(1), first, last)
            } else {
                self.gearbox.tick(self.now).pop()
            };
            self.shifts.extend(shift.map(|shift| (shift.was, shift.is)));
        }
        self.gearbox.gear_of(&lobby())
    }
}

/// One line per walk: the rule, then rate, seconds and the gear it ends in, and how often the gear changed in all.
#[test]
fn rates_walk_up_and_down_across_the_thresholds_without_flapping() {
    use Gear::{Direct, Merged, Signal};
    type Line = (&'static str, &'static [(f64, f64, Gear)], usize);
    let lines: [Line; 12] = [
        ("", &[(5.0, 10.0, Direct)], 0),
        ("", &[(19.0, 30.0, Direct)], 0),
        ("", &[(21.0, 4.0, Merged), (1.0, 10.0, Direct)], 2),
        ("", &[(150.0, 4.0, Signal), (0.0, 10.0, Direct)], 3),
        ("", &[(5.0, 3.0, Direct), (40.0, 3.0, Merged), (500.0, 3.0, Signal), (60.0, 9.0, Signal)], 2),
        // Back only below half of the threshold, and only after three seconds of it.
        ("", &[(500.0, 3.0, Signal), (51.0, 30.0, Signal), (40.0, 2.5, Signal), (40.0, 4.0, Merged)], 3),
        ("", &[(40.0, 3.0, Merged), (11.0, 30.0, Merged), (9.0, 8.0, Direct)], 2),
        // Around a threshold: it goes up once and stays.
        ("", &[(21.0, 3.0, Merged), (19.0, 5.0, Merged), (21.0, 5.0, Merged), (19.0, 60.0, Merged)], 1),
        // A short calm is none.
        (
            "",
            &[(40.0, 3.0, Merged), (0.0, 2.5, Merged), (40.0, 3.0, Merged), (0.0, 2.5, Merged), (40.0, 3.0, Merged)],
            1,
        ),
        ("gears=direct+signal", &[(60.0, 5.0, Direct), (150.0, 3.0, Signal), (0.0, 8.0, Direct)], 2),
        ("gears=direct+merged", &[(5000.0, 3.0, Merged), (0.0, 8.0, Direct)], 2),
        (
            "merged_per_s=2 signal_per_s=4 calm_ms=1000",
            &[(1.0, 5.0, Direct), (5.0, 4.0, Signal), (0.0, 6.0, Direct)],
            3,
        ),
    ];
    for (rule, walk, shifts) in lines {
        let mut lobby = Walk::by(rule);
        for (at, (per_s, seconds, expected)) in walk.iter().enumerate() {
            assert_eq!(lobby.go(*per_s, *seconds), *expected, "{rule} {walk:?}, leg {at}: {:?}", lobby.shifts);
        }
        assert!(lobby.shifts.len() <= shifts, "{rule} {walk:?}: {:?}", lobby.shifts);
    }
}

/// Rates that jump at random around both thresholds: never two shifts of opposite directions within the calm time.
#[test]
fn no_gear_goes_back_before_the_calm_time_is_over() {
    let mut random = 0x1234_5678_9abc_def0_u64;
    let mut lobby = Walk::by("calm_ms=3000");
    let mut since = Millis(0);
    for _ in 0..2_000 {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let before = lobby.shifts.len();
        lobby.go((random % 240) as f64, 0.5);
        for (was, is) in lobby.shifts.split_off(before) {
            if (is as i32) < was as i32 {
                assert!(lobby.now.0 - since.0 >= 3_000, "{was:?} to {is:?} after {} ms", lobby.now.0 - since.0);
            }
            since = lobby.now;
        }
    }
}

#[test]
fn a_shift_counts_from_the_first_message_of_its_turn() {
    let mut gearbox = Gearbox::new(Arc::default());
    let shift = gearbox.committed(Millis(5_000), lobby(), Epoch(3), Seq(7), Seq(306)).expect("150 per second");
    assert_eq!((shift.was, shift.is, shift.from.seq, shift.per_s), (Gear::Direct, Gear::Signal, Seq(7), 150));
    let private = ConversationId::private(crate::ids::UserId(1), crate::ids::UserId(2)).expect("two users");
    assert_eq!(gearbox.committed(Millis(5_000), private, Epoch(3), Seq(1), Seq(9_999)), None);
}

#[test]
fn there_is_one_notice_per_interval_and_the_last_one_says_all() {
    let mut gearbox = Gearbox::new(Arc::default());
    let mut given = Vec::new();
    let (start, mut seq) = (1_000_000, 0);
    for ms in 0..1_000 {
        let now = Millis(start + ms);
        let first = Seq(seq + 1);
        seq += 5;
        let _ = gearbox.committed(now, lobby(), Epoch(1), first, Seq(seq));
        if gearbox.gear_of(&lobby()) == Gear::Signal {
            let _ = gearbox.cached(&lobby(), Seq(seq));
        }
        given.extend(gearbox.due_notices(now).into_iter().map(|notice| (ms, notice.latest.seq.0)));
    }
    assert!((10..=11).contains(&given.len()), "{given:?}");
    assert!(given.windows(2).all(|pair| pair[1].0 - pair[0].0 >= 100 && pair[1].1 > pair[0].1), "{given:?}");
    let (now, owed) = (Millis(start + 1_000), gearbox.next_notice_in_ms(Millis(start + 1_000)).expect("one is owed"));
    assert!((1..100).contains(&owed));
    assert!(gearbox.due_notices(now).is_empty());
    let last = gearbox.due_notices(Millis(now.0 + owed));
    assert_eq!(last.iter().map(|notice| notice.latest.seq).collect::<Vec<_>>(), [Seq(seq)]);
    assert_eq!(gearbox.next_notice_in_ms(now), None);
}

#[test]
fn quiet_conversations_make_room_and_those_beyond_the_bound_stay_direct() {
    let mut gearbox = Gearbox::new(Arc::default());
    let room = |n: usize| ConversationId::Room(crate::ids::RoomId(n as u64 + 1));
    for n in 0..CONVERSATIONS_MAX {
        assert_eq!(gearbox.committed(Millis(1_000), room(n), Epoch(1), Seq(1), Seq(1)), None);
    }
    assert_eq!(gearbox.committed(Millis(1_001), lobby(), Epoch(1), Seq(1), Seq(900)), None, "no place");
    assert!(
        gearbox.committed(Millis(9_000), lobby(), Epoch(1), Seq(901), Seq(1_800)).is_some(),
        "they have become quiet"
    );
    assert_eq!(gearbox.conversations.len(), 1);
}
