//! How the embedded archive's speed changes with its size: rows a second and, which does not depend on who else uses the
//! machine, processor time and bytes written for each row.
//!
//! `cargo bench -p tidegate-benches --bench archive_insert`; `SPANS=32` goes on to eight million rows. Eight engines commit
//! batches of 256, as the embedded gateway's do. The file is a new one in the system's place for temporary files.

use std::time::Instant;

use anyhow::Context as _;
use bytes::Bytes;
use futures_util::future::try_join_all;
use tidegate::sqlite::SqliteArchive;
use tidegate_core::event::StoredMessage;
use tidegate_core::ids::{ConversationId, MessageId, Millis, RoomId, Seq, UserId};
use tidegate_core::ports::{Archive as _, PersistBatch};
use tidegate_proto::v1::ContentType;

/// Rows between two lines of the report.
const SPAN: u64 = 256 * 1024;
const ENGINES: u64 = 8;
const BATCH: u64 = 256;

fn main() -> anyhow::Result<()> {
    let spans: u64 = std::env::var("SPANS").map_or(Ok(8), |spans| spans.parse()).context("SPANS is a number")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let place = std::env::temp_dir().join(format!("tidegate-bench-{}", std::process::id()));
    let measured = runtime.block_on(measure(&place.join("tidegate.db"), spans));
    std::fs::remove_dir_all(&place)?;
    measured
}

async fn measure(path: &std::path::Path, spans: u64) -> anyhow::Result<()> {
    let archive = SqliteArchive::open(path)?;
    for span in 0..spans {
        let turns = SPAN / ENGINES / BATCH;
        let (begun, before) = (Instant::now(), Usage::now()?);
        for turn in span * turns..(span + 1) * turns {
            let batch = |room| {
                let messages = (turn * BATCH + 1..=(turn + 1) * BATCH).map(|seq| row(room, seq)).collect();
                PersistBatch { messages, receipts: Vec::new() }
            };
            let persist = async |batch: PersistBatch| archive.persist(&batch).await;
            try_join_all((1..=ENGINES).map(|room| persist(batch(room)))).await?;
        }
        let (took_s, now) = (begun.elapsed().as_secs_f64(), Usage::now()?);
        println!(
            "{:>8} rows: {:>6.0} rows/s, {:>5.1} us of processor and {:>5.0} bytes written for each",
            (span + 1) * SPAN,
            SPAN as f64 / took_s,
            (now.processor_s - before.processor_s) * 1e6 / SPAN as f64,
            (now.written_bytes - before.written_bytes) / SPAN as f64
        );
    }
    let begun = Instant::now();
    archive.close().await;
    let closed = begun.elapsed();
    let begun = Instant::now();
    drop(SqliteArchive::open(path)?);
    println!("closed within {closed:?}, opened within {:?}", begun.elapsed());
    Ok(())
}

/// What this process has used so far.
struct Usage {
    processor_s: f64,
    written_bytes: f64,
}

impl Usage {
    fn now() -> anyhow::Result<Self> {
        let stat = std::fs::read_to_string("/proc/self/stat")?;
        // utime and stime are the 12th and 13th field behind the name, in hundredths of a second (proc_pid_stat(5)).
        let fields = stat.rsplit_once(')').context("a name in parentheses")?.1.split_whitespace();
        let ticks: u64 = fields.skip(11).take(2).map(str::parse::<u64>).sum::<Result<_, _>>()?;
        let io = std::fs::read_to_string("/proc/self/io")?;
        let written = io.lines().find_map(|line| line.strip_prefix("write_bytes: ")).context("write_bytes")?;
        Ok(Self { processor_s: ticks as f64 / 100.0, written_bytes: written.parse()? })
    }
}

fn row(room: u64, seq: u64) -> StoredMessage {
    // Ids are hashes: any two bits of them are independent. (The finalizer of splitmix64.)
    let scatter = |n: u64| {
        let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        n ^ (n >> 31)
    };
    let n = ((room << 40) | seq).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let id = (u128::from(scatter(n)) << 64) | u128::from(scatter(!n));
    StoredMessage {
        conversation: ConversationId::Room(RoomId(room)),
        seq: Seq(seq),
        message_id: MessageId(id.to_be_bytes()),
        sender: UserId(1),
        sent_at: Millis(1_767_225_600_000 + seq),
        content_type: ContentType::Text,
        body: Bytes::from_static(&[b'x'; 128]),
    }
}
