//! One client: a session, a lock that guards a resource, and ids.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use coact::{
    Env, KvHandle, Result, Session, SessionOptions,
    id::{Generator, IdOptions, Layout},
    lock::{Guard, Mutex, MutexOptions},
};

use super::{Scene, client_name};

const TTL: Duration = Duration::from_secs(5);

struct Client {
    scene: Scene,
    number: usize,
    env: Env,
    kv: KvHandle,
    /// Makes the names of holders and generators differ.
    names: AtomicU64,
}

/// Starts the process of a client, which works until it crashes.
pub(super) fn start(scene: &Scene, number: usize) {
    let env = scene.world.env(&client_name(number));
    let kv = scene.links[number].kv();
    let client = Client { scene: scene.clone(), number, env: env.clone(), kv, names: AtomicU64::new(env.random()) };
    env.spawn(async move {
        loop {
            // Whatever fails, a new session begins.
            let _ = client.live().await;
            client.env.sleep(client.env.random_duration(Duration::from_millis(500))).await;
        }
    });
}

impl Client {
    /// One session.
    async fn live(&self) -> Result<()> {
        let session =
            Session::open(&self.kv, SessionOptions { ttl: TTL, name: Some(client_name(self.number)) }).await?;
        let mutex = Mutex::with_options(&session, "job", MutexOptions::default())?;
        let generator = Generator::open(&session, id_options()).await?;
        tokio::select! {
            biased;
            failed = self.issue_ids(&generator) => failed,
            () = self.compete(&session, &mutex) => Ok(()),
        }
    }

    async fn issue_ids(&self, generator: &Generator) -> Result<()> {
        let name = self.unique_name();
        loop {
            for id in generator.next_n(10).await? {
                self.scene.ids.issued(&name, id.get());
                self.scene.progress.lock()[self.number].ids += 1;
            }
            self.env.sleep(self.env.random_duration(Duration::from_millis(600))).await;
        }
    }

    async fn compete(&self, session: &Session, mutex: &Mutex) {
        while session.is_alive() {
            let patience = self.env.random_duration(Duration::from_secs(15));
            let patience = if self.scene.is_calm() { super::CALM } else { patience };
            if let Ok(guard) = mutex.acquire_within(patience).await {
                self.hold(guard).await;
            }
            self.env.sleep(self.env.random_duration(Duration::from_millis(300))).await;
        }
    }

    fn unique_name(&self) -> String {
        format!("{}/{:x}", client_name(self.number), self.names.fetch_add(1, Relaxed))
    }

    /// Writes to the resource while it holds the lock, and sometimes too late.
    async fn hold(&self, guard: Guard) {
        let name = self.unique_name();
        if guard.is_held() {
            self.scene.progress.lock()[self.number].grants += 1;
            let inside = Inside::enter(&self.scene, &name, guard.token());
            let work = async {
                for _ in 0..self.env.random() % 4 {
                    if guard.is_held() {
                        let taken = self.scene.resource.write(&name, guard.token());
                        assert!(taken, "two believe to hold the lock: {name} was refused");
                    }
                    self.env.sleep(self.env.random_duration(Duration::from_millis(400))).await;
                }
            };
            tokio::select! {
                biased;
                _ = guard.lost() => {}
                () = work => {}
            }
            drop(inside);
        }
        if self.env.random().is_multiple_of(4) {
            self.write_late(name, guard.token());
        }
        match self.env.random() % 3 {
            0 => drop(guard),
            1 => drop(self.env.timeout(Duration::from_secs(1), guard.release()).await),
            _ => drop(guard.release().await),
        }
    }

    /// A write that is on its way for long, or of a process that was paused and does not look: only its token stops it.
    fn write_late(&self, name: String, token: u64) {
        let (env, resource) = (self.env.clone(), self.scene.resource.clone());
        self.scene.world.spawn(async move {
            env.sleep(env.random_duration(2 * TTL)).await;
            resource.write(&name, token);
        });
    }
}

fn id_options() -> IdOptions {
    IdOptions {
        // Few ids a millisecond, so that they fill the time, and many workers, since a clock that jumps spoils one.
        layout: Layout::new(41, 7, 1).expect("valid"),
        window: Duration::from_secs(1),
        ..IdOptions::default()
    }
}

/// Believes to hold the lock until it is dropped, as a crash does.
struct Inside<'a> {
    scene: &'a Scene,
    name: &'a str,
}

impl<'a> Inside<'a> {
    fn enter(scene: &'a Scene, name: &'a str, token: u64) -> Self {
        scene.resource.enter(name, token);
        Self { scene, name }
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.scene.resource.leave(self.name);
    }
}
