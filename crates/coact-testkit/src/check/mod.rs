//! Checkers: they watch what happened and say whether it may happen.

pub mod ghosts;
pub mod linearizable;
pub mod queue;
pub mod stream;
pub mod tokens;
pub mod unique;
pub mod watch;
