//! Several hosts on this machine: network namespaces, each behind a cable that can be pulled. Unlike a proxy, this loses
//! packets: the kernels at both ends believe in their connections, send again, and give up in their own time.
//!
//! Needs `ip` and the right to make namespaces.

use std::ffi::OsString;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use super::process::spawn_watchdog;

/// A card that nobody has: what is sent to it arrives nowhere.
const NOBODY: &str = "02:00:00:00:00:01";

/// The end of the cable in the host.
const CARD: &str = "cable";

/// One host. Dropped, or when this process ends, it is removed.
pub struct Host {
    name: String,
    /// Of the host, and of this machine at the other end of the cable.
    address: String,
    gateway: String,
    watchdog: Child,
}

impl Host {
    /// `None` where there can be none; the reason is printed.
    pub fn new() -> Option<Self> {
        static NUMBERS: AtomicU32 = AtomicU32::new(0);
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        let name = format!("rq{}n{number}", std::process::id());
        if let Err(reason) = ip(&["netns", "add", &name]) {
            println!("skipped: no hosts of their own can be had here: {}", reason.trim());
            return None;
        }
        // From the range for tests of networks: of four addresses the two in the middle.
        let subnet = (std::process::id() * 16 + number) % 0x8000 * 4;
        let address = |last: u32| {
            let number = subnet + last;
            format!("198.{}.{}.{}", 18 + (number >> 16), (number >> 8) & 0xff, number & 0xff)
        };
        let (gateway, address) = (address(1), address(2));
        let watchdog = spawn_watchdog(r#"ip netns del "$0""#, [OsString::from(&name)]);
        let host = Host { name, address, gateway, watchdog };
        match host.connect() {
            Ok(()) => Some(host),
            Err(reason) => {
                println!("skipped: no hosts of their own can be had here: {}", reason.trim());
                None
            }
        }
    }

    fn connect(&self) -> Result<(), String> {
        let name = self.name();
        ip(&["link", "add", name, "type", "veth", "peer", "name", CARD, "netns", name])?;
        ip(&["addr", "add", &format!("{}/30", self.gateway), "dev", name])?;
        ip(&["link", "set", name, "up"])?;
        ip(&["-n", name, "addr", "add", &format!("{}/30", self.address), "dev", CARD])?;
        ip(&["-n", name, "link", "set", CARD, "up"])
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    /// The cable is pulled: nothing comes and nothing goes, and nobody is told. At the host's end, since with the near one
    /// the way there would be gone, and packets would look for another.
    pub fn pull(&self) {
        done(&["-n", &self.name, "link", "set", CARD, "down"]);
    }

    /// The cable is back.
    pub fn plug_in(&self) {
        done(&["-n", &self.name, "link", "set", CARD, "up"]);
    }

    /// From now on the host is not heard: what it sends arrives nowhere.
    pub fn mute(&self) {
        done(&[
            "-n",
            &self.name,
            "neigh",
            "replace",
            &self.gateway,
            "lladdr",
            NOBODY,
            "dev",
            CARD,
            "nud",
            "permanent",
        ]);
    }

    /// From now on the host hears nothing: what it is sent arrives nowhere.
    pub fn deafen(&self) {
        done(&["neigh", "replace", &self.address, "lladdr", NOBODY, "dev", &self.name, "nud", "permanent"]);
    }

    /// It hears and is heard again.
    pub fn cure(&self) {
        // Whichever of them there was.
        let _ = ip(&["-n", &self.name, "neigh", "del", &self.gateway, "dev", CARD]);
        let _ = ip(&["neigh", "del", &self.address, "dev", &self.name]);
    }
}

impl Drop for Host {
    /// With the namespace goes the cable. A server there goes with its last process.
    fn drop(&mut self) {
        let _ = self.watchdog.kill();
        let _ = self.watchdog.wait();
        let _ = ip(&["netns", "del", &self.name]);
    }
}

fn done(arguments: &[&str]) {
    ip(arguments).expect("the host was made before");
}

fn ip(arguments: &[&str]) -> Result<(), String> {
    let mut command = Command::new("ip");
    command.args(arguments).stdin(Stdio::null());
    let output = command.output().map_err(|error| format!("`ip` does not run: {error}"))?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}
