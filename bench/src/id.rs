//! Ids, beside ferroid: with 12 bits of sequence, where 4.096 million a second is the limit, and without that cap.

use std::time::{Duration, Instant};

use coact::{
    Session, SessionOptions,
    id::{Generator, IdOptions, Layout},
};
use ferroid::{
    generator::AtomicSnowflakeGenerator,
    id::SnowflakeTwitterId,
    time::{MonotonicClock, TWITTER_EPOCH},
};

const CAP: f64 = 4_096_000.0;

pub(crate) async fn run(time: Duration) {
    let dir = tempfile::tempdir().expect("a directory");
    let kv = coact::open(&format!("embedded://{}", dir.path().display())).await.expect("it opens");
    let session = Session::open(&kv, SessionOptions::default()).await.expect("a session");
    println!("\nids, one task");
    let std = generator(&session, Layout::parse("std").expect("known"), "std").await;
    let per_second = next(&std, time).await;
    println!("  next,    41/10/12          {per_second:>14.0} /s   {:.3} of the cap of 4.096 M/s", per_second / CAP);
    let peer = ferroid(time);
    println!(
        "  ferroid, 41/10/12          {peer:>14.0} /s   {:.3} of the cap; next / ferroid {:.3}",
        peer / CAP,
        per_second / peer
    );
    let wide = generator(&session, Layout::parse("39/2/22").expect("allowed"), "wide").await;
    let per_second = next(&wide, time).await;
    println!("  next,    39/2/22           {per_second:>14.0} /s   {:.1} ns each", 1e9 / per_second);
    let per_second = next_n(&wide, time).await;
    println!("  next_n,  39/2/22, by 4096  {per_second:>14.0} /s   {:.2} ns each", 1e9 / per_second);
    session.close().await.expect("it ends");
}

async fn generator(session: &Session, layout: Layout, space: &str) -> Generator {
    let options = IdOptions { layout, space: space.to_owned(), ..IdOptions::default() };
    Generator::open(session, options).await.expect("a generator")
}

async fn next(ids: &Generator, time: Duration) -> f64 {
    let began = Instant::now();
    let mut count = 0u64;
    while began.elapsed() < time {
        for _ in 0..4096 {
            std::hint::black_box(ids.next().await.expect("an id"));
        }
        count += 4096;
    }
    count as f64 / began.elapsed().as_secs_f64()
}

async fn next_n(ids: &Generator, time: Duration) -> f64 {
    let began = Instant::now();
    let mut count = 0u64;
    while began.elapsed() < time {
        for id in ids.next_n(4096).await.expect("ids") {
            std::hint::black_box(id);
        }
        count += 4096;
    }
    count as f64 / began.elapsed().as_secs_f64()
}

fn ferroid(time: Duration) -> f64 {
    let clock = MonotonicClock::<1>::with_epoch(TWITTER_EPOCH);
    let ids = AtomicSnowflakeGenerator::<SnowflakeTwitterId, _>::new(1, clock);
    let began = Instant::now();
    let mut count = 0u64;
    while began.elapsed() < time {
        for _ in 0..4096 {
            std::hint::black_box(ids.next_id(|_| std::thread::yield_now()));
        }
        count += 4096;
    }
    count as f64 / began.elapsed().as_secs_f64()
}
