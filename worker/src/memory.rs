//! How the C library keeps memory that was given back. As it comes, it keeps an arena per thread and all that it ever had of
//! large blocks, which adds a fifth to a worker and grows with the work done; so there are few arenas, and large blocks go
//! back to the kernel (mallopt(3)). Measured by `make bench-memory`.

/// Arenas of the process, and of each child.
const ARENAS_MAX: i32 = 2;
/// Blocks from this size on are mapped by themselves: parts, segments and blocks of a source.
#[cfg(target_env = "gnu")]
const MAPPED_BYTES_MIN: i32 = 512 << 10;

/// Has the C library keep little. To be called before there are other threads.
pub fn keep_little() {
    #[cfg(target_env = "gnu")]
    #[expect(unsafe_code, reason = "a call of the C library")]
    // SAFETY: `mallopt` takes plain numbers; there is no other thread yet that allocates.
    unsafe {
        use nix::libc::{M_ARENA_MAX, M_MMAP_THRESHOLD, mallopt};
        mallopt(M_ARENA_MAX, ARENAS_MAX);
        mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES_MIN);
    }
}

/// The same of a child's arenas, as a variable of its environment. Its large blocks are pictures, which are better used again.
pub(crate) fn child_variable() -> (&'static str, String) {
    ("MALLOC_ARENA_MAX", ARENAS_MAX.to_string())
}
