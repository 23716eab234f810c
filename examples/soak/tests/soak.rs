//! The soak in short, and that it would find out. `REDLOCK_SOAK_SECONDS` sets how long it is.

use std::path::Path;
use std::process::{Command, Output};

fn soak(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_redlock-soak"));
    let output = command.args(arguments).output().expect("it runs");
    println!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    output
}

#[test]
fn whatever_fails_no_increment_is_lost_that_a_lock_can_save() {
    let seconds = std::env::var("REDLOCK_SOAK_SECONDS").unwrap_or_else(|_| "110".to_owned());
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("soak.svg");
    let _ = std::fs::remove_file(&file);
    let output = soak(&[&seconds, "--timeline", file.to_str().expect("a plain path")]);
    assert!(output.status.success(), "see the report above");
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(told.contains(&format!("timeline: {}", file.display())), "{told}");
    assert_is_whole(&std::fs::read_to_string(&file).expect("a timeline"));
}

/// On each line of the picture there is a lane for each worker and each node.
fn assert_is_whole(timeline: &str) {
    let lanes = |name: &str| timeline.matches(&format!(">{name}<")).count();
    let lines = lanes("worker 1");
    assert!(lines > 0 && timeline.ends_with("</svg>\n"), "{timeline}");
    for lane in ["worker 2", "worker 3", "worker 4", "node 1", "node 2", "node 3"] {
        assert_eq!(lanes(lane), lines, "{lane}");
    }
    for (sign, what) in [("has1", "a hold"), ("stopped", "a stopped worker"), ("waits", "a node that waits")]
    {
        assert!(timeline.contains(&format!("<rect class=\"{sign}\"")), "{what}");
    }
}

/// Without a common lock, both checks have something to say.
#[test]
fn workers_that_do_not_exclude_each_other_are_found_out() {
    let output = soak(&["3", "--apart"]);
    let told = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1));
    assert!(told.contains("two holders at once"), "{told}");
    assert!(told.contains("stale without having been stopped"), "{told}");
}
