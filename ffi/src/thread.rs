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

#[cfg(test)]
mod tests {
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
