//! The configuration as an operator meets it: precedence, and one message per mistake.

use std::ffi::OsString;
use std::path::PathBuf;

use tidegate_core::fairness::limit::Limit;
use tidegate_core::fairness::rules::Limits;

use super::*;

/// A place of its own with an optional `tidegate.toml`, and an environment.
struct Place {
    dir: PathBuf,
    environment: Vec<(OsString, OsString)>,
}

impl Place {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("tidegate-config-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a temporary folder");
        Self { dir, environment: Vec::new() }
    }

    fn file(self, name: &str, text: &str) -> Self {
        std::fs::write(self.dir.join(name), text).expect("a temporary file");
        self
    }

    fn var(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    fn load(&self, flags: &CliOverrides) -> Result<Config, ConfigError> {
        let around = Surroundings { environment: self.environment.clone(), working_dir: self.dir.clone() };
        Config::load_from(flags, &around)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn flags(set: &[&str]) -> CliOverrides {
    CliOverrides { set: set.iter().map(|text| (*text).to_owned()).collect(), ..CliOverrides::default() }
}

#[test]
fn the_printed_file_is_the_default() {
    let nothing = Place::new("nothing").load(&CliOverrides::default()).expect("defaults are legal");
    let printed = Place::new("printed").file("tidegate.toml", DEFAULTS).load(&CliOverrides::default());
    let printed = printed.expect("the printed file is legal");
    assert_eq!(format!("{nothing:?}"), format!("{printed:?}"));
    assert_eq!(nothing.listen.tcp.port(), 7400);
    assert_eq!(nothing.heartbeat, Heartbeat { min_interval_s: 5, max_interval_s: 180, probe_count: 3 });
    assert_eq!(nothing.limits.frame_bytes_max, FRAME_BYTES_MAX);
    assert_eq!(nothing.limits.body_bytes_max, BODY_BYTES_MAX);
    assert!(nothing.runtime.shards > 0 && nothing.auth.hash_concurrency_max > 0);
    assert!(nothing.warnings.is_empty());
}

#[test]
fn flags_win_over_the_environment_over_the_file_over_defaults() {
    let file = "[listen]\ntcp = \"127.0.0.1:1\"\nhttp = \"127.0.0.1:1\"\n[mysql]\npool_max = 3\n";
    let place = Place::new("order").file("tidegate.toml", file);
    let place = place.var("TIDEGATE_LISTEN_TCP", "127.0.0.1:2").var("TIDEGATE_LISTEN_HTTP", "127.0.0.1:2");
    let flags = CliOverrides { tcp: Some("127.0.0.1:3".into()), ..CliOverrides::default() };
    let config = place.load(&flags).expect("all legal");
    assert_eq!(config.listen.tcp.port(), 3);
    assert_eq!(config.listen.http.port(), 2);
    assert_eq!(config.mysql.pool_max, 3);
    assert_eq!(config.rabbitmq.partitions, 4);
}

#[test]
fn the_file_is_the_flag_s_then_the_variable_s_then_the_folder_s() {
    let gateway = |id: &str| format!("gateway_id = \"{id}\"");
    let place = Place::new("which")
        .file("tidegate.toml", &gateway("folder"))
        .file("a.toml", &gateway("variable"))
        .file("b.toml", &gateway("flag"));
    let id = |place: &Place, flags: &CliOverrides| place.load(flags).expect("legal").gateway_id.to_string();
    assert_eq!(id(&place, &CliOverrides::default()), "folder");
    let place = place.var("TIDEGATE_CONFIG", "a.toml");
    assert_eq!(id(&place, &CliOverrides::default()), "variable");
    let flags = CliOverrides { config: Some("b.toml".into()), ..CliOverrides::default() };
    assert_eq!(id(&place, &flags), "flag");
}

#[test]
fn each_wrong_value_names_its_key_and_what_is_expected() {
    let cases = [
        ("backend=cloud", "backend", "embedded"),
        ("gateway_id=a b", "gateway_id", "letters"),
        ("data_dir=", "data_dir", "folder"),
        ("listen.tcp=7400", "listen.tcp", "port"),
        ("listen.http=localhost", "listen.http", "port"),
        ("runtime.shards=many", "runtime.shards", "0 to 64"),
        ("runtime.engine_threads=-1", "runtime.engine_threads", "0 to 256"),
        ("rabbitmq.partitions=0", "rabbitmq.partitions", "1 to 64"),
        ("mysql.pool_max=0", "mysql.pool_max", "1 to 1024"),
        ("heartbeat.min_interval_s=200", "heartbeat.max_interval_s", "at least"),
        ("heartbeat.max_interval_s=0", "heartbeat.max_interval_s", "1 to 3600"),
        ("heartbeat.probe_count=0", "heartbeat.probe_count", "1 to"),
        ("limits.frame_bytes_max=70000", "limits.frame_bytes_max", "65536"),
        ("limits.frame_bytes_max=4096", "limits.body_bytes_max", "limits.frame_bytes_max"),
        ("limits.body_bytes_max=16385", "limits.body_bytes_max", "16384"),
        ("limits.outbox_bytes_max=65536", "limits.outbox_bytes_max", "twice"),
        ("limits.in_flight_max=0", "limits.in_flight_max", "1 to 1024"),
        ("limits.connections_max=0", "limits.connections_max", "1 to"),
        ("limits.handshake_timeout_s=0", "limits.handshake_timeout_s", "1 to"),
        ("limits.drain_timeout_s=x", "limits.drain_timeout_s", "0 to"),
        ("auth.token_ttl_s=0", "auth.token_ttl_s", "1 to"),
        ("auth.argon2_memory_kib=7", "auth.argon2_memory_kib", "8 to"),
        ("auth.argon2_iterations=0", "auth.argon2_iterations", "1 to"),
        ("auth.argon2_parallel=0", "auth.argon2_parallel", "1 to"),
        ("auth.hash_concurrency_max=1.5", "auth.hash_concurrency_max", "0 to"),
        ("lobbies.names=main", "lobbies.names", "lobby_"),
        ("lobbies.names=lobby_a,lobby_a", "lobbies.names", "once"),
        ("fairness.user_per_s=-1", "fairness.user_per_s", "0 to 1000000"),
        ("fairness.user_burst=0", "fairness.user_burst", "1 to 1000000"),
        ("fairness.conversation_per_s=fast", "fairness.conversation_per_s", "0 to 1000000"),
        ("fairness.conversation_burst=0", "fairness.conversation_burst", "1 to 1000000"),
        ("fairness.rules=lobby_main", "fairness.rules", "at least one of user_per_s"),
        ("fairness.rules=lobby user_per_s=1", "fairness.rules", "a conversation"),
        ("fairness.rules=r_* user_per_s=1 user_per_s=2", "fairness.rules", "each once"),
        ("fairness.rules=r_* user_burst=0", "fairness.rules", "from 1"),
        ("fairness.rules=r_* user_per_s=2,r_* speed=9", "fairness.rules", "conversation_burst"),
        ("log.format=xml", "log.format", "json"),
        ("log.filter=info,x=loud", "log.filter", "levels"),
    ];
    let place = Place::new("wrong");
    for (set, key, expected) in cases {
        let error = place.load(&flags(&[set])).expect_err(set);
        assert_eq!(error.key(), Some(key), "{set}: {error}");
        let text = error.to_string();
        let value = set.split_once('=').map(|(_, value)| value).unwrap_or_default();
        let relation = !set.starts_with(key);
        assert!(text.contains(expected), "{set}: {text}");
        assert!(relation || (text.contains(value) && text.contains("flag --set")), "{set}: {text}");
    }
    assert_eq!(ConfigError::EXIT_CODE, 78);
}

#[test]
fn a_rule_takes_from_the_section_what_it_does_not_name() {
    let limits = |user: (u32, u32), conversation: (u32, u32)| Limits {
        user: Limit::per_second(user.0, user.1),
        conversation: Limit::per_second(conversation.0, conversation.1),
    };
    let file = "[fairness]\nuser_burst = 7\nrules = [\"lobby_main user_per_s=2\", \"p_* conversation_per_s=0\"]\n";
    let from_file = Place::new("rules").file("tidegate.toml", file);
    let from_variable = Place::new("rules-by-variable")
        .var("TIDEGATE_FAIRNESS_USER_BURST", "7")
        .var("TIDEGATE_FAIRNESS_RULES", "lobby_main user_per_s=2, p_* conversation_per_s=0");
    for place in [from_file, from_variable] {
        let fairness = place.load(&CliOverrides::default()).expect("legal").fairness;
        let of = |conversation: &str| fairness.of(&conversation.parse().expect("an id"));
        assert_eq!(of("lobby_main"), limits((2, 7), (10_000, 2000)));
        assert_eq!(of("r_1"), limits((10, 7), (10_000, 2000)));
        assert_eq!(of("p_1_2"), limits((10, 7), (0, 1)));
        assert!(!place.load(&flags(&["fairness.rules="])).expect("legal").fairness.has_rules());
    }
    let private = Place::new("private").load(&CliOverrides::default()).expect("legal").fairness;
    assert_eq!(private.of(&"p_1_2".parse().expect("an id")), Limits::default(), "without a rule private is free");
}

#[test]
fn a_wrong_secret_is_named_and_not_shown() {
    let variables = ["TIDEGATE_RABBITMQ_URL", "TIDEGATE_REDIS_URL", "TIDEGATE_MYSQL_URL"];
    for (variable, key) in variables.into_iter().zip(["rabbitmq.url", "redis.url", "mysql.url"]) {
        let place = Place::new(key).var(variable, "http://root:hunter2@db/x");
        let error = place.load(&CliOverrides::default()).expect_err(variable);
        assert_eq!(error.key(), Some(key));
        let text = format!("{error} {error:?}");
        assert!(text.contains(variable) && !text.contains("hunter2"), "{text}");
    }
    let broken = Place::new("broken").file("tidegate.toml", "[mysql]\nurl = \"mysql://root:hunter2@db");
    let text = format!("{0} {0:?}", broken.load(&CliOverrides::default()).expect_err("an open string"));
    assert!(text.contains("line 2") && !text.contains("hunter2"), "{text}");
    let flag = Place::new("flag").load(&flags(&["mysql.url=mysql://root:hunter2@db"])).expect_err("secret in a flag");
    assert!(flag.to_string().contains("TIDEGATE_MYSQL_URL") && !flag.to_string().contains("hunter2"), "{flag}");
}

#[test]
fn a_file_s_values_have_types_and_its_keys_exist() {
    let cases = [
        ("[limits]\nin_flight_max = \"64\"", "limits.in_flight_max"),
        ("[limits]\nframe_byte_max = 4096", "limits.frame_byte_max"),
        ("backend = 1", "backend"),
        ("[lobbies]\nnames = [\"lobby_a\", 1]", "lobbies.names"),
        ("listen = \"127.0.0.1:1\"", "listen"),
        ("[listen.tcp]\nport = 1", "listen.tcp.port"),
    ];
    for (text, key) in cases {
        let place = Place::new("typed").file("tidegate.toml", text);
        let error = place.load(&CliOverrides::default()).expect_err(text);
        assert_eq!(error.key(), Some(key), "{error}");
        assert!(error.to_string().contains("tidegate.toml"), "{error}");
    }
    let missing = CliOverrides { config: Some("absent.toml".into()), ..CliOverrides::default() };
    assert!(matches!(Place::new("absent").load(&missing), Err(ConfigError::File { .. })));
}

#[test]
fn a_mistyped_variable_is_warned_about_and_others_are_left_alone() {
    let place = Place::new("typo")
        .var("TIDEGATE_LISTEN_TPC", "127.0.0.1:1")
        .var("TIDEGATE_TEST_SERVICES", "1")
        .var("TIDEGATE_SERVICES_DIR", "/x")
        .var("TIDEGATE_REDIS_URL", "")
        .var("PATH", "/bin");
    let config = place.load(&CliOverrides::default()).expect("warnings only");
    assert_eq!(config.warnings.len(), 1, "{:?}", config.warnings);
    assert!(config.warnings[0].contains("did you mean TIDEGATE_LISTEN_TCP"), "{:?}", config.warnings);
}

#[test]
fn an_id_can_be_made_of_any_host_name() {
    assert_eq!(derived_id("web-1.eu", "7400").as_str(), "web-1.eu-7400");
    assert_eq!(derived_id("", "7400").as_str(), "gateway-7400");
    assert_eq!(derived_id(&"ä x".repeat(80), "4294967295").as_str().len(), 32);
}
