//! `coact role`: what tokens allow.

use clap::Subcommand;
use coact::Result;
use coact_server::auth::{Permission, Role as Checked};
use serde_json::{Value, json};

use crate::{
    Target,
    admin::{ask, segment},
    exit::Exit,
};

const ROLES: &str = "/v1/auth/roles";

/// Commands of `coact role`.
#[derive(Debug, Subcommand)]
pub(crate) enum Role {
    /// Make or replace a role. Tokens that have it follow at once.
    Put {
        /// What tokens call it.
        name: String,
        /// What it allows, 'NAMESPACE BLOCK VERBS [PREFIX]', for example 'shop lock read,write deploy/'. NAMESPACE and
        /// BLOCK may be *; BLOCK is kv, lock, directory, config, id, session, mq, queue or metrics; VERBS are of
        /// read, write, admin.
        #[arg(long = "allow", value_name = "PERMISSION", required = true)]
        allow: Vec<Permission>,
        #[command(flatten)]
        target: Target,
    },
    /// List roles with what they allow.
    Ls {
        #[command(flatten)]
        target: Target,
    },
    /// Remove a role that no token has.
    Rm {
        /// What tokens call it.
        name: String,
        #[command(flatten)]
        target: Target,
    },
}

impl Role {
    pub(crate) async fn run(self) -> Result<Exit> {
        match self {
            Self::Put { name, allow, target } => {
                let Checked { name, permissions } = Checked::new(&name, allow)?;
                let body = json!({ "permissions": permissions });
                ask(&target, "PUT", &format!("{ROLES}/{}", segment(&name)?), Some(body)).await?;
            }
            Self::Ls { target } => list(&target).await?,
            Self::Rm { name, target } => {
                ask(&target, "DELETE", &format!("{ROLES}/{}", segment(&name)?), None).await?;
            }
        }
        Ok(Exit::SUCCESS)
    }
}

async fn list(target: &Target) -> Result<()> {
    let mut answer = ask(target, "GET", ROLES, None).await?;
    let mut out = target.output();
    let Value::Array(roles) = answer["roles"].take() else { return Ok(()) };
    for role in roles {
        let permissions = role["permissions"].as_array().cloned().unwrap_or_default();
        for permission in permissions {
            let shown = serde_json::from_value::<Permission>(permission).map(|permission| permission.to_string());
            out.row(json!({ "role": role["name"], "built_in": role["built_in"], "allow": shown.unwrap_or_default() }));
        }
    }
    out.finish();
    Ok(())
}
