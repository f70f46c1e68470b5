//! A queue for each processor on a veth, as network cards have them.
//!
//! With one queue for all, frames wait for the processor that was first to send anything, and where that one is taken by a
//! program, they are lost, however idle the others are.

use std::thread;

use lb_lab::{Netns, Result};

/// More are not needed, and would take a longer mask.
const MOST: usize = 32;

/// Sets up both ends. Each processor then sends into the queue of its own, which it also empties.
///
/// # Errors
/// The places'.
pub fn for_each_processor(ends: [(&Netns, &str); 2]) -> Result<()> {
    let count = thread::available_parallelism().map_or(1, |count| count.get().min(MOST));
    let number = count.to_string();
    // (With XDP there must be no sending queue without a receiving one at the other end.)
    for way in ["rx", "tx"] {
        for (netns, device) in ends {
            // No change is an error.
            if count > 1 {
                netns.run(&["ethtool", "-L", device, way, &number])?;
            }
        }
    }
    for (netns, device) in ends {
        // The machine's /sys shows the interfaces of the namespace in which it was mounted.
        let mut script = String::from("mount -t sysfs sysfs /sys");
        for queue in 0..count {
            script += &format!(
                " && echo {:x} > /sys/class/net/{device}/queues/tx-{queue}/xps_cpus",
                1_u64 << queue
            );
        }
        netns.run(&["unshare", "--mount", "sh", "-c", &script])?;
    }
    Ok(())
}
