//! Properties that are checked on random inputs. What fails is shrunk, and printed with the seed and the command that draws
//! it again. Used by the tests under `tests/` and by those beside the code.

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngSeed, TestCaseError, TestError, TestRunner};

/// Draws inputs and fails at the first for which `holds` does not. `PROPTEST_CASES` overrides how many are drawn,
/// `REDLOCK_TEST_SEED` which.
pub(crate) fn check<S: Strategy>(
    cases: u32,
    inputs: &S,
    holds: impl Fn(S::Value) -> Result<(), TestCaseError>,
) {
    let seed = seed();
    println!("REDLOCK_TEST_SEED={seed}");
    let asked_for = std::env::var_os("PROPTEST_CASES").map(|_| Config::default().cases);
    let cases = asked_for.unwrap_or(cases);
    let config = Config {
        cases,
        rng_seed: RngSeed::Fixed(seed),
        // What fails belongs into a test of its own, not into a file of seeds.
        failure_persistence: None,
        ..Config::default()
    };
    match TestRunner::new(config).run(inputs, holds) {
        Ok(()) => {}
        Err(TestError::Abort(reason)) => panic!("given up: {reason}"),
        Err(TestError::Fail(reason, input)) => {
            let thread = std::thread::current();
            let test = thread.name().unwrap_or_default();
            panic!(
                "{reason}\nsmallest input: {input:#?}\nagain: REDLOCK_TEST_SEED={seed} PROPTEST_CASES={cases} \
                 cargo test --all-features {test}"
            );
        }
    }
}

fn seed() -> u64 {
    match std::env::var("REDLOCK_TEST_SEED") {
        Ok(seed) => seed.parse().expect("REDLOCK_TEST_SEED is a whole number"),
        Err(_) => rand::random(),
    }
}
