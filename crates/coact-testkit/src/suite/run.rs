//! Runs the cases: on one store per bed, each case with names of its own.

use std::{collections::BTreeMap, process::ExitCode, sync::Arc, time::Duration};

use coact_core::{env::Env, name::Namespace, registry::Store};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use parking_lot::Mutex as SyncMutex;
use tokio::{
    runtime::{Builder, Runtime},
    sync::{Mutex, OnceCell, RwLock},
};

use super::{AnyCase, Basis, Suite};
use crate::bed::{Bed, StartError, beds_are_required};

/// Cases mostly wait, for syncs and for leases to end: more of them at a time than processors.
const CASES_AT_A_TIME: usize = 8;
/// A case that takes longer hangs.
const CASE_TIME_MAX: Duration = Duration::from_secs(180);

/// Runs every case of these suites against every bed: the `main` of a test with `harness = false`.
pub fn main<const N: usize>(beds: Vec<Box<dyn Bed>>, suites: [fn() -> Suite; N]) -> ExitCode {
    let mut args = Arguments::from_args();
    args.test_threads.get_or_insert(CASES_AT_A_TIME);
    let runtime = Arc::new(Builder::new_multi_thread().enable_all().build().expect("a runtime"));
    // Engines are dropped where they ran.
    let _inside = runtime.enter();
    let skipped = Arc::new(Skipped::default());
    let mut trials = Vec::new();
    for bed in beds {
        let stage = Arc::new(Stage {
            bed: bed.into(),
            started: OnceCell::new(),
            shared: Mutex::default(),
            turn: RwLock::default(),
        });
        for Suite { contract, cases } in suites.map(|suite| suite()) {
            trials.extend(cases.into_iter().map(|case| trial(contract, case, &stage, &runtime, &skipped)));
        }
    }
    let conclusion = libtest_mimic::run(&args, trials);
    skipped.print();
    conclusion.exit_code()
}

fn trial(contract: &str, case: AnyCase, stage: &Arc<Stage>, runtime: &Arc<Runtime>, skipped: &Arc<Skipped>) -> Trial {
    let (stage, runtime, skipped) = (stage.clone(), runtime.clone(), skipped.clone());
    Trial::ignorable_test(format!("{}::{contract}::{}", stage.bed.name(), case.name), move || {
        match runtime.block_on(stage.run(&case))? {
            Outcome::Passed => Ok(Completion::Completed),
            Outcome::Skipped(why) => {
                skipped.count(stage.bed.name(), &why);
                Ok(Completion::ignored_with(why))
            }
        }
    })
}

enum Outcome {
    Passed,
    Skipped(String),
}

/// One bed and what the cases on it share.
struct Stage {
    bed: Arc<dyn Bed>,
    started: OnceCell<Result<(), StartError>>,
    shared: Mutex<Option<Store>>,
    /// Held for reading by most cases, for writing by those that need to be alone.
    turn: RwLock<()>,
}

impl Stage {
    async fn run(&self, case: &AnyCase) -> Result<Outcome, Failed> {
        match self.started.get_or_init(|| self.bed.start()).await {
            Err(StartError::Missing(remedy)) if !beds_are_required() => return Ok(Outcome::Skipped(remedy.clone())),
            Err(error) => return Err(error.to_string().into()),
            Ok(()) => {}
        }
        if case.needs.iter().any(|need| need.alone) {
            let _turn = self.turn.write().await;
            let store = self.shared().await?;
            // The case may close it.
            *self.shared.lock().await = None;
            self.run_with(case, store).await
        } else {
            let _turn = self.turn.read().await;
            let store = self.shared().await?;
            self.run_with(case, store).await
        }
    }

    async fn shared(&self) -> Result<Store, Failed> {
        let mut shared = self.shared.lock().await;
        if let Some(store) = &*shared {
            return Ok(store.clone());
        }
        let store = self.bed.open(&Namespace::default()).await?;
        Ok(shared.insert(store).clone())
    }

    async fn run_with(&self, case: &AnyCase, store: Store) -> Result<Outcome, Failed> {
        let env = Env::real();
        let unique = format!("t{:016x}", env.random());
        let basis = Basis { bed: self.bed.clone(), store, env: env.clone(), unique };
        if let Some(need) = case.needs.iter().find(|need| !(need.is_met)(&basis)) {
            return Ok(Outcome::Skipped(format!("needs {}", need.what)));
        }
        match env.timeout(CASE_TIME_MAX, (case.run)(basis)).await {
            Some(ran) => Ok(ran.map(|()| Outcome::Passed)?),
            None => Err(format!("the case hangs: it did not end within {CASE_TIME_MAX:?}").into()),
        }
    }
}

/// How many cases of which bed did not run, and why.
#[derive(Default)]
struct Skipped(SyncMutex<BTreeMap<(String, String), usize>>);

impl Skipped {
    fn count(&self, bed: &str, why: &str) {
        *self.0.lock().entry((bed.to_owned(), why.to_owned())).or_default() += 1;
    }

    #[allow(clippy::print_stdout, reason = "the report of a test program")]
    fn print(&self) {
        for ((bed, why), count) in &*self.0.lock() {
            println!("skipped: {count} cases of {bed}: {why}");
        }
    }
}
