//! The soak in short, and that it would find out. `REDLOCK_SOAK_SECONDS` sets how long it is.

use std::process::{Command, Output};

fn soak(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_redlock-soak"));
    let output = command.args(arguments).output().expect("it runs");
    println!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    output
}

#[test]
fn whatever_fails_no_increment_is_lost_that_a_lock_can_save() {
    let seconds = std::env::var("REDLOCK_SOAK_SECONDS").unwrap_or_else(|_| "60".to_owned());
    let output = soak(&[&seconds]);
    assert!(output.status.success(), "see the report above");
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
