//! Rooms whose members all write and all receive: the fan-out of a message is the size of its room.

use serde_json::json;

use super::{Stage, traffic, unique_run};
use crate::generator::PlannedConversation;
use crate::options::LoadOptions;
use crate::report::TrafficResult;
use crate::setup::in_parallel;

/// Plays it.
///
/// # Errors
/// If it cannot be set up.
pub fn run(
    stage: &Stage<'_>,
    rooms: u32,
    members: u32,
    stuck_percent: u32,
    load: &LoadOptions,
) -> anyhow::Result<TrafficResult> {
    let size = members as usize;
    let users = stage.users(rooms as usize * size)?;
    let run = unique_run();
    // The first of each room opens it, which makes them a member.
    let opened = in_parallel(&stage.http, "opening rooms", rooms as usize, stage.stop, |http, room| {
        http.open_room(&users[room * size], &format!("lt{run}_{room}"), size)
    })?;
    in_parallel(&stage.http, "joining rooms", users.len(), stage.stop, |http, user| {
        if user % size == 0 { Ok(()) } else { http.join_room(&users[user], &opened[user / size]) }
    })?;
    let conversations = opened
        .iter()
        .zip(users.chunks(size))
        .map(|(room, members)| PlannedConversation { id: room.conversation_id.clone(), members: members.to_vec() });
    let parameters = json!({
        "rooms": rooms, "members": members, "stuck_percent": stuck_percent,
        "load": load, "threads": stage.threads, "seed": stage.seed
    });
    traffic::run(stage, "room", conversations.collect(), stuck_percent, load, parameters)
}
