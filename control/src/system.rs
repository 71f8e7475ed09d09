//! Facts of the machine for the node's record: read from `/proc`, zero where that is not possible.
use std::sync::Mutex;

/// Memory, load, processor time.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Machine {
    /// Processors that this process may use.
    pub cores: u64,
    /// Bytes of memory.
    pub memory_total: u64,
    /// Bytes of it that are free or can be made free.
    pub memory_free: u64,
    /// Load average over a minute.
    pub load: f64,
    /// Share of all processors in use since the last look, in percent.
    pub cpu_percent: f64,
}

/// Remembers the last look, for what is a rate.
#[derive(Debug, Default)]
pub struct Observer {
    /// Busy and total time then, in the kernel's ticks.
    last: Mutex<(u64, u64)>,
}

/// What `/proc` counts processor time in (USER_HZ, a hundredth of a second wherever this runs), in ns.
const TICK_NS: u64 = 10_000_000;

/// The machine's name.
pub fn hostname() -> String {
    read("/proc/sys/kernel/hostname").trim().to_owned()
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// Memory of a process that is in use, in bytes.
pub fn resident_bytes(process: u32) -> u64 {
    memory_line(&read(&format!("/proc/{process}/status")), "VmRSS:")
}

/// Processor time of a process so far, in ns.
pub fn processor_ns(process: u32) -> u64 {
    process_ticks(&read(&format!("/proc/{process}/stat"))) * TICK_NS
}

/// User and system time of `/proc/PID/stat`. The name before it is in brackets, and may have some in it.
fn process_ticks(text: &str) -> u64 {
    let rest = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks = rest.split_whitespace().skip(11).take(2);
    ticks.filter_map(|t| t.parse::<u64>().ok()).sum()
}

impl Observer {
    /// Looks now.
    pub fn look(&self) -> Machine {
        let memory = read("/proc/meminfo");
        let (busy, total) = processor_ticks(&read("/proc/stat"));
        // Nothing that holds the lock can panic.
        let mut last = self
            .last
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let (busy_before, total_before) = std::mem::replace(&mut *last, (busy, total));
        let (busy, total) = (
            busy.saturating_sub(busy_before),
            total.saturating_sub(total_before),
        );
        Machine {
            cores: std::thread::available_parallelism().map_or(1, |n| n.get() as u64),
            memory_total: memory_line(&memory, "MemTotal:"),
            memory_free: memory_line(&memory, "MemAvailable:"),
            load: read("/proc/loadavg")
                .split_whitespace()
                .next()
                .and_then(|l| l.parse().ok())
                .unwrap_or(0.0),
            cpu_percent: if total == 0 {
                0.0
            } else {
                100.0 * busy as f64 / total as f64
            },
        }
    }
}

/// A line of `/proc/meminfo` or `/proc/PID/status`, in bytes.
fn memory_line(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|l| l.strip_prefix(name));
    let kib = line
        .and_then(|l| l.split_whitespace().next())
        .and_then(|n| n.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// Busy and total time of all processors, from `/proc/stat`: user, nice, system, idle, iowait, irq, softirq, steal.
fn processor_ticks(text: &str) -> (u64, u64) {
    let line = text.lines().next().unwrap_or_default();
    let ticks: Vec<u64> = line
        .split_whitespace()
        .skip(1)
        .take(8)
        .filter_map(|n| n.parse().ok())
        .collect();
    let total = ticks.iter().sum();
    let idle: u64 = ticks.iter().skip(3).take(2).sum();
    (total - idle, total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_files_are_read() {
        assert_eq!(
            processor_ticks("cpu  10 1 5 80 4 0 0 0 0 0\ncpu0 1 1 1 1\n"),
            (16, 100)
        );
        assert_eq!(processor_ticks(""), (0, 0));
        assert_eq!(
            memory_line("MemTotal:  16 kB\nMemFree: 3 kB\n", "MemTotal:"),
            16384
        );
        assert_eq!(memory_line("", "MemTotal:"), 0);
        let line = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 0 0 0 40 2 0 0 20 0 1 0 5 6 7";
        assert_eq!((process_ticks(line), process_ticks("")), (42, 0));
        assert!(resident_bytes(std::process::id()) > 0);
        assert_eq!((resident_bytes(0), processor_ns(0)), (0, 0));
        let machine = Observer::default().look();
        assert!(machine.cores >= 1 && machine.memory_total > machine.memory_free);
    }
}
