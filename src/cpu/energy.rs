//! What the machine's own meters say of the energy that it takes.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// The meters of a machine. Their files stay open: asking them takes no memory.
pub struct Meters(Kind);

enum Kind {
    /// No meter, or none that this process may read.
    None,
    /// Intel's and AMD's RAPL: each package counts its energy.
    Counters(Vec<Counter>),
    /// An INA3221 of a Jetson board: voltage and current of rails now.
    Rails(Vec<Rail>),
}

struct Counter {
    micro_joules: File,
    /// They begin anew after so many.
    range: u64,
}

struct Rail {
    millivolts: File,
    milliamperes: File,
}

impl Meters {
    /// What there is under `root`, which is `/sys` but for tests.
    pub fn open(root: &Path) -> Meters {
        let counters: Vec<Counter> = folders(&root.join("class/powercap"), "intel-rapl:")
            .iter()
            // `intel-rapl:0` is a package, `intel-rapl:0:1` a part of it.
            .filter(|folder| folder.to_string_lossy().matches(':').count() == 1)
            .filter_map(|folder| {
                let micro_joules = File::open(folder.join("energy_uj")).ok()?;
                let range = number(&File::open(folder.join("max_energy_range_uj")).ok()?)?;
                number(&micro_joules).map(|_| Counter { micro_joules, range })
            })
            .collect();
        if !counters.is_empty() {
            return Meters(Kind::Counters(counters));
        }
        let rails = rails(root);
        Meters(if power(&rails).is_some_and(|_| !rails.is_empty()) { Kind::Rails(rails) } else { Kind::None })
    }
}

/// The energy that the machine has taken since somebody began to count.
pub struct Energy {
    meters: Arc<Meters>,
    state: Mutex<State>,
}

struct State {
    joules: f64,
    /// What each counter said last.
    counters: Vec<u64>,
    /// When the rails were last looked at, and their power then. Energy is the power of two looks times the time between.
    watts: Option<(Instant, f64)>,
}

impl Energy {
    /// Counts from now on.
    pub fn new(meters: Arc<Meters>) -> Energy {
        let (mut counters, mut watts) = (Vec::new(), None);
        match &meters.0 {
            Kind::None => {}
            Kind::Counters(all) => {
                counters = all.iter().map(|counter| number(&counter.micro_joules).unwrap_or(0)).collect();
            }
            Kind::Rails(rails) => watts = power(rails).map(|watts| (Instant::now(), watts)),
        }
        Energy { meters, state: Mutex::new(State { joules: 0.0, counters, watts }) }
    }

    /// Joules since it was made or reset, of the whole machine or its packages; -1 where there is no meter to be read.
    pub fn joules(&self, reset: bool) -> f64 {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { joules, counters, watts } = &mut *state;
        match &self.meters.0 {
            Kind::None => return -1.0,
            Kind::Counters(all) => {
                for (counter, last) in all.iter().zip(counters) {
                    let Some(now) = number(&counter.micro_joules) else { return -1.0 };
                    let begun_anew = if now < *last { counter.range } else { 0 };
                    *joules += now.wrapping_add(begun_anew).wrapping_sub(*last) as f64 * 1e-6;
                    *last = now;
                }
            }
            Kind::Rails(rails) => {
                let Some(power) = power(rails) else { return -1.0 };
                let now = Instant::now();
                if let Some((then, before)) = watts.replace((now, power)) {
                    *joules += (now - then).as_secs_f64() * (before + power) / 2.0;
                }
            }
        }
        if reset { std::mem::take(joules) } else { *joules }
    }
}

/// The rail that supplies everything where the board has one, else all of them.
fn rails(root: &Path) -> Vec<Rail> {
    let mut rails = Vec::new();
    for folder in folders(&root.join("class/hwmon"), "hwmon") {
        let text = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap_or_default();
        if text("name").trim() != "ina3221" {
            continue;
        }
        for channel in 1..=3 {
            let open = |name: &str| File::open(folder.join(format!("{name}{channel}_input"))).ok();
            let (Some(millivolts), Some(milliamperes)) = (open("in"), open("curr")) else { continue };
            let rail = Rail { millivolts, milliamperes };
            if ["VDD_IN", "POM_5V_IN"].contains(&text(&format!("in{channel}_label")).trim()) {
                return vec![rail];
            }
            rails.push(rail);
        }
    }
    rails
}

/// Watts; None when a rail cannot be read.
fn power(rails: &[Rail]) -> Option<f64> {
    let watts = |rail: &Rail| Some(number(&rail.millivolts)? as f64 * number(&rail.milliamperes)? as f64 * 1e-6);
    rails.iter().map(watts).sum()
}

/// Folders whose names begin like this, in order.
fn folders(folder: &Path, start: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let named = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(start));
    let mut folders: Vec<_> = named.map(|entry| entry.path()).collect();
    folders.sort();
    folders
}

/// The number that a file begins with.
fn number(file: &File) -> Option<u64> {
    let mut text = [0; 32];
    #[cfg(unix)]
    let len = std::os::unix::fs::FileExt::read_at(file, &mut text, 0).ok()?;
    #[cfg(not(unix))]
    let len = std::io::Read::read(&mut &*file, &mut text).ok()?;
    std::str::from_utf8(&text[..len]).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A `/sys` of our own.
    struct Root(PathBuf);

    impl Root {
        fn new(name: &str) -> Root {
            let root = std::env::temp_dir().join(format!("edgellm-energy-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&root).expect("a folder");
            Root(root)
        }

        fn write(&self, path: &str, text: &str) {
            let path = self.0.join(path);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
            std::fs::write(path, text).expect("a file");
        }
    }

    impl Drop for Root {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn meter(root: &Root) -> Energy {
        Energy::new(Arc::new(Meters::open(&root.0)))
    }

    #[test]
    fn packages_count_their_energy_and_begin_anew_at_their_range() {
        let root = Root::new("rapl");
        let set = |package: &str, energy: &str| root.write(&format!("class/powercap/{package}/energy_uj"), energy);
        for package in ["intel-rapl:0", "intel-rapl:1", "intel-rapl:0:0"] {
            root.write(&format!("class/powercap/{package}/max_energy_range_uj"), "9000000\n");
            set(package, "1000000\n");
        }
        let meter = meter(&root);
        assert_eq!(meter.joules(false), 0.0);
        set("intel-rapl:0", "3000000\n");
        set("intel-rapl:1", "500000\n"); // 8 J to its range, then half a joule.
        set("intel-rapl:0:0", "8000000\n"); // Counted in its package.
        assert_eq!(meter.joules(true), 10.5);
        assert_eq!(meter.joules(false), 0.0, "a reset starts anew");
        set("intel-rapl:0", "unreadable\n");
        assert_eq!(meter.joules(false), -1.0);
    }

    #[test]
    fn rails_are_power_times_time_and_the_input_is_all_of_it() {
        let root = Root::new("ina");
        let rail = |channel: usize, label: &str, millivolts: u32, milliamperes: u32| {
            let file = |name: &str| format!("class/hwmon/hwmon3/{name}{channel}");
            root.write(&(file("in") + "_label"), label);
            root.write(&(file("in") + "_input"), &format!("{millivolts}\n"));
            root.write(&(file("curr") + "_input"), &format!("{milliamperes}\n"));
        };
        root.write("class/hwmon/hwmon0/name", "thermal\n");
        root.write("class/hwmon/hwmon3/name", "ina3221\n");
        rail(1, "VDD_IN\n", 5000, 2000);
        rail(2, "VDD_CPU_GPU_CV\n", 5000, 1000);
        let meter = meter(&root);
        let start = Instant::now();
        std::thread::sleep(std::time::Duration::from_millis(20));
        let (joules, seconds) = (meter.joules(false), start.elapsed().as_secs_f64());
        assert!(joules >= 0.2 && joules <= 10.0 * seconds + 0.1, "10 W for 20 ms: {joules}");
        assert!(meter.joules(true) >= joules && meter.joules(false) < joules, "a reset starts anew");
        rail(1, "VDD_GPU_SOC\n", 5000, 2000);
        assert_eq!(power(&rails(&root.0)), Some(15.0), "without one for all, all of them");
    }

    #[test]
    fn a_machine_without_meters_says_so() {
        let root = Root::new("none");
        assert_eq!(meter(&root).joules(true), -1.0);
        root.write("class/hwmon/hwmon0/name", "coretemp\n");
        assert_eq!(meter(&root).joules(false), -1.0);
    }
}
