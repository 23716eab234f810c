//! A wall clock that a test sets, for servers: it can stand still, jump forward and back, and run at any rate.
//!
//! Servers expire keys by the wall clock. `clock.c` is loaded into a server before the C library and answers in its place
//! when the server asks for the time; what it answers stands in a file that this writes. All other clocks of the server,
//! by which it waits and measures, stay true. Needs a C compiler, and a system with `LD_PRELOAD`.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{LazyLock, Mutex};
use std::time::{Duration, SystemTime};

use redis::aio::MultiplexedConnection;

use super::process::Surroundings;
use super::promptly;

/// The rate of the machine's own clock, in millionths of it.
pub const TRUE_RATE: u32 = 1_000_000;

/// One clock. Servers that are started with the same one agree.
pub struct Clock {
    path: PathBuf,
    file: File,
    told: Mutex<Told>,
}

/// As `clock.c` reads it.
#[derive(Clone, Copy)]
struct Told {
    count: u8,
    line: Line,
}

/// At `real` of the machine's wall clock it shows `shown`, both in nanoseconds since the epoch, and goes on from there.
#[derive(Clone, Copy)]
struct Line {
    real: i128,
    shown: i128,
    rate: u32,
}

impl Line {
    fn shown_at(&self, real: i128) -> i128 {
        self.shown + (real - self.real) * i128::from(self.rate) / 1_000_000
    }
}

impl Clock {
    /// A clock that shows the present millisecond and stands still. `None` where there can be none; the reason is printed.
    pub fn stopped() -> Option<Self> {
        if let Err(reason) = &*LIBRARY {
            println!("skipped: a server's clock cannot be set here: {reason}");
            return None;
        }
        static NUMBERS: AtomicU32 = AtomicU32::new(0);
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("redlock-quorum-clock-{}-{number}", std::process::id()));
        let file = File::create_new(&path).expect("a temporary file");
        let real = real_now();
        let line = Line { real, shown: real - real % 1_000_000, rate: 0 };
        let clock = Clock { path, file, told: Mutex::new(Told { count: 0, line }) };
        // Both lines, so that the file has its length.
        clock.tell(line);
        clock.tell(line);
        Some(clock)
    }

    /// What it shows, since the epoch.
    pub fn now(&self) -> Duration {
        let shown = self.told.lock().expect("whole").line.shown_at(real_now());
        Duration::from_nanos(u64::try_from(shown).expect("after the epoch"))
    }

    /// Jumps to a moment since the epoch.
    pub fn show(&self, moment: Duration) {
        self.change(|line| line.shown = nanos(moment));
    }

    /// Jumps forward.
    pub fn advance(&self, by: Duration) {
        self.change(|line| line.shown += nanos(by));
    }

    /// Jumps back.
    pub fn go_back(&self, by: Duration) {
        self.change(|line| line.shown -= nanos(by));
    }

    /// From now on it runs at so many millionths of the [true rate](TRUE_RATE); 0 stops it.
    pub fn run_at(&self, millionths: u32) {
        self.change(|line| line.rate = millionths);
    }

    /// Waits until a server has seen the last change. Only for a clock that stands still, at a whole millisecond.
    pub async fn is_seen_by(&self, server: &mut MultiplexedConnection) {
        let shown = self.now().as_millis();
        promptly(async { while time_of(server).await.as_millis() != shown {} }).await;
    }

    /// What makes a server go by it.
    pub(super) fn surroundings(&self) -> Surroundings {
        let library = LIBRARY.as_ref().expect("compiled: there is a clock");
        let variables = vec![("LD_PRELOAD", library.into()), ("TEST_CLOCK", self.path.clone().into())];
        Surroundings { variables, ..Surroundings::default() }
    }

    fn change(&self, change: impl FnOnce(&mut Line)) {
        let real = real_now();
        let mut line = self.told.lock().expect("whole").line;
        line = Line { real, shown: line.shown_at(real), rate: line.rate };
        change(&mut line);
        self.tell(line);
    }

    fn tell(&self, line: Line) {
        let mut told = self.told.lock().expect("whole");
        *told = Told { count: told.count.wrapping_add(1), line };
        let numbers = [line.real, line.shown, line.rate.into()];
        let numbers = numbers.map(|number| i64::try_from(number).expect("this century").to_ne_bytes());
        let place = 8 + 24 * u64::from(told.count % 2);
        self.file.write_all_at(numbers.as_flattened(), place).expect("our own file");
        self.file.write_all_at(&[told.count], 0).expect("our own file");
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// What a server says the time is, since the epoch.
pub async fn time_of(server: &mut MultiplexedConnection) -> Duration {
    let (seconds, micros): (u64, u64) =
        redis::cmd("TIME").query_async(server).await.expect("a server that answers");
    Duration::from_secs(seconds) + Duration::from_micros(micros)
}

fn real_now() -> i128 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after the epoch");
    nanos(now)
}

fn nanos(span: Duration) -> i128 {
    i128::try_from(span.as_nanos()).expect("this century")
}

/// Compiled once for this process, and then put where the next finds the same.
static LIBRARY: LazyLock<Result<PathBuf, String>> = LazyLock::new(|| {
    if cfg!(not(target_os = "linux")) {
        return Err("only Linux has LD_PRELOAD".to_owned());
    }
    let folder = option_env!("CARGO_TARGET_TMPDIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let (fresh, library) = (folder.join(format!("clock-{}.so", std::process::id())), folder.join("clock.so"));
    let mut compile = Command::new("cc");
    compile.args(["-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror", "-o"]).arg(&fresh);
    compile.args(["-x", "c", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut compiler = compile.spawn().map_err(|error| format!("there is no C compiler `cc`: {error}"))?;
    // What it does not read, it complains about.
    let _ = compiler.stdin.take().expect("a pipe").write_all(include_bytes!("clock.c"));
    let output = compiler.wait_with_output().expect("our own child");
    assert!(output.status.success(), "clock.c: {}", String::from_utf8_lossy(&output.stderr));
    std::fs::rename(&fresh, &library).expect("a writable folder");
    Ok(library)
});
