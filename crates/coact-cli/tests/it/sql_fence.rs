//! A lock's fence in a transaction of PostgreSQL, whatever engine the lock is on.

use coact::{Session, SessionOptions, lock::Mutex};
use coact_testkit::bed::Postgres;

#[tokio::test]
async fn a_database_refuses_the_earlier_holder_of_a_lock_that_lives_elsewhere() {
    let postgres = Postgres::start(&[]).await.expect("PostgreSQL starts");
    coact::open(&postgres.url("main")).await.expect("it opens, which makes coact.fence").close().await.expect("closes");
    postgres.sql("create table stock (item text, count int); insert into stock values ('it', 9)").expect("a table");
    let kv = coact::open("memory:?accept=volatile").await.expect("it opens");
    let session = Session::open(&kv, SessionOptions::default()).await.expect("it answers");
    let mutex = Mutex::new(&session, "it's").expect("valid");
    let take = |fence: &coact::lock::SqlFence| {
        postgres.sql(&format!("begin; {fence}; update stock set count = count - 1; commit"))
    };

    let old = mutex.acquire().await.expect("free").sql_fence();
    assert_eq!((old.statement, old.resource.as_str()), ("SELECT coact.fence($1, $2)", "main/lock/it's"));
    take(&old).expect("nobody was there before");
    take(&old).expect("the same holder goes on");
    let new = mutex.acquire().await.expect("it was dropped").sql_fence();
    assert!(new.token > old.token);
    take(&new).expect("younger");
    let error = take(&old).expect_err("it is over").to_string();
    assert!(error.contains("is over"), "{error}");
    assert_eq!(
        postgres.sql("select count from stock").expect("answers").trim(),
        "6",
        "what was refused changed nothing"
    );
}
