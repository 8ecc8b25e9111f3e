//! The hot store in a real Redis: the contract suite, what foreign services see, and what happens when it fails.
//!
//! Runs if `TIDEGATE_TEST_SERVICES` is 1, against `TIDEGATE_REDIS_URL`; the fault tests start servers of their own.

mod allowances;
mod beats;
mod contract;
mod faults;
mod foreign;
mod server;

use std::future::Future;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fred::clients::Client;
use fred::interfaces::{ClientLike, LuaInterface};
use fred::types::config::Config;
use tidegate::redis::{RedisConfig, RedisHotStore};
use tidegate_core::clock::Clock;
use tidegate_core::contract::hot_store::HotStoreFixture;
use tidegate_core::ids::Millis;

/// The shared Redis, under a prefix of this test's own.
struct Fixture {
    config: RedisConfig,
    raw: Client,
}

impl Fixture {
    async fn new() -> Option<Self> {
        if std::env::var("TIDEGATE_TEST_SERVICES").as_deref() != Ok("1") {
            eprintln!("skipped: TIDEGATE_TEST_SERVICES is not 1");
            return None;
        }
        let url = std::env::var("TIDEGATE_REDIS_URL").expect("TIDEGATE_REDIS_URL names the Redis to test with");
        let mut random = [0; 8];
        getrandom::fill(&mut random).expect("the system has randomness");
        let mut config = RedisConfig::new(url);
        config.key_prefix = format!("test-{:016x}:", u64::from_ne_bytes(random));
        // A loaded machine is no failure here; the fault tests set their own bounds.
        config.command_timeout = Duration::from_secs(10);
        let raw = raw_client(&config.url).await;
        Some(Self { config, raw })
    }

    async fn connect(&self, gateway: &str) -> RedisHotStore {
        let gateway = gateway.parse().expect("a legal gateway id");
        RedisHotStore::connect(self.config.clone(), gateway).await.expect("Redis answers")
    }

    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.config.key_prefix)
    }
}

impl HotStoreFixture for Fixture {
    type Hot = RedisHotStore;
    type Time = SystemClock;

    async fn store(&self, gateway: &str) -> RedisHotStore {
        self.connect(gateway).await
    }

    fn clock(&self) -> SystemClock {
        SystemClock
    }

    async fn lose_everything(&self) {
        forget(&self.raw, self.key("*")).await;
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let (url, pattern) = (self.config.url.clone(), self.key("*"));
        let cleanup = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async { forget(&raw_client(&url).await, pattern).await });
        });
        // A failure to clean up must not hide the test's own.
        drop(cleanup.join());
    }
}

/// Deletes what matches, in one go.
async fn forget(raw: &Client, pattern: String) {
    const FORGET: &str = "for _, key in ipairs(redis.call('KEYS', ARGV[1])) do redis.call('DEL', key) end return 1";
    raw.eval::<(), _, _, _>(FORGET, Vec::<String>::new(), vec![pattern]).await.expect("Redis answers");
}

#[derive(Clone)]
struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Millis {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
        Millis(u64::try_from(since.as_millis()).expect("before the year 500 million"))
    }

    async fn sleep(&self, delay: Duration) {
        tokio::time::sleep(delay).await;
    }
}

/// Redis as another service uses it.
async fn raw_client(url: &str) -> Client {
    let client = Client::new(Config::from_url(url).expect("a Redis URL"), None, None, None);
    client.init().await.expect("Redis answers");
    client
}

/// Waits until `condition` holds, at most `bound`.
async fn eventually<F: Future<Output = bool>>(what: &str, bound: Duration, mut condition: impl FnMut() -> F) {
    let deadline = tokio::time::Instant::now() + bound;
    while !condition().await {
        assert!(tokio::time::Instant::now() < deadline, "not within {bound:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
