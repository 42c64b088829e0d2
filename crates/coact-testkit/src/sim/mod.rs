//! The simulator: one seed, one thread, virtual time, and disks and networks that fail.
//!
//! A scenario runs on tokio's current-thread runtime with its clock paused: time passes only when every task waits.
//! Randomness comes from the seed alone, so a seed that fails fails again.

mod disk;
mod link;
mod random;
mod signal;
mod world;

use std::{
    any::Any,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use coact_core::env::Env;

pub use disk::SimDisk;
pub use link::Link;
pub use random::Random;
pub use world::World;

/// The longest that a scenario may take, in virtual time.
const TIME_MAX: Duration = Duration::from_secs(3600);

/// Runs a scenario in the world of this seed.
///
/// # Panics
/// If the scenario or a task of its world panics, or if it has not ended after an hour of virtual time. The message
/// names the seed.
pub fn run<F, S>(seed: u64, scenario: S)
where
    F: Future<Output = ()>,
    S: FnOnce(World) -> F,
{
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime without threads and sockets");
        runtime.block_on(until_failure(seed, scenario))
    }));
    let failure = match outcome {
        Ok(Ok(())) => return,
        Ok(Err(failure)) => failure,
        Err(panic) => text_of(&*panic),
    };
    panic!("seed {seed}: {failure}\nreplay with: COACT_SIM_SEED={seed} cargo test …");
}

async fn until_failure<F, S>(seed: u64, scenario: S) -> Result<(), String>
where
    F: Future<Output = ()>,
    S: FnOnce(World) -> F,
{
    let world = World::new(seed);
    let env = Env::real();
    let scenario = env.timeout(TIME_MAX, Box::pin(scenario(world.clone())));
    tokio::select! {
        biased;
        failure = world.failure() => Err(failure),
        ended = scenario => ended.ok_or_else(|| format!("the scenario hangs: it did not end within {TIME_MAX:?}")),
    }
}

/// The seeds to run: the one of `COACT_SIM_SEED`, or the first `COACT_SIM_SEEDS`, or the first `default_count`.
///
/// # Panics
/// If one of the variables is no number.
pub fn seeds(default_count: u64) -> impl Iterator<Item = u64> {
    match variable("COACT_SIM_SEED") {
        Some(seed) => seed..seed.saturating_add(1),
        None => 0..variable("COACT_SIM_SEEDS").unwrap_or(default_count),
    }
}

fn variable(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

/// The message of a panic.
fn text_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic without a message".to_owned())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn message_of(scenario: impl FnOnce()) -> String {
        let panic = catch_unwind(AssertUnwindSafe(scenario)).expect_err("it fails");
        text_of(&*panic)
    }

    #[test]
    fn time_is_virtual_and_clocks_step() {
        run(1, |world| async move {
            let (env, other) = (world.env("a"), world.env("b"));
            let (wall, now) = (env.wall_ms(), env.now());
            env.sleep(Duration::from_secs(1800)).await;
            assert_eq!(env.now() - now, Duration::from_secs(1800));
            assert_eq!(env.wall_ms() - wall, 1_800_000);
            world.step_clock("a", -3_600_000);
            assert_eq!(wall - env.wall_ms(), 1_800_000);
            assert_eq!(other.wall_ms() - wall, 1_800_000);
        });
    }

    #[test]
    fn a_failure_names_its_seed() {
        let failed = message_of(|| run(7, |_| async { panic!("no such thing") }));
        assert!(failed.starts_with("seed 7: no such thing"), "{failed}");
        let in_a_task = message_of(|| {
            run(8, |world| async move {
                world.env("a").spawn(async { panic!("in a task") });
                std::future::pending().await
            });
        });
        assert!(in_a_task.starts_with("seed 8: in a task"), "{in_a_task}");
        let hung = message_of(|| run(9, |_| std::future::pending()));
        assert!(hung.starts_with("seed 9: the scenario hangs"), "{hung}");
    }

    #[test]
    fn the_same_seed_draws_the_same_and_every_name_its_own() {
        let draw = |seed| {
            let mut drawn = Vec::new();
            run(seed, |world| {
                drawn = ["a", "b", "a"].map(|name| world.env(name).random()).to_vec();
                async {}
            });
            drawn
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        let mut drawn = draw(1);
        drawn.sort_unstable();
        drawn.dedup();
        assert_eq!(drawn.len(), 3);
    }

    #[test]
    fn a_crash_ends_the_tasks_of_its_machine_only() {
        run(1, |world| async move {
            let [mut dead, mut alive] = ["dead", "alive"].map(|name| {
                let (to, from) = tokio::sync::oneshot::channel();
                let env = world.env(name);
                env.clone().spawn(async move {
                    env.sleep(Duration::from_secs(1)).await;
                    let _ = to.send(());
                });
                from
            });
            tokio::task::yield_now().await;
            world.crash("dead");
            assert!((&mut dead).await.is_err());
            assert!((&mut alive).await.is_ok());
        });
    }
}
