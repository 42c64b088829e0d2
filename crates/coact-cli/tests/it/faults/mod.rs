//! The blocks when things fail: processes that are stopped and killed, networks that part, clocks that jump. Real
//! processes, real sockets, real time.

mod clock;
mod crowd;
mod journal;
mod kill;
mod partition;
mod pause;
mod worker;
