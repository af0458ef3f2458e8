//! What an order on a device may do beside what every order may. Drivers run in the child: they open nodes of the device and give
//! it commands (ioctl(2)), and read what the kernel says of it.
//!
//! None of this was ever tried on a device: it is what drivers are known to ask for. A proof is made within the same walls, so
//! what they keep from working is not offered.

use std::path::{Path, PathBuf};

use farm::Class;
use farm::encoder::Device;
use nix::libc;

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
                used: [vec![node.clone()], beginning("/dev", "nvidia")].concat(),
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

/// Whether address space is limited with a device: CUDA reserves more than any limit that would mean something, and uses little.
pub(super) fn limits_addresses(device: Option<&Device>) -> bool {
    device.is_none_or(|device| device.class != Class::Nvenc)
}

const NVIDIA_READ: [&str; 9] = [
    "/proc/driver/nvidia",
    "/proc/self",
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
            let too_much = ["/", "/etc", "/home", "/proc", "/root", "/tmp", "/var"].map(PathBuf::from);
            assert_eq!(read.iter().chain(&listed).find(|path| too_much.contains(path)), None, "{class}");
        }
    }

    #[test]
    fn names_are_looked_for_by_how_they_begin() {
        let folder = tempfile::tempdir().expect("a folder");
        for name in ["nvidia0", "nvidiactl", "null", "an-nvidia"] {
            std::fs::write(folder.path().join(name), "").expect("written");
        }
        let mut found = beginning(folder.path(), "nvidia");
        found.sort();
        assert_eq!(found, ["nvidia0", "nvidiactl"].map(|name| folder.path().join(name)));
        assert_eq!(beginning(folder.path().join("not-there"), "nvidia"), Vec::<PathBuf>::new());
    }
}
