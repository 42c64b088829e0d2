//! Conformance suites: one for each contract, run against every engine that claims to hold it.
//!
//! `cases!` both defines and registers, so that no case can be forgotten; so does `themes!` for the files. A case
//! that needs more than its arguments says so with `#[needs(…)]`; where the need is unmet, the case is reported as
//! ignored, with the reason, and counted. What an engine must refuse because it does not declare it has cases of its
//! own, which need the opposite.

/// Defines cases and registers them in the theme's `CASES`.
macro_rules! cases {
    ($($(#[needs($need:path)])* async fn $name:ident($cx:ident: &Context) $body:block)+) => {
        $(async fn $name($cx: &Context) $body)+

        pub(super) const CASES: &[$crate::suite::Case<Context>] = &[$($crate::suite::Case {
            name: stringify!($name),
            needs: &[$(&$need),*],
            run: |cx| Box::pin($name(cx)),
        }),+];
    };
}

/// Declares the files of cases and makes a suite of what they register.
macro_rules! themes {
    ($contract:literal: $($theme:ident)+) => {
        $(mod $theme;)+

        /// The suite of this contract.
        pub fn suite() -> $crate::suite::Suite {
            $crate::suite::Suite::new($contract, [$($theme::CASES),+].into_iter().flatten())
        }
    };
}

mod context;
pub mod kv;
pub mod queue;
mod run;
pub mod stream;

use coact_core::{Error, guarantees::Durability};
use futures::future::LocalBoxFuture;

pub use self::{context::Basis, run::main};

/// Every case of one contract.
#[derive(Debug)]
pub struct Suite {
    contract: &'static str,
    cases: Vec<AnyCase>,
}

impl Suite {
    fn new<C: Contract>(contract: &'static str, cases: impl Iterator<Item = &'static Case<C>>) -> Self {
        Self { contract, cases: cases.map(AnyCase::new).collect() }
    }
}

/// What the cases of one contract work with.
trait Contract: Sized + 'static {
    /// Takes what the contract needs from a store; `Unsupported` if the store has no such contract.
    fn of(basis: Basis) -> Result<Self, Error>;
}

/// One case of a suite.
struct Case<C: 'static> {
    name: &'static str,
    needs: &'static [&'static Need],
    run: for<'a> fn(&'a C) -> LocalBoxFuture<'a, ()>,
}

/// One case, whatever its contract.
struct AnyCase {
    name: &'static str,
    needs: &'static [&'static Need],
    run: Box<dyn Fn(Basis) -> LocalBoxFuture<'static, Result<(), Error>> + Send>,
}

impl AnyCase {
    fn new<C: Contract>(case: &'static Case<C>) -> Self {
        let run = |basis| -> LocalBoxFuture<'static, Result<(), Error>> {
            Box::pin(async {
                let context = C::of(basis)?;
                (case.run)(&context).await;
                Ok(())
            })
        };
        Self { name: case.name, needs: case.needs, run: Box::new(run) }
    }
}

impl std::fmt::Debug for AnyCase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// What a case needs of its bed and store.
struct Need {
    /// Completes "needs …".
    what: &'static str,
    is_met: fn(&Basis) -> bool,
    /// Whether other cases must not run meanwhile on the same store.
    alone: bool,
}

impl Need {
    const fn new(what: &'static str, is_met: fn(&Basis) -> bool) -> Self {
        Self { what, is_met, alone: false }
    }
}

/// To be ended hard and started again on the same data.
const RESTARTS: Need =
    Need { what: "a bed that can restart its store", is_met: |basis| basis.bed.restart().is_some(), alone: true };
/// To keep what it acknowledged.
const DURABLE: Need =
    Need::new("writes that survive the process", |basis| basis.store.kv().guarantees().writes > Durability::Memory);
/// To have the store for itself, because closing a client may close the store.
const ALONE: Need = Need { what: "nothing but to run alone", is_met: |_| true, alone: true };
