//! Pairs of users who write to each other: 1:1 chat.

use serde_json::json;

use super::{Stage, traffic};
use crate::generator::PlannedConversation;
use crate::options::LoadOptions;
use crate::report::TrafficResult;

/// Plays it.
///
/// # Errors
/// If it cannot be set up.
pub fn run(stage: &Stage<'_>, pairs: u32, load: &LoadOptions) -> anyhow::Result<TrafficResult> {
    let mut users = stage.users(2 * pairs as usize)?;
    let mut conversations = Vec::new();
    while let (Some(one), Some(other)) = (users.pop(), users.pop()) {
        let (lower, higher) = (one.user_id.min(other.user_id), one.user_id.max(other.user_id));
        conversations.push(PlannedConversation { id: format!("p_{lower}_{higher}"), members: vec![one, other] });
    }
    let parameters = json!({ "pairs": pairs, "load": load, "threads": stage.threads, "seed": stage.seed });
    traffic::run(stage, "private", conversations, 0, load, parameters)
}
