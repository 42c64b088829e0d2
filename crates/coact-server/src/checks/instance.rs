//! One instance: tries, counts, and says when the verdict changes.

use std::{sync::Arc, time::Duration};

use coact_blocks::directory::{Check, Health, Instance, Watch};
use coact_core::ErrorKind;
use tracing::debug;

use super::{probe::Outcome, service::Job};

/// Within what time the first try comes, so that those of many instances do not come at once.
const FIRST_WITHIN: Duration = Duration::from_secs(1);

/// Checks one instance for ever.
pub(super) async fn check(job: Arc<Job>, watch: Watch, instance: Instance, check: Check) {
    let common = &job.common;
    let env = &common.env;
    let mut tally = Tally::default();
    env.sleep(env.random_duration(check.interval.min(FIRST_WITHIN))).await;
    loop {
        let started = env.now();
        let outcome = try_once(&job, &instance, &check).await;
        common.metrics.checked(&check.kind, outcome.name());
        if let Some(verdict) = tally.note(outcome, &check) {
            tell(&job, &watch, &instance.id, verdict).await;
        }
        let pause = check.interval.mul_f64(0.9) + env.random_duration(check.interval.mul_f64(0.2));
        env.sleep_until(started + pause).await;
    }
}

async fn try_once(job: &Job, instance: &Instance, check: &Check) -> Outcome {
    let common = &job.common;
    // It is never closed. Waiting for a place does not count as the instance's time.
    let _place = common.places.acquire().await;
    let probing = common.prober.probe(instance, &check.kind);
    let outcome = common.env.timeout(check.timeout, Box::pin(probing)).await;
    outcome.unwrap_or_else(|| Outcome::TimedOut(format!("no answer within {:?}", check.timeout)))
}

/// Writes a verdict if the directory shows another: so it is also written again when somebody removed it.
async fn tell(job: &Job, watch: &Watch, id: &str, verdict: Health) {
    let snapshot = watch.snapshot();
    let Some(seen) = snapshot.get(id) else { return };
    if std::mem::discriminant(&seen.health) == std::mem::discriminant(&verdict) {
        return;
    }
    match job.report(id, verdict).await {
        Ok(()) => {}
        // It is gone; whoever watches the service ends us.
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => debug!(service = job.service, id, %error, "a verdict is written with the next try"),
    }
}

/// Tries in a row.
#[derive(Debug, Default)]
struct Tally {
    failures: u32,
    successes: u32,
    verdict: Option<Health>,
}

impl Tally {
    /// Takes the outcome of a try and returns the verdict, once there is one.
    fn note(&mut self, outcome: Outcome, check: &Check) -> Option<Health> {
        match outcome.failure() {
            None => {
                self.failures = 0;
                self.successes = self.successes.saturating_add(1);
                if self.successes >= check.successes_to_healthy {
                    self.verdict = Some(Health::Passing);
                }
            }
            Some(why) => {
                self.successes = 0;
                self.failures = self.failures.saturating_add(1);
                if self.failures >= check.failures_to_unhealthy {
                    self.verdict = Some(Health::Failing { why });
                }
            }
        }
        self.verdict.clone()
    }
}

#[cfg(test)]
mod tests {
    use coact_blocks::directory::CheckKind;

    use super::*;

    #[test]
    fn a_verdict_takes_as_many_tries_in_a_row_as_the_check_says() {
        let check = Check { failures_to_unhealthy: 3, successes_to_healthy: 2, ..Check::new(CheckKind::Tcp) };
        let mut tally = Tally::default();
        let mut verdicts = String::new();
        for outcome in "ffpffpfffpfppfp".chars() {
            let outcome = if outcome == 'p' { Outcome::Passed } else { Outcome::Failed("no".to_owned()) };
            verdicts.push(match tally.note(outcome, &check) {
                None => '-',
                Some(Health::Passing) => 'P',
                Some(_) => 'F',
            });
        }
        assert_eq!(verdicts, "--------FFFFPPP");
    }
}
