//! A user is where its live sessions are, and nowhere else.

use super::{HotStoreFixture, gateway};
use crate::ids::{Attachment, GatewayId, LobbyName, Millis, SessionId, UserId};
use crate::limits::LATE_LOGIN_MS;
use crate::ports::{Beat, Hold, HotStore, PresenceChange, PresenceOutcome};

const USER: UserId = UserId(7);

/// A connection of that number, with a session of the same one.
#[must_use]
pub fn hold(user: UserId, device: &str, number: u64) -> Hold {
    let (device, watching) = (device.to_owned(), Vec::new());
    Hold { user, device, session: SessionId(number), attachment: Attachment(number), watching }
}

/// It comes.
#[must_use]
pub fn here(user: UserId, device: &str, number: u64) -> PresenceChange {
    PresenceChange::Here(hold(user, device, number))
}

/// It stays.
#[must_use]
pub fn renewed(user: UserId, device: &str, number: u64) -> PresenceChange {
    PresenceChange::Renewed(hold(user, device, number))
}

/// It goes.
#[must_use]
pub fn gone(user: UserId, device: &str, number: u64) -> PresenceChange {
    PresenceChange::Gone { user, device: device.to_owned(), attachment: Attachment(number) }
}

async fn change(store: &impl HotStore, changes: &[PresenceChange]) -> Vec<PresenceOutcome> {
    let outcomes = store.change_presence(changes).await.expect("the store answers");
    assert_eq!(outcomes.len(), changes.len());
    outcomes
}

fn taken_from(name: &str, number: u64) -> PresenceOutcome {
    PresenceOutcome::TakenFrom { gateway: gateway(name), attachment: Attachment(number) }
}

/// Sorted, because the order of a user's gateways means nothing.
async fn places(store: &impl HotStore, user: UserId) -> Vec<GatewayId> {
    let mut presence = store.presence(&[user]).await.expect("the store answers");
    let mut gateways = presence.pop().expect("one answer").gateways;
    assert!(presence.is_empty(), "and only one");
    gateways.sort();
    gateways
}

/// Comes, is on two gateways with three devices, and goes.
pub async fn a_user_is_where_its_sessions_are(fixture: &impl HotStoreFixture) {
    let (a, b) = (fixture.store("a").await, fixture.store("b").await);
    assert_eq!(places(&a, USER).await, []);
    change(&a, &[here(USER, "phone", 1), here(USER, "desk|top:1", u64::MAX)]).await;
    change(&b, &[here(USER, "tablet", 3), renewed(USER, "tablet", 3)]).await;
    assert_eq!(places(&a, USER).await, [gateway("a"), gateway("b")]);
    change(&a, &[gone(USER, "phone", 1)]).await;
    assert_eq!(places(&b, USER).await, [gateway("a"), gateway("b")]);
    change(&a, &[gone(USER, "desk|top:1", u64::MAX)]).await;
    assert_eq!(places(&b, USER).await, [gateway("b")]);
    change(&b, &[gone(USER, "tablet", 3)]).await;
    assert_eq!(places(&a, USER).await, []);
    change(&b, &[gone(USER, "tablet", 3)]).await;
    assert_eq!(places(&a, USER).await, [], "going twice is harmless");
}

/// A reconnect may be seen before the end of the connection it replaces.
pub async fn a_device_taken_over_is_not_ended_by_its_former_session(fixture: &impl HotStoreFixture) {
    let a = fixture.store("a").await;
    assert_eq!(change(&a, &[here(USER, "phone", 1)]).await, [PresenceOutcome::Done]);
    assert_eq!(change(&a, &[here(USER, "phone", 2)]).await, [taken_from("a", 1)]);
    assert_eq!(change(&a, &[here(USER, "phone", 2)]).await, [PresenceOutcome::Done], "a repetition");
    assert_eq!(change(&a, &[renewed(USER, "phone", 1)]).await, [PresenceOutcome::HeldByAnother]);
    change(&a, &[gone(USER, "phone", 1)]).await;
    assert_eq!(places(&a, USER).await, [gateway("a")]);
    change(&a, &[gone(USER, "phone", 2)]).await;
    assert_eq!(places(&a, USER).await, []);
}

/// The same, between gateways: the former one no longer holds the user.
pub async fn a_device_moves_between_gateways(fixture: &impl HotStoreFixture) {
    let (a, b) = (fixture.store("a").await, fixture.store("b").await);
    change(&a, &[here(USER, "phone", 1)]).await;
    assert_eq!(change(&b, &[here(USER, "phone", 2)]).await, [taken_from("a", 1)]);
    assert_eq!(change(&a, &[renewed(USER, "phone", 1)]).await, [PresenceOutcome::HeldByAnother]);
    change(&a, &[gone(USER, "phone", 1)]).await;
    assert_eq!(places(&a, USER).await, [gateway("b")]);
}

/// A login that was carried out late, when its client had already connected anew, does not take the device back.
pub async fn a_late_login_does_not_take_a_device(fixture: &impl HotStoreFixture) {
    let (a, b) = (fixture.store("a").await, fixture.store("b").await);
    let at = |ms: u64, random| Attachment::new(Millis(1_767_225_600_000 + ms), random).0;
    let (late, present) = (at(0, 9), at(LATE_LOGIN_MS + 1, 1));
    change(&b, &[here(USER, "phone", present)]).await;
    assert_eq!(change(&a, &[here(USER, "phone", late)]).await, [PresenceOutcome::HeldByAnother]);
    assert_eq!(places(&a, USER).await, [gateway("b")]);
    change(&a, &[gone(USER, "phone", late)]).await;
    assert_eq!(change(&b, &[renewed(USER, "phone", present)]).await, [PresenceOutcome::Done]);
    // Once nobody has it, even a late one may.
    change(&b, &[gone(USER, "phone", present)]).await;
    assert_eq!(change(&a, &[here(USER, "phone", late)]).await, [PresenceOutcome::Done]);
    // Of two within the same moment the one that comes last has the device, whatever their clocks and dice said.
    let soon = at(LATE_LOGIN_MS, 0);
    change(&b, &[here(USER, "phone", soon)]).await;
    assert_eq!(change(&a, &[here(USER, "phone", late)]).await, [taken_from("b", soon)]);
}

/// A store that went back to an earlier state names a connection that is long gone; the one there is takes its place back,
/// and is told that pushes may have passed it by.
pub async fn a_place_that_went_back_is_taken_back(fixture: &impl HotStoreFixture) {
    let (a, b) = (fixture.store("a").await, fixture.store("b").await);
    change(&a, &[here(USER, "phone", 1)]).await;
    // A failover to a replica that lags behind: b's connection, the later one, is not there yet.
    assert_eq!(change(&b, &[renewed(USER, "phone", 2)]).await, [PresenceOutcome::Lost]);
    assert_eq!(places(&a, USER).await, [gateway("b")]);
    assert_eq!(change(&b, &[renewed(USER, "phone", 2)]).await, [PresenceOutcome::Done]);
}

/// A session whose connection ended waits for its device, with what it watched; nobody is present meanwhile.
pub async fn a_session_can_be_resumed_by_its_device(fixture: &impl HotStoreFixture) {
    let (a, b) = (fixture.store("a").await, fixture.store("b").await);
    let lobby = |name: &str| name.parse::<LobbyName>().expect("legal");
    let first = Hold { watching: vec![lobby("lobby_main")], ..hold(USER, "phone", 1) };
    change(&a, &[PresenceChange::Here(first.clone())]).await;
    let resume = async |device: &'static str, session| {
        b.resume(USER, device, SessionId(session)).await.expect("the store answers")
    };
    assert_eq!(resume("phone", 1).await, Some(vec![lobby("lobby_main")]), "before its end is noticed");
    let watching = vec![lobby("lobby_eu"), lobby("lobby_main")];
    change(&a, &[PresenceChange::Renewed(Hold { watching: watching.clone(), ..first })]).await;
    change(&a, &[gone(USER, "phone", 1)]).await;
    assert_eq!(places(&a, USER).await, []);
    assert_eq!(resume("phone", 1).await, Some(watching.clone()));
    assert_eq!((resume("phone", 2).await, resume("desk", 1).await), (None, None));
    assert_eq!(b.resume(UserId(8), "phone", SessionId(1)).await.expect("the store answers"), None);

    let second = Hold { attachment: Attachment(2), watching, ..hold(USER, "phone", 1) };
    let outcome = change(&b, &[PresenceChange::Here(second)]).await;
    assert_eq!(outcome, [PresenceOutcome::Done], "nobody had the device");
    change(&a, &[gone(USER, "phone", 1)]).await;
    assert_eq!(places(&a, USER).await, [gateway("b")]);
    change(&b, &[here(USER, "phone", 3), gone(USER, "phone", 3)]).await;
    assert_eq!((resume("phone", 1).await, resume("phone", 3).await), (None, Some(Vec::new())), "a new session");
}

/// Gateways renew what they hold; after a loss that alone brings their users back.
pub async fn renewal_makes_a_lost_user_present_again(fixture: &impl HotStoreFixture) {
    let (a, b) = (fixture.store("a").await, fixture.store("b").await);
    change(&a, &[here(USER, "phone", 1)]).await;
    fixture.lose_everything().await;
    assert_eq!(places(&a, USER).await, []);
    assert_eq!(change(&a, &[renewed(USER, "phone", 1)]).await, [PresenceOutcome::Lost]);
    let outcomes = change(&b, &[renewed(USER, "desk", 2), renewed(USER, "desk", 2)]).await;
    assert_eq!(outcomes, [PresenceOutcome::Lost, PresenceOutcome::Done]);
    assert_eq!(places(&a, USER).await, [gateway("a"), gateway("b")]);
}

/// A gateway learns from its beat that the store has never heard of it, or forgot everything, whoever else has come since.
pub async fn a_beat_tells_a_gateway_that_it_was_forgotten(fixture: &impl HotStoreFixture) {
    let (a, b) = (fixture.store("a").await, fixture.store("b").await);
    assert_eq!(a.beat().await.expect("the store answers"), Beat::Unknown);
    assert_eq!(a.beat().await.expect("the store answers"), Beat::Known);
    assert_eq!(b.beat().await.expect("the store answers"), Beat::Unknown);
    change(&a, &[here(USER, "phone", 1)]).await;
    fixture.lose_everything().await;
    change(&a, &[here(UserId(8), "phone", 2)]).await;
    assert_eq!(places(&b, UserId(8)).await, [gateway("a")], "a login counts before the next beat");
    assert_eq!(a.beat().await.expect("the store answers"), Beat::Unknown, "others are still to be renewed");
    assert_eq!(a.beat().await.expect("the store answers"), Beat::Known);
    assert_eq!(b.beat().await.expect("the store answers"), Beat::Unknown);
}

/// A batch may hold a whole life.
pub async fn changes_of_one_batch_apply_in_order(fixture: &impl HotStoreFixture) {
    let a = fixture.store("a").await;
    let (left, back) = (UserId(1), UserId(2));
    change(&a, &[here(left, "d", 1), here(back, "d", 1), gone(left, "d", 1), gone(back, "d", 1), here(back, "d", 2)])
        .await;
    assert_eq!(places(&a, left).await, []);
    assert_eq!(places(&a, back).await, [gateway("a")]);
}

/// More than one call to a server takes.
pub async fn hundreds_of_users_are_looked_up_in_order(fixture: &impl HotStoreFixture) {
    let a = fixture.store("a").await;
    let changes: Vec<_> = (0..1500).step_by(3).map(|n| here(UserId(n), "d", n + 1)).collect();
    change(&a, &changes).await;
    let users: Vec<_> = (0..1500).map(UserId).collect();
    let presence = a.presence(&users).await.expect("the store answers");
    assert_eq!(presence.len(), users.len());
    for (user, presence) in users.iter().zip(&presence) {
        assert_eq!(presence.gateways.len(), usize::from(user.0.is_multiple_of(3)), "{user:?}");
    }
    assert_eq!(a.presence(&[]).await.expect("the store answers"), []);
}
