//! `cargo xtask codegen`: the wire types and gRPC stubs of etcd v3 and of coact's own services, from the `.proto` files
//! in `crates/coact-engine-etcd/proto`.
//!
//! The result is committed, so that building coact needs neither `protoc` nor a build script. The whole
//! path is Rust: protox parses, prost and tonic generate, prettyplease formats.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

const PROTO_DIR: &str = "crates/coact-engine-etcd/proto";
const WIRE_DIR: &str = "crates/coact-engine-etcd/src/wire";
const PROTOS: [&str; 8] = [
    "kv.proto",
    "rpc.proto",
    "v3lock.proto",
    "v3election.proto",
    "coact/common.proto",
    "coact/queue.proto",
    "coact/commit.proto",
    "coact/stream.proto",
];
/// What comes out: one file for each protobuf package.
const GENERATED: [&str; 5] = ["mvccpb.rs", "etcdserverpb.rs", "v3lockpb.rs", "v3electionpb.rs", "coact.v1.rs"];

/// Generates, and writes the files that have changed.
pub(crate) fn run() -> Result<()> {
    for file in stale()? {
        fs::write(&file.path, file.text).with_context(|| format!("writing {}", file.path.display()))?;
    }
    Ok(())
}

/// Generates elsewhere, and fails if what is committed differs.
pub(crate) fn check() -> Result<()> {
    let stale = stale()?;
    if stale.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = stale.iter().map(|file| file.name).collect();
    bail!("not what the .proto files generate: {} (in {WIRE_DIR}); run `cargo xtask codegen`", names.join(", "));
}

/// A generated file whose committed counterpart is missing or different.
struct Stale {
    name: &'static str,
    path: PathBuf,
    text: String,
}

fn stale() -> Result<Vec<Stale>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask has no parent directory")?;
    let out = generate(&root.join(PROTO_DIR))?;
    let mut stale = Vec::new();
    for name in GENERATED {
        let text = fs::read_to_string(out.path().join(name)).with_context(|| format!("{name} was not generated"))?;
        let path = root.join(WIRE_DIR).join(name);
        let committed = match fs::read_to_string(&path) {
            Ok(committed) => Some(committed),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
        };
        if committed.as_deref() != Some(text.as_str()) {
            stale.push(Stale { name, path, text });
        }
    }
    Ok(stale)
}

fn generate(protos: &Path) -> Result<TempDir> {
    let descriptors = protox::compile(PROTOS, [protos]).context("compiling the .proto files")?;
    let out = tempfile::tempdir()?;
    tonic_prost_build::configure()
        .bytes(".")
        .build_client(true)
        .build_server(true)
        .emit_rerun_if_changed(false)
        .out_dir(out.path())
        .compile_fds(descriptors)
        .context("generating the Rust sources")?;
    Ok(out)
}
