use super::*;

fn pool(threads: usize, spin_us: u64) -> ThreadPool {
    ThreadPool::new(threads, Duration::from_micros(spin_us)).expect("threads can be started")
}

/// A pool that counts on `threads` threads, of which only the caller's ever comes.
fn pool_without_workers(threads: usize) -> ThreadPool {
    let shared = Arc::new(Shared::new(threads, Duration::from_secs(3600)));
    ThreadPool { shared, threads, workers: Vec::new(), turn: Mutex::new(()) }
}

/// Runs a test whose panics are wanted. The hook is the process's, so such tests take turns.
fn silent<T>(test: impl FnOnce() -> T) -> T {
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let result = test();
    std::panic::set_hook(hook);
    result
}

#[test]
fn each_covers_every_item_once_whatever_the_threads() {
    for threads in [1, 2, 3, 7, 16] {
        for spin_us in [0, 50] {
            let pool = pool(threads, spin_us);
            for items in [0, 1, 2, 3, 4, 17, 100] {
                for grain in [1, 3, 40] {
                    let counts: Vec<_> = (0..items).map(|_| AtomicUsize::new(0)).collect();
                    for _ in 0..50 {
                        pool.each(items, grain, |thread, range| {
                            assert!(thread < threads && range.len() <= grain.max(items * (threads == 1) as usize));
                            for item in range {
                                counts[item].fetch_add(1, Relaxed);
                            }
                        })
                        .expect("no panic");
                    }
                    let once = counts.iter().all(|count| count.load(Relaxed) == 50);
                    assert!(once, "{threads} threads, {items} items, grain {grain}: {counts:?}");
                }
            }
        }
    }
}

/// Each job borrows and frees memory of its own: a worker that came late or stayed too long would write into the next
/// job's. With more threads than cores, sleeping at once and spinning, this is also where a lost wake-up would hang.
#[test]
fn nobody_is_in_a_job_that_is_over() {
    let jobs = if cfg!(miri) { 20 } else { 100_000 };
    for (threads, spin_us) in [(2, 0), (2, 100), (3, 0), (3, 100), (7, 0), (7, 100), (16, 0), (16, 100)] {
        let pool = pool(threads, spin_us);
        for job in 0..jobs / threads as u64 {
            let items = 1 + (job as usize * 7) % 40;
            let inside = AtomicBool::new(true);
            let sums: Vec<_> = (0..items).map(|_| AtomicUsize::new(0)).collect();
            pool.each(items, 1, |_, range| {
                assert!(inside.load(Relaxed));
                for item in range {
                    sums[item].fetch_add(item + 1, Relaxed);
                }
            })
            .expect("no panic");
            inside.store(false, Relaxed);
            for (item, sum) in sums.into_iter().enumerate() {
                assert_eq!(sum.into_inner(), item + 1, "{threads} threads, {spin_us} us, job {job}");
            }
        }
    }
}

#[test]
fn each_does_not_wait_for_a_worker_that_never_comes() {
    let pool = pool_without_workers(4);
    for items in [2, 3, 4, 5, 100] {
        let counts: Vec<_> = (0..items).map(|_| AtomicUsize::new(0)).collect();
        pool.each(items, 1, |thread, range| {
            assert_eq!(thread, 0);
            range.for_each(|item| _ = counts[item].fetch_add(1, Relaxed));
        })
        .expect("no panic");
        assert!(counts.iter().all(|count| count.load(Relaxed) == 1), "{items} items");
    }
}

#[test]
fn a_thread_goes_through_its_own_part_and_then_the_others() {
    let pool = pool_without_workers(3);
    let ranges = Mutex::new(Vec::new());
    pool.each(50, 4, |_, range| ranges.lock().expect("no panic").push(range)).expect("no panic");
    let wanted = [0..4, 4..8, 8..12, 12..16, 16..17, 17..21, 21..25, 25..29, 29..33, 33..34];
    let ranges = ranges.into_inner().expect("no panic");
    assert_eq!(ranges[..10], wanted);
    assert_eq!((ranges[10].clone(), ranges.last()), (34..38, Some(&(46..50))));
}

#[test]
fn run_runs_on_every_thread_once() {
    for (threads, spin_us) in [(1, 0), (2, 0), (3, 100), (7, 0)] {
        let pool = pool(threads, spin_us);
        for _ in 0..200 {
            let hits: Vec<_> = (0..threads).map(|_| AtomicUsize::new(0)).collect();
            pool.run(&|thread| _ = hits[thread].fetch_add(1, Relaxed)).expect("no panic");
            assert!(hits.iter().all(|hits| hits.load(Relaxed) == 1), "{hits:?}");
        }
    }
}

#[test]
fn a_panic_in_a_worker_is_an_error_and_the_pool_goes_on() {
    let pool = pool(3, 10);
    let failed = silent(|| pool.run(&|thread| assert_ne!(thread, 1)));
    assert!(matches!(failed, Err(Error::Internal(_))), "{failed:?}");
    assert!(pool.run(&|_| ()).is_ok());
}

#[test]
fn a_panic_of_the_caller_gets_out_when_all_workers_are_out() {
    let pool = pool(3, 10);
    for round in 0..100 {
        let busy = AtomicUsize::new(0);
        let result = silent(|| {
            catch_unwind(AssertUnwindSafe(|| {
                pool.each(64, 1, |thread, _| {
                    assert_ne!(thread, 0);
                    busy.fetch_add(1, Relaxed);
                    std::thread::sleep(Duration::from_micros(20));
                    busy.fetch_sub(1, Relaxed);
                })
            }))
        });
        assert!(result.is_err() && busy.load(Relaxed) == 0, "{round}");
    }
    assert!(pool.each(64, 1, |_, _| ()).is_ok());
}

#[test]
fn sessions_may_share_a_pool() {
    let pool = pool(2, 10);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for items in (0..500).map(|job| job % 9 + 2) {
                    let hits = AtomicUsize::new(0);
                    pool.each(items, 1, |_, range| _ = hits.fetch_add(range.len(), Relaxed)).expect("no panic");
                    assert_eq!(hits.load(Relaxed), items);
                }
            });
        }
    });
}
