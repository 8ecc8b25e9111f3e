//! What the kernel knows of a process and of this machine: CPU time, memory, sockets, limits.
//!
//! Everything is read from `/proc`; what cannot be read is `None`, because a missing number must not end a run.

use std::fs;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::Serialize;

/// Memory of one process.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Memory {
    /// Resident, shared pages included.
    pub rss_bytes: u64,
    /// Shared pages counted in proportion.
    pub pss_bytes: u64,
    /// Private pages only.
    pub uss_bytes: u64,
}

/// CPU time of the process, all its threads, user and system, in seconds.
pub fn cpu_seconds(pid: u32) -> Option<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The program's name is in parentheses and may hold anything; utime and stime are the 12th and 13th field after it.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks: u64 = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    // USER_HZ is 100 on every architecture Linux runs on today (proc_pid_stat(5)).
    Some(ticks as f64 / 100.0)
}

/// The processes a process has started and not yet buried.
pub fn children(pid: u32) -> Vec<u32> {
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    numbers.filter(|child| parent(*child) == Some(pid)).collect()
}

fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// Resident memory now and at its highest, in bytes.
pub fn rss_bytes(pid: u32) -> Option<(u64, u64)> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    Some((kib_field(&status, "VmRSS:")?, kib_field(&status, "VmHWM:")?))
}

/// Memory in detail; costs the kernel a walk over the page tables.
pub fn memory(pid: u32) -> Option<Memory> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    Some(Memory {
        rss_bytes: kib_field(&rollup, "Rss:")?,
        pss_bytes: kib_field(&rollup, "Pss:")?,
        uss_bytes: kib_field(&rollup, "Private_Clean:")? + kib_field(&rollup, "Private_Dirty:")?,
    })
}

fn kib_field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

/// Kernel memory of all TCP sockets of this machine's network namespace, in bytes.
pub fn tcp_memory_bytes() -> Option<u64> {
    let sockstat = fs::read_to_string("/proc/net/sockstat").ok()?;
    let line = sockstat.lines().find_map(|line| line.strip_prefix("TCP:"))?;
    let words: Vec<&str> = line.split_whitespace().collect();
    let pages: u64 = words.iter().skip_while(|word| **word != "mem").nth(1)?.parse().ok()?;
    Some(pages * 4096)
}

/// Kernel objects of all kinds, in bytes: socket structures live here.
pub fn slab_bytes() -> Option<u64> {
    kib_field(&fs::read_to_string("/proc/meminfo").ok()?, "Slab:")
}

/// Busy time of all cores since the machine started, in seconds.
pub fn busy_seconds() -> Option<f64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let fields: Vec<u64> = stat.lines().next()?.split_whitespace().skip(1).filter_map(|f| f.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal
    let busy = fields.get(0..3)?.iter().sum::<u64>() + fields.get(5..8)?.iter().sum::<u64>();
    Some(busy as f64 / 100.0)
}

/// Raises the number of files this process and its children may open as far as it goes; returns it.
pub fn raise_file_limit() -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 1024 };
    if setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() { hard } else { soft }
}

/// The machine a result was measured on.
#[derive(Clone, Debug, Serialize)]
pub struct Host {
    /// Cores this process may use.
    pub cores: usize,
    /// Name of the processor.
    pub cpu_model: String,
    /// Release of the kernel.
    pub kernel: String,
    /// Main memory.
    pub memory_bytes: u64,
}

impl Host {
    /// This machine.
    pub fn here() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        Self {
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            cpu_model: model.trim_start_matches([' ', '\t', ':']).to_owned(),
            kernel: kernel.trim().to_owned(),
            memory_bytes: kib_field(&meminfo, "MemTotal:").unwrap_or(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_can_be_measured() {
        let pid = std::process::id();
        assert!(cpu_seconds(pid).is_some());
        let (rss, peak) = rss_bytes(pid).expect("own status");
        assert!(rss > 0 && peak >= rss);
        let memory = memory(pid).expect("own smaps");
        assert!(memory.rss_bytes >= memory.uss_bytes && memory.uss_bytes > 0);
        assert!(tcp_memory_bytes().is_some() && busy_seconds().is_some() && slab_bytes().is_some());
        assert!(Host::here().cores > 0);
        let parent = std::os::unix::process::parent_id();
        assert!(children(parent).contains(&pid));
    }
}
