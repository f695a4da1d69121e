//! Which CPUs there are to compute on: the big cores, each counted once.
//!
//! What Linux says is read through a function from a path below `/sys` to the file's text, so that tests can be any board.

use std::collections::BTreeSet;
use std::fmt::Write;

/// CPUs by the system's numbers.
pub type Cpus = BTreeSet<usize>;

/// A CPU's number is below this, so that a word from outside cannot ask for much memory.
const CPUS_MAX: usize = 1 << 16;

/// A core is big when it is at least this fast, in percent of the fastest core.
///
/// Of the fastest core's 1024, clocks counted in as Linux does, these are little: the A55 of RK3588 with 400 and of Tensor
/// G1 with 160, the A53 of RK3399 with 380, Snapdragon 845's silver with 380, CIX P1's A520 with 280. Snapdragon 865's gold
/// with 870 are big beside one prime core. Half is far from both. Where a board has cores near it, one too many costs
/// less than one too few: work goes to who is free, so a slower core takes less of it.
const BIG_PERCENT: u64 = 50;

/// The big cores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BigCores {
    /// Their CPUs, hyperthreads too.
    pub cpus: Cpus,
    /// How many cores that is. A core's second hyperthread has no memory bandwidth of its own, and decoding waits for
    /// memory.
    pub count: usize,
}

/// The big cores among the CPUs `usable`; all of them where the system does not say how fast they are.
pub fn big_cores(sys: impl Fn(&str) -> Option<String>, usable: &Cpus) -> BigCores {
    let speeds = speeds(&sys, usable);
    let fastest = speeds.iter().copied().max().unwrap_or(0);
    let cpus: Cpus = usable
        .iter()
        .zip(&speeds)
        .filter(|(_, speed)| **speed * 100 >= fastest * BIG_PERCENT)
        .map(|(cpu, _)| *cpu)
        .collect();
    let cores: Cpus = cpus.iter().map(|cpu| first_sibling(&sys, *cpu)).collect();
    BigCores { count: cores.len(), cpus }
}

/// How fast each CPU is, beside the others; by the first source that knows all of them.
fn speeds(sys: &impl Fn(&str) -> Option<String>, cpus: &Cpus) -> Vec<u64> {
    let cpu_file = |name: &str| -> Option<Vec<u64>> {
        cpus.iter().map(|cpu| sys(&format!("devices/system/cpu/cpu{cpu}/{name}"))?.trim().parse().ok()).collect()
    };
    // Intel's hybrids: by kind, since clocks say little (an efficient core has 3/4 of the clock and half of the speed).
    let hybrid = || -> Option<Vec<u64>> {
        let performance = parse_list(&sys("devices/cpu_core/cpus")?)?;
        Some(cpus.iter().map(|cpu| u64::from(performance.contains(cpu))).collect())
    };
    let speeds = cpu_file("cpu_capacity").or_else(hybrid).or_else(|| cpu_file("cpufreq/cpuinfo_max_freq"));
    let mut speeds = speeds.unwrap_or_else(|| vec![1; cpus.len()]);
    speeds.iter_mut().for_each(|speed| *speed = (*speed).min(1 << 40)); // So that a percentage of it is a number.
    speeds
}

/// The first of the CPUs that are one core: its name.
fn first_sibling(sys: &impl Fn(&str) -> Option<String>, cpu: usize) -> usize {
    let siblings = sys(&format!("devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"));
    siblings.and_then(|list| parse_list(&list)?.first().copied()).unwrap_or(cpu)
}

/// Reads a list as Linux writes it: `0-3,8`. None: that is no list.
pub fn parse_list(text: &str) -> Option<Cpus> {
    let mut cpus = Cpus::new();
    for range in text.trim().split(',').filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        if first > last || last >= CPUS_MAX {
            return None;
        }
        cpus.extend(first..=last);
    }
    Some(cpus)
}

/// Writes a list as Linux does.
pub fn list(cpus: &Cpus) -> String {
    let mut text = String::new();
    let mut rest = cpus.iter().copied().peekable();
    while let Some(first) = rest.next() {
        let mut last = first;
        while let Some(next) = rest.next_if_eq(&(last + 1)) {
            last = next;
        }
        let comma = if text.is_empty() { "" } else { "," };
        let _ = if first == last { write!(text, "{comma}{first}") } else { write!(text, "{comma}{first}-{last}") };
    }
    text
}

/// The CPUs of a mask: bit `i % 64` of word `i / 64` is CPU `i`. Those that no machine has are left out.
pub fn from_mask(words: &[u64]) -> Cpus {
    let cpus = (0..words.len().min(CPUS_MAX / 64) * 64).filter(|cpu| words[cpu / 64] >> (cpu % 64) & 1 == 1);
    cpus.collect()
}

#[cfg(target_os = "linux")]
pub use linux::{affinity, machine, set_affinity};

#[cfg(target_os = "linux")]
mod linux {
    use super::{BigCores, CPUS_MAX, Cpus, big_cores};
    use libc::{c_ulong, cpu_set_t};
    use std::io;

    /// The kernel's masks are made of these.
    const BITS: usize = c_ulong::BITS as usize;
    type Mask = [c_ulong; CPUS_MAX / BITS];

    /// The CPUs that this thread may run on.
    pub fn affinity() -> io::Result<Cpus> {
        let mut mask: Mask = [0; CPUS_MAX / BITS];
        // SAFETY: the kernel writes at most the size given, which is the mask's.
        let code = unsafe { libc::sched_getaffinity(0, size_of::<Mask>(), (&raw mut mask).cast::<cpu_set_t>()) };
        if code != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok((0..CPUS_MAX).filter(|cpu| mask[cpu / BITS] >> (cpu % BITS) & 1 == 1).collect())
    }

    /// Keeps this thread to these CPUs.
    pub fn set_affinity(cpus: &Cpus) -> io::Result<()> {
        let mut mask: Mask = [0; CPUS_MAX / BITS];
        for cpu in cpus.iter().filter(|cpu| **cpu < CPUS_MAX) {
            mask[cpu / BITS] |= 1 << (cpu % BITS);
        }
        // SAFETY: the kernel reads at most the size given, which is the mask's.
        match unsafe { libc::sched_setaffinity(0, size_of::<Mask>(), (&raw const mask).cast::<cpu_set_t>()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// The CPUs that this thread may run on, and which of them are the big cores. None: the system does not say.
    pub fn machine() -> Option<(Cpus, BigCores)> {
        let usable = affinity().ok()?;
        let big = big_cores(|path| std::fs::read_to_string(format!("/sys/{path}")).ok(), &usable);
        Some((usable, big))
    }
}

#[cfg(not(target_os = "linux"))]
pub use elsewhere::{affinity, machine, set_affinity};

#[cfg(not(target_os = "linux"))]
mod elsewhere {
    use super::{BigCores, Cpus};
    use std::io;

    /// Not known here.
    pub fn affinity() -> io::Result<Cpus> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Not possible here.
    pub fn set_affinity(_cpus: &Cpus) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Not known here.
    pub fn machine() -> Option<(Cpus, BigCores)> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    /// A board as its files below `/sys`.
    #[derive(Default)]
    struct Board(HashMap<String, String>);

    impl Board {
        fn file(mut self, path: &str, text: impl ToString) -> Self {
            self.0.insert(path.to_owned(), format!("{}\n", text.to_string()));
            self
        }

        /// The same file of several CPUs.
        fn cpus(self, cpus: &str, name: &str, text: impl ToString) -> Self {
            let cpus = parse_list(cpus).expect("a list");
            cpus.iter()
                .fold(self, |board, cpu| board.file(&format!("devices/system/cpu/cpu{cpu}/{name}"), text.to_string()))
        }

        fn capacity(self, cpus: &str, capacity: u64) -> Self {
            self.cpus(cpus, "cpu_capacity", capacity)
        }

        /// The CPUs and the number of the big cores among `usable`.
        fn big(&self, usable: &str) -> (String, usize) {
            let usable = parse_list(usable).expect("a list");
            let big = big_cores(|path| self.0.get(path).cloned(), &usable);
            (list(&big.cpus), big.count)
        }
    }

    fn wanted(cpus: &str, count: usize) -> (String, usize) {
        (cpus.to_owned(), count)
    }

    #[test]
    fn big_cores_of_arm_boards_are_those_of_high_capacity() {
        let rk3588 = Board::default().capacity("0-3", 397).capacity("4-7", 1024);
        assert_eq!(rk3588.big("0-7"), wanted("4-7", 4));
        assert_eq!(rk3588.big("0-5"), wanted("4-5", 2), "what the process may use counts");
        assert_eq!(rk3588.big("1-3"), wanted("1-3", 3), "the biggest it may use");
        let rk3399 = Board::default().capacity("0-3", 378).capacity("4-5", 1024);
        assert_eq!(rk3399.big("0-5"), wanted("4-5", 2));
        let snapdragon = Board::default().capacity("0-3", 282).capacity("4-6", 872).capacity("7", 1024);
        assert_eq!(snapdragon.big("0-7"), wanted("4-7", 4), "gold and prime");
        let orin = Board::default().capacity("0-11", 1024);
        assert_eq!(orin.big("0-11"), wanted("0-11", 12));
        let clocks = Board::default().cpus("0-3", "cpufreq/cpuinfo_max_freq", 1_500_000);
        assert_eq!(clocks.big("0-3"), wanted("0-3", 4), "a Raspberry Pi");
    }

    #[test]
    fn hyperthreads_count_once_and_efficient_cores_not_at_all() {
        let pairs = (0..8).fold(Board::default(), |board, core| {
            let (first, second) = (2 * core, 2 * core + 1);
            board.cpus(&format!("{first}-{second}"), "topology/thread_siblings_list", format!("{first}-{second}"))
        });
        assert_eq!(pairs.big("0-15"), wanted("0-15", 8));
        assert_eq!(pairs.big("1,2,3"), wanted("1-3", 2), "half a core is a core");
        let far = Board::default().cpus("0,4", "topology/thread_siblings_list", "0,4").cpus(
            "1,5",
            "topology/thread_siblings_list",
            "1,5",
        );
        assert_eq!(far.big("0,1,4,5"), wanted("0-1,4-5", 2));
        // Alder Lake: 8 cores with hyperthreads, 4 without. The clocks are not looked at.
        let hybrid = pairs
            .file("devices/cpu_core/cpus", "0-15")
            .file("devices/cpu_atom/cpus", "16-19")
            .cpus("0-15", "cpufreq/cpuinfo_max_freq", 4_900_000)
            .cpus("16-19", "cpufreq/cpuinfo_max_freq", 3_600_000)
            .cpus("16-19", "topology/thread_siblings_list", "");
        assert_eq!(hybrid.big("0-19"), wanted("0-15", 8));
        assert_eq!(hybrid.big("14-19"), wanted("14-15", 1));
        assert_eq!(hybrid.big("16-19"), wanted("16-19", 4));
    }

    #[test]
    fn clocks_decide_where_nothing_else_is_known() {
        let zen = Board::default().cpus("0-3", "cpufreq/cpuinfo_max_freq", 5_100_000).cpus(
            "4-11",
            "cpufreq/cpuinfo_max_freq",
            3_500_000,
        );
        assert_eq!(zen.big("0-11"), wanted("0-11", 12), "dense cores are the same cores at a lower clock");
        let old = Board::default().cpus("0-3", "cpufreq/cpuinfo_max_freq", 1_000_000).cpus(
            "4-7",
            "cpufreq/cpuinfo_max_freq",
            2_300_000,
        );
        assert_eq!(old.big("0-7"), wanted("4-7", 4));
    }

    #[test]
    fn nonsense_in_the_files_makes_all_cores_equal() {
        assert_eq!(Board::default().big("0-3"), wanted("0-3", 4), "nothing known");
        assert_eq!(Board::default().big(""), wanted("", 0));
        let partial = Board::default().capacity("0-1", 1024).cpus("2-3", "cpu_capacity", "many");
        assert_eq!(partial.big("0-3"), wanted("0-3", 4));
        let huge = Board::default().capacity("0", u64::MAX).capacity("1", u64::MAX - 1);
        assert_eq!(huge.big("0-1"), wanted("0-1", 2));
        let odd = Board::default().cpus("0-1", "topology/thread_siblings_list", "0-4294967295");
        assert_eq!(odd.big("0-1"), wanted("0-1", 2));
        let hybrid = Board::default().file("devices/cpu_core/cpus", "zero");
        assert_eq!(hybrid.big("0-1"), wanted("0-1", 2));
    }

    #[test]
    fn lists_and_masks_are_read_as_linux_writes_them() {
        for text in ["", "0", "0-3", "0-3,8", "1,3,5-6"] {
            assert_eq!(list(&parse_list(text).expect(text)), text);
        }
        for text in ["x", "3-1", "0-", "-1", "1 2", "0-65536", "18446744073709551616"] {
            assert_eq!(parse_list(text), None, "{text}");
        }
        assert_eq!(list(&from_mask(&[0b1011, 0, 1 << 63])), "0-1,3,191");
        assert_eq!(list(&from_mask(&vec![u64::MAX; 2 * CPUS_MAX / 64])), "0-65535");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_machine_has_big_cores_and_a_thread_stays_where_it_is_put() {
        let (usable, big) = machine().expect("Linux says it");
        assert!(big.count >= 1 && big.count <= big.cpus.len() && big.cpus.is_subset(&usable), "{usable:?} {big:?}");
        std::thread::spawn(move || {
            let one = Cpus::from([*usable.last().expect("a CPU")]);
            set_affinity(&one).expect("one of its own");
            assert_eq!(affinity().expect("its own"), one);
            set_affinity(&Cpus::from([CPUS_MAX - 1])).expect_err("there is no such CPU");
            set_affinity(&Cpus::new()).expect_err("none");
            assert_eq!(affinity().expect("its own"), one);
        })
        .join()
        .expect("the thread");
    }
}
