//! The conformance suite of the Kv contract: one line per engine runs all of it.
//!
//! `cases!` both defines and registers, so that no case can be forgotten; so does `themes!` for the files. A case
//! that needs more than its arguments says so with `#[needs(…)]`; where the need is unmet, the case is reported as
//! ignored, with the reason, and counted.

mod context;
mod run;

use coact_core::guarantees::{Durability, Guarantees};
use futures::future::LocalBoxFuture;

pub use self::{
    context::{Context, Watching},
    run::main,
};

/// One case of the suite.
struct Case {
    name: &'static str,
    needs: &'static [&'static Need],
    run: for<'a> fn(&'a Context) -> LocalBoxFuture<'a, ()>,
}

/// What a case needs of its bed.
struct Need {
    /// Completes "needs …".
    what: &'static str,
    is_met: fn(&Offer) -> bool,
    /// Whether other cases must not run meanwhile on the same store.
    alone: bool,
}

/// What a bed has to offer.
struct Offer {
    guarantees: Guarantees,
    restarts: bool,
    compacts: bool,
}

/// To be ended hard and started again on the same data.
const RESTARTS: Need = Need { what: "a bed that can restart its store", is_met: |offer| offer.restarts, alone: true };
/// To forget history on request.
const COMPACTS: Need = Need { what: "a bed that can compact its store", is_met: |offer| offer.compacts, alone: true };
/// To keep what it acknowledged.
const DURABLE: Need = Need {
    what: "writes that survive the process",
    is_met: |offer| offer.guarantees.writes > Durability::Memory,
    alone: false,
};
/// To have the store for itself, because closing a client may close the store.
const ALONE: Need = Need { what: "nothing but to run alone", is_met: |_| true, alone: true };

/// Defines cases and registers them in the theme's `CASES`.
macro_rules! cases {
    ($($(#[needs($need:path)])* async fn $name:ident($cx:ident: &Context) $body:block)+) => {
        $(async fn $name($cx: &Context) $body)+

        pub(super) const CASES: &[$crate::suite::kv::Case] = &[$($crate::suite::kv::Case {
            name: stringify!($name),
            needs: &[$(&$need),*],
            run: |cx| Box::pin($name(cx)),
        }),+];
    };
}

/// Declares the files of cases and collects what they register.
macro_rules! themes {
    ($($theme:ident)+) => {
        $(mod $theme;)+

        fn all_cases() -> impl Iterator<Item = &'static Case> {
            [$($theme::CASES),+].into_iter().flatten()
        }
    };
}

themes! { txn writes limits list watch wait lease life history }
