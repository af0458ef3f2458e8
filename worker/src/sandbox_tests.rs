//! The other side of the walls: a child that was taken over, and what it gets done.

use std::os::unix::net::UnixStream;
use std::process::Command;

use farm::Class;
use pipelines::Done;

use super::*;
use crate::process::SOCKET_FD;

/// What a decoder that was taken over would try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Deed {
    /// Files that are not its own.
    Read,
    /// What its worker knows.
    Environment,
    /// Anybody else.
    Connect,
    /// Anything that stays.
    Write,
    /// Processes, one after another.
    Start,
    /// All memory there is.
    Memory,
    /// Its worker's process.
    Trace,
    /// Calls that have led further elsewhere.
    Escape,
}

impl Deed {
    /// All, with the names by which children are told of them.
    pub(crate) const ALL: [(&'static str, Self); 8] = [
        ("read", Self::Read),
        ("environment", Self::Environment),
        ("connect", Self::Connect),
        ("write", Self::Write),
        ("start", Self::Start),
        ("memory", Self::Memory),
        ("trace", Self::Trace),
        ("escape", Self::Escape),
    ];
}

/// Processes that a bomb of them tries to start.
const BOMB: usize = 1000;

/// The address of a Unix socket.
const ADDRESS: &[u8] = b"\x01\0/dev/log\0";
const NULL_DEVICE: &std::ffi::CStr = c"/dev/null";
const TRUNCATED: i64 = (libc::O_RDONLY | libc::O_TRUNC) as i64;

/// Tries everything of a kind, and says what was not refused.
fn hostile_deeds(deed: Deed) -> Vec<String> {
    use std::net::{TcpStream, UdpSocket};
    let parent = nix::unistd::getppid().as_raw();
    let call = |number: i64, arguments: [i64; 4]| {
        let [a, b, c, d] = arguments;
        #[expect(unsafe_code, reason = "calls that no library makes so")]
        // SAFETY: each is refused, or fails for its arguments, or changes this process alone, which ends then.
        let answer = unsafe { libc::syscall(number, a, b, c, d, ADDRESS.as_ptr(), ADDRESS.len()) };
        if answer == -1 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
    };
    let read = |path: &str| std::fs::read(path).map(|_| ());
    let of_parent = |what: &str| std::fs::File::open(format!("/proc/{parent}/{what}")).map(|_| ());
    let deeds: Vec<(&str, std::io::Result<()>)> = match deed {
        Deed::Read => vec![
            ("users", read("/etc/passwd")),
            ("passwords", read("/etc/shadow")),
            ("list of /etc", std::fs::read_dir("/etc").map(|_| ())),
            ("list of /", std::fs::read_dir("/").map(|_| ())),
        ],
        Deed::Environment => vec![
            ("environment of the parent", of_parent("environ")),
            ("command line of the parent", of_parent("cmdline")),
            ("memory of the parent", of_parent("mem")),
            ("descriptors of the parent", std::fs::read_dir(format!("/proc/{parent}/fd")).map(|_| ())),
        ],
        Deed::Connect => vec![
            ("TCP", TcpStream::connect("127.0.0.1:9").map(|_| ())),
            ("UDP", UdpSocket::bind("127.0.0.1:0").map(|_| ())),
            ("Unix socket", UnixStream::connect("/run/shoal-hostile").map(|_| ())),
            ("datagrams", call(libc::SYS_socketpair, [libc::AF_UNIX.into(), libc::SOCK_DGRAM.into(), 0, 0])),
            ("message to any socket", call(libc::SYS_sendto, [SOCKET_FD.into(), 0, 0, 0])),
        ],
        Deed::Write => vec![
            ("file in /tmp", std::fs::write("/tmp/shoal-hostile", "x")),
            ("file beside the libraries", std::fs::write("/usr/lib/shoal-hostile", "x")),
            ("library cut off", call(libc::SYS_openat, [libc::AT_FDCWD.into(), NULL_DEVICE.as_ptr() as i64, TRUNCATED, 0])),
            ("file in memory", call(libc::SYS_memfd_create, [0, 0, 0, 0])),
            ("mount", call(libc::SYS_mount, [0, 0, 0, 0])),
        ],
        Deed::Start => {
            let fork = || call(libc::SYS_clone, [i64::from(libc::SIGCHLD), 0, 0, 0]);
            vec![
                ("program", Command::new("/bin/true").spawn().map(|_| ())),
                // The first that is not refused says so: its child is the one that hears 0, and ends with the confession.
                ("bomb of processes", (0..BOMB).map(|_| fork()).find(Result::is_ok).unwrap_or_else(fork)),
            ]
        }
        Deed::Memory => {
            let mut eaten: Vec<Vec<u8>> = Vec::new();
            let mut bite = Vec::<u8>::new();
            while eaten.len() < 32 && bite.try_reserve_exact(1 << 30).is_ok() {
                eaten.push(std::mem::take(&mut bite));
            }
            let is_limited = eaten.len() < 16;
            vec![("16 GiB", if is_limited { Err(std::io::ErrorKind::PermissionDenied.into()) } else { Ok(()) })]
        }
        Deed::Trace => vec![
            ("ptrace of the parent", call(libc::SYS_ptrace, [i64::from(libc::PTRACE_ATTACH), parent.into(), 0, 0])),
            ("signal to the parent", call(libc::SYS_kill, [parent.into(), 0, 0, 0])),
            ("the parent's place among others", call(libc::SYS_sched_setattr, [parent.into(), 0, 0, 0])),
            ("signals by the kernel", call(libc::SYS_fcntl, [SOCKET_FD.into(), libc::F_SETOWN.into(), parent.into(), 0])),
            ("the same by FIOSETOWN", call(libc::SYS_ioctl, [SOCKET_FD.into(), 0x8901, 0, 0])),
            ("the same by SIOCSPGRP", call(libc::SYS_ioctl, [SOCKET_FD.into(), 0x8902, 0, 0])),
            ("the same by FIOSETOWN, in more bits", call(libc::SYS_ioctl, [SOCKET_FD.into(), 0x1_0000_8901, 0, 0])),
            ("signals at every byte", call(libc::SYS_ioctl, [SOCKET_FD.into(), 0x5452, 0, 0])),
            ("words for a terminal", call(libc::SYS_ioctl, [0, 0x5412, 0, 0])),
            ("limits lifted", call(libc::SYS_prlimit64, [0, 9, 1, 0])),
        ],
        Deed::Escape => vec![
            ("new namespaces", call(libc::SYS_unshare, [i64::from(libc::CLONE_NEWUSER), 0, 0, 0])),
            ("io_uring", call(libc::SYS_io_uring_setup, [8, 0, 0, 0])),
            ("BPF", call(libc::SYS_bpf, [0, 0, 0, 0])),
            ("keys", call(libc::SYS_add_key, [0, 0, 0, 0])),
        ],
    };
    let is_refused =
        |done: &std::io::Result<()>| done.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied);
    deeds.iter().filter(|(_, done)| !is_refused(done)).map(|(deed, done)| format!("{deed}: {done:?}")).collect()
}

/// Becomes an ordinary user, where it is not one already.
pub(crate) fn become_nobody() {
    const NOBODY: libc::uid_t = 65_534;
    #[expect(unsafe_code, reason = "a child of a test, before it has other threads that matter")]
    // SAFETY: plain numbers; where it is refused, it is no great user already.
    unsafe {
        libc::setgid(NOBODY);
        libc::setuid(NOBODY);
    }
}

/// What was not refused to this process, with walls around it, those of an order on a device of a class, or without.
pub(crate) fn confess(deed: Deed, walls: &str) -> Result<Done, Failure> {
    let class = Class::ALL.into_iter().find(|class| class.is_hardware() && class.word() == walls);
    let device = class.map(|class| Device { class, number: 0, node: "/dev/stand-in0".into() });
    if device.is_some() || walls == "walled" {
        wall_in(device.as_ref());
    }
    let deeds = hostile_deeds(deed);
    let threads = std::thread::spawn(|| ()).join().is_ok();
    let libraries = std::fs::read_dir("/usr/lib").is_ok();
    let message = format!("did {deeds:?}, still threads: {threads}, still libraries: {libraries}");
    Err(Failure::new(Code::Internal, message))
}
