//! Counting the frames of HTTP/2, which gRPC runs over, without understanding them.

/// What a client sends first.
const PREFACE: usize = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len();
const HEADER: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;

/// How many frames of HTTP/2 passed. Meaningless for any other protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Frames {
    /// Frames with headers: from a client one for each call.
    pub headers: u64,
    /// Frames with data: one for each small message.
    pub data: u64,
    /// All others: settings, windows, pings, resets.
    pub other: u64,
}

/// Finds the frames in one direction of one connection.
#[derive(Debug)]
pub(super) struct Scanner {
    /// How many bytes to pass over before the next frame's header.
    skip: usize,
    header: Vec<u8>,
}

impl Scanner {
    pub(super) fn from_client() -> Self {
        Self { skip: PREFACE, header: Vec::with_capacity(HEADER) }
    }

    pub(super) fn from_server() -> Self {
        Self { skip: 0, header: Vec::with_capacity(HEADER) }
    }

    /// Counts the frames that begin in the next bytes.
    pub(super) fn scan(&mut self, mut bytes: &[u8], frames: &mut Frames) {
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let taken = (HEADER - self.header.len()).min(bytes.len());
            self.header.extend_from_slice(&bytes[..taken]);
            bytes = &bytes[taken..];
            if self.header.len() == HEADER {
                self.skip = u32::from_be_bytes([0, self.header[0], self.header[1], self.header[2]]) as usize;
                count(self.header[3], frames);
                self.header.clear();
            }
        }
    }
}

fn count(kind: u8, frames: &mut Frames) {
    match kind {
        DATA => frames.data += 1,
        HEADERS => frames.headers += 1,
        _ => frames.other += 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, payload: usize) -> Vec<u8> {
        let mut frame = vec![0, 0, payload as u8, kind, 0, 0, 0, 0, 1];
        frame.resize(HEADER + payload, 0xff);
        frame
    }

    #[test]
    fn finds_frames_however_they_are_cut() {
        let mut sent = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        for (kind, payload) in [(4, 18), (HEADERS, 40), (DATA, 0), (DATA, 200), (8, 4)] {
            sent.extend(frame(kind, payload));
        }
        for size in [1, 2, 7, 9, 24, 1000] {
            let (mut scanner, mut frames) = (Scanner::from_client(), Frames::default());
            sent.chunks(size).for_each(|bytes| scanner.scan(bytes, &mut frames));
            assert_eq!(frames, Frames { headers: 1, data: 2, other: 2 }, "in pieces of {size}");
        }
    }
}
