//! What an order on a device may do beside what every order may. Drivers run in the child: they open nodes of the device and give
//! it commands (ioctl(2)), and read what the kernel says of it.
//!
//! None of this was ever tried on a device: it is what drivers are known to ask for. A proof is made within the same walls, so
//! what they keep from working is not offered. Where the kernel has no walls around files, there is nothing of this: commands
//! could go to whatever else the worker's user may open.

use std::path::{Path, PathBuf};

use farm::Class;
use farm::encoder::Device;
use nix::libc;
use nix::sys::resource::Resource;

/// Descriptors that a child may have: CUDA opens some dozens of nodes for every encoder.
pub(super) const FILES_MAX: u64 = 1024;

/// The flags of open(2) by which a file could be made or cut off. Device nodes are opened for writing.
pub(super) const MAKING: i32 = libc::O_CREAT | libc::O_TRUNC | (libc::O_TMPFILE & !libc::O_DIRECTORY);

/// System calls of drivers: commands to a device, and where memory that it shares is.
pub(super) const CALLS: [i64; 7] = [
    libc::SYS_ioctl,
    libc::SYS_mlock,
    libc::SYS_munlock,
    libc::SYS_mincore,
    libc::SYS_mbind,
    libc::SYS_get_mempolicy,
    libc::SYS_set_mempolicy,
];

/// Commands by ioctl(2) that are not for drivers: whom the kernel is to send signals (`FIOSETOWN`, `SIOCSPGRP`) and that it does
/// (`FIOASYNC`), and words put into the mouth of a terminal (`TIOCSTI`). Sockets and terminals take them, which no wall around
/// files is in the way of. Numbers of Linux on all machines that this runs on (`asm-generic/ioctls.h`, `asm-generic/sockios.h`).
pub(super) const COMMANDS_REFUSED: [u32; 4] = [0x8901, 0x8902, 0x5452, 0x5412];

/// Paths that drivers need, where they are there.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Paths {
    /// Read, written, and given commands.
    pub(super) used: Vec<PathBuf>,
    /// Read, with all that is below.
    pub(super) read: Vec<PathBuf>,
    /// Listed, and nothing of it read.
    pub(super) listed: Vec<PathBuf>,
}

impl Paths {
    /// What the driver of a device needs; nothing without one.
    pub(super) fn of(device: Option<&Device>) -> Self {
        let Some(Device { class, node, .. }) = device else { return Self::default() };
        let paths = |names: &[&str]| names.iter().map(PathBuf::from).collect::<Vec<_>>();
        match class {
            Class::Cpu => Self::default(),
            // Its library looks at all cards before it takes one, and numbers them so.
            Class::Nvenc => Self {
                used: [vec![node.clone()], nvidia_nodes("/dev")].concat(),
                read: [paths(&NVIDIA_READ), beginning("/sys/module", "nvidia")].concat(),
                listed: Vec::new(),
            },
            Class::Vaapi | Class::Qsv => {
                Self { used: vec![node.clone()], read: paths(&RENDER_READ), listed: paths(&["/dev/dri"]) }
            }
            Class::V4l2 => Self { used: vec![node.clone()], read: paths(&VIDEO_READ), listed: paths(&["/dev"]) },
        }
    }
}

/// By which limit memory is kept: that of all addresses (`RLIMIT_AS`). CUDA reserves more of them than any limit that would mean
/// something, and uses little: with it, that of memory which is its own to write (`RLIMIT_DATA`, getrlimit(2)).
pub(super) fn memory_limit(device: Option<&Device>) -> Resource {
    match device {
        Some(Device { class: Class::Nvenc, .. }) => Resource::RLIMIT_DATA,
        Some(_) | None => Resource::RLIMIT_AS,
    }
}

const NVIDIA_READ: [&str; 11] = [
    "/proc/driver/nvidia",
    "/proc/self/maps",
    "/proc/self/status",
    "/proc/self/task",
    "/proc/devices",
    "/proc/modules",
    "/proc/meminfo",
    "/proc/cpuinfo",
    "/proc/sys/vm",
    "/sys/bus/pci",
    "/sys/devices",
];

/// Below `/usr/share` are the settings of drivers and the names of chips.
const RENDER_READ: [&str; 6] = ["/sys/dev/char", "/sys/devices", "/sys/class/drm", "/sys/bus/pci", "/usr/share", "/etc/drirc"];

const VIDEO_READ: [&str; 3] = ["/sys/class/video4linux", "/sys/dev/char", "/sys/devices"];

/// The nodes of all cards, of their driver and of the memory that they share: not those that split cards or watch others
/// (`nvidia-caps`, `nvidia-uvm-tools`).
fn nvidia_nodes(folder: impl AsRef<Path>) -> Vec<PathBuf> {
    let is_one = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix("nvidia"));
        let is_card = |number: &str| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        name.is_some_and(|name| matches!(name, "ctl" | "-uvm") || is_card(name))
    };
    beginning(folder, "nvidia").into_iter().filter(is_one).collect()
}

/// What is in a folder by names that begin so.
fn beginning(folder: impl AsRef<Path>, start: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(start)).map(|entry| entry.path()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_opens_its_own_nodes_and_none_opens_nothing() {
        assert_eq!(Paths::of(None), Paths::default());
        let device = |class| Device { class, number: 0, node: "/dev/stand-in0".into() };
        assert_eq!(Paths::of(Some(&device(Class::Cpu))), Paths::default());
        for class in Class::ALL.into_iter().filter(|class| class.is_hardware()) {
            let Paths { used, read, listed } = Paths::of(Some(&device(class)));
            assert_eq!(used.first().map(PathBuf::as_path), Some(Path::new("/dev/stand-in0")), "{class}");
            assert!(used.iter().all(|path| path.starts_with("/dev")), "{class}: {used:?}");
            let too_much = ["/", "/etc", "/home", "/proc", "/proc/self", "/root", "/tmp", "/var"].map(PathBuf::from);
            assert_eq!(read.iter().chain(&listed).find(|path| too_much.contains(path)), None, "{class}");
        }
    }

    #[test]
    fn of_the_nodes_of_nvidia_those_are_used_that_encoders_take() {
        let folder = tempfile::tempdir().expect("a folder");
        let others = ["nvidia", "nvidia0x", "nvidia-modeset", "nvidia-uvm-tools", "nvidia-caps", "null", "an-nvidia0"];
        for name in ["nvidia0", "nvidia11", "nvidiactl", "nvidia-uvm"].into_iter().chain(others) {
            std::fs::write(folder.path().join(name), "").expect("written");
        }
        let mut found = nvidia_nodes(folder.path());
        found.sort();
        assert_eq!(found, ["nvidia-uvm", "nvidia0", "nvidia11", "nvidiactl"].map(|name| folder.path().join(name)));
        assert_eq!(nvidia_nodes(folder.path().join("not-there")), Vec::<PathBuf>::new());
    }

    #[test]
    fn memory_is_limited_with_any_device_and_without() {
        let device = |class| Device { class, number: 0, node: "/dev/stand-in0".into() };
        let limits = [None, Some(device(Class::Vaapi)), Some(device(Class::Nvenc))].map(|device| memory_limit(device.as_ref()));
        assert_eq!(limits, [Resource::RLIMIT_AS, Resource::RLIMIT_AS, Resource::RLIMIT_DATA]);
    }
}
