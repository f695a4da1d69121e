//! How much memory the machine has for this process.

use std::path::Path;

/// How much memory the machine has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HostMemory {
    /// In bytes.
    pub total: u64,
    /// What could be had without swapping: also what the system would give up for it. Not more than the control groups of
    /// this process leave.
    pub available: u64,
}

/// What Linux says of the machine's memory; None where it does not.
pub fn host_memory() -> Option<HostMemory> {
    let memory = parse_host_memory(&std::fs::read_to_string("/proc/meminfo").ok()?)?;
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let left = left_in_groups(Path::new("/sys/fs/cgroup"), &groups).unwrap_or(u64::MAX);
    Some(HostMemory { available: memory.available.min(left), ..memory })
}

fn parse_host_memory(text: &str) -> Option<HostMemory> {
    let bytes = |name: &str| {
        let rest = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    };
    Some(HostMemory { total: bytes("MemTotal")?, available: bytes("MemAvailable")? })
}

/// What the control groups of a process leave to it, the smallest of those with a limit; None when none has one. `root` is
/// where they are mounted, `groups` is the process's /proc/self/cgroup. Of version 2, and of version 1's `memory`.
fn left_in_groups(root: &Path, groups: &str) -> Option<u64> {
    let mut least = None;
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(group)) = (parts.next(), parts.next()) else { continue };
        let (root, [limit, usage, cache]) = match controllers {
            "" => (root.to_owned(), ["memory.max", "memory.current", "inactive_file"]),
            _ if controllers.split(',').any(|name| name == "memory") => {
                let names = ["memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"];
                (root.join("memory"), names)
            }
            _ => continue,
        };
        // In a container the path may be the host's, and the root its own: what is not there is passed over.
        for group in Path::new(group.trim_start_matches('/')).ancestors() {
            let folder = root.join(group);
            let read = |name: &str| std::fs::read_to_string(folder.join(name)).ok();
            let number = |name: &str| read(name)?.trim().parse::<u64>().ok();
            let (Some(limit), Some(usage)) = (number(limit), number(usage)) else { continue };
            let stat = read("memory.stat").unwrap_or_default();
            let reclaimable = stat.lines().find_map(|line| line.strip_prefix(cache)?.trim().parse::<u64>().ok());
            let left = limit.saturating_sub(usage.saturating_sub(reclaimable.unwrap_or(0)));
            least = Some(least.map_or(left, |least: u64| least.min(left)));
        }
    }
    least
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_is_what_linux_says_is_available() {
        let text = "MemTotal:        7802000 kB\nMemFree:          123456 kB\nMemAvailable:    5000000 kB\n";
        let expected = HostMemory { total: 7_802_000 << 10, available: 5_000_000 << 10 };
        assert_eq!(parse_host_memory(text), Some(expected));
        assert_eq!(parse_host_memory("MemTotal: 1 kB\nMemFree: 1 kB\n"), None);
        assert_eq!(parse_host_memory("MemTotal: x kB\nMemAvailable: 99999999999999999999 kB\n"), None);
    }

    #[test]
    fn control_groups_leave_what_the_narrowest_one_does() {
        let root = std::env::temp_dir().join(format!("edgellm-groups-{}", std::process::id()));
        let write = |group: &str, files: &[(&str, &str)]| {
            let folder = root.join(group);
            std::fs::create_dir_all(&folder).expect("a folder");
            for (name, text) in files {
                std::fs::write(folder.join(name), text).expect("a file");
            }
        };
        let two = "0::/a/b\n";
        assert_eq!(left_in_groups(&root, two), None, "nothing is there");
        write("a/b", &[("memory.max", "max\n"), ("memory.current", "7\n")]);
        assert_eq!(left_in_groups(&root, two), None, "no limit");
        let stat = "anon 5\ninactive_file 200\nactive_file 50\n";
        write("a", &[("memory.max", "1000\n"), ("memory.current", "700\n"), ("memory.stat", stat)]);
        assert_eq!(left_in_groups(&root, two), Some(500), "the files that it would drop do not count");
        write("a/b", &[("memory.max", "100\n"), ("memory.current", "120\n")]);
        assert_eq!(left_in_groups(&root, two), Some(0));
        let one = [("memory.limit_in_bytes", "4000\n"), ("memory.usage_in_bytes", "1000\n")];
        write("memory/docker/x", &one);
        assert_eq!(left_in_groups(&root, "5:cpu:/docker/x\n4:memory:/docker/x\nx\n"), Some(3000));
        std::fs::remove_dir_all(&root).expect("its own folder");
    }
}
