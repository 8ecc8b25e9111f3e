//! The cast of a run: users, who talks to whom, and a player for each device.
//!
//! In: options and a gateway's HTTP API; out: people who are registered, conversations that are open, players that are not
//! connected yet. The same seed gives the same habits and bodies.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::client::{Client, Habits};
use super::options::ChaosOptions;
use super::player::Player;
use super::seat::{Reads, Terms};
use crate::connection::Account;
use crate::pacer::Random;
use crate::setup::{Http, in_parallel};

/// Bytes of each message's body.
const BODY_BYTES: usize = 96;

/// Members of a room.
const ROOM_MEMBERS: usize = 6;

/// A user of the run.
pub struct Person {
    /// As registered.
    pub account: Account,
    /// For another login.
    pub name: String,
    /// For another login.
    pub password: String,
}

/// A conversation of the run.
pub struct Conversation {
    /// As on the wire.
    pub id: String,
    /// Indexes of persons.
    pub members: Vec<usize>,
}

impl Conversation {
    /// The members' user ids.
    pub fn users(&self, people: &[Person]) -> Vec<u64> {
        self.members.iter().map(|member| people[*member].account.user_id).collect()
    }
}

/// Registers users and opens rooms.
///
/// # Errors
/// What the server answered.
pub fn set_up(
    base: &str,
    options: &ChaosOptions,
    stop: &AtomicBool,
) -> anyhow::Result<(Vec<Person>, Vec<Conversation>)> {
    let users = options.users as usize;
    let run = run_number();
    let people = in_parallel(base, "registering", users, stop, |http, index| {
        let (name, password) = (format!("chaos{run:08x}_{index}"), format!("password-{run:08x}-{index}"));
        let account = http.register_and_log_in(&name, &password)?;
        Ok(Person { account, name, password })
    })?;
    let mut conversations = Vec::new();
    // A ring: each user writes to both neighbours.
    for index in 0..users {
        let other = (index + 1) % users;
        let (a, b) = (people[index].account.user_id, people[other].account.user_id);
        conversations.push(Conversation { id: format!("p_{}_{}", a.min(b), a.max(b)), members: vec![index, other] });
    }
    let http = Http::new(base);
    for index in 0..users.div_ceil(ROOM_MEMBERS) {
        let members: Vec<usize> =
            (0..ROOM_MEMBERS.min(users)).map(|n| (index * (ROOM_MEMBERS - 1) + n) % users).collect();
        let owner = &people[members[0]].account;
        let room = http.open_room(owner, &format!("chaos {index}"), members.len().max(2))?;
        for member in &members[1..] {
            http.join_room(&people[*member].account, &room)?;
        }
        conversations.push(Conversation { id: room.conversation_id, members });
    }
    Ok((people, conversations))
}

/// A player for each device of each user.
pub fn players(
    options: &ChaosOptions,
    people: &[Person],
    conversations: &[Conversation],
    terms: &Arc<Terms>,
) -> Vec<Player> {
    let mut random = Random::new(options.seed ^ 0x70_6c61_7965_7273);
    let mut players = Vec::new();
    for (user, person) in people.iter().enumerate() {
        let devices = if user % 3 == 0 { 2 } else { 1 };
        for device in 0..devices {
            let reads = [Reads::All, Reads::Half, Reads::Nothing][user % 3];
            let habits = Habits { reads: (device == 0).then_some(reads) };
            let mut client =
                Client::new(format!("user {user} device {device}"), habits, Arc::clone(terms), random.next());
            for (index, conversation) in (0..).zip(conversations) {
                if let Some(member) = conversation.members.iter().position(|member| *member == user) {
                    let users = conversation.users(people);
                    let member = u32::try_from(member).expect("rooms are small");
                    client.take_seat(index, &conversation.id, member, users);
                }
            }
            let interval_ms = f64::from(options.users) * 1_000.0 / f64::from(options.rate);
            players.push(Player {
                client,
                index: players.len(),
                account: person.account.clone(),
                name: person.name.clone(),
                password: person.password.clone(),
                device_id: format!("device-{device}"),
                interval_ms: (device == 0).then_some(interval_ms),
                random: Random::new(random.next()),
                // The second device of a user is at another gateway than the first.
                gateway: user + device,
            });
        }
    }
    players
}

/// Bodies of the run.
pub fn filler(seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed ^ 0x66_696c_6c65_7200);
    (0..BODY_BYTES).map(|_| random.next().to_le_bytes()[0]).collect()
}

/// Differs between runs, so that a gateway kept from an earlier run cannot be mistaken for this one's.
pub fn run_number() -> u32 {
    std::process::id()
}
