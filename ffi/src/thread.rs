//! Threads: identity and consumed time.

/// A value that differs between threads that exist at the same time, for one comparison's cost: the address of a thread-local.
#[inline]
pub fn token() -> usize {
    thread_local! { static HERE: u8 = const { 0 } }
    HERE.with(|here| std::ptr::from_ref(here).addr())
}

/// Processor time that the calling thread has used, in nanoseconds. A system call.
pub fn cpu_ns() -> u64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

/// How often the calling thread had to give its core to another one, its own yields to one that wanted it included. A system call.
pub fn involuntary_switches() -> u64 {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the kernel writes one `rusage` there, which is large enough for it; zeroes are a valid one if it does not.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr());
        usage.assume_init()
    };
    usage.ru_nivcsw as u64
}

#[cfg(test)]
mod tests {
    #[test]
    fn who_shares_a_core_is_switched_away() {
        let core = core_affinity_of_one();
        let stop = std::sync::atomic::AtomicBool::new(false);
        let (spin, watch) = (
            || {
                pin(core);
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            },
            || {
                pin(core);
                let before = super::involuntary_switches();
                while super::involuntary_switches() < before + 3 {
                    std::hint::spin_loop();
                }
                stop.store(true, std::sync::atomic::Ordering::Relaxed);
            },
        );
        std::thread::scope(|s| {
            s.spawn(spin);
            s.spawn(watch);
        });
    }

    fn core_affinity_of_one() -> usize {
        let set = rustix::thread::sched_getaffinity(None).unwrap();
        let mut all = 0..rustix::thread::CpuSet::MAX_CPU;
        all.find(|n| set.is_set(*n)).unwrap()
    }

    fn pin(core: usize) {
        let mut set = rustix::thread::CpuSet::new();
        set.set(core);
        rustix::thread::sched_setaffinity(None, &set).unwrap();
    }

    #[test]
    fn threads_differ_and_stay_themselves() {
        let here = super::token();
        assert_eq!(here, super::token());
        assert_ne!(here, std::thread::spawn(super::token).join().unwrap());
    }

    #[test]
    fn working_uses_time() {
        let before = super::cpu_ns();
        let mut x = 1u64;
        while super::cpu_ns() == before {
            x = std::hint::black_box(x.wrapping_mul(3));
        }
        assert!(super::cpu_ns() > before);
    }
}
