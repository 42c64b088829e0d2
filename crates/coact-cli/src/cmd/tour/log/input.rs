//! The lines that go through the topic: a real log, repeated until there is enough of it.

use std::{collections::BTreeMap, io::Read as _, path::Path, sync::Arc};

use bytes::Bytes;
use coact::{Error, Result};

/// How many lines of a hundred are delayed, and for how long.
const DELAYED_PERCENT: usize = 5;
const DELAY_MS: std::ops::Range<u64> = 1_000..5_000;
/// About how many lines of a hundred are of programs that fail.
const FAILING_PERCENT: u64 = 1;
const LINE_BYTES_MAX: usize = 512 * 1024;
const LINES_MIN: usize = 100;

/// The file's lines, held once, and how many there are when they are repeated. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Input {
    lines: Arc<[Line]>,
    programs: Arc<[Program]>,
    count: usize,
    bytes: u64,
}

#[derive(Clone, Debug)]
struct Line {
    text: Bytes,
    program: usize,
}

/// What wrote lines of the log.
#[derive(Clone, Debug)]
pub(super) struct Program {
    pub(super) name: Bytes,
    /// How many lines of the file are its own.
    lines: u64,
}

impl Input {
    /// So many bytes of a file, which is repeated if it has fewer.
    pub(super) fn read(path: &Path, size: u64) -> Result<Self> {
        let cannot = |error| Error::invalid(format!("the log {} cannot be read", path.display())).with_source(error);
        let mut bytes = Vec::new();
        std::fs::File::open(path).map_err(cannot)?.take(size).read_to_end(&mut bytes).map_err(cannot)?;
        Self::of(bytes.into(), size).map_err(|why| Error::invalid(format!("the log {}: {why}", path.display())))
    }

    /// The same of a text.
    pub(super) fn of(bytes: Bytes, size: u64) -> Result<Self, String> {
        let (mut lines, mut programs, mut known) = (Vec::new(), Vec::<Program>::new(), BTreeMap::new());
        for text in bytes.split(|byte| *byte == b'\n').filter(|text| !text.is_empty()) {
            if text.len() > LINE_BYTES_MAX {
                return Err(format!("line {} has {} bytes, at most {LINE_BYTES_MAX} fit", lines.len() + 1, text.len()));
            }
            let name = program_of(text);
            let program = *known.entry(name).or_insert_with(|| {
                programs.push(Program { name: Bytes::copy_from_slice(name), lines: 0 });
                programs.len() - 1
            });
            programs[program].lines += 1;
            lines.push(Line { text: bytes.slice_ref(text), program });
        }
        if programs.len() < 2 {
            return Err("it has lines of one program only, but one has to fail and another to go on".to_owned());
        }
        let once: u64 = lines.iter().map(|line| line.text.len() as u64 + 1).sum();
        let (mut count, mut left) = ((size / once) as usize * lines.len(), size % once);
        for line in &lines {
            let Some(rest) = left.checked_sub(line.text.len() as u64 + 1) else { break };
            (count, left) = (count + 1, rest);
        }
        if count < LINES_MIN {
            return Err(format!("{size} bytes of it are {count} lines, but at least {LINES_MIN} are needed"));
        }
        Ok(Self { lines: lines.into(), programs: programs.into(), count, bytes: size - left })
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// How many bytes all lines have, with their ends.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How often the file is begun.
    pub(super) fn repeats(&self) -> usize {
        self.count.div_ceil(self.lines.len())
    }

    pub(super) fn programs(&self) -> &[Program] {
        &self.programs
    }

    pub(super) fn line(&self, number: usize) -> Bytes {
        self.lines[number % self.lines.len()].text.clone()
    }

    /// Which of the programs wrote a line.
    pub(super) fn program(&self, number: usize) -> usize {
        self.lines[number % self.lines.len()].program
    }

    /// For how long a line is delayed, if it is.
    pub(super) fn delay_ms(number: usize) -> Option<u64> {
        let scattered = (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let delayed = number % 100 < DELAYED_PERCENT;
        delayed.then_some(DELAY_MS.start + scattered % (DELAY_MS.end - DELAY_MS.start))
    }

    /// The names of the programs that fail: rare ones, which together have about so many of the lines.
    pub(super) fn failing(&self) -> Vec<String> {
        let wanted = (self.lines.len() as u64 * FAILING_PERCENT).div_ceil(100);
        // A program that has no line before the file is cut off would never fail.
        let seen: std::collections::BTreeSet<_> =
            (0..self.count.min(self.lines.len())).map(|line| self.program(line)).collect();
        let mut rare: Vec<_> = self.programs.iter().enumerate().filter(|(program, _)| seen.contains(program)).collect();
        rare.sort_by_key(|(_, program)| program.lines);
        let (mut names, mut lines) = (Vec::new(), 0);
        // Not those of a single line, which would make a long list; all of them, if there is nothing else.
        let from = rare.iter().position(|(_, program)| program.lines * 10 >= wanted).unwrap_or(0);
        for (_, program) in &rare[from..] {
            if lines >= wanted {
                break;
            }
            lines += program.lines;
            names.push(String::from_utf8_lossy(&program.name).into_owned());
        }
        names
    }
}

/// What wrote a line: the tag of syslog (`sshd[12]:`), the package in dpkg's log (`libc6:amd64`), the first word elsewhere.
fn program_of(line: &[u8]) -> &[u8] {
    const WORDS: usize = 6;
    const NAME_BYTES_MAX: usize = 64;
    let words = || line.split(u8::is_ascii_whitespace).filter(|word| word.first().is_some_and(u8::is_ascii_alphabetic));
    let tag = words().take(WORDS).find(|word| word.contains(&b':'));
    let word = tag.or_else(|| words().next()).unwrap_or(b"none");
    let end = word.iter().position(|byte| b":[".contains(byte) || !byte.is_ascii_graphic()).unwrap_or(word.len());
    &word[..end.min(NAME_BYTES_MAX)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_in_the_usual_logs() {
        for (line, program) in [
            ("Nov 24 01:02:03 host systemd[1]: Started it.", "systemd"),
            ("2026-11-24T01:02:03.5+00:00 host kernel: text: more", "kernel"),
            ("2025-06-24 14:36:25 status installed libc-bin:amd64 2.36-9", "libc-bin"),
            ("2025-06-24 14:36:25 startup archives unpack", "startup"),
            ("Selecting previously unselected package perl.", "Selecting"),
            ("12 34", "none"),
            ("\u{1f}\u{fffd}", "none"),
        ] {
            assert_eq!(String::from_utf8_lossy(program_of(line.as_bytes())), program, "{line}");
        }
    }

    fn text(lines: usize) -> Bytes {
        (0..lines).map(|line| format!("x program-{}: text {line}\n", line % 50)).collect::<String>().into()
    }

    #[test]
    fn a_file_is_repeated_until_there_is_enough() {
        let text = text(200);
        let once = text.len() as u64;
        let input = Input::of(text.clone(), once * 5 / 2).expect("enough");
        assert_eq!(input.repeats(), 3);
        assert!(input.count() > 490 && input.count() < 510, "{}", input.count());
        assert!(input.bytes() <= once * 5 / 2 && input.bytes() > once * 5 / 2 - 30);
        assert_eq!(input.line(0), input.line(200));
        assert_eq!(input.programs().len(), 50);
        assert_eq!(input.failing().len(), 1, "two lines of a hundred are the least that one of them has");
    }

    #[test]
    fn what_is_too_little_is_refused() {
        let refused = |text: Bytes, size| Input::of(text, size).expect_err("refused");
        assert!(refused(text(200), 100).contains("at least 100 are needed"));
        assert!(refused("a: x\na: y\n".into(), 1000).contains("one program only"));
    }

    #[test]
    fn five_of_a_hundred_are_delayed_by_one_to_five_seconds() {
        let delays: Vec<_> = (0..10_000).filter_map(Input::delay_ms).collect();
        assert_eq!(delays.len(), 500);
        assert!(delays.iter().all(|delay| DELAY_MS.contains(delay)));
        assert!(delays.iter().any(|delay| *delay < 1_100) && delays.iter().any(|delay| *delay > 4_900));
    }
}
