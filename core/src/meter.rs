//! The engines' metric names, in one place: `tidegate_<part>_<noun>_<unit>[_total]`. Updated per batch, never per message.

/// Events handed to MQ1 and confirmed.
pub const ACCEPT_CONFIRMED: &str = "tidegate_accept_confirmed_events_total";
/// Events that were refused, or whose confirm did not come, by `reason`.
pub const ACCEPT_REFUSED: &str = "tidegate_accept_refused_events_total";
/// Calls for fairness that failed, by `call`: `spend` of the hot store or `rooms` of the archive. Meanwhile limits hold within
/// this gateway only, and rooms that are not known have no slow mode.
pub const FAIRNESS_FAILED: &str = "tidegate_fairness_failed_calls_total";
/// Allowances that other gateways were not told of, because too many were used at once.
pub const FAIRNESS_UNTOLD: &str = "tidegate_fairness_untold_allowances_total";
/// Messages the ingest engine committed to the archive.
pub const INGEST_PERSISTED: &str = "tidegate_ingest_persisted_messages_total";
/// Repetitions the ingest engine recognised, by `kind`: `same` or `conflict`.
pub const INGEST_REPEATED: &str = "tidegate_ingest_repeated_messages_total";
/// Epochs begun because the archive went back.
pub const INGEST_EPOCHS: &str = "tidegate_ingest_begun_epochs_total";
/// Commits that met what another engine wrote meanwhile, or an archive that went back.
pub const INGEST_CONFLICTS: &str = "tidegate_ingest_conflicting_commits_total";
/// Turns given up because such commits went on.
pub const INGEST_ABANDONED: &str = "tidegate_ingest_abandoned_turns_total";
/// Events the archive will never take, which went to the dead letters.
pub const INGEST_BURIED: &str = "tidegate_ingest_buried_events_total";
/// Turns of the ingest engine.
pub const INGEST_TURNS: &str = "tidegate_ingest_turns_total";
/// Port calls an engine had to repeat, by `step`.
pub const ENGINE_RETRIES: &str = "tidegate_engine_retries_total";
/// Times that pushes may have been lost on their way to this gateway, by `reason`: `gap`, `consumer` or `silence`.
pub const PUSH_MISSED: &str = "tidegate_push_missed_total";
/// Users whose presence the hot store had lost, so that pushes may have passed them by.
pub const PRESENCE_LOST: &str = "tidegate_presence_lost_users_total";
/// Gear changes, by `gear`.
pub const STORM_SHIFTS: &str = "tidegate_storm_gear_shifts_total";
/// Notices that gateways were given instead of messages.
pub const STORM_NOTICES: &str = "tidegate_storm_notices_total";
/// Messages that went into the lobby cache instead of being pushed.
pub const STORM_CACHED: &str = "tidegate_storm_cached_messages_total";
/// Times that what is to be pulled was fetched from the lobby cache or the archive.
pub const PULL_FETCHES: &str = "tidegate_pull_fetches_total";
/// Pulls answered, by `from`: by the shards from memory (`shard`), over HTTP from memory (`http`), or otherwise (`reception`).
pub const PULL_ANSWERS: &str = "tidegate_pull_answers_total";
/// Events the push engine took.
pub const PUSH_EVENTS: &str = "tidegate_push_events_total";
/// Logins, by `outcome`.
pub const LOGINS: &str = "tidegate_login_attempts_total";
/// Changes of rooms that are in the archive but that no gateway was told of within the bound.
pub const ROOM_UNANNOUNCED: &str = "tidegate_room_unannounced_changes_total";
