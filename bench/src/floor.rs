//! The floors: what the disk and bare group commit give on this machine, in this run.

use std::{
    fs::File,
    os::unix::fs::FileExt as _,
    path::Path,
    time::{Duration, Instant},
};

use tokio::sync::{mpsc, oneshot};

use crate::load::{Measured, measured};

const FILE_BYTES: u64 = 64 << 20;

/// A file of zeros, as a log segment is before use.
fn preallocated(dir: &Path, name: &str) -> File {
    let file = File::options().create(true).truncate(true).read(true).write(true).open(dir.join(name)).expect("a file");
    let zeros = vec![0; 1 << 20];
    for offset in (0..FILE_BYTES).step_by(zeros.len()) {
        file.write_all_at(&zeros, offset).expect("room on the disk");
    }
    file.sync_all().expect("a disk that syncs");
    file
}

/// One `fdatasync` after the other, with nothing else.
pub(crate) fn fdatasync(dir: &Path, time: Duration, bytes: usize) -> Measured {
    let file = preallocated(dir, "fdatasync");
    let record = vec![7; bytes];
    let began = Instant::now();
    let mut took = Vec::new();
    let mut offset = 0;
    while began.elapsed() < time {
        let start = Instant::now();
        file.write_all_at(&record, offset).expect("room");
        file.sync_data().expect("a disk that syncs");
        took.push(start.elapsed());
        offset = (offset + bytes as u64) % (FILE_BYTES - bytes as u64);
    }
    measured("raw fdatasync, one after the other", took, began.elapsed())
}

/// Group commit with nothing around it: a queue, one thread that writes what is waiting and syncs, an answer each.
#[derive(Clone)]
pub(crate) struct GroupCommit(mpsc::Sender<(usize, oneshot::Sender<()>)>);

impl GroupCommit {
    pub(crate) fn new(dir: &Path) -> Self {
        let file = preallocated(dir, "group-commit");
        let (sender, mut receiver) = mpsc::channel::<(usize, oneshot::Sender<()>)>(16 * 1024);
        std::thread::spawn(move || {
            let mut offset = 0;
            let mut answers = Vec::new();
            let mut batch = Vec::new();
            while let Some(first) = receiver.blocking_recv() {
                let mut next = Some(first);
                while let Some((bytes, answer)) = next {
                    batch.resize(batch.len() + bytes, 7);
                    answers.push(answer);
                    next = receiver.try_recv().ok();
                }
                if offset + batch.len() as u64 > FILE_BYTES {
                    offset = 0;
                }
                file.write_all_at(&batch, offset).expect("room");
                file.sync_data().expect("a disk that syncs");
                offset += batch.len() as u64;
                batch.clear();
                for answer in answers.drain(..) {
                    let _ = answer.send(());
                }
            }
        });
        Self(sender)
    }

    pub(crate) async fn commit(&self, bytes: usize) {
        let (answer, done) = oneshot::channel();
        self.0.send((bytes, answer)).await.expect("the writer");
        done.await.expect("the writer");
    }
}
