//! Drives the lock's protocol through random histories with every fault that the simulator knows, and says what it found.
//!
//! ```text
//! cargo run --release --no-default-features --features sim --example simulate -- [OPTIONS]
//!
//!   --histories N   how many (100000)
//!   --seed S        the first seed (0): a history is its seed
//!   --minutes M     for so long instead, from a seed that nobody has had before
//!   --steps N       how long a history is at most, before everything is mended (400)
//!   --fences        a fence comes with every lock
//!   --mutant NAME   with a mistake planted; it must be found. `all` for one after the other
//!   --show          tell the history of the first seed, step by step
//!   --picture FILE  draw the history of the first seed (SVG; shrunk, if it fails), or the one in which --mutant is found
//! ```

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use redlock_quorum::sim::fault::FaultClass;
use redlock_quorum::sim::history::{History, Reached, random, random_with_fences};
use redlock_quorum::sim::mutant::Mutant;
use redlock_quorum::sim::timeline::Timeline;

fn main() -> ExitCode {
    let options = match Options::read() {
        Ok(options) => options,
        Err(problem) => {
            eprintln!("{problem}");
            return ExitCode::from(2);
        }
    };
    if options.show {
        println!("{}", options.history(options.seed));
        return ExitCode::SUCCESS;
    }
    if let (Some(file), []) = (&options.picture, &options.mutants[..]) {
        let history = options.history(options.seed);
        let shrunk = if history.violation.is_some() { history.shrunk() } else { history };
        return draw(&shrunk, options.seed, file);
    }
    if options.mutants.is_empty() {
        return options.search(None);
    }
    let missed =
        options.mutants.iter().filter(|mutant| options.search(Some(**mutant)) == ExitCode::SUCCESS).count();
    if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Writes the timeline of a history, and says where.
fn draw(history: &History, seed: u64, file: &Path) -> ExitCode {
    let picture = Timeline::of(history).titled(format!("Seed {seed}")).to_svg();
    match std::fs::write(file, picture) {
        Ok(()) => {
            println!("picture: {}", file.display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{} cannot be written: {error}", file.display());
            ExitCode::from(2)
        }
    }
}

struct Options {
    histories: u64,
    seed: u64,
    duration: Option<Duration>,
    steps: usize,
    mutants: Vec<Mutant>,
    show: bool,
    fences: bool,
    picture: Option<PathBuf>,
}

impl Options {
    fn read() -> Result<Options, String> {
        let mut options = Options {
            histories: 100_000,
            seed: 0,
            duration: None,
            steps: 400,
            mutants: Vec::new(),
            show: false,
            fences: false,
            picture: None,
        };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            match word.as_str() {
                "--show" => options.show = true,
                "--fences" => options.fences = true,
                _ => {}
            }
            if matches!(word.as_str(), "--show" | "--fences") {
                continue;
            }
            let value = words.next().ok_or_else(|| format!("{word} needs a value"))?;
            let number = || {
                value.parse::<u64>().map_err(|_| format!("{word} is {value:?}, but must be a whole number"))
            };
            match word.as_str() {
                "--histories" => options.histories = number()?,
                "--seed" => options.seed = number()?,
                "--steps" => options.steps = usize::try_from(number()?).unwrap_or(usize::MAX),
                "--minutes" => {
                    options.duration = Some(Duration::from_secs(60 * number()?));
                    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                    options.seed = u64::try_from(since.as_millis()).unwrap_or_default() << 20;
                }
                "--picture" => options.picture = Some(value.into()),
                "--mutant" if value == "all" => options.mutants = Mutant::ALL.to_vec(),
                "--mutant" => {
                    let named = Mutant::ALL.into_iter().find(|mutant| format!("{mutant:?}") == value);
                    let known =
                        || format!("--mutant is {value:?}, but must be all or one of {:?}", Mutant::ALL);
                    options.mutants = vec![named.ok_or_else(known)?];
                }
                _ => return Err(format!("{word} is no option; see the first lines of examples/simulate.rs")),
            }
        }
        if options.picture.is_some() && options.mutants.len() > 1 {
            return Err("--picture is of one history: name one mutant".to_owned());
        }
        Ok(options)
    }

    fn history(&self, seed: u64) -> History {
        self.with(seed, self.mutants.first().copied())
    }

    fn with(&self, seed: u64, mutant: Option<Mutant>) -> History {
        if self.fences && mutant.is_none() {
            return random_with_fences(seed, &FaultClass::HARMLESS_TO_STRICT_KINDS, self.steps);
        }
        let kinds = mutant.map_or(&FaultClass::HARMLESS[..], Mutant::kinds);
        random(seed, kinds, mutant, self.steps)
    }

    /// Runs the histories on all processors, and stops at the first that fails.
    fn search(&self, mutant: Option<Mutant>) -> ExitCode {
        let begin = Instant::now();
        let next = AtomicU64::new(self.seed);
        let stop = AtomicBool::new(false);
        let total = Mutex::new((0_u64, Reached::default()));
        let failed: Mutex<Option<(u64, History)>> = Mutex::new(None);
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    let (mut count, mut reached) = (0, Reached::default());
                    while !stop.load(Ordering::Relaxed) {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        let over = self.duration.map_or(seed - self.seed >= self.histories, |for_so_long| {
                            begin.elapsed() >= for_so_long
                        });
                        if over {
                            break;
                        }
                        let history = self.with(seed, mutant);
                        count += 1;
                        reached.add(history.reached);
                        if history.violation.is_some() {
                            stop.store(true, Ordering::Relaxed);
                            let mut failed = failed.lock().expect("no panic");
                            if failed.as_ref().is_none_or(|(other, _)| seed < *other) {
                                *failed = Some((seed, history));
                            }
                        }
                    }
                    let mut total = total.lock().expect("no panic");
                    total.0 += count;
                    total.1.add(reached);
                });
            }
        });
        let (count, reached) = total.into_inner().expect("no panic");
        let failed = failed.into_inner().expect("no panic");
        let took = begin.elapsed();
        if let Some(mutant) = mutant {
            match failed {
                Some((seed, history)) => {
                    let shrunk = history.shrunk();
                    let what = shrunk.violation.as_ref().expect("a history that fails");
                    println!(
                        "{mutant:?}: caught after {count} histories by seed {seed} ({} steps): {what}",
                        shrunk.steps.len()
                    );
                    if let Some(file) = &self.picture {
                        draw(&shrunk, seed, file);
                    }
                    return ExitCode::FAILURE;
                }
                None => println!("{mutant:?}: NOT CAUGHT in {count} histories"),
            }
            return ExitCode::SUCCESS;
        }
        println!(
            "{count} histories from seed {} on in {took:.1?}: {} a second; {} million steps, {} locks won, {} extended by hand, {} lost, {} not won",
            self.seed,
            u128::from(count) * 1_000 / took.as_millis().max(1),
            reached.steps / 1_000_000,
            reached.won,
            reached.extended,
            reached.lost,
            reached.failed
        );
        let Some((seed, history)) = failed else { return ExitCode::SUCCESS };
        let shrunk = history.shrunk();
        println!("\nseed {seed}, {} steps, shrunk to\n{shrunk}", history.steps.len());
        println!(
            "replay: cargo run --release --no-default-features --features sim --example simulate -- --histories 1 --seed {seed} --steps {}",
            self.steps
        );
        draw(&shrunk, seed, &std::env::temp_dir().join(format!("redlock-quorum-seed-{seed}.svg")));
        ExitCode::FAILURE
    }
}
