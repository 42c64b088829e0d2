//! What coact writes in other people's transactions.

use coact_core::{
    ErrorKind,
    contract::kv::{Check, LeaseId, Scope, TxnOutcome, Write},
    env::Env,
};
use coact_engine_postgres::tokio_postgres::{IsolationLevel, error::SqlState};
use coact_testkit::bed::Postgres;

use crate::server::{client, dir, key, next_name, postgres_kv, put, realm, start, value, within, writes};

async fn with_orders() -> Postgres {
    let server = start(&[]).await;
    server.sql("CREATE TABLE orders (id bigint PRIMARY KEY)").expect("runs");
    server
}

fn orders(server: &Postgres) -> String {
    server.sql("SELECT count(*) FROM orders").expect("runs")
}

#[tokio::test]
async fn a_transaction_commits_with_that_of_its_host_or_not_at_all() {
    let server = with_orders().await;
    let kv = postgres_kv(&server).await;
    let (handle, mut client) = (kv.handle(), client(&server).await);
    let mut feed = handle.watch(Scope::Dir(dir("order")), None).await.expect("it watches");
    for (id, commits) in [(1_i64, false), (2, true)] {
        let transaction = client.transaction().await.expect("it begins");
        transaction.execute("INSERT INTO orders VALUES ($1)", &[&id]).await.expect("runs");
        let txn = writes(vec![put(&format!("order/{id}"), "paid")]);
        let outcome = kv.txn_in(&transaction, &realm(), txn).await.expect("it runs");
        assert!(matches!(outcome, TxnOutcome::Committed { .. }), "{outcome:?}");
        assert_eq!(value(&handle, &format!("order/{id}")).await, None, "it is there before the commit");
        if commits {
            transaction.commit().await.expect("it commits");
            kv.changed(&realm());
        } else {
            transaction.rollback().await.expect("it rolls back");
        }
    }
    assert_eq!(orders(&server), "1");
    assert_eq!((value(&handle, "order/1").await, value(&handle, "order/2").await.as_deref()), (None, Some("paid")));
    assert_eq!(next_name(&mut feed).await, "2");
}

#[tokio::test]
async fn who_waits_learns_of_it_though_nobody_says_so() {
    let server = start(&[]).await;
    let kv = postgres_kv(&server).await;
    let created = kv.handle().put(&key("a/x"), "1", None).await.expect("commits");
    let mut client = client(&server).await;
    let waiter = kv.handle();
    let (held, env) = (key("a/x"), Env::real());
    let (told, gone) = tokio::sync::oneshot::channel();
    env.spawn(async move {
        let _ = told.send(waiter.await_gone(&held, created).await);
    });
    let transaction = client.transaction().await.expect("it begins");
    let outcome = kv.txn_in(&transaction, &realm(), writes(vec![Write::Delete(key("a/x"))])).await.expect("it runs");
    assert!(matches!(outcome, TxnOutcome::Committed { .. }), "{outcome:?}");
    transaction.commit().await.expect("it commits");
    within("a wake-up", gone).await.expect("the task lives").expect("it answers");
}

#[tokio::test]
async fn a_refusal_leaves_the_host_transaction_standing() {
    let server = with_orders().await;
    let kv = postgres_kv(&server).await;
    kv.handle().put(&key("a/x"), "no number", None).await.expect("commits");
    let mut client = client(&server).await;
    let transaction = client.transaction().await.expect("it begins");
    let mut refused = writes(vec![put("a/y", "1")]);
    refused.checks.push(Check::Absent(key("a/x")));
    let outcome = kv.txn_in(&transaction, &realm(), refused).await.expect("it runs");
    assert!(matches!(outcome, TxnOutcome::Refused { check: 0, found: Some(_) }), "{outcome:?}");
    let leased = Write::Put { key: key("a/y"), value: "1".into(), lease: Some(LeaseId(42)) };
    let fenced = kv.txn_in(&transaction, &realm(), writes(vec![leased])).await.expect_err("no such lease");
    assert_eq!(fenced.kind(), ErrorKind::Fenced);
    let incr = Write::Incr { key: key("a/x"), by: 1 };
    let invalid = kv.txn_in(&transaction, &realm(), writes(vec![incr])).await.expect_err("no number");
    assert_eq!(invalid.kind(), ErrorKind::Invalid);
    let twice = writes(vec![put("a/y", "1"), put("a/y", "2")]);
    let invalid = kv.txn_in(&transaction, &realm(), twice).await.expect_err("checked as everywhere");
    assert_eq!(invalid.kind(), ErrorKind::Invalid);
    transaction.execute("INSERT INTO orders VALUES (1)", &[]).await.expect("it stands");
    transaction.commit().await.expect("it commits");
    assert_eq!((orders(&server).as_str(), value(&kv.handle(), "a/y").await), ("1", None));
}

#[tokio::test]
async fn a_stricter_isolation_is_a_conflict_rather_than_a_wrong_answer() {
    let server = with_orders().await;
    let kv = postgres_kv(&server).await;
    kv.handle().put(&key("a/x"), "1", None).await.expect("commits");
    let mut client = client(&server).await;
    for (overtaken, isolation) in [
        (true, IsolationLevel::RepeatableRead),
        (true, IsolationLevel::Serializable),
        (false, IsolationLevel::Serializable),
    ] {
        let transaction = client.build_transaction().isolation_level(isolation).start().await.expect("it begins");
        transaction.query("SELECT * FROM orders", &[]).await.expect("it takes its snapshot");
        if overtaken {
            kv.handle().put(&key("a/x"), "2", None).await.expect("commits");
        }
        let result = kv.txn_in(&transaction, &realm(), writes(vec![put("a/y", "1")])).await;
        match result {
            Err(error) => assert!(overtaken && error.kind() == ErrorKind::Conflict, "{error}"),
            Ok(outcome) => {
                assert!(!overtaken && matches!(outcome, TxnOutcome::Committed { .. }), "{outcome:?}");
                transaction.commit().await.expect("it commits");
            }
        }
    }
    assert_eq!(value(&kv.handle(), "a/y").await.as_deref(), Some("1"));
}

#[tokio::test]
async fn an_expired_lease_is_swept_inside_the_host_transaction() {
    let server = start(&[]).await;
    let kv = postgres_kv(&server).await;
    let mut client = client(&server).await;
    for round in 0..20 {
        let lease = kv.handle().lease_grant(std::time::Duration::from_secs(600)).await.expect("granted").id;
        kv.handle().put(&key("a/x"), "1", Some(lease)).await.expect("commits");
        client
            .execute("UPDATE coact.lease SET expires_at = clock_timestamp() WHERE id = $1", &[&lease.0])
            .await
            .expect("runs");
        let transaction = client.transaction().await.expect("it begins");
        let mut txn = writes(vec![put("a/x", "2")]);
        txn.checks.push(Check::Absent(key("a/x")));
        let outcome = kv.txn_in(&transaction, &realm(), txn).await.expect("it runs");
        assert!(matches!(outcome, TxnOutcome::Committed { .. }), "round {round}: {outcome:?}");
        transaction.commit().await.expect("it commits");
        assert_eq!(value(&kv.handle(), "a/x").await.as_deref(), Some("2"));
        kv.handle().delete(&key("a/x")).await.expect("commits");
    }
}

#[tokio::test]
async fn the_fence_refuses_an_older_token_and_remembers_with_the_transaction() {
    let server = with_orders().await;
    let kv = postgres_kv(&server).await;
    let mut client = client(&server).await;
    let fence = kv.fence_statement();
    assert_eq!(fence, "SELECT coact.fence($1, $2)");
    let mut write = async |token: i64, id: i64, commits: bool| {
        let transaction = client.transaction().await.expect("it begins");
        transaction.execute(&fence, &[&"orders", &token]).await?;
        transaction.execute("INSERT INTO orders VALUES ($1)", &[&id]).await?;
        if commits { transaction.commit().await } else { transaction.rollback().await }
    };
    write(5, 1, true).await.expect("the first");
    write(5, 2, true).await.expect("the same holder again");
    // A token counts as seen when its transaction commits.
    write(9, 3, false).await.expect("rolled back");
    write(6, 4, true).await.expect("the next holder");
    let error = write(5, 5, true).await.expect_err("it is not the holder any more");
    assert_eq!(error.code(), Some(&SqlState::from_code("CF001")), "{error:?}");
    let shown = error.as_db_error().expect("the server said so").message();
    assert_eq!(shown, "token 5 for orders is over: 6 was seen");
    assert_eq!(orders(&server), "3");
}
