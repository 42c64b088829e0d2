//! `cargo xtask tidy`: what the compiler does not check. Also a test, so that nobody can forget it.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use crate::run::root;

/// A file longer than this wants to be two. Generated code is exempt.
const LINES_MAX: usize = 1000;

/// Which of our crates each crate may depend on: `core ← blocks`, `core ← engines`, all of them `← coact ← server, cli`.
/// Engines never see blocks or each other; the test kit is only ever a development dependency.
const DIRECTIONS: [(&str, &[&str]); 14] = [
    ("coact-core", &[]),
    ("coact-blocks", &["coact-core"]),
    ("coact-engine-embedded", &["coact-core"]),
    ("coact-engine-etcd", &["coact-core"]),
    ("coact-engine-postgres", &["coact-core"]),
    ("coact-engine-redis", &["coact-core"]),
    ("coact-engine-zookeeper", &["coact-core"]),
    (
        "coact",
        &[
            "coact-core",
            "coact-blocks",
            "coact-engine-embedded",
            "coact-engine-etcd",
            "coact-engine-postgres",
            "coact-engine-redis",
            "coact-engine-zookeeper",
        ],
    ),
    ("coact-server", &["coact-core", "coact-blocks", "coact-engine-embedded", "coact-engine-etcd"]),
    ("coact-cli", &["coact", "coact-server"]),
    ("coact-testkit", &["coact-core"]),
    ("coact-bench", &["coact", "coact-engine-etcd", "coact-testkit"]),
    ("coact-lab", &["coact", "coact-testkit"]),
    ("xtask", &[]),
];

pub(crate) fn run() -> Result<()> {
    let mut complaints = Vec::new();
    let files = tracked_files()?;
    for manifest in files.iter().filter(|file| file.ends_with("Cargo.toml") && *file != Path::new("Cargo.toml")) {
        check_manifest(manifest, &mut complaints)?;
    }
    for file in &files {
        match file.extension().and_then(|ending| ending.to_str()) {
            Some("rs") => check_source(file, &mut complaints)?,
            Some("md") => check_document(file, &mut complaints)?,
            _ => {}
        }
    }
    ensure!(complaints.is_empty(), "the tree is not tidy:\n  {}", complaints.join("\n  "));
    Ok(())
}

fn tracked_files() -> Result<Vec<PathBuf>> {
    let output = std::process::Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .context("git cannot be run")?;
    ensure!(output.status.success(), "git ls-files: {}", String::from_utf8_lossy(&output.stderr));
    let names = String::from_utf8(output.stdout)?;
    Ok(names.lines().map(PathBuf::from).filter(|file| root().join(file).is_file()).collect())
}

fn read(file: &Path) -> Result<String> {
    std::fs::read_to_string(root().join(file)).with_context(|| format!("{} cannot be read", file.display()))
}

fn check_manifest(file: &Path, complaints: &mut Vec<String>) -> Result<()> {
    let text = read(file)?;
    let sections = sections(&text);
    let name = sections
        .get("package")
        .and_then(|lines| lines.iter().find_map(|line| line.strip_prefix("name = \"")?.strip_suffix('"')))
        .unwrap_or_default();
    if !sections.get("lints").is_some_and(|lines| lines.contains(&"workspace = true")) {
        complaints.push(format!("{}: [lints] workspace = true is missing", file.display()));
    }
    let Some((_, allowed)) = DIRECTIONS.iter().find(|(crate_name, _)| *crate_name == name) else {
        complaints.push(format!("{}: crate {name:?} has no place in xtask/src/tidy.rs DIRECTIONS", file.display()));
        return Ok(());
    };
    for line in sections.get("dependencies").into_iter().flatten() {
        let dependency = line.split(['.', ' ', '=']).next().unwrap_or_default();
        let ours = DIRECTIONS.iter().any(|(crate_name, _)| *crate_name == dependency);
        if ours && !allowed.contains(&dependency) {
            complaints.push(format!("{}: {name} must not depend on {dependency}", file.display()));
        }
    }
    Ok(())
}

/// The lines of each section of a manifest.
fn sections(text: &str) -> BTreeMap<&str, Vec<&str>> {
    let mut sections: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut current = "";
    for line in text.lines().map(str::trim) {
        match line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            Some(name) => current = name,
            None => sections.entry(current).or_default().push(line),
        }
    }
    sections
}

fn check_source(file: &Path, complaints: &mut Vec<String>) -> Result<()> {
    let generated = file.parent().is_some_and(|dir| dir.ends_with("src/wire")) && !file.ends_with("mod.rs");
    if generated || file.ends_with("tidy.rs") {
        return Ok(());
    }
    let text = read(file)?;
    let lines = text.lines().count();
    if lines > LINES_MAX {
        complaints.push(format!("{}: {lines} lines, at most {LINES_MAX}: divide it", file.display()));
    }
    for (number, line) in text.lines().enumerate() {
        for banned in ["todo!(", "unimplemented!(", "#[ignore"] {
            if line.contains(banned) {
                complaints.push(format!("{}:{}: {banned} is unfinished work", file.display(), number + 1));
            }
        }
        if line.ends_with([' ', '\t']) {
            complaints.push(format!("{}:{}: white space at the end", file.display(), number + 1));
        }
    }
    Ok(())
}

/// Documents name files that exist.
fn check_document(file: &Path, complaints: &mut Vec<String>) -> Result<()> {
    const PLACES: [&str; 5] = ["crates/", "decisions/", "docs/", "xtask/", "bench/"];
    for (number, line) in read(file)?.lines().enumerate() {
        for word in line.split(|c: char| c.is_whitespace() || "`()[]<>,;\"'".contains(c)) {
            let path = word.trim_end_matches(['.', ':']).trim_end_matches('/');
            let is_path = PLACES.iter().any(|place| word.starts_with(place)) && !path.contains(['*', '{', '…', '#']);
            if is_path && !path.contains("NNNN") && !root().join(path).exists() {
                complaints.push(format!("{}:{}: {path} does not exist", file.display(), number + 1));
            }
        }
        if let Some(link) = line.split("](").nth(1).and_then(|rest| rest.split(')').next()) {
            let local = !link.contains("://") && !link.starts_with('#') && !link.is_empty();
            let target = file.parent().unwrap_or(Path::new("")).join(link.split('#').next().unwrap_or_default());
            if local && !root().join(&target).exists() {
                complaints.push(format!("{}:{}: the link to {link} leads nowhere", file.display(), number + 1));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_is_tidy() {
        run().unwrap_or_else(|error| panic!("{error:#}"));
    }

    #[test]
    fn a_wrong_direction_is_found() {
        let manifest = "[package]\nname = \"coact-blocks\"\n[lints]\nworkspace = true\n[dependencies]\ncoact-engine-etcd.workspace = true\n";
        let found = sections(manifest);
        assert_eq!(found["dependencies"], ["coact-engine-etcd.workspace = true"]);
        let place = tempfile::tempdir_in(root()).expect("a directory");
        let file = place.path().join("Cargo.toml");
        std::fs::write(&file, manifest).expect("written");
        let mut complaints = Vec::new();
        check_manifest(file.strip_prefix(root()).expect("inside"), &mut complaints).expect("readable");
        assert_eq!(complaints.len(), 1);
        assert!(complaints[0].ends_with("coact-blocks must not depend on coact-engine-etcd"), "{complaints:?}");
    }
}
