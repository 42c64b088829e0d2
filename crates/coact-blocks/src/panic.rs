//! What a handler's panic said.

use std::any::Any;

/// The failure that a panic of a user's handler is, in words.
pub(crate) fn describe(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("the handler panicked: {}", text.unwrap_or("without a message"))
}
