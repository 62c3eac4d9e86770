//! What a virtual machine says on its console.

use std::collections::VecDeque;

use anyhow::{Result, bail};

/// What the lines begin with that the guest's `init` writes.
const MARK: &str = "dosguard-vm: ";
/// What a test begins a line with that asserts something else on this kernel.
const NOTE: &str = "on this kernel: ";
/// Enough to see what a failed test or a panic says.
const TAIL: usize = 60;

/// What has been read so far.
#[derive(Default)]
pub struct Console {
    kernel: Option<String>,
    running: Option<String>,
    ended: Vec<Ended>,
    done: bool,
    panic: Option<String>,
    tail: VecDeque<String>,
}

/// A test program that has ended.
struct Ended {
    name: String,
    status: i32,
    passed: u32,
    failed: u32,
}

/// What is worth showing of a line.
#[derive(Debug, PartialEq, Eq)]
pub enum Shown {
    /// Nothing.
    Nothing,
    /// One line.
    Line(String),
    /// A test program failed; what it said last.
    Failure(Vec<String>),
}

impl Console {
    /// Reads a line.
    pub fn read(&mut self, line: &str) -> Shown {
        // What ran before may have left its last line without an end.
        if let Some((_, mark)) = line.split_once(MARK) {
            return self.read_mark(mark);
        }
        if self.tail.len() == TAIL {
            self.tail.pop_front();
        }
        self.tail.push_back(line.to_owned());
        if line.contains("Kernel panic") {
            self.panic.get_or_insert_with(|| line.trim().to_owned());
        }
        let name = self.running.as_deref().unwrap_or("outside of any test");
        if let Some(result) = line.strip_prefix("test result: ") {
            let shown = Shown::Line(format!("{name}: {line}"));
            if let Some(ended) = self.current() {
                ended.passed += count(result, "passed");
                ended.failed += count(result, "failed");
            }
            return shown;
        }
        let is_failed_test = line.starts_with("test ") && line.ends_with("FAILED");
        if is_failed_test || line.starts_with(NOTE) {
            return Shown::Line(format!("{name}: {line}"));
        }
        Shown::Nothing
    }

    fn read_mark(&mut self, mark: &str) -> Shown {
        let mut words = mark.split_whitespace();
        match (words.next(), words.next(), words.next()) {
            (Some("kernel"), Some(release), None) => self.kernel = Some(release.to_owned()),
            (Some("begin"), Some(name), None) => {
                self.tail.clear();
                self.running = Some(name.to_owned());
                self.ended.push(Ended { name: name.to_owned(), status: -1, passed: 0, failed: 0 });
            }
            (Some("end"), Some(_), Some(status)) => {
                self.running = None;
                let status = status.parse().unwrap_or(-1);
                if let Some(ended) = self.ended.last_mut() {
                    ended.status = status;
                }
                if status != 0 {
                    return Shown::Failure(self.take_tail());
                }
            }
            (Some("done"), None, None) => self.done = true,
            _ => {}
        }
        Shown::Nothing
    }

    fn current(&mut self) -> Option<&mut Ended> {
        if self.running.is_some() { self.ended.last_mut() } else { None }
    }

    /// The last lines, which are forgotten.
    pub fn take_tail(&mut self) -> Vec<String> {
        self.tail.drain(..).collect()
    }

    /// The release of the kernel that runs, once it has told.
    pub fn kernel(&self) -> Option<&str> {
        self.kernel.as_deref()
    }

    /// Tests that passed and tests that failed.
    pub fn tests(&self) -> (u32, u32) {
        self.ended.iter().fold((0, 0), |(passed, failed), e| (passed + e.passed, failed + e.failed))
    }

    /// Whether the machine came to its end. If not, its tail says why.
    pub fn is_done(&self) -> bool {
        self.done && self.panic.is_none()
    }

    /// Fails unless the machine came to its end and every one of the programs called `tests` ran tests and passed.
    pub fn verdict<'a>(&self, tests: impl IntoIterator<Item = &'a str>) -> Result<()> {
        if let Some(panic) = &self.panic {
            bail!("{panic}");
        }
        if !self.done {
            let running = self.running.as_ref().map(|name| format!(" in `{name}`")).unwrap_or_default();
            bail!("it ended{running} before all tests had run");
        }
        let mut wrong = Vec::new();
        for name in tests {
            match self.ended.iter().find(|ended| ended.name == name) {
                None => wrong.push(format!("`{name}` did not run")),
                Some(ended) if ended.status != 0 => {
                    wrong.push(format!("`{name}` failed with status {}", ended.status));
                }
                Some(ended) if ended.passed == 0 => wrong.push(format!("`{name}` ran no test")),
                Some(_) => {}
            }
        }
        if wrong.is_empty() { Ok(()) } else { bail!("{}", wrong.join(", ")) }
    }
}

/// The number before `what` in `ok. 3 passed; 0 failed; …`.
fn count(result: &str, what: &str) -> u32 {
    let mut before = 0;
    for word in result.split([' ', ';', '.']) {
        if word == what {
            return before;
        }
        before = word.parse().unwrap_or(before);
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    const OK: &str =
        "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 4s";

    fn read(lines: &[&str]) -> (Console, Vec<String>) {
        let mut console = Console::default();
        let mut shown = Vec::new();
        for line in lines {
            match console.read(line) {
                Shown::Nothing => {}
                Shown::Line(line) => shown.push(line),
                Shown::Failure(lines) => shown.extend(lines),
            }
        }
        (console, shown)
    }

    #[test]
    fn a_run_that_passes() {
        let (console, shown) = read(&[
            "[    0.000000] Linux version",
            "dosguard-vm: kernel 5.10.0-32-cloud-amd64",
            "dosguard-vm: begin program_cases",
            "test a ... ok",
            "on this kernel: a: something else",
            OK,
            "no end of line dosguard-vm: end program_cases 0",
            "dosguard-vm: done",
        ]);
        assert_eq!(
            shown,
            ["program_cases: on this kernel: a: something else".to_owned(), format!("program_cases: {OK}")]
        );
        assert_eq!((console.kernel(), console.tests()), (Some("5.10.0-32-cloud-amd64"), (3, 0)));
        console.verdict(["program_cases"]).unwrap();
        let error = console.verdict(["program_cases", "program_races"]).unwrap_err();
        assert_eq!(error.to_string(), "`program_races` did not run");
    }

    #[test]
    fn a_test_that_fails_shows_what_it_said() {
        let (console, shown) = read(&[
            "dosguard-vm: begin program_cases",
            "test a ... FAILED",
            "why it failed",
            "test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 4s",
            "dosguard-vm: end program_cases 101",
            "dosguard-vm: done",
        ]);
        assert!(shown.contains(&"why it failed".to_owned()), "{shown:?}");
        assert_eq!((console.is_done(), console.tests()), (true, (2, 1)));
        let error = console.verdict(["program_cases"]).unwrap_err();
        assert_eq!(error.to_string(), "`program_cases` failed with status 101");
    }

    #[test]
    fn a_panic_and_a_silent_end_are_failures() {
        let panic = "[    2.6] Kernel panic - not syncing: Fatal exception";
        let (mut console, _) = read(&["dosguard-vm: begin program_cases", "the last word", panic]);
        assert!(!console.is_done());
        assert_eq!(console.verdict([]).unwrap_err().to_string(), panic);
        assert_eq!(console.take_tail(), ["the last word", panic]);

        let (console, _) = read(&["dosguard-vm: begin program_cases", OK]);
        let error = console.verdict(["program_cases"]).unwrap_err();
        assert_eq!(error.to_string(), "it ended in `program_cases` before all tests had run");
    }

    #[test]
    fn green_means_tested() {
        let none =
            "test result: ok. 0 passed; 0 failed; 3 ignored; 0 measured; 0 filtered out; finished in 0s";
        let (console, _) = read(&[
            "dosguard-vm: begin program_x",
            none,
            "dosguard-vm: end program_x 0",
            "dosguard-vm: done",
        ]);
        assert_eq!(console.verdict(["program_x"]).unwrap_err().to_string(), "`program_x` ran no test");
    }

    #[test]
    fn the_tail_does_not_grow() {
        let mut console = Console::default();
        for number in 0..1_000 {
            console.read(&format!("line {number}"));
        }
        let tail = console.take_tail();
        assert_eq!((tail.len(), tail.last().map(String::as_str)), (TAIL, Some("line 999")));
    }
}
