//! `coact mq tail`: records as they lie, without a group, as far as they go or as they come.

use std::{collections::VecDeque, time::Duration};

use clap::Args;
use coact::{
    ErrorKind, Result, StreamHandle, Topic,
    contract::stream::{Fetched, Offset, Read, Seek, StoredRecord},
    mq::SeekTo,
};
use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};

use super::{
    age, chosen, instant,
    lines::{Lines, Printer},
    millis, topic_of,
};
use crate::{cmd::serve::Signals, exit::Exit, output};

/// Arguments of `coact mq tail`.
///
/// Records of several partitions come in the order of their times as far as they are there at the start, and then as
/// they come. Partitions that the topic gets later are not read.
#[derive(Debug, Args)]
pub(crate) struct Tail {
    /// The topic.
    topic: String,
    /// Go on with what is appended, until interrupted.
    #[arg(short, long)]
    follow: bool,
    /// Where to begin: earliest, latest, an offset, a time (RFC 3339), or how long ago (10m, 2h, 1d). [default: earliest,
    /// or latest with -f]
    #[arg(long, value_parser = From::read, value_name = "WHERE")]
    from: Option<From>,
    /// Only this partition.
    #[arg(long, value_name = "N")]
    partition: Option<u32>,
    /// Stop after this many records.
    #[arg(long, value_name = "N")]
    max: Option<u64>,
    #[command(flatten)]
    lines: Lines,
}

/// Where to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum From {
    Earliest,
    Latest,
    Offset(u64),
    Time(u64),
    Ago(Duration),
}

impl From {
    pub(super) fn read(text: &str) -> Result<Self, String> {
        match text {
            "earliest" => return Ok(Self::Earliest),
            "latest" => return Ok(Self::Latest),
            _ => {}
        }
        let offset = text.parse().ok().map(Self::Offset);
        let time = || instant(text).map(Self::Time);
        offset.or_else(time).or_else(|| age(text).ok().map(Self::Ago)).ok_or_else(|| {
            "use earliest, latest, an offset, a time as in 2026-05-01T12:00:00Z, or how long ago as in 10m".to_owned()
        })
    }

    /// The same, as seen now.
    pub(super) fn seek_to(self, streams: &StreamHandle) -> SeekTo {
        let ago = |age| streams.env().wall_ms().saturating_sub(millis(age));
        SeekTo::Found(match self {
            Self::Offset(offset) => return SeekTo::Offset(Offset(offset)),
            Self::Earliest => Seek::Earliest,
            Self::Latest => Seek::Latest,
            Self::Time(time_ms) => Seek::Time(time_ms),
            Self::Ago(age) => Seek::Time(ago(age)),
        })
    }
}

impl Tail {
    pub(crate) async fn run(self) -> Result<Exit> {
        let topic = Topic::new(&self.topic)?;
        let store = self.lines.target().open_store().await?;
        let streams = store.streams()?;
        let info = topic_of(streams, &topic).await?;
        let from = self.from.unwrap_or(if self.follow { From::Latest } else { From::Earliest }).seek_to(streams);
        let mut sources = Vec::new();
        for partition in chosen(self.partition, &info) {
            let end = streams.bounds(&topic, partition).await?.end;
            let next = from.offset(streams, &topic, partition).await?;
            sources.push(Source { partition, next, end, records: VecDeque::new() });
        }
        let mut reader = Reader {
            streams: streams.clone(),
            topic: topic.clone(),
            printer: self.lines.printer(&topic),
            left: self.max.unwrap_or(u64::MAX),
        };
        let mut signals = Signals::new()?;
        tokio::select! {
            read = reader.read(sources, self.follow) => read?,
            () = signals.first() => {}
        }
        reader.printer.flush();
        store.close().await?;
        Ok(Exit::SUCCESS)
    }
}

/// One partition on its way to stdout.
struct Source {
    partition: u32,
    next: Offset,
    /// Where it ended at the start.
    end: Offset,
    records: VecDeque<StoredRecord>,
}

struct Reader<'a> {
    streams: StreamHandle,
    topic: Topic,
    printer: Printer<'a>,
    left: u64,
}

/// About how much is read at once, of all partitions together.
const READ_BYTES: usize = 8 * 1024 * 1024;
const READ_BYTES_LEAST: usize = 64 * 1024;
/// How long one request waits for records; then the next one does.
const WAIT: Duration = Duration::from_secs(30);
/// The pause after a request that nobody answered.
const PAUSE: Duration = Duration::from_millis(500);

impl Reader<'_> {
    async fn read(&mut self, mut sources: Vec<Source>, follow: bool) -> Result<()> {
        self.read_to_ends(&mut sources).await?;
        self.printer.flush();
        if follow && self.left > 0 {
            self.follow(sources).await?;
        }
        Ok(())
    }

    /// Prints what was there at the start: of all partitions the oldest first.
    async fn read_to_ends(&mut self, sources: &mut [Source]) -> Result<()> {
        let max_bytes = (READ_BYTES / sources.len().max(1)).max(READ_BYTES_LEAST);
        while self.left > 0 {
            for source in sources.iter_mut() {
                while source.records.is_empty() && source.next < source.end {
                    let fetched = self.request(source.partition, source.next, max_bytes, Duration::ZERO).await?;
                    self.take(source, &fetched);
                    if fetched.batches.is_empty() {
                        // What was there is gone by now.
                        source.next = source.end;
                    }
                }
            }
            let oldest = sources.iter_mut().filter(|source| !source.records.is_empty());
            let oldest =
                oldest.min_by_key(|source| (source.records.front().map(|first| first.time_ms), source.partition));
            let Some(source) = oldest else { return Ok(()) };
            if let Some(stored) = source.records.pop_front() {
                self.printer.print(source.partition, &stored);
                self.left -= 1;
            }
        }
        Ok(())
    }

    /// Prints what comes, until there was enough of it.
    async fn follow(&mut self, sources: Vec<Source>) -> Result<()> {
        let mut waiting: FuturesUnordered<_> = sources.into_iter().map(|source| self.wait_for(source)).collect();
        let mut is_away = false;
        while let Some((mut source, fetched)) = waiting.next().await {
            let fetched = match fetched {
                Err(error) if error.kind() == ErrorKind::Unavailable => {
                    if !is_away {
                        output::complain(&format!("{error}; waiting for it"));
                    }
                    is_away = true;
                    waiting.push(self.wait_after(PAUSE, source));
                    continue;
                }
                fetched => fetched?,
            };
            is_away = false;
            source.end = Offset(u64::MAX);
            self.take(&mut source, &fetched);
            for stored in source.records.drain(..) {
                if self.left == 0 {
                    return Ok(());
                }
                self.printer.print(source.partition, &stored);
                self.left -= 1;
            }
            self.printer.flush();
            if self.left == 0 {
                return Ok(());
            }
            waiting.push(self.wait_for(source));
        }
        Ok(())
    }

    fn wait_for(&self, source: Source) -> BoxFuture<'static, (Source, Result<Fetched>)> {
        self.wait_after(Duration::ZERO, source)
    }

    fn wait_after(&self, pause: Duration, source: Source) -> BoxFuture<'static, (Source, Result<Fetched>)> {
        let reading = self.request(source.partition, source.next, READ_BYTES_LEAST, WAIT);
        let env = self.streams.env().clone();
        Box::pin(async move {
            env.sleep(pause).await;
            let fetched = reading.await;
            (source, fetched)
        })
    }

    fn request(
        &self,
        partition: u32,
        from: Offset,
        max_bytes: usize,
        wait: Duration,
    ) -> BoxFuture<'static, Result<Fetched>> {
        let read = Read { topic: self.topic.clone(), partition, from, max_bytes, wait };
        let streams = self.streams.clone();
        Box::pin(async move { streams.read(read).await })
    }

    /// Puts what was read into its source, and says what was lost before.
    fn take(&self, source: &mut Source, fetched: &Fetched) {
        let Source { partition, next, .. } = *source;
        if fetched.start > next {
            let (topic, start) = (&self.topic, fetched.start);
            output::complain(&format!("{topic}/{partition}: the records from {next} to before {start} are gone"));
        }
        source.records.extend(fetched.records(next).take_while(|stored| stored.offset < source.end));
        source.next = fetched.next.clamp(next, source.end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_to_begin_is_read() {
        assert_eq!(From::read("latest"), Ok(From::Latest));
        assert_eq!(From::read("12"), Ok(From::Offset(12)));
        assert_eq!(From::read("1970-01-01T00:00:02Z"), Ok(From::Time(2000)));
        assert_eq!(From::read("10m"), Ok(From::Ago(Duration::from_secs(600))));
        assert!(From::read("yesterday").is_err());
    }
}
