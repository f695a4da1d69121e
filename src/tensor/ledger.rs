//! What a model and its sessions may take of memory together, and what they have taken.

use super::Residence;
use crate::{Error, Result};
use std::ops::Add;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

/// Memory of the host and of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bytes {
    /// Of the host.
    pub host: u64,
    /// Of the device.
    pub device: u64,
}

impl Bytes {
    /// So much of the host's.
    pub fn host(host: u64) -> Bytes {
        Bytes { host, device: 0 }
    }

    /// Of both together.
    pub fn total(self) -> u64 {
        self.host.saturating_add(self.device)
    }
}

impl Add for Bytes {
    type Output = Bytes;
    fn add(self, other: Bytes) -> Bytes {
        Bytes { host: self.host.saturating_add(other.host), device: self.device.saturating_add(other.device) }
    }
}

/// The memory of a model and its sessions: what is taken, and how much may be.
pub struct Ledger {
    limit: u64,
    residence: Residence,
    /// Of the host and of the device together: what the limit is for.
    total: AtomicU64,
    host: AtomicU64,
    device: AtomicU64,
    host_peak: AtomicU64,
}

impl Ledger {
    /// `limit` in bytes, of host and device together; None = none. `residence` is for all who take of the host's memory.
    pub fn new(limit: Option<u64>, residence: Residence) -> Arc<Ledger> {
        Arc::new(Ledger {
            residence,
            limit: limit.unwrap_or(u64::MAX),
            total: AtomicU64::new(0),
            host: AtomicU64::new(0),
            device: AtomicU64::new(0),
            host_peak: AtomicU64::new(0),
        })
    }

    /// Takes so much, or says why not. To be called before the memory is asked for; it counts until the result is dropped.
    pub fn take(self: &Arc<Self>, what: &'static str, bytes: Bytes) -> Result<Taken> {
        let more = |taken: u64| taken.checked_add(bytes.total()).filter(|total| *total <= self.limit);
        self.total.fetch_update(Relaxed, Relaxed, more).map_err(|taken| Error::MemoryLimit {
            what,
            bytes: bytes.total(),
            taken,
            limit: self.limit,
        })?;
        let host = self.host.fetch_add(bytes.host, Relaxed) + bytes.host;
        self.host_peak.fetch_max(host, Relaxed);
        self.device.fetch_add(bytes.device, Relaxed);
        Ok(Taken { ledger: self.clone(), bytes })
    }

    /// How memory of the host is to be.
    pub fn residence(&self) -> Residence {
        self.residence
    }

    /// What is taken now.
    pub fn taken(&self) -> Bytes {
        Bytes { host: self.host.load(Relaxed), device: self.device.load(Relaxed) }
    }

    /// The most of the host's memory that was taken at a time.
    pub fn host_peak(&self) -> u64 {
        self.host_peak.load(Relaxed)
    }
}

/// What was taken of a [`Ledger`]; given back on drop.
pub struct Taken {
    ledger: Arc<Ledger>,
    bytes: Bytes,
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.ledger.total.fetch_sub(self.bytes.total(), Relaxed);
        self.ledger.host.fetch_sub(self.bytes.host, Relaxed);
        self.ledger.device.fetch_sub(self.bytes.device, Relaxed);
    }
}

/// The system's unit of memory, in bytes.
pub fn page_bytes() -> u64 {
    #[cfg(unix)]
    {
        // SAFETY: asks for a number.
        u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).ok().filter(|bytes| *bytes > 0).unwrap_or(4096)
    }
    #[cfg(not(unix))]
    4096
}

/// Bytes in whole pages; more than there is address space stays more.
pub fn whole_pages(bytes: u64) -> u64 {
    bytes.checked_next_multiple_of(page_bytes()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_for_all_that_is_taken_together() {
        let ledger = Ledger::new(Some(100), Residence::Lazy);
        let first = ledger.take("a", Bytes { host: 30, device: 40 }).expect("room");
        let refused = ledger.take("b", Bytes { host: 20, device: 11 }).map(|_| ()).expect_err("31 more");
        assert_eq!(refused.to_string(), "memory limit: b takes 31 bytes, and 70 of 100 are taken");
        let second = ledger.take("b", Bytes { host: 20, device: 10 }).expect("all of it");
        assert_eq!((ledger.taken(), ledger.host_peak()), (Bytes { host: 50, device: 50 }, 50));
        drop(first);
        assert_eq!((ledger.taken(), ledger.host_peak()), (Bytes { host: 20, device: 10 }, 50));
        drop(second);
        assert_eq!(ledger.taken(), Bytes::default());
        assert!(ledger.take("c", Bytes { host: u64::MAX, device: 1 }).is_err(), "more than there are numbers");
        let unlimited = Ledger::new(None, Residence::Lazy);
        let most = unlimited.take("d", Bytes::host(u64::MAX)).expect("no limit");
        assert!(unlimited.take("e", Bytes::host(1)).is_err());
        drop(most);
    }
}
