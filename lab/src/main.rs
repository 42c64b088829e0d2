//! coact's lab.

fn main() {}
