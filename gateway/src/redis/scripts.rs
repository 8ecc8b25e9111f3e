//! The Lua scripts, one file per verb.
//!
//! What must hold: every script may be repeated with the same arguments without harm, because a reply that was lost leaves
//! it open whether the script ran.

use fred::types::scripts::Script;

/// Everything that runs inside Redis.
pub(super) struct Scripts {
    /// `sequence.lua`.
    pub(super) sequence: Script,
    /// `settle.lua`.
    pub(super) settle: Script,
    /// `spend.lua`. An exception: its repetition adds costs again, so only calls without costs are repeated.
    pub(super) spend: Script,
    /// `read_cache.lua`.
    pub(super) read_cache: Script,
    /// `file.lua`.
    pub(super) file: Script,
    /// `take_summary.lua`. An exception: its repetition finds the inbox empty.
    pub(super) take_summary: Script,
    /// `seed_unread.lua`.
    pub(super) seed_unread: Script,
    /// `set_unread.lua`.
    pub(super) set_unread: Script,
    /// `change_presence.lua`.
    pub(super) change_presence: Script,
    /// `presence.lua`.
    pub(super) presence: Script,
    /// `resume.lua`.
    pub(super) resume: Script,
    /// `beat.lua`.
    pub(super) beat: Script,
}

/// A script that counts, behind the functions it shares with the others of its kind.
macro_rules! unread_script {
    ($file:literal) => {
        Script::from_lua(concat!(include_str!("scripts/unread.lua"), include_str!($file)))
    };
}

/// A script that knows lobby caches, likewise.
macro_rules! cache_script {
    ($file:literal) => {
        Script::from_lua(concat!(include_str!("scripts/cache.lua"), include_str!($file)))
    };
}

/// A script that knows which gateways live, likewise.
macro_rules! beats_script {
    ($file:literal) => {
        Script::from_lua(concat!(include_str!("scripts/beats.lua"), include_str!($file)))
    };
}

impl Scripts {
    pub(super) fn new() -> Self {
        Self {
            sequence: Script::from_lua(include_str!("scripts/sequence.lua")),
            spend: Script::from_lua(include_str!("scripts/spend.lua")),
            settle: cache_script!("scripts/settle.lua"),
            read_cache: cache_script!("scripts/read_cache.lua"),
            file: unread_script!("scripts/file.lua"),
            take_summary: unread_script!("scripts/take_summary.lua"),
            seed_unread: unread_script!("scripts/seed_unread.lua"),
            set_unread: unread_script!("scripts/set_unread.lua"),
            change_presence: beats_script!("scripts/change_presence.lua"),
            presence: beats_script!("scripts/presence.lua"),
            resume: Script::from_lua(include_str!("scripts/resume.lua")),
            beat: beats_script!("scripts/beat.lua"),
        }
    }
}
