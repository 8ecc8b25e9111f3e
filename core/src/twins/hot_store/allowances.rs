//! Allowances to send: the twin of `spend.lua`.
//!
//! In come what gateways let pass, out go the debts of all of them together.
//!
//! What must hold: what is forgotten is taken for whole, so only what was not used for longest is forgotten.

use super::aging::Aging;
use crate::ids::Millis;
use crate::ports::{AllowanceKey, Spend};

/// Allowances that are kept at least; some 60 bytes each.
const GENERATION_MAX: usize = 200_000;

/// When each allowance is whole again, in microseconds.
#[derive(Clone)]
pub(super) struct Allowances {
    whole_at_us: Aging<AllowanceKey, u64>,
}

impl Default for Allowances {
    fn default() -> Self {
        Self { whole_at_us: Aging::new(GENERATION_MAX) }
    }
}

impl Allowances {
    /// See [`crate::ports::HotStore::spend`].
    pub(super) fn spend(&mut self, spends: &[Spend], now: Millis) -> Vec<u64> {
        let now_us = now.0.saturating_mul(1000);
        spends.iter().map(|spend| self.spend_one(spend, now_us)).collect()
    }

    fn spend_one(&mut self, spend: &Spend, now_us: u64) -> u64 {
        let known = self.whole_at_us.get_mut(&spend.key).copied().unwrap_or(0);
        let mut whole_at_us = known;
        if spend.cost_us > 0 {
            whole_at_us = known.max(now_us.saturating_sub(spend.age_us)).saturating_add(spend.cost_us);
        }
        whole_at_us = whole_at_us.max(now_us.saturating_add(spend.debt_us)).min(now_us.saturating_add(spend.most_us));
        if whole_at_us != known {
            self.whole_at_us.insert(spend.key, whole_at_us);
        }
        whole_at_us.saturating_sub(now_us)
    }
}
