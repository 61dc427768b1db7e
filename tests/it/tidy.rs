//! The habits of the house that can be checked by reading the source, as ordinary tests.
//!
//! Each check is a function over one file ([`Source`]) and is itself tested: fed a planted violation it must
//! report it, fed the lawful neighbour of that violation it must not. What is allowed stands in the tables;
//! an exception names its reason. The reading is a light one (comments and literals blanked out, braces
//! counted, paths collected), not a parser: it is meant for code that `rustfmt` has formatted.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::path::Path;

// ---- Tables: amend the house here. ----------------------------------------------------------------------

/// Rooms and their floors. A room names itself and rooms on lower floors, never another on its own.
const FLOORS: &[(&str, u8)] = &[
    ("error", 0),
    ("limits", 0),
    ("planted", 0),
    ("sync", 0),
    ("formats", 1),
    ("codec", 1),
    ("storage", 2),
    ("framing", 3),
    ("recordlog", 4),
    ("checkpoint", 4),
    ("walog", 5),
    ("recover", 6),
    ("publish", 6),
    ("inspect", 6),
    ("repair", 7),
];

/// Side wings and the rooms that they may name; `None` is every room.
const WINGS: &[(&str, Option<&[&str]>)] =
    &[("backends", Some(&["error", "limits", "planted", "storage", "sync"])), ("testing", None)];

/// File, room that it names against the rule, reason.
const FLOOR_EXCEPTIONS: &[(&str, &str, &str)] = &[
    ("src/storage/mod.rs", "backends", "re-exports the two portable directories under the seam's name"),
    ("src/storage/process.rs", "backends", "asks whether the process was forked"),
    ("src/storage/sync.rs", "backends", "forwards one free function about a path of the operating system"),
    ("src/publish.rs", "recover", "the segment-index flavour publishes the checkpoint type that it recovers"),
];

/// File, what it names of the operating system, reason. For files outside `backends` and `testing`.
const SYSTEM_EXCEPTIONS: &[(&str, &str, &str)] = &[];

/// The files that may say `unsafe`.
const UNSAFE_FILES: &[&str] = &["src/backends/io_uring/ring.rs", "src/backends/fork.rs"];
/// How many lines above an `unsafe` its `SAFETY:` may stand.
const SAFETY_LINES: usize = 6;

const FILE_LINES_MAX: usize = 600;
/// File, its own bound, reason.
const FILE_LINES_EXCEPTIONS: &[(&str, usize, &str)] =
    &[("src/formats/scan.rs", 640, "the scanner's evidence rules stand beside the walk that collects it")];

const FUNCTION_LINES_MAX: usize = 70;
/// File, function, its own bound, reason.
const FUNCTION_LINES_EXCEPTIONS: &[(&str, &str, usize, &str)] = &[];

/// File that starts threads, what asks for them.
const THREAD_EXCEPTIONS: &[(&str, &str)] = &[
    (
        "src/walog/committer/tickets.rs",
        "the first ticket (`SyncWalWriter::submit_bytes`) starts the log's thread",
    ),
    ("src/walog/pool.rs", "`WalOptions::prepare_ahead` names it"),
    ("src/walog/committer/idle.rs", "`SyncWalWriter::attest_when_idle` starts the log's thread that attests"),
];

/// Unfinished work: macros, and words in comments.
const UNFINISHED_MACROS: &[&str] = &["todo", "unimplemented", "dbg"];
const UNFINISHED_WORDS: &[&str] = &["FIXME", "XXX"];

// ---- The checks ------------------------------------------------------------------------------------------

/// A room names only rooms on lower floors.
fn floors(source: &Source) -> Vec<Finding> {
    let Some(room) = source.room() else { return Vec::new() };
    let floor_of = |name: &str| FLOORS.iter().find(|(room, _)| *room == name).map(|(_, floor)| *floor);
    let wing_of = |name: &str| WINGS.iter().find(|(wing, _)| *wing == name).map(|(_, may)| *may);
    if floor_of(room).is_none() && wing_of(room).is_none() {
        return vec![source.finding(0, format!("the room `{room}` has no floor; see FLOORS"))];
    }
    let lawful = |named: &str| match (wing_of(room), floor_of(room), floor_of(named)) {
        (Some(None), ..) => true,
        (Some(Some(may)), ..) => may.contains(&named),
        (None, Some(own), Some(other)) => other < own,
        _ => false,
    };
    let (mut findings, mut seen) = (Vec::new(), BTreeSet::new());
    for path in paths(&source.product) {
        let Some(named) = source.room_named(&path) else { continue };
        let excepted = FLOOR_EXCEPTIONS.iter().any(|(file, room, _)| *file == source.path && *room == named);
        if named == room
            || excepted
            || lawful(named)
            || !seen.insert((source.line(path.at), named.to_string()))
        {
            continue;
        }
        let known = floor_of(named).is_some() || wing_of(named).is_some();
        let message = if known {
            format!("`{room}` names `{named}`, which is not on a lower floor")
        } else {
            format!("`crate::{named}` is no room: name the room where it lives")
        };
        findings.push(source.finding(path.at, message));
    }
    findings
}

/// Formats are pure: bytes in, bytes out.
fn formats_do_no_io(source: &Source) -> Vec<Finding> {
    if source.room() != Some("formats") {
        return Vec::new();
    }
    let bans = [["std", "fs"], ["std", "io"], ["std", "net"], ["crate", "storage"]];
    paths(&source.product)
        .iter()
        .filter(|path| bans.iter().any(|ban| path.starts_with(ban)))
        .map(|path| source.finding(path.at, format!("formats does no I/O, but names `{path}`")))
        .collect()
}

/// Above the backends there is no operating system: no `std::fs`, no system crate, no `cfg` of a target.
fn no_system_above_backends(source: &Source) -> Vec<Finding> {
    if matches!(source.room(), None | Some("backends" | "testing")) {
        return Vec::new();
    }
    let bans: [&[&str]; 6] =
        [&["std", "fs"], &["std", "os"], &["nix"], &["libc"], &["rustix"], &["io_uring"]];
    let mut found: Vec<(usize, String)> = paths(&source.product)
        .iter()
        .filter(|path| bans.iter().any(|ban| path.starts_with(ban)))
        .map(|path| (path.at, path.segments.join("::")))
        .collect();
    for predicate in cfg_predicates(&source.product) {
        let system = ["target_os", "target_family", "target_vendor", "target_env", "unix", "windows"];
        for (at, word) in words(&source.product, predicate) {
            if system.contains(&word) {
                found.push((at, word.to_string()));
            }
        }
    }
    found.retain(|(_, what)| {
        !SYSTEM_EXCEPTIONS
            .iter()
            .any(|(file, excepted, _)| *file == source.path && what.starts_with(excepted))
    });
    found
        .into_iter()
        .map(|(at, what)| source.finding(at, format!("`{what}` belongs to the operating system")))
        .collect()
}

/// `unsafe` lives in one place, and each says why it is sound.
fn unsafe_is_fenced_in(source: &Source) -> Vec<Finding> {
    if !source.path.starts_with("src/") {
        return Vec::new();
    }
    let lines: Vec<&str> = source.text.lines().collect();
    let mut findings = Vec::new();
    for (at, _) in words(&source.code, 0..source.code.len()).filter(|(_, word)| *word == "unsafe") {
        if !UNSAFE_FILES.contains(&source.path) {
            findings.push(source.finding(at, "`unsafe` outside the files that may".to_string()));
            continue;
        }
        let line = source.line(at) - 1;
        let above = &lines[line.saturating_sub(SAFETY_LINES)..=line];
        if !above.iter().any(|text| text.contains("SAFETY:") || text.contains("# Safety")) {
            findings.push(source.finding(at, format!("no `SAFETY:` in the {SAFETY_LINES} lines above")));
        }
    }
    findings
}

/// Files stay readable in one sitting; test items do not count.
fn files_are_short(source: &Source) -> Vec<Finding> {
    if source.room().is_none() {
        return Vec::new();
    }
    let own =
        FILE_LINES_EXCEPTIONS.iter().find(|(file, ..)| *file == source.path).map(|(_, bound, _)| *bound);
    let bound = own.unwrap_or(FILE_LINES_MAX);
    let tests: usize = source.tests.iter().map(|span| source.text[span.clone()].lines().count()).sum();
    let lines = source.text.lines().count().saturating_sub(tests);
    if lines <= bound {
        return Vec::new();
    }
    vec![source.finding(0, format!("{lines} lines without tests; {bound} at most"))]
}

/// Functions stay readable on one screen.
fn functions_are_short(source: &Source) -> Vec<Finding> {
    if source.room().is_none() {
        return Vec::new();
    }
    let mut findings = Vec::new();
    for (at, name, body) in functions(&source.product) {
        let lines = source.line(body.end - 1) - source.line(at) + 1;
        let own = FUNCTION_LINES_EXCEPTIONS
            .iter()
            .find(|(file, function, ..)| *file == source.path && *function == name)
            .map(|(.., bound, _)| *bound);
        let bound = own.unwrap_or(FUNCTION_LINES_MAX);
        if lines > bound {
            findings.push(source.finding(at, format!("`{name}` has {lines} lines; {bound} at most")));
        }
    }
    findings
}

/// A file opens with what lives here; a file of tests is named after what it tests, which is enough.
fn files_open_with_their_subject(source: &Source) -> Vec<Finding> {
    let only_tests = source.product.trim().is_empty() && !source.code.trim().is_empty();
    if !source.path.starts_with("src/") || source.text.starts_with("//!") || only_tests {
        return Vec::new();
    }
    vec![source.finding(0, "does not open with `//!`".to_string())]
}

/// Nothing unfinished is left lying about.
fn nothing_unfinished(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (at, word) in words(&source.code, 0..source.code.len()) {
        if UNFINISHED_MACROS.contains(&word) && source.code[at + word.len()..].starts_with('!') {
            findings.push(source.finding(at, format!("`{word}!` is left")));
        }
    }
    // This file spells the words out.
    if source.path != "tests/it/tidy.rs" {
        for (at, word) in words(source.text, 0..source.text.len()) {
            if UNFINISHED_WORDS.contains(&word) {
                findings.push(source.finding(at, format!("`{word}` is left")));
            }
        }
    }
    findings
}

/// The library starts no thread that an option does not name.
fn no_thread_is_started(source: &Source) -> Vec<Finding> {
    if !source.path.starts_with("src/") || THREAD_EXCEPTIONS.iter().any(|(file, _)| *file == source.path) {
        return Vec::new();
    }
    let starts = ["spawn", "scope", "Builder", "spawn_scoped"];
    paths(&source.product)
        .iter()
        .filter(|path| {
            path.segments.windows(2).any(|pair| pair[0] == "thread" && starts.contains(&pair[1].as_str()))
        })
        .map(|path| source.finding(path.at, format!("`{path}`: the library starts no thread")))
        .collect()
}

type Check = fn(&Source) -> Vec<Finding>;

const CHECKS: &[Check] = &[
    floors,
    formats_do_no_io,
    no_system_above_backends,
    unsafe_is_fenced_in,
    files_are_short,
    functions_are_short,
    files_open_with_their_subject,
    nothing_unfinished,
    no_thread_is_started,
];

#[test]
fn the_house_is_tidy() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for folder in ["src", "tests", "benches", "examples", "cli/src", "cli/tests", "fuzz/fuzz_targets"] {
        collect(root, folder, &mut files);
    }
    assert!(
        files.iter().any(|(path, _)| path == "src/storage/mod.rs"),
        "the source was not found: {files:?}"
    );
    let mut findings = Vec::new();
    for (path, text) in &files {
        let source = Source::new(path, text);
        findings.extend(CHECKS.iter().flat_map(|check| check(&source)));
    }
    let report: Vec<String> = findings.iter().map(ToString::to_string).collect();
    assert!(report.is_empty(), "{} findings:\n{}", report.len(), report.join("\n"));
}

/// An exception whose file or whose reason is gone would hide the next violation.
#[test]
fn every_exception_is_still_needed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let excepted = FLOOR_EXCEPTIONS
        .iter()
        .map(|(file, ..)| *file)
        .chain(SYSTEM_EXCEPTIONS.iter().map(|(file, ..)| *file))
        .chain(FILE_LINES_EXCEPTIONS.iter().map(|(file, ..)| *file))
        .chain(FUNCTION_LINES_EXCEPTIONS.iter().map(|(file, ..)| *file))
        .chain(THREAD_EXCEPTIONS.iter().map(|(file, _)| *file));
    for file in excepted {
        assert!(root.join(file).is_file(), "{file} has an exception in a table of tidy.rs, and is gone");
    }
    for (file, room, _) in FLOOR_EXCEPTIONS {
        let text = std::fs::read_to_string(root.join(file)).expect("readable");
        let source = Source::new(file, &text);
        let used = paths(&source.product).iter().any(|path| source.room_named(path) == Some(*room));
        assert!(used, "{file} no longer names {room}: remove its exception");
    }
}

/// All `.rs` files below `folder`, as paths from the root with `/`, in order.
fn collect(root: &Path, folder: &str, files: &mut Vec<(String, String)>) {
    let Ok(entries) = std::fs::read_dir(root.join(folder)) else { return };
    let names: BTreeSet<String> =
        entries.map(|entry| entry.expect("listed").file_name().to_string_lossy().into_owned()).collect();
    for name in names {
        let path = format!("{folder}/{name}");
        if root.join(&path).is_dir() {
            collect(root, &path, files);
        } else if name.ends_with(".rs") {
            files.push((path.clone(), std::fs::read_to_string(root.join(&path)).expect("readable")));
        }
    }
}

// ---- Reading source --------------------------------------------------------------------------------------

/// Something that a check found.
#[derive(Debug)]
struct Finding {
    path: String,
    line: usize,
    message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.message)
    }
}

/// One file, read three ways. All texts have the same length and the same lines.
struct Source<'a> {
    /// From the repository's root, with `/`.
    path: &'a str,
    text: &'a str,
    /// Comments and the insides of literals blanked out.
    code: String,
    /// `code` with the items that are only for tests blanked out as well.
    product: String,
    /// Where those items are.
    tests: Vec<Range<usize>>,
}

impl<'a> Source<'a> {
    fn new(path: &'a str, text: &'a str) -> Self {
        let code = blank_literals(text);
        let name = path.rsplit('/').next().expect("a name");
        // The two names that the house gives to a module which is declared under `cfg(test)`.
        let tests = if name == "tests.rs" || name.ends_with("_tests.rs") {
            std::iter::once(0..code.len()).collect()
        } else {
            test_items(&code)
        };
        let mut product = code.clone().into_bytes();
        for span in &tests {
            product[span.clone()].iter_mut().filter(|byte| **byte != b'\n').for_each(|byte| *byte = b' ');
        }
        let product = String::from_utf8(product).expect("blanked whole items");
        Self { path, text, code, product, tests }
    }

    /// The room that the file belongs to; none for `lib.rs` and for what is not the library.
    fn room(&self) -> Option<&'a str> {
        let inside = self.path.strip_prefix("src/").filter(|inside| *inside != "lib.rs")?;
        let first = inside.split('/').next().expect("a name");
        let room = first.strip_suffix(".rs").unwrap_or(first);
        Some(room.strip_suffix("_tests").unwrap_or(room))
    }

    /// How many modules deep a place is: 1 for a room, 2 for a file of a room, one more in each `mod { }`.
    fn depth(&self, at: usize) -> usize {
        let parts = self.path.split('/').count() - 1;
        let file = if self.path.ends_with("/mod.rs") { parts - 1 } else { parts };
        file + inline_modules(&self.product).iter().filter(|body| body.contains(&at)).count()
    }

    /// The room that a path reaches, by `crate::` or by as many `super::` as lead there.
    fn room_named<'p>(&self, path: &'p PathInCode) -> Option<&'p str> {
        let first = path.segments.first()?;
        if first == "crate" {
            return path.segments.get(1).map(String::as_str);
        }
        let steps = path.segments.iter().skip_while(|segment| *segment == "self");
        let supers = steps.clone().take_while(|segment| *segment == "super").count();
        let leads_there = supers > 0 && supers == self.depth(path.at);
        if leads_there { steps.skip(supers).map(String::as_str).next() } else { None }
    }

    fn line(&self, at: usize) -> usize {
        self.text.as_bytes()[..at.min(self.text.len())].iter().filter(|byte| **byte == b'\n').count() + 1
    }

    fn finding(&self, at: usize, message: String) -> Finding {
        Finding { path: self.path.to_string(), line: self.line(at), message }
    }
}

/// A path as the code spells it, groups of a `use` unfolded.
#[derive(Debug)]
struct PathInCode {
    at: usize,
    segments: Vec<String>,
}

impl PathInCode {
    fn starts_with(&self, ban: &[&str]) -> bool {
        self.segments.len() >= ban.len()
            && self.segments.iter().zip(ban).all(|(segment, word)| segment == word)
    }
}

impl fmt::Display for PathInCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.segments.join("::"))
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

/// The words of a range, and where they stand.
fn words(code: &str, range: Range<usize>) -> impl Iterator<Item = (usize, &str)> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        let bytes = code.as_bytes();
        while at < range.end && !is_word(bytes[at]) {
            at += 1;
        }
        let start = at;
        while at < range.end && is_word(bytes[at]) {
            at += 1;
        }
        (start < at).then(|| (start, &code[start..at]))
    })
}

/// Every path of two segments or more.
fn paths(code: &str) -> Vec<PathInCode> {
    let mut found = Vec::new();
    let mut after = 0;
    for (at, _) in words(code, 0..code.len()) {
        if at >= after {
            after = unfold(code, at, &[], &mut found);
        }
    }
    found.retain(|path| path.segments.len() > 1);
    found
}

/// Reads one path, or one tree of a `use`, at `at`; answers where it ends.
fn unfold(code: &str, mut at: usize, before: &[String], found: &mut Vec<PathInCode>) -> usize {
    let bytes = code.as_bytes();
    let start = at;
    let mut segments = before.to_vec();
    loop {
        let word_start = at;
        while at < bytes.len() && is_word(bytes[at]) {
            at += 1;
        }
        if word_start < at {
            segments.push(code[word_start..at].to_string());
        }
        let next = skip_space(bytes, at);
        if word_start == at || !code[next..].starts_with("::") {
            break;
        }
        at = skip_space(bytes, next + 2);
        if bytes.get(at) == Some(&b'{') {
            return unfold_group(code, at + 1, &segments, found);
        }
    }
    found.push(PathInCode { at: start, segments });
    at.max(start + 1)
}

fn unfold_group(code: &str, mut at: usize, before: &[String], found: &mut Vec<PathInCode>) -> usize {
    let bytes = code.as_bytes();
    loop {
        at = skip_space(bytes, at);
        match bytes.get(at) {
            None => return at,
            Some(b'}') => return at + 1,
            Some(byte) if is_word(*byte) && !code[at..].starts_with("as ") => {
                at = unfold(code, at, before, found)
            }
            // `x as y` names nothing new.
            Some(byte) if is_word(*byte) => {
                at = skip_space(bytes, at + 2);
                while at < bytes.len() && is_word(bytes[at]) {
                    at += 1;
                }
            }
            Some(_) => at += 1,
        }
    }
}

fn skip_space(bytes: &[u8], mut at: usize) -> usize {
    while at < bytes.len() && bytes[at].is_ascii_whitespace() {
        at += 1;
    }
    at
}

/// What stands between the parentheses of each `cfg(…)`, `cfg!(…)` and `cfg_attr(…)`.
fn cfg_predicates(code: &str) -> Vec<Range<usize>> {
    words(code, 0..code.len())
        .filter(|(_, word)| matches!(*word, "cfg" | "cfg_attr"))
        .filter_map(|(at, word)| {
            let open =
                code[at + word.len()..].strip_prefix('!').map_or(at + word.len(), |_| at + word.len() + 1);
            (code.as_bytes().get(open) == Some(&b'(')).then(|| open + 1..closing(code, open))
        })
        .collect()
}

/// Where the bracket that opens at `open` closes; the end of the text if it never does.
fn closing(code: &str, open: usize) -> usize {
    let mut depth = 0usize;
    for (at, byte) in code.bytes().enumerate().skip(open) {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return at;
                }
            }
            _ => {}
        }
    }
    code.len()
}

/// The items, fields and statements under `#[cfg(test)]` or `#[cfg(all(test, …))]`, attribute included.
fn test_items(code: &str) -> Vec<Range<usize>> {
    let mut items: Vec<Range<usize>> = Vec::new();
    for (start, _) in code.match_indices("#[cfg(") {
        if items.last().is_some_and(|item| item.contains(&start)) {
            continue;
        }
        let predicate = &code[start + "#[cfg(".len()..closing(code, start + "#[cfg".len())];
        let is_test = match predicate.trim().strip_prefix("all(") {
            Some(all) => all.trim_end_matches(')').split(',').any(|part| part.trim() == "test"),
            None => predicate.trim() == "test",
        };
        if is_test {
            items.push(start..item_end(code, closing(code, start + 1) + 1));
        }
    }
    items
}

/// The end of the item, field or statement at `at`, further attributes skipped.
fn item_end(code: &str, mut at: usize) -> usize {
    const ITEMS: [&str; 9] = ["fn", "impl", "mod", "struct", "enum", "use", "const", "static", "trait"];
    let bytes = code.as_bytes();
    let start = at;
    while at < bytes.len() {
        match bytes[at] {
            b';' => return at + 1,
            b'{' => return closing(code, at) + 1,
            // A field; in an item, a comma stands in a `where`.
            b',' if !words(code, start..at).any(|(_, word)| ITEMS.contains(&word)) => return at + 1,
            b'(' | b'[' => at = closing(code, at),
            b'}' => return at,
            _ => {}
        }
        at += 1;
    }
    bytes.len()
}

/// The bodies of `mod name { }`.
fn inline_modules(code: &str) -> Vec<Range<usize>> {
    words(code, 0..code.len())
        .filter(|(_, word)| *word == "mod")
        .filter_map(|(at, _)| {
            let (name_at, name) = words(code, at + 3..code.len()).next()?;
            let open = skip_space(code.as_bytes(), name_at + name.len());
            (code.as_bytes().get(open) == Some(&b'{')).then(|| open..closing(code, open))
        })
        .collect()
}

/// Functions with a body: where `fn` stands, the name, the body with its braces.
fn functions(code: &str) -> Vec<(usize, &str, Range<usize>)> {
    let mut found = Vec::new();
    for (at, _) in words(code, 0..code.len()).filter(|(_, word)| *word == "fn") {
        let Some((name_at, name)) = words(code, at + 2..code.len()).next() else { continue };
        // `fn(…)` is a type.
        if !code[at + 2..name_at].trim().is_empty() {
            continue;
        }
        let mut cursor = name_at;
        while let Some(byte) = code.as_bytes().get(cursor) {
            match byte {
                b'(' | b'[' => cursor = closing(code, cursor),
                b';' => break,
                b'{' => {
                    found.push((at, name, cursor..(closing(code, cursor) + 1).min(code.len())));
                    break;
                }
                _ => {}
            }
            cursor += 1;
        }
    }
    found
}

/// Blanks comments and the insides of strings and characters; bytes and lines keep their places.
fn blank_literals(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let end = if rest.starts_with(b"//") {
            at + rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len())
        } else if rest.starts_with(b"/*") {
            block_comment_end(bytes, at)
        } else if rest[0] == b'"' {
            string_end(bytes, at)
        } else if rest[0] == b'r' && (at == 0 || !is_word(bytes[at - 1]) || bytes[at - 1] == b'b') {
            raw_string_end(bytes, at).unwrap_or(at)
        } else if rest[0] == b'\'' {
            character_end(text, at).unwrap_or(at)
        } else {
            at
        };
        out[at..end].iter_mut().filter(|byte| **byte != b'\n').for_each(|byte| *byte = b' ');
        at = end.max(at + 1);
    }
    String::from_utf8(out).expect("blanked whole characters")
}

fn block_comment_end(bytes: &[u8], mut at: usize) -> usize {
    let mut depth = 0;
    while at < bytes.len() {
        if bytes[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if bytes[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                break;
            }
        } else {
            at += 1;
        }
    }
    at.min(bytes.len())
}

fn string_end(bytes: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while at < bytes.len() && bytes[at] != b'"' {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(bytes.len())
}

/// `r"…"`, `r#"…"#`; none for a word that begins with r.
fn raw_string_end(bytes: &[u8], start: usize) -> Option<usize> {
    let hashes = bytes[start + 1..].iter().take_while(|byte| **byte == b'#').count();
    let open = start + 1 + hashes;
    if bytes.get(open) != Some(&b'"') {
        return None;
    }
    let close: Vec<u8> = std::iter::once(b'"').chain(std::iter::repeat_n(b'#', hashes)).collect();
    let inside = bytes[open + 1..].windows(close.len()).position(|window| window == close);
    Some(inside.map_or(bytes.len(), |inside| open + 1 + inside + close.len()))
}

/// A character; none for a lifetime.
fn character_end(text: &str, start: usize) -> Option<usize> {
    let mut characters = text[start + 1..].char_indices();
    let (_, first) = characters.next()?;
    if first == '\\' {
        let close = text[start + 3..].find('\'')?;
        return Some(start + 3 + close + 1);
    }
    let (close, quote) = characters.next()?;
    (quote == '\'').then_some(start + 1 + close + 1)
}

// ---- The checks are checked: each was fed its violation --------------------------------------------------

/// The lines on which `check` finds something in `text`.
fn found(check: Check, path: &str, text: &str) -> Vec<usize> {
    check(&Source::new(path, text)).iter().map(|finding| finding.line).collect()
}

const NOTHING: [usize; 0] = [];

#[test]
fn a_room_that_looks_up_is_found() {
    let lines = |path: &str, text: &str| found(floors, path, text);
    assert_eq!(lines("src/formats/frame.rs", "\nuse crate::storage::Directory;"), [2]);
    assert_eq!(lines("src/storage/read.rs", "fn f() { crate::walog::open() }"), [1]);
    assert_eq!(lines("src/recordlog/reader.rs", "use crate::checkpoint::read;"), [1]);
    assert_eq!(lines("src/recover/mod.rs", "use crate::publish::Publisher;"), [1]);
    assert_eq!(lines("src/publish.rs", "use crate::{error::E, limits, walog,\n testing::{self, sim}};"), [2]);
    assert_eq!(lines("src/walog/writer.rs", "use crate::backends::std_fs::FsDirectory;"), [1]);
    assert_eq!(lines("src/walog/writer.rs", "use crate::testing::sim;"), [1]);
    assert_eq!(lines("src/backends/memory/mod.rs", "use crate::formats::header;"), [1]);
    assert_eq!(lines("src/storage/read.rs", "use super::super::recover::plan;"), [1]);
    assert_eq!(lines("src/codec.rs", "use super::storage::Directory;"), [1]);
    assert_eq!(lines("src/storage/read.rs", "use crate::PersistenceError;"), [1]);
    assert_eq!(lines("src/codec.rs", "mod typed {\n use super::super::storage;\n}"), [2]);
    assert_eq!(lines("src/cellar/mod.rs", ""), [1]);

    assert_eq!(lines("src/formats/frame.rs", "use crate::{error::E, limits};"), NOTHING);
    assert_eq!(lines("src/walog/writer.rs", "use super::super::storage::{Latch, path as p};"), NOTHING);
    assert_eq!(lines("src/walog/writer.rs", "use super::committer; use crate::walog::pool;"), NOTHING);
    assert_eq!(lines("src/storage/mod.rs", "pub use crate::backends::memory::MemoryDirectory;"), NOTHING);
    assert_eq!(lines("src/testing/sim/mod.rs", "use crate::recover; use crate::backends;"), NOTHING);
    assert_eq!(
        lines("src/formats/frame.rs", "/// [x](crate::storage::Latch)\nconst A: &str = \"crate::walog\";"),
        NOTHING
    );
    assert_eq!(lines("src/formats/scan.rs", "#[cfg(test)]\nmod tests {\n use crate::walog;\n}\n"), NOTHING);
    assert_eq!(lines("src/codec.rs", "mod typed {\n use super::{Codec, storage};\n}"), NOTHING);
    assert_eq!(lines("src/publish_tests.rs", "use crate::recover::plan;"), NOTHING);
    assert_eq!(lines("src/lib.rs", "pub use crate::publish::Publisher;"), NOTHING);
}

#[test]
fn formats_that_read_a_file_are_found() {
    let lines = |path: &str, text: &str| found(formats_do_no_io, path, text);
    assert_eq!(lines("src/formats/dump.rs", "use std::io::Write;"), [1]);
    assert_eq!(lines("src/formats/dump.rs", "use std::{fmt, fs::File};"), [1]);
    assert_eq!(lines("src/formats/dump.rs", "\n\nfn f(d: &dyn crate::storage::Directory) {}"), [3]);
    assert_eq!(lines("src/formats/dump.rs", "use std::fmt::Write;"), NOTHING);
    assert_eq!(lines("src/recordlog/reader.rs", "use std::io::Read;"), NOTHING);
}

#[test]
fn an_operating_system_above_the_backends_is_found() {
    let lines = |path: &str, text: &str| found(no_system_above_backends, path, text);
    assert_eq!(lines("src/walog/pool.rs", "#[cfg(target_os = \"linux\")]\nfn f() {}"), [1]);
    assert_eq!(lines("src/walog/pool.rs", "fn f() -> bool { cfg!(unix) }"), [1]);
    assert_eq!(lines("src/walog/pool.rs", "#[cfg(not(any(windows, feature = \"x\")))]\nfn f() {}"), [1]);
    assert_eq!(lines("src/walog/pool.rs", "#[cfg_attr(windows, allow(unused))]\nfn f() {}"), [1]);
    assert_eq!(lines("src/walog/pool.rs", "use std::fs;"), [1]);
    assert_eq!(lines("src/storage/read.rs", "use std::os::fd::AsFd;\nuse nix::fcntl::OFlag;"), [1, 2]);
    assert_eq!(lines("src/walog/pool.rs", "#[cfg(feature = \"unix\")]\nfn f() { let unix = 1; }"), NOTHING);
    assert_eq!(lines("src/backends/choice.rs", "#[cfg(target_os = \"linux\")]\nuse std::fs;"), NOTHING);
}

#[test]
fn loose_unsafe_is_found() {
    let lines = |path: &str, text: &str| found(unsafe_is_fenced_in, path, text);
    assert_eq!(lines("src/storage/buffer.rs", "// SAFETY: none\nfn f() { unsafe { g() } }"), [2]);
    let ring = "src/backends/io_uring/ring.rs";
    assert_eq!(lines(ring, "fn f() {\n unsafe { g() }\n}"), [2]);
    assert_eq!(lines(ring, &format!("// SAFETY: far\n{}unsafe impl Send for R {{}}", "\n".repeat(6))), [8]);
    assert_eq!(lines(ring, "// SAFETY: the caller\n// holds it.\nunsafe impl Send for R {}"), NOTHING);
    assert_eq!(lines(ring, "//! All `unsafe` is here.\n#![allow(unsafe_code)]"), NOTHING);
}

#[test]
fn a_long_file_is_found() {
    let lines = |path: &str, text: &str| found(files_are_short, path, text);
    let long = "//! x\n".repeat(FILE_LINES_MAX + 1);
    let tests = format!("{}#[cfg(test)]\nmod tests {{\n{}}}\n", "//! x\n".repeat(FILE_LINES_MAX), long);
    assert_eq!(lines("src/walog/writer.rs", &long), [1]);
    assert_eq!(lines("src/walog/writer.rs", &tests), NOTHING);
    assert_eq!(lines("src/walog/tests.rs", &long), NOTHING);
}

#[test]
fn a_long_function_is_found() {
    let lines = |text: &str| found(functions_are_short, "src/walog/writer.rs", text);
    let long = |head: &str, lines: usize| format!("\n{head} {{\n{}}}\n", "    g(\"}\");\n".repeat(lines - 2));
    assert_eq!(lines(&long("pub fn f<T>(x: [u8; 4]) -> T", FUNCTION_LINES_MAX + 1)), [2]);
    assert_eq!(lines(&long("pub fn f<T>(x: [u8; 4]) -> T", FUNCTION_LINES_MAX)), NOTHING);
    assert_eq!(lines(&long("#[cfg(test)]\nfn f()", FUNCTION_LINES_MAX + 1)), NOTHING);
    assert_eq!(lines(&format!("trait T {{\nfn f();\n{}}}", "const A: fn() = g;\n".repeat(100))), NOTHING);
}

#[test]
fn a_file_without_its_subject_is_found() {
    assert_eq!(found(files_open_with_their_subject, "src/walog/pool.rs", "use std::fmt;\n"), [1]);
    assert_eq!(found(files_open_with_their_subject, "src/walog/pool.rs", "//! Pool.\n"), NOTHING);
}

#[test]
fn unfinished_work_is_found() {
    let lines = |text: &str| found(nothing_unfinished, "src/walog/pool.rs", text);
    assert_eq!(lines("fn f() { todo!() }\nfn g() { unimplemented!() }\n"), [1, 2]);
    assert_eq!(lines("fn f(x: u8) { dbg!(x); }"), [1]);
    assert_eq!(lines("// FIXME later\n// XXX\n"), [1, 2]);
    assert_eq!(lines("// XXXX is a pattern, and `dbg!` is a macro\nlet todo = 1;"), NOTHING);
}

#[test]
fn a_thread_is_found() {
    let lines = |text: &str| found(no_thread_is_started, "src/walog/committer.rs", text);
    assert_eq!(lines("fn f() { std::thread::spawn(|| ()); }"), [1]);
    assert_eq!(lines("use std::thread;\nfn f() { thread::Builder::new(); }"), [2]);
    assert_eq!(lines("use std::{sync::Arc, thread::{self, scope}};"), [1]);
    assert_eq!(lines("fn f() -> bool { std::thread::panicking() }"), NOTHING);
    assert_eq!(
        lines("#[cfg(all(test, feature = \"x\"))]\nmod tests { fn f() { std::thread::scope(g); } }"),
        NOTHING
    );
}

#[test]
fn literals_and_comments_are_no_code() {
    let text = "a('{', '\\'', b'\"', \"\\\"}\", r#\"\"}\"#, br\"}\"); /* { /* } */ { */ fn f<'a>(x: &'a u8) {} // }\n";
    let code = blank_literals(text);
    assert_eq!(code.len(), text.len());
    assert_eq!(code.matches(['{', '}', '"', '\'']).collect::<String>(), "''{}");
    assert!(code.contains("fn f<'a>(x: &'a u8) {}"), "{code}");
}

#[test]
fn test_items_end_where_they_end() {
    let text = "struct S {\n #[cfg(test)]\n seen: Vec<u8>,\n real: u8,\n}\n#[cfg(test)]\nmod tests;\n\
                #[cfg(test)]\nimpl<T> A for T where T: B, T: C {\n fn f() {}\n}\n#[cfg(any(test, x))]\nfn kept() {}\n";
    let product = Source::new("src/walog/pool.rs", text).product;
    assert!(
        !product.contains("seen") && !product.contains("tests") && !product.contains("impl"),
        "{product}"
    );
    assert!(product.contains("real: u8") && product.contains("fn kept"), "{product}");
}
