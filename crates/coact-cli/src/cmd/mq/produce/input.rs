//! Lines of a file or of stdin, of any bytes.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use coact::{Error, Result};

/// A line without its end.
pub(super) type Line = Bytes;

/// Reads lines. It blocks, which nothing else in the process minds: what was sent goes on in the runtime's threads.
pub(super) struct Input {
    name: PathBuf,
    reader: BufReader<Box<dyn Read>>,
    end: u8,
    bytes_max: usize,
    lines: u64,
}

impl Input {
    /// Opens a file, or stdin for `-`; lines end with this byte.
    pub(super) fn open(name: &Path, end: u8, bytes_max: usize) -> Result<Self> {
        let source: Box<dyn Read> = if name == Path::new("-") {
            Box::new(std::io::stdin())
        } else {
            let file = File::open(name).map_err(|error| {
                Error::invalid(format!("{} cannot be opened: {error}", name.display())).with_source(error)
            })?;
            Box::new(file)
        };
        Ok(Self::new(name, source, end, bytes_max))
    }

    fn new(name: &Path, source: Box<dyn Read>, end: u8, bytes_max: usize) -> Self {
        let reader = BufReader::with_capacity(BUFFER_BYTES, source);
        Self { name: name.to_owned(), reader, end, bytes_max, lines: 0 }
    }

    /// The next line; the last one needs no end.
    pub(super) fn next(&mut self) -> Result<Option<Line>> {
        let mut line = Vec::new();
        // One byte for the end, and one that tells a line that is too long.
        let mut bounded = (&mut self.reader).take(self.bytes_max as u64 + 2);
        let count = bounded.read_until(self.end, &mut line).map_err(|error| {
            Error::invalid(format!("{} cannot be read: {error}", self.name.display())).with_source(error)
        })?;
        if count == 0 {
            return Ok(None);
        }
        self.lines += 1;
        if line.last() == Some(&self.end) {
            line.pop();
        }
        if line.len() > self.bytes_max {
            let (place, most) = (self.place(), self.bytes_max);
            return Err(Error::invalid(format!("{place} has more than {most} bytes, the most of a record")));
        }
        Ok(Some(line.into()))
    }

    /// Whether the next line may take its time, so that nothing should wait for it.
    pub(super) fn may_wait(&self) -> bool {
        !self.reader.buffer().contains(&self.end)
    }

    /// Where the last line was.
    pub(super) fn place(&self) -> String {
        let name = if self.name == Path::new("-") { "stdin".into() } else { self.name.display().to_string() };
        format!("line {} of {name}", self.lines)
    }
}

const BUFFER_BYTES: usize = 256 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &'static [u8], end: u8) -> Result<Vec<Bytes>> {
        let mut input = Input::new(Path::new("-"), Box::new(text), end, 5);
        std::iter::from_fn(|| input.next().transpose()).collect()
    }

    #[test]
    fn lines_come_as_they_are() {
        assert_eq!(lines(b"", b'\n').expect("lines"), Vec::<Bytes>::new());
        assert_eq!(
            lines(b"a\n\n\xff\r\nlast", b'\n').expect("lines"),
            ["a", "", "\u{0}", "last"].map(|line| match line {
                "\u{0}" => Bytes::from_static(b"\xff\r"),
                line => Bytes::from(line),
            })
        );
        assert_eq!(lines(b"a\nb\0c", 0).expect("lines"), ["a\nb", "c"]);
    }

    #[test]
    fn a_line_that_is_no_record_is_refused_by_its_number() {
        assert_eq!(lines(b"12345\n", b'\n').expect("lines"), ["12345"]);
        let error = lines(b"12345\n123456\n", b'\n').expect_err("too long");
        assert_eq!(error.to_string(), "line 2 of stdin has more than 5 bytes, the most of a record");
    }
}
