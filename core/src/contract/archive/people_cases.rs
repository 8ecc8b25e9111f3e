//! Users and rooms.

use futures_util::future::join_all;

use super::{ANN, BOB, EVE, NOON, batch, messages, new_room, persist};
use crate::ids::{ConversationId, RoomId, UserId};
use crate::ports::{Archive, Joined};

/// A name is one user's in all its spellings of case; letters that only look alike are others.
pub async fn names_differ_by_more_than_case<A: Archive>(archive: &A) {
    let ann = archive.create_user("Ann", "hash-1", NOON).await.expect("an answer").expect("the name is free");
    for taken in ["Ann", "ann", "ANN"] {
        assert_eq!(archive.create_user(taken, "hash-2", NOON).await, Ok(None), "{taken}");
    }
    let arsa = archive.create_user("Ärsa 🎲", "hash-3", NOON).await.expect("an answer").expect("the name is free");
    assert_eq!(archive.create_user("ärsa 🎲", "hash-4", NOON).await, Ok(None));
    for free in ["Arsa 🎲", "Änn", "Ann ", "Añn"] {
        assert!(archive.create_user(free, "hash-5", NOON).await.expect("an answer").is_some(), "{free:?}");
    }
    let (user, hash) = archive.user_by_name("aNN").await.expect("an answer").expect("Ann is registered");
    assert_eq!((user.id, user.name.as_str(), hash.as_str()), (ann, "Ann", "hash-1"));
    let (user, hash) = archive.user_by_name("ÄRSA 🎲").await.expect("an answer").expect("Ärsa is registered");
    assert_eq!((user.id, user.name.as_str(), hash.as_str()), (arsa, "Ärsa 🎲", "hash-3"));
    assert_eq!(archive.user_by_name("nobody").await, Ok(None));
}

/// Of concurrent registrations under one name one wins.
pub async fn one_of_many_gets_a_name<A: Archive>(archive: &A) {
    let tries = join_all((0..8).map(|n| async move {
        let name = if n % 2 == 0 { "dave" } else { "Dave" };
        archive.create_user(name, "hash", NOON).await.expect("an answer")
    }))
    .await;
    let winners: Vec<_> = tries.into_iter().flatten().collect();
    assert_eq!(winners.len(), 1, "{winners:?}");
    let (dave, _) = archive.user_by_name("DAVE").await.expect("an answer").expect("somebody is Dave");
    assert_eq!(dave.id, winners[0]);
}

/// Strangers among the ids are left out.
pub async fn users_are_found_by_id<A: Archive>(archive: &A) {
    let mut ids = Vec::new();
    for n in 0..20 {
        ids.push(archive.create_user(&format!("user {n}"), "hash", NOON).await.expect("an answer").expect("free"));
    }
    ids.push(UserId(ids[19].0 + 1000));
    let mut users = archive.users(&ids).await.expect("users");
    users.sort_by_key(|user| user.id);
    let names: Vec<_> = users.into_iter().map(|user| user.name).collect();
    assert_eq!(names, (0..20).map(|n| format!("user {n}")).collect::<Vec<_>>());
}

/// A list that grows while it is read neither repeats nor skips what was there.
pub async fn rooms_are_listed_newest_first<A: Archive>(archive: &A) {
    let mut ids = Vec::new();
    for n in 0..5 {
        ids.push(new_room(archive, &format!("room {n} ♜"), ANN, 4).await);
    }
    ids.reverse();
    let listed = async |before, size| {
        let rooms = archive.rooms(before, size).await.expect("rooms");
        rooms.iter().map(|room| room.id).collect::<Vec<_>>()
    };
    assert_eq!(listed(None, 10).await, ids);
    assert_eq!(listed(None, 2).await, ids[..2]);
    new_room(archive, "late", BOB, 4).await;
    assert_eq!(listed(Some(ids[1]), 2).await, ids[2..4]);
    assert_eq!(listed(Some(ids[3]), 2).await, ids[4..]);
    assert_eq!(listed(Some(ids[4]), 2).await, []);

    let room = archive.room(ids[0]).await.expect("an answer").expect("the room is there");
    assert_eq!(
        (room.name.as_str(), room.owner, room.capacity, room.members, room.created_at),
        ("room 4 ♜", ANN, 4, 1, NOON)
    );
}

/// Set, changed and ended; a room that does not exist has none.
pub async fn rooms_are_found_by_id_with_their_slow_mode<A: Archive>(archive: &A) {
    let (den, raid) = (new_room(archive, "den", ANN, 4).await, new_room(archive, "raid", BOB, 4).await);
    let nowhere = RoomId(raid.0 + 1000);
    let slow_modes = async || {
        let mut rooms = archive.rooms_by_id(&[raid, nowhere, den]).await.expect("rooms");
        rooms.sort_by_key(|room| room.id);
        let listed = archive.rooms(None, 10).await.expect("rooms");
        for room in &rooms {
            assert_eq!(archive.room(room.id).await.expect("an answer").as_ref(), Some(room));
            assert!(listed.contains(room));
        }
        rooms.iter().map(|room| (room.id, room.owner, room.slow_mode_s)).collect::<Vec<_>>()
    };
    assert_eq!(slow_modes().await, [(den, ANN, 0), (raid, BOB, 0)]);
    for slow_mode_s in [30, 30, 21_600, 0, 0, 5] {
        assert_eq!(archive.set_slow_mode(raid, slow_mode_s).await, Ok(true));
        assert_eq!(slow_modes().await, [(den, ANN, 0), (raid, BOB, slow_mode_s)]);
    }
    assert_eq!(archive.set_slow_mode(nowhere, 30).await, Ok(false));
    assert_eq!(archive.rooms_by_id(&[nowhere]).await, Ok(Vec::new()));
    assert_eq!(archive.rooms_by_id(&[]).await, Ok(Vec::new()));
}

/// Twenty want in, there is place for seven beside the owner.
pub async fn a_room_takes_no_more_than_its_capacity<A: Archive>(archive: &A) {
    let room = new_room(archive, "raid", ANN, 8).await;
    let answers = join_all((100..120).map(|user| archive.join_room(room, UserId(user), NOON))).await;
    let count = |wanted| answers.iter().filter(|answer| **answer == Ok(wanted)).count();
    assert_eq!((count(Joined::Now), count(Joined::Full)), (7, 13), "{answers:?}");
    assert_eq!(archive.room(room).await.expect("an answer").expect("the room").members, 8);
    assert_eq!(archive.members(&[room]).await.expect("members")[0].len(), 8);
    assert_eq!(archive.join_room(room, ANN, NOON).await, Ok(Joined::Already), "also when the room is full");

    assert_eq!(archive.leave_room(room, ANN).await, Ok(true));
    assert_eq!(archive.join_room(room, BOB, NOON).await, Ok(Joined::Now), "the place is free again");
    assert_eq!(archive.join_room(room, ANN, NOON).await, Ok(Joined::Full));
}

/// Membership is the same seen from the room and from the user.
pub async fn members_come_and_go<A: Archive>(archive: &A) {
    let den = new_room(archive, "den", ANN, 8).await;
    let raid = new_room(archive, "raid", BOB, 8).await;
    archive.join_room(den, EVE, NOON).await.expect("an answer");
    archive.join_room(raid, EVE, NOON).await.expect("an answer");
    persist(archive, batch(messages(ConversationId::private(ANN, EVE).expect("two users"), 1..=1, ANN))).await;

    let members = async || {
        let mut members = archive.members(&[raid, den, RoomId(999), den]).await.expect("members");
        members.iter_mut().for_each(|room| room.sort_unstable());
        members
    };
    let rooms_of = async |user| {
        let mut rooms = archive.rooms_of(user).await.expect("rooms");
        rooms.sort_unstable();
        rooms
    };
    assert_eq!(members().await, [vec![BOB, EVE], vec![ANN, EVE], vec![], vec![ANN, EVE]]);
    assert_eq!(rooms_of(EVE).await, [den, raid]);
    assert_eq!(rooms_of(ANN).await, [den]);

    assert_eq!(archive.leave_room(den, EVE).await, Ok(true));
    assert_eq!(archive.leave_room(den, EVE).await, Ok(false));
    assert_eq!(members().await, [vec![BOB, EVE], vec![ANN], vec![], vec![ANN]]);
    assert_eq!(rooms_of(EVE).await, [raid]);
    assert_eq!(archive.room(den).await.expect("an answer").expect("the room").members, 1);
}
