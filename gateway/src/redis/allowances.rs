//! Allowances to send: what `spend.lua` takes and returns.
//!
//! Spends of the port come in, packed so that a call is one argument; one debt per spend goes out.

use bytes::Bytes;
use fred::types::{Key, Value};
use tidegate_core::limits::ALLOWANCE_KEPT;
use tidegate_core::ports::{PortResult, Spend};

use super::{CALL_KEYS_MAX, RedisHotStore, millis, unexpected};

impl RedisHotStore {
    pub(super) async fn spend_all(&self, spends: &[Spend]) -> PortResult<Vec<u64>> {
        let mut debts_us = Vec::with_capacity(spends.len());
        for spends in spends.chunks(CALL_KEYS_MAX) {
            let keys: Vec<Key> = spends.iter().map(|spend| self.keys.debt(&spend.key)).collect();
            let mut packed = Vec::with_capacity(spends.len() * 32);
            for number in spends.iter().flat_map(|spend| [spend.cost_us, spend.age_us, spend.debt_us, spend.most_us]) {
                packed.extend_from_slice(&i64::try_from(number).unwrap_or(i64::MAX).to_be_bytes());
            }
            let args = vec![Value::Integer(millis(ALLOWANCE_KEPT)), Value::Bytes(Bytes::from(packed))];
            let reply = self.link.run(&self.scripts.spend, keys, args).await?;
            let read = read_debts(&reply).filter(|read| read.len() == spends.len());
            debts_us.extend(read.ok_or_else(|| unexpected("spend"))?);
        }
        Ok(debts_us)
    }
}

/// `None` if the reply is not of the form the script promises.
fn read_debts(reply: &Value) -> Option<Vec<u64>> {
    let Value::Array(values) = reply else { return None };
    values.iter().map(|value| value.as_i64().and_then(|integer| u64::try_from(integer).ok())).collect()
}
