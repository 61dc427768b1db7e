//! What the process used and what the device did, between two moments.
//!
//! Not here: `write_bytes` of `/proc/self/io`. It counts whole folios of the page cache, which were a megabyte
//! for an entry of 256 bytes in a zero-filled file, while the device wrote two blocks.

use std::path::PathBuf;

/// Readings of counters that only grow; `None` where this system does not have them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Used {
    /// Processor time of all threads and of their rings' workers, in microseconds.
    pub cpu_us: Option<f64>,
    /// Processor time of the whole machine, in microseconds: with interrupts and with the kernel's own workers, which
    /// flush for a direct write through a ring and are on nobody's account; and with whatever else runs.
    pub machine_us: Option<f64>,
    /// Context switches, voluntary or not.
    pub switches: Option<f64>,
    /// Flush requests that the device completed, whoever asked.
    pub device_flushes: Option<f64>,
    /// Bytes that the device wrote, whoever asked.
    pub device_bytes: Option<f64>,
}

impl Used {
    fn since(&self, before: &Self) -> Self {
        let minus = |now: Option<f64>, then: Option<f64>| Some((now? - then?).max(0.0));
        Self {
            cpu_us: minus(self.cpu_us, before.cpu_us),
            machine_us: minus(self.machine_us, before.machine_us),
            switches: minus(self.switches, before.switches),
            device_flushes: minus(self.device_flushes, before.device_flushes),
            device_bytes: minus(self.device_bytes, before.device_bytes),
        }
    }
}

/// Reads the counters.
#[derive(Debug)]
pub struct Meter {
    device_stat: Option<PathBuf>,
}

impl Meter {
    /// With the `stat` file of the device, where there is one.
    pub fn new(device_stat: Option<PathBuf>) -> Self {
        Self { device_stat }
    }

    /// The counters now.
    pub fn read(&self) -> Used {
        let (cpu_us, switches) = process_usage().unzip();
        let stat = self.device_stat.as_ref().and_then(|path| std::fs::read_to_string(path).ok());
        let (device_flushes, device_bytes) =
            stat.as_deref().map_or((None, None), |stat| (stat_field(stat, 15), stat_field(stat, 6)));
        Used {
            cpu_us,
            machine_us: std::fs::read_to_string("/proc/stat").ok().as_deref().and_then(busy_us),
            switches,
            device_flushes,
            device_bytes: device_bytes.map(|sectors| sectors * 512.0),
        }
    }

    /// What was used since an earlier reading.
    pub fn since(&self, before: &Used) -> Used {
        self.read().since(before)
    }
}

/// What all processors together did, of the first line of `/proc/stat`: all but waiting, in hundredths of a second.
fn busy_us(stat: &str) -> Option<f64> {
    let mut fields = stat.lines().next()?.strip_prefix("cpu ")?.split_whitespace();
    let fields: [f64; 7] =
        std::array::from_fn(|_| fields.next().and_then(|field| field.parse().ok()).unwrap_or(0.0));
    let [user, nice, system, _idle, _io_wait, interrupts, soft_interrupts] = fields;
    Some((user + nice + system + interrupts + soft_interrupts) * 10_000.0)
}

/// One of the numbers in a block device's `stat`, counted from 0: 6 is sectors written (of 512 bytes), 15
/// flush requests completed (Linux 5.5 and later).
fn stat_field(stat: &str, index: usize) -> Option<f64> {
    stat.split_whitespace().nth(index)?.parse().ok()
}

/// Processor time in microseconds, and context switches.
#[cfg(unix)]
fn process_usage() -> Option<(f64, f64)> {
    use nix::sys::resource::{UsageWho, getrusage};
    use nix::sys::time::TimeValLike;
    let usage = getrusage(UsageWho::RUSAGE_SELF).ok()?;
    let cpu = usage.user_time() + usage.system_time();
    let switches = usage.voluntary_context_switches() + usage.involuntary_context_switches();
    Some((cpu.num_microseconds() as f64, switches as f64))
}

#[cfg(not(unix))]
fn process_usage() -> Option<(f64, f64)> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_a_device_are_told_apart() {
        let stat = "  1 2 3 4 5 6 700 8 9 10 11 12 13 14 15 16 17\n";
        assert_eq!(stat_field(stat, 6), Some(700.0));
        assert_eq!(stat_field(stat, 15), Some(16.0));
        // Before Linux 5.5 flushes were not counted.
        assert_eq!(stat_field("1 2 3 4 5 6 7 8 9 10 11", 15), None);
    }

    #[test]
    fn a_machine_is_busy_when_it_does_not_wait() {
        let stat = "cpu  1 2 3 1000 1000 4 5 1000 1000 0\ncpu0 1 2 3 1000 1000 4 5 1000 1000 0\n";
        assert_eq!(busy_us(stat), Some(150_000.0));
        assert_eq!(busy_us("something else\n"), None);
    }

    #[test]
    fn what_is_not_counted_stays_unknown() {
        let before = Used { cpu_us: Some(5.0), ..Used::default() };
        let after = Used { cpu_us: Some(7.0), switches: Some(1.0), ..Used::default() };
        assert_eq!(after.since(&before), Used { cpu_us: Some(2.0), ..Used::default() });
    }
}
