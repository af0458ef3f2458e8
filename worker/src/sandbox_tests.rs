//! The other side of the walls: a child that was taken over, and what it gets done.

use std::os::unix::net::UnixStream;
use std::process::Command;

use pipelines::Done;

use super::*;
use crate::process::SOCKET_FD;

/// What is tried: without walls nothing that would harm the tests.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Daring {
    Harmless,
    All,
}

/// The address of a Unix socket.
const ADDRESS: &[u8] = b"\x01\0/dev/log\0";
const NULL_DEVICE: &std::ffi::CStr = c"/dev/null";
const TRUNCATED: i64 = (libc::O_RDONLY | libc::O_TRUNC) as i64;

/// Everything that a decoder which was taken over would try; what was not refused.
fn hostile_deeds(daring: Daring) -> Vec<String> {
    use std::net::{TcpStream, UdpSocket};
    let parent = nix::unistd::getppid().as_raw();
    let call = |number: i64, arguments: [i64; 4]| {
        let [a, b, c, d] = arguments;
        #[expect(unsafe_code, reason = "calls that no library makes so")]
        // SAFETY: each is refused, or fails for its arguments, or changes this process alone, which ends then.
        let answer = unsafe { libc::syscall(number, a, b, c, d, ADDRESS.as_ptr(), ADDRESS.len()) };
        if answer == -1 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
    };
    let read = |path: String| std::fs::read(path).map(|_| ());
    let mut deeds: Vec<(&str, std::io::Result<()>)> = vec![
        ("read of passwords", read("/etc/passwd".to_owned())),
        ("list of /etc", std::fs::read_dir("/etc").map(|_| ())),
        ("TCP", TcpStream::connect("127.0.0.1:9").map(|_| ())),
        ("UDP", UdpSocket::bind("127.0.0.1:0").map(|_| ())),
        ("Unix socket", UnixStream::connect("/run/shoal-hostile").map(|_| ())),
        ("program", Command::new("/bin/true").spawn().map(|_| ())),
    ];
    if daring == Daring::All {
        deeds.extend([
            ("read of the parent's environment", read(format!("/proc/{parent}/environ"))),
            ("read of the parent's memory", std::fs::File::open(format!("/proc/{parent}/mem")).map(|_| ())),
            ("file in /tmp", std::fs::write("/tmp/shoal-hostile", "x")),
            ("file beside the libraries", std::fs::write("/usr/lib/shoal-hostile", "x")),
            ("process", call(libc::SYS_clone, [i64::from(libc::SIGCHLD), 0, 0, 0])),
            ("signal to the parent", call(libc::SYS_kill, [parent.into(), 0, 0, 0])),
            ("ptrace of the parent", call(libc::SYS_ptrace, [i64::from(libc::PTRACE_ATTACH), parent.into(), 0, 0])),
            ("new namespaces", call(libc::SYS_unshare, [i64::from(libc::CLONE_NEWUSER), 0, 0, 0])),
            ("io_uring", call(libc::SYS_io_uring_setup, [8, 0, 0, 0])),
            ("file in memory", call(libc::SYS_memfd_create, [0, 0, 0, 0])),
            ("mount", call(libc::SYS_mount, [0, 0, 0, 0])),
            ("limits lifted", call(libc::SYS_prlimit64, [0, 9, 1, 0])),
            ("datagrams", call(libc::SYS_socketpair, [libc::AF_UNIX.into(), libc::SOCK_DGRAM.into(), 0, 0])),
            ("message to any socket", call(libc::SYS_sendto, [SOCKET_FD.into(), 0, 0, 0])),
            ("the parent's place among others", call(libc::SYS_sched_setattr, [parent.into(), 0, 0, 0])),
            ("signals by the kernel", call(libc::SYS_fcntl, [SOCKET_FD.into(), libc::F_SETOWN.into(), parent.into(), 0])),
            ("library cut off", call(libc::SYS_openat, [libc::AT_FDCWD.into(), NULL_DEVICE.as_ptr() as i64, TRUNCATED, 0])),
            ("BPF", call(libc::SYS_bpf, [0, 0, 0, 0])),
            ("keys", call(libc::SYS_add_key, [0, 0, 0, 0])),
            ("32 GiB", Vec::<u8>::new().try_reserve_exact(32 << 30).map_err(|_| std::io::ErrorKind::PermissionDenied.into())),
        ]);
    }
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

/// What was not refused to this process, with walls around it or without.
pub(crate) fn confess(walled_in: bool) -> Result<Done, Failure> {
    let daring = match walled_in {
        true => Daring::All,
        false => Daring::Harmless,
    };
    if walled_in {
        wall_in();
    }
    let deeds = hostile_deeds(daring);
    let threads = std::thread::spawn(|| ()).join().is_ok();
    let libraries = std::fs::read_dir("/usr/lib").is_ok();
    let message = format!("did {deeds:?}, still threads: {threads}, still libraries: {libraries}");
    Err(Failure::new(Code::Internal, message))
}
