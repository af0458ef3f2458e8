//! What a child may do once it has its order: compute, read the libraries and plugins it is made of, and talk on the socket it
//! has. No other file, no network, no other process. With a device it may use that besides (`device`).
//!
//! Two walls that do not know of each other: Landlock (files, TCP, signals; by path and scope) and seccomp (system calls). Both
//! bind the calling thread and those it starts, so they are put up before there are others. What the kernel lacks is left out,
//! said, and refused where it is [required](Sandboxing::Require).

mod device;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use farm::encoder::Device;
use farm::{Code, Failure};
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};
use nix::libc;
use nix::sys::resource::{Resource, setrlimit};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

/// Whether children are walled in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sandboxing {
    /// They are, or they do not work.
    Require,
    /// They are as far as the kernel can.
    #[default]
    BestEffort,
    /// They are not.
    Off,
}

/// How far a wall stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wall {
    /// As it should.
    Whole,
    /// Without what this kernel does not know.
    Partly,
    /// Not at all.
    Missing,
}

/// How far a process is walled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Walls {
    /// Files, TCP and signals: Landlock.
    pub files: Wall,
    /// System calls: seccomp.
    pub system_calls: Wall,
}

impl Walls {
    /// Whether what must not be possible is not: no network, no other process, no file but libraries. An older Landlock, which
    /// knows of files alone, will do: system calls close the rest.
    pub fn are_enough(self) -> bool {
        self.files != Wall::Missing && self.system_calls == Wall::Whole
    }
}

impl Wall {
    /// As a number for metrics: 2 for all of it, 0 for nothing.
    pub fn level(self) -> i64 {
        match self {
            Self::Whole => 2,
            Self::Partly => 1,
            Self::Missing => 0,
        }
    }
}

impl std::fmt::Display for Walls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let said = |wall| match wall {
            Wall::Whole => "closed",
            Wall::Partly => "closed as far as this kernel can",
            Wall::Missing => "open",
        };
        write!(f, "files {} (Landlock), system calls {} (seccomp)", said(self.files), said(self.system_calls))
    }
}

/// Descriptors that a child may have: the source's socket, and what its libraries open for a moment.
const FILES_MAX: u64 = 256;
/// Address space of a child in bytes, or what it may write of it: six times what the largest ladder was seen to take. A backstop,
/// where nobody else sets a limit.
const MEMORY_BYTES_MAX: u64 = 16 << 30;
/// CPU time of a child in seconds: what 16 threads take until the longest deadline. A backstop, as the deadline is the worker's.
const CPU_SECONDS_MAX: u64 = 8 * 60 * 60;
/// How much later the kernel kills it without a word, in seconds: before, it says why.
const CPU_SECONDS_MORE: u64 = 60;
/// How gladly the kernel kills a child before others when memory runs out (proc(5)).
const OOM_SCORE: &str = "900";

/// What is read by loaders, the C library and GStreamer's registry, where it is there.
const READABLE: [&str; 11] = [
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/lib",
    "/lib64",
    "/etc/ld.so.cache",
    "/sys/devices/system/cpu",
    "/proc/stat",
    "/proc/sys/vm/overcommit_memory",
    "/dev/urandom",
    "/dev/null",
];

/// Variables that name more folders of libraries and plugins, or files of the registry.
const READABLE_VARIABLES: [&str; 5] =
    ["LD_LIBRARY_PATH", "GST_PLUGIN_PATH", "GST_PLUGIN_PATH_1_0", "GST_PLUGIN_SYSTEM_PATH", "GST_PLUGIN_SYSTEM_PATH_1_0"];

/// What children of a worker will have, counted and logged.
///
/// # Errors
/// [`Code::SandboxMissing`] when walls are required and this kernel has not enough of them.
pub fn announce(sandboxing: Sandboxing) -> Result<(), Failure> {
    let walls = match sandboxing {
        Sandboxing::Off => Walls { files: Wall::Missing, system_calls: Wall::Missing },
        Sandboxing::Require | Sandboxing::BestEffort => walls(),
    };
    let series = farm::metrics::worker();
    series.walls.with_label_values(&["files"]).set(walls.files.level());
    series.walls.with_label_values(&["system_calls"]).set(walls.system_calls.level());
    if sandboxing == Sandboxing::Require && !walls.are_enough() {
        return Err(Failure::new(
            Code::SandboxMissing,
            format!("this kernel cannot wall children in as it is required: {walls}"),
        ));
    }
    if walls.are_enough() {
        tracing::info!(%walls, "children are walled in");
    } else {
        tracing::warn!(%walls, "children are not walled in as they should be");
    }
    Ok(())
}

/// Whether GStreamer's registry is there, which a child that is walled in cannot write.
pub fn has_registry() -> bool {
    let file = format!("registry.{}.bin", std::env::consts::ARCH);
    registry().is_none_or(|path| if path.is_dir() { path.join(file).is_file() } else { path.is_file() })
}

/// Walls in this process, which must have no other thread, for an order on this device or on none.
///
/// # Errors
/// [`Code::Internal`] when there are other threads; [`Code::SandboxMissing`] when walls are required and this kernel has not
/// enough of them.
pub(crate) fn close(sandboxing: Sandboxing, device: Option<&Device>) -> Result<(), Failure> {
    if sandboxing == Sandboxing::Off {
        return Ok(());
    }
    let threads = std::fs::read_dir("/proc/self/task").map(Iterator::count).unwrap_or(1);
    if threads != 1 {
        return Err(Failure::new(Code::Internal, format!("a child of {threads} threads cannot be walled in")));
    }
    let walls = wall_in(device);
    match sandboxing {
        Sandboxing::Require if !walls.are_enough() => {
            let message = format!("this kernel cannot wall a child in as it is required: {walls}");
            Err(Failure::new(Code::SandboxMissing, message))
        }
        _ => Ok(()),
    }
}

/// How far this kernel walls a thread in that has no device: tried on one that ends then.
pub fn walls() -> Walls {
    let tried = std::thread::Builder::new()
        .name("walls".to_owned())
        .spawn(|| Walls { files: close_files(None), system_calls: close_calls(None) });
    let none = Walls { files: Wall::Missing, system_calls: Wall::Missing };
    tried.ok().and_then(|thread| thread.join().ok()).unwrap_or(none)
}

/// Walls the calling thread in, and those it will start.
pub(crate) fn wall_in(device: Option<&Device>) -> Walls {
    // Refused where somebody has set it before; then that holds.
    let _ = std::fs::write("/proc/self/oom_score_adj", OOM_SCORE);
    // A lower limit that is there already holds.
    let limits = [
        (device::memory_limit(device), MEMORY_BYTES_MAX, 0),
        (Resource::RLIMIT_CORE, 0, 0),
        (Resource::RLIMIT_NOFILE, device.map_or(FILES_MAX, |_| device::FILES_MAX), 0),
        (Resource::RLIMIT_CPU, CPU_SECONDS_MAX, CPU_SECONDS_MORE),
    ];
    for (resource, limit, more) in limits {
        let _ = setrlimit(resource, limit, limit + more);
    }
    // Others of this user cannot look into it.
    let _ = nix::sys::prctl::set_dumpable(false);
    let files = close_files(device);
    // Commands to devices are for those whose nodes can be opened, which then is every one.
    let device = device.filter(|_| files != Wall::Missing);
    Walls { files, system_calls: close_calls(device) }
}

/// Everything that may be read, where it is there.
fn readable() -> Vec<PathBuf> {
    let variables = READABLE_VARIABLES.iter().filter_map(std::env::var_os);
    let named = variables.flat_map(|value| std::env::split_paths(&value).collect::<Vec<_>>());
    READABLE.iter().map(PathBuf::from).chain(named).chain(registry()).filter(|path| path.is_absolute()).collect()
}

/// The folder of GStreamer's registry, or its file where that is named.
fn registry() -> Option<PathBuf> {
    let named = ["GST_REGISTRY_1_0", "GST_REGISTRY"].iter().find_map(std::env::var_os);
    let cache = || std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache"));
    named.map(PathBuf::from).or_else(|| cache().or_else(home).map(|cache| cache.join("gstreamer-1.0")))
}

fn close_files(device: Option<&Device>) -> Wall {
    match landlocked(&readable(), &device::Paths::of(device)) {
        Ok(RulesetStatus::FullyEnforced) => Wall::Whole,
        Ok(RulesetStatus::PartiallyEnforced) => Wall::Partly,
        Ok(RulesetStatus::NotEnforced) | Err(_) => Wall::Missing,
    }
}

fn landlocked(readable: &[PathBuf], device: &device::Paths) -> Result<RulesetStatus, RulesetError> {
    let rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ABI::V5))?
        .handle_access(AccessNet::from_all(ABI::V4))?
        .scope(Scope::from_all(ABI::V6))?;
    let mut rules = rules.create()?;
    let read = |path: &Path| -> BitFlags<AccessFs> {
        if path.is_dir() { AccessFs::ReadFile | AccessFs::ReadDir } else { AccessFs::ReadFile.into() }
    };
    let read = readable.iter().chain(&device.read).map(|path| (path, read(path)));
    let used = device.used.iter().map(|path| (path, AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev));
    let listed = device.listed.iter().map(|path| (path, BitFlags::from(AccessFs::ReadDir)));
    for (path, access) in read.chain(used).chain(listed) {
        let Ok(opened) = PathFd::new(path) else { continue };
        rules = rules.add_rule(PathBeneath::new(opened, access))?;
    }
    Ok(rules.restrict_self()?.ruleset)
}

fn close_calls(device: Option<&Device>) -> Wall {
    let Ok(filters) = filters(device) else { return Wall::Missing };
    match filters.iter().try_for_each(|filter| seccompiler::apply_filter(filter)) {
        Ok(()) => Wall::Whole,
        Err(_) => Wall::Missing,
    }
}

/// A thread's flags, as the C library starts one; with any other, it would be a process (clone(2)).
const THREAD_FLAGS: u64 = (libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM
    | libc::CLONE_SETTLS
    | libc::CLONE_PARENT_SETTID
    | libc::CLONE_CHILD_CLEARTID) as u64;

/// The bits of a socket's type that are not flags.
const SOCKET_TYPE: i32 = 0xF;

/// The flags of open(2) by which a file could be changed.
const WRITING: i32 = libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC;

/// What a child may do with its descriptors.
const FCNTL_COMMANDS: [i32; 6] =
    [libc::F_DUPFD, libc::F_DUPFD_CLOEXEC, libc::F_GETFD, libc::F_SETFD, libc::F_GETFL, libc::F_SETFL];

/// Two filters, one after another. What is not on the list fails with EPERM, which libraries bear. `clone3` has its flags where
/// no filter can look; as if it did not exist, the C library uses `clone`.
fn filters(device: Option<&Device>) -> Result<[BpfProgram; 2], seccompiler::BackendError> {
    let target = || TargetArch::try_from(std::env::consts::ARCH);
    let errno = |errno: i32| SeccompAction::Errno(errno.cast_unsigned());
    let no_clone3 = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let no_clone3 = SeccompFilter::new(no_clone3, SeccompAction::Allow, errno(libc::ENOSYS), target()?)?;
    let more: &[i64] = if device.is_some() { &device::CALLS } else { &[] };
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = ALLOWED.iter().chain(more).map(|call| (*call, Vec::new())).collect();
    let equal = |argument: u8, value: u64| SeccompCondition::new(argument, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, value);
    let among = |argument: u8, mask: i32, value: i32| {
        let (mask, value) = (mask.cast_unsigned().into(), value.cast_unsigned().into());
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(mask), value)
    };
    let only = |argument: u8, value: u64| SeccompRule::new(vec![equal(argument, value)?]);
    rules.insert(libc::SYS_clone, vec![only(0, THREAD_FLAGS)?]);
    // Of datagrams any socket of the machine could be sent one, with no wall in between.
    let stream = among(1, SOCKET_TYPE, libc::SOCK_STREAM)?;
    rules.insert(libc::SYS_socketpair, vec![SeccompRule::new(vec![equal(0, libc::AF_UNIX as u64)?, stream])?]);
    rules.insert(libc::SYS_sendto, vec![only(4, 0)?]);
    rules.insert(libc::SYS_prctl, vec![only(0, libc::PR_SET_NAME as u64)?]);
    // Not whom the kernel is to send signals for it.
    let commands = FCNTL_COMMANDS.iter().map(|command| SeccompRule::new(vec![among(1, -1, *command)?]));
    rules.insert(libc::SYS_fcntl, commands.collect::<Result<_, _>>()?);
    if device.is_some() {
        let other = |command: u32| SeccompCondition::new(1, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, command.into());
        let others: Vec<_> = device::COMMANDS_REFUSED.into_iter().map(other).collect::<Result<_, _>>()?;
        rules.insert(libc::SYS_ioctl, vec![SeccompRule::new(others)?]);
    }
    // For reading, also where Landlock does not know of cutting files off.
    let refused = device.map_or(WRITING, |_| device::MAKING);
    rules.insert(libc::SYS_openat, vec![SeccompRule::new(vec![among(2, refused, 0)?])?]);
    #[cfg(target_arch = "x86_64")]
    rules.insert(libc::SYS_open, vec![SeccompRule::new(vec![among(1, refused, 0)?])?]);
    // The other filter has answered it; of two answers the later one would count.
    rules.insert(libc::SYS_clone3, Vec::new());
    // To be told a limit, not to set one.
    rules.insert(libc::SYS_prlimit64, vec![only(2, 0)?]);
    // To abort itself.
    rules.insert(libc::SYS_tgkill, vec![only(0, u64::from(std::process::id()))?]);
    let listed = SeccompFilter::new(rules, errno(libc::EPERM), SeccompAction::Allow, target()?)?;
    Ok([no_clone3.try_into()?, listed.try_into()?])
}

/// System calls that a child may make, whatever their arguments: those that were seen, and rare ones beside them that do no
/// more. Files are Landlock's to refuse.
const ALLOWED: &[i64] = &[
    // Its socket, and what it has open.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_recvfrom,
    libc::SYS_close,
    libc::SYS_ppoll,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_shutdown,
    libc::SYS_eventfd2,
    libc::SYS_pipe2,
    libc::SYS_dup,
    // Libraries.
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_readlinkat,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_uname,
    // Memory.
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_membarrier,
    libc::SYS_sysinfo,
    // Threads.
    libc::SYS_futex,
    libc::SYS_rseq,
    libc::SYS_set_robust_list,
    libc::SYS_get_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_getattr,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_sched_get_priority_max,
    libc::SYS_sched_get_priority_min,
    libc::SYS_getpriority,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // Signals to itself.
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    // Clocks and names.
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_getrandom,
    libc::SYS_getrusage,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_stat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lstat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_access,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_time,
];

#[cfg(test)]
#[path = "sandbox_tests.rs"]
pub(crate) mod tests;
