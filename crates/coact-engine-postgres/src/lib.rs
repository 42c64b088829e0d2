//! coact's engine over PostgreSQL.
