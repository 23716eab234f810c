//! The house stays in order: the protocol is pure, and each layer uses only what stands to its right.

use std::path::{Path, PathBuf};

/// A layer, its files under `src/`, and the modules of ours that it may use.
///
/// `bin -> surface -> driver, keeper, queue -> node, clock, entropy -> protocol -> nothing of ours`, and beside the surface
/// and the shell, `sim -> node, clock, entropy -> protocol`.
const LAYERS: [(&str, &[&str], &[&str]); 4] = [
    ("protocol", &["protocol", "protocol.rs"], &["protocol"]),
    (
        "doors",
        &["node", "node.rs", "clock.rs", "entropy.rs"],
        &["protocol", "node", "clock", "entropy", "sync"],
    ),
    ("simulator", &["sim", "sim.rs"], &["sim", "node", "entropy", "protocol"]),
    (
        "shell",
        &["driver.rs", "keeper.rs", "queue.rs", "registrar.rs", "switchboard.rs"],
        &[
            "protocol",
            "node",
            "clock",
            "entropy",
            "driver",
            "keeper",
            "queue",
            "registrar",
            "switchboard",
            "sync",
        ],
    ),
];

/// What a pure protocol cannot contain: waiting, the world, chance, logging, and orders that change from run to run.
const IMPURE: [&str; 17] = [
    "tokio",
    "futures",
    "redis::",
    "rustix",
    "rand",
    "uuid",
    "tracing",
    "Instant::now",
    "SystemTime",
    "HashMap",
    "HashSet",
    "RandomState",
    "async ",
    ".await",
    "f32",
    "f64",
    "Mutex",
];

#[test]
fn the_protocol_is_pure() {
    let mut seen = 0;
    for file in files(&["protocol", "protocol.rs"]) {
        for (number, line) in code(&file) {
            seen += 1;
            for word in IMPURE {
                assert!(
                    !line.contains(word),
                    "{}:{number}: {word:?} in the pure protocol: {line}",
                    file.display()
                );
            }
        }
    }
    assert!(seen > 500, "only {seen} lines of protocol were found");
}

#[test]
fn each_layer_uses_only_what_stands_to_its_right() {
    for (layer, paths, allowed) in LAYERS {
        for file in files(paths) {
            for (number, line) in code(&file) {
                for module in used_modules(&line) {
                    let fine = allowed.contains(&module);
                    assert!(fine, "{}:{number}: the {layer} uses {module:?}: {line}", file.display());
                }
            }
        }
    }
}

/// Functions that the document on safety names as what they are.
const NO_TESTS: [&str; 1] = ["mem::forget"];

/// What the document on safety calls a test is one. A name may be cut with `..` at either end, and `*` stands for all of a file.
#[test]
fn every_test_that_the_document_on_safety_names_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(root.join("docs/safety.md")).expect("the document");
    let tests: Vec<(PathBuf, Vec<String>)> =
        rust_files(root).into_iter().map(|file| (file.clone(), tests_in(&file))).collect();
    let mut named = 0;
    for name in text.split('`').skip(1).step_by(2) {
        let Some((file, test)) = name.split_once("::") else { continue };
        let is_file = file.chars().all(|letter| letter.is_ascii_lowercase() || letter == '_');
        if !is_file || NO_TESTS.contains(&name) {
            continue;
        }
        let whose = |path: &Path| path.file_stem().is_some_and(|stem| stem == file);
        let mut known = tests.iter().filter(|(path, _)| whose(path)).flat_map(|(_, names)| names);
        let is_meant = |known: &String| match (test.strip_prefix(".."), test.strip_suffix("..")) {
            _ if test == "*" => true,
            (Some(end), _) => known.ends_with(end),
            (None, Some(begin)) => known.starts_with(begin),
            (None, None) => known == test,
        };
        assert!(known.any(is_meant), "docs/safety.md names {name}, and there is no such test");
        named += 1;
    }
    assert!(named > 150, "only {named} names were found");
}

fn rust_files(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open: Vec<PathBuf> = ["src", "tests", "examples"].map(|folder| root.join(folder)).into();
    while let Some(path) = open.pop() {
        if path.is_dir() {
            let entries = std::fs::read_dir(path).expect("a folder");
            open.extend(entries.map(|entry| entry.expect("an entry").path()));
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            found.push(path);
        }
    }
    found
}

/// The names of the functions behind `#[test]` and its kin.
fn tests_in(file: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(file).expect("a readable file");
    let (mut names, mut is_next) = (Vec::new(), false);
    for line in text.lines().map(str::trim) {
        is_next |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
        let function = line.strip_prefix("async fn ").or_else(|| line.strip_prefix("fn "));
        if let Some(function) = function.filter(|_| is_next) {
            names.extend(function.split('(').next().map(str::to_owned));
            is_next = false;
        }
    }
    names
}

/// The first segments behind `crate::`.
fn used_modules(line: &str) -> Vec<&str> {
    let behind = line.match_indices("crate::").map(|(place, word)| &line[place + word.len()..]);
    behind
        .filter_map(|rest| rest.split(|letter: char| !letter.is_alphanumeric() && letter != '_').next())
        .collect()
}

fn files(paths: &[&str]) -> Vec<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    let mut open: Vec<PathBuf> = paths.iter().map(|path| source.join(path)).collect();
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(
                std::fs::read_dir(&path).expect("a folder").map(|entry| entry.expect("an entry").path()),
            );
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            assert!(path.is_file(), "{} is not there any more: mend the layers", path.display());
            found.push(path);
        }
    }
    found
}

/// The lines of code with their numbers: without comments, and without the tests at the end of a file.
fn code(file: &Path) -> Vec<(usize, String)> {
    let text = std::fs::read_to_string(file).expect("a readable file");
    let lines = text.lines().enumerate().take_while(|(_, line)| *line != "#[cfg(test)]");
    let without_comment =
        lines.map(|(number, line)| (number + 1, line.split("//").next().unwrap_or("").to_owned()));
    without_comment.filter(|(_, line)| !line.trim().is_empty()).collect()
}
