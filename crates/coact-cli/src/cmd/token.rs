//! `coact token`: who may use a node.

use clap::Subcommand;
use coact::Result;
use serde_json::{Value, json};

use crate::{
    Target,
    admin::{ask, segment},
    exit::Exit,
    output::{self, say},
};

const TOKENS: &str = "/v1/auth/tokens";

/// Commands of `coact token`.
#[derive(Debug, Subcommand)]
pub(crate) enum Token {
    /// Make a token and print it. It is shown this once, and nobody can show it again.
    Create {
        /// What it is for, as people read it.
        #[arg(long, value_name = "TEXT")]
        label: String,
        /// A role that it has: admin, read-only, metrics, or one of your own (`coact role put`).
        #[arg(long = "role", value_name = "NAME", required = true)]
        roles: Vec<String>,
        /// Let it end by itself after this time, such as 12h or 30d.
        #[arg(long, value_name = "DURATION")]
        expires: Option<String>,
        #[command(flatten)]
        target: Target,
    },
    /// List tokens, without their secrets.
    Ls {
        #[command(flatten)]
        target: Target,
    },
    /// End a token at once.
    Revoke {
        /// Its id: the eight digits in its middle.
        id: String,
        #[command(flatten)]
        target: Target,
    },
}

impl Token {
    pub(crate) async fn run(self) -> Result<Exit> {
        match self {
            Self::Create { label, roles, expires, target } => {
                let body = json!({ "label": label, "roles": roles, "expires_in": expires });
                let made = ask(&target, "POST", TOKENS, Some(body)).await?;
                if target.output().is_table() {
                    let id = made["id"].as_str().unwrap_or_default();
                    say(&format!("token {id} ({label}): keep it now, it is not shown again"));
                }
                let text = made["token"].as_str().unwrap_or_default().to_owned();
                target.output().one(made, &text);
            }
            Self::Ls { target } => list(&target).await?,
            Self::Revoke { id, target } => {
                ask(&target, "DELETE", &format!("{TOKENS}/{}", segment(&id)?), None).await?;
            }
        }
        Ok(Exit::SUCCESS)
    }
}

async fn list(target: &Target) -> Result<()> {
    let mut answer = ask(target, "GET", TOKENS, None).await?;
    let mut out = target.output();
    let Value::Array(tokens) = answer["tokens"].take() else { return Ok(()) };
    for token in tokens {
        let time = |name: &str| token[name].as_u64().map(output::time);
        let roles: Vec<_> = token["roles"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        out.row(json!({
            "id": token["id"],
            "label": token["label"],
            "roles": roles.join(","),
            "created": time("created_ms"),
            "expires": time("expires_ms"),
            "expired": token["expired"],
            "created_by": token["created_by"],
        }));
    }
    out.finish();
    Ok(())
}
