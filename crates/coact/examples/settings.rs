//! Configuration with versions: change it under a condition, watch it, take a change back.
//!
//! `cargo run -p coact --example settings`
#![allow(clippy::print_stdout, reason = "an example tells what it does")]

use coact::{
    ErrorKind, Realm,
    directory::{SettingChange, Settings},
};

#[path = "shared/store.rs"]
mod store;

#[tokio::main]
async fn main() -> coact::Result<()> {
    let (kv, _dir) = store::open().await?;
    let settings = Settings::new(&kv, Realm::default())?;
    let mut changes = settings.watch("billing")?;

    let first = settings.put("billing", "currency", "EUR", None).await?;
    settings.put("billing", "currency", "USD", Some(first)).await?;
    let late = settings.put("billing", "currency", "GBP", Some(first)).await.expect_err("somebody was faster");
    assert_eq!(late.kind(), ErrorKind::Conflict);
    println!("refused: {late}");
    settings.rollback("billing", "currency", first).await?;

    loop {
        if let SettingChange::Set(setting) = changes.next().await? {
            println!("version {}: {}", setting.version, setting.text().unwrap_or("no text"));
            if setting.restores == Some(first) {
                break;
            }
        }
    }
    kv.close().await
}
