//! What coact keeps in the database: made when it is missing, and refused when it is newer.

use coact_core::{Error, ErrorKind, Result};
use tokio_postgres::types::Type;

use crate::{
    config::Config,
    connection::Connections,
    errors::{Access, Failure, grants, peer},
};

/// The version that this code knows.
const VERSION: i32 = 1;
/// What leads from each version to the next; the first makes everything.
const STEPS: [&str; VERSION as usize] = [include_str!("schema.sql")];
/// Names coact's migrations among the advisory locks of a database.
const LOCK: i64 = 0x636f_6163_7401;

/// Makes the schema ready for this code.
pub(crate) async fn prepare(connections: &Connections) -> Result<()> {
    let found = version(connections).await?;
    if found < VERSION {
        migrate(connections).await?;
    }
    Ok(())
}

/// The version in the database; zero if there is none.
async fn version(connections: &Connections) -> Result<i32> {
    let config = &connections.config;
    let table = format!("{}.version", config.schema);
    let rows = connections.query(Access::Read, "SELECT to_regclass($1) IS NOT NULL", &[(&table, Type::TEXT)]).await?;
    if !rows.first().is_some_and(|row| row.get(0)) {
        return Ok(0);
    }
    let rows = connections.query(Access::Read, &format!("SELECT version FROM {table}"), &[]).await?;
    known(config, rows.first().map_or(0, |row| row.get(0)))
}

fn known(config: &Config, found: i32) -> Result<i32> {
    if found <= VERSION {
        return Ok(found);
    }
    let (schema, peer) = (&config.schema, peer(config));
    Err(Error::new(
        ErrorKind::Unsupported,
        format!(
            "the schema {schema} of {peer} has version {found}, made by a newer coact; this one knows up to version \
             {VERSION}: use the newer coact here too, or another schema (URL option schema=NAME)"
        ),
    ))
}

/// Leads to this version, in one transaction. Whoever comes at the same time waits, and finds it done.
async fn migrate(connections: &Connections) -> Result<()> {
    let config = &connections.config;
    let failed = |error: tokio_postgres::Error| denied(config, Failure::of(&error, config, Access::Idempotent).error);
    let work = async {
        let deadline = connections.env.now() + config.timeout;
        let mut connection = connections.connection(deadline).await.map_err(|failure| failure.error)?;
        let transaction = connection.inner_mut().transaction().await.map_err(failed)?;
        transaction.query_typed("SELECT pg_advisory_xact_lock($1)", &[(&LOCK, Type::INT8)]).await.map_err(failed)?;
        let schema = &config.schema;
        // Without the right to make a schema, one that an administrator made will do.
        let rows = transaction
            .query_typed("SELECT to_regnamespace($1) IS NOT NULL", &[(schema, Type::TEXT)])
            .await
            .map_err(failed)?;
        if !rows.first().is_some_and(|row| row.get(0)) {
            transaction.batch_execute(&format!("CREATE SCHEMA {schema}")).await.map_err(failed)?;
        }
        let begin = format!("CREATE TABLE IF NOT EXISTS {schema}.version (version integer NOT NULL)");
        transaction.batch_execute(&begin).await.map_err(failed)?;
        let rows =
            transaction.query_typed(&format!("SELECT version FROM {schema}.version"), &[]).await.map_err(failed)?;
        let found = known(config, rows.first().map_or(0, |row| row.get(0)))?;
        for step in STEPS.iter().skip(usize::try_from(found).unwrap_or_default()) {
            transaction.batch_execute(&step.replace("{schema}", schema)).await.map_err(failed)?;
        }
        let end = format!("DELETE FROM {schema}.version; INSERT INTO {schema}.version VALUES ({VERSION})");
        transaction.batch_execute(&end).await.map_err(failed)?;
        transaction.commit().await.map_err(failed)?;
        connection.give_back();
        tracing::info!(engine = %config.description, schema, from = found, to = VERSION, "the schema was migrated");
        Ok(())
    };
    match connections.env.timeout(config.timeout, work).await {
        Some(result) => result,
        None => Err(Failure::timeout(config, config.timeout, Access::Idempotent).error),
    }
}

/// Says what an administrator can do if the role may not make the schema.
fn denied(config: &Config, error: Error) -> Error {
    if error.kind() != ErrorKind::Denied {
        return error;
    }
    let (schema, role) = (&config.schema, &config.user);
    Error::new(
        ErrorKind::Denied,
        format!(
            "role {role:?} may not make coact's schema in {}: as an administrator run: CREATE SCHEMA {schema} \
             AUTHORIZATION \"{role}\"; or let a role that may open it once, and then {}",
            peer(config),
            grants(config)
        ),
    )
}
