//! `coact context`: named nodes.

use std::path::PathBuf;

use clap::Subcommand;
use coact::{Error, ErrorKind, Result, Url};
use serde_json::json;

use crate::{
    context::{Context as Stored, Contexts},
    exit::Exit,
    output::{self, Output, say},
};

/// Commands of `coact context`.
#[derive(Debug, Subcommand)]
pub(crate) enum Context {
    /// Remember a node under a name. The first one is used from then on.
    Add {
        /// What it is called.
        name: String,
        /// Its URL, as of --at.
        #[arg(long, value_name = "URL")]
        at: String,
        /// A file that holds its token.
        #[arg(long, value_name = "FILE", conflicts_with = "token_env")]
        token_file: Option<PathBuf>,
        /// A variable that holds its token.
        #[arg(long, value_name = "NAME")]
        token_env: Option<String>,
        /// The authority of its certificate; with it, TLS is spoken.
        #[arg(long, value_name = "FILE")]
        ca: Option<PathBuf>,
    },
    /// Use this one if nothing else is said.
    Use {
        /// What it is called.
        name: String,
    },
    /// List them.
    Ls {
        /// How the result is shown.
        #[arg(short, long, value_enum, default_value = "table")]
        output: output::Format,
    },
    /// Forget one.
    Rm {
        /// What it is called.
        name: String,
    },
}

impl Context {
    pub(crate) fn run(self) -> Result<Exit> {
        let mut contexts = Contexts::load()?;
        match self {
            Self::Add { name, at, token_file, token_env, ca } => {
                let context = Stored { url: at, token_file: absolute(token_file)?, token_env, ca: absolute(ca)? };
                add(&mut contexts, name, context)?;
            }
            Self::Use { name } => {
                contexts.get(&name)?;
                contexts.current = Some(name);
            }
            Self::Ls { output } => {
                list(&contexts, output);
                return Ok(Exit::SUCCESS);
            }
            Self::Rm { name } => {
                contexts.get(&name)?;
                contexts.contexts.remove(&name);
                contexts.current = contexts.current.filter(|current| *current != name);
            }
        }
        contexts.save()?;
        Ok(Exit::SUCCESS)
    }
}

fn add(contexts: &mut Contexts, name: String, context: Stored) -> Result<()> {
    let url = Url::parse(&context.url)?;
    if url.option("token").is_some_and(|token| !token.starts_with("env:") && !token.starts_with("file:")) {
        return Err(Error::invalid("the URL holds a token: put it into a file and name that with --token-file"));
    }
    // What is wrong with the whole should be said now.
    Url::parse(&context.to_url()?)?;
    if contexts.contexts.contains_key(&name) {
        let message = format!("there is a context {name:?} already: remove it first with `coact context rm`");
        return Err(Error::new(ErrorKind::AlreadyExists, message));
    }
    if contexts.contexts.is_empty() {
        say(&format!("{name} is used from now on, unless --at, --context or COACT_AT say otherwise"));
        contexts.current = Some(name.clone());
    }
    contexts.contexts.insert(name, context);
    Ok(())
}

fn list(contexts: &Contexts, format: output::Format) {
    let mut out = Output::new(format);
    for (name, context) in &contexts.contexts {
        let file = context.token_file.as_ref().map(|path| format!("file:{}", path.display()));
        out.row(json!({
            "name": name,
            "current": contexts.current.as_ref() == Some(name),
            "url": Url::parse(&context.url).map_or_else(|_| "?".to_owned(), |url| url.to_string()),
            "token": file.or_else(|| context.token_env.as_ref().map(|name| format!("env:{name}"))),
            "ca": context.ca,
        }));
    }
    out.finish();
}

/// Commands run in other directories later.
fn absolute(path: Option<PathBuf>) -> Result<Option<PathBuf>> {
    path.map(|path| {
        std::path::absolute(&path)
            .map_err(|error| Error::invalid(format!("{} is no path", path.display())).with_source(error))
    })
    .transpose()
}
