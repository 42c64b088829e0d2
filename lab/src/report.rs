//! The verdict on each phase, and the page that shows all of them.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::{Context as _, Result};

use crate::{
    check::Shown,
    cluster::Engine,
    phase::{Nemesis, Plan},
};

/// One phase and what it showed.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) engine: Engine,
    pub(crate) nemesis: Nemesis,
    pub(crate) shown: Shown,
    /// What contradicts what was declared, or shows that the phase means nothing.
    pub(crate) wrong: Vec<String>,
}

impl Outcome {
    pub(crate) fn new(engine: Engine, nemesis: Nemesis, shown: Shown) -> Self {
        let wrong = judge(&shown, nemesis);
        Self { engine, nemesis, shown, wrong }
    }

    /// One line for the person who watches.
    pub(crate) fn line(&self, plan: &Plan) -> String {
        let Shown { counts, .. } = &self.shown;
        let verdict = if self.wrong.is_empty() { "as declared" } else { "NOT AS DECLARED" };
        format!(
            "{} {}: {verdict}; {}; {} operations, {} acknowledged, {} grants, {} ids, {} changes, {} views; {}",
            self.engine.name(),
            self.nemesis.name(),
            observed(&self.shown),
            counts.operations,
            counts.acknowledged,
            counts.grants,
            counts.ids,
            counts.changes,
            counts.views,
            plan.history.display()
        )
    }
}

/// A phase with less than this shows nothing.
const ACKNOWLEDGED_MIN: usize = 200;
const GRANTS_MIN: usize = 5;
const IDS_MIN: usize = 1_000;
const CHANGES_MIN: usize = 100;
const VIEWS_MIN: usize = 3;
const CUT_MIN: usize = 3;

/// What contradicts what was declared, or shows that the phase means nothing.
pub(crate) fn judge(shown: &Shown, nemesis: Nemesis) -> Vec<String> {
    let mut wrong = Vec::new();
    let Shown { declared, counts, .. } = shown;
    let mut unless = |fine: bool, text: String| {
        if !fine {
            wrong.push(text);
        }
    };
    let enough =
        |have: usize, least: usize, what: &str| (have >= least, format!("only {have} {what}, which shows nothing"));
    for (fine, text) in [
        enough(counts.acknowledged, ACKNOWLEDGED_MIN, "operations were acknowledged"),
        enough(counts.grants, GRANTS_MIN, "locks were granted"),
        enough(counts.ids, IDS_MIN, "ids were issued"),
        enough(counts.changes, CHANGES_MIN, "changes were told"),
        enough(counts.views, VIEWS_MIN, "lists of the directory were shown"),
    ] {
        unless(fine, text);
    }
    // Whatever the engine promises.
    unless(shown.fenced.violations.is_empty(), first("the resource took what it must not", &shown.fenced.violations));
    let isolated = matches!(nemesis, Nemesis::IsolateLeader | Nemesis::IsolateFollower);
    if isolated {
        let on_cut_side = shown.cut_acknowledged + shown.cut_refused;
        unless(on_cut_side >= CUT_MIN, format!("only {on_cut_side} writes were tried on the cut side"));
    }
    if nemesis == Nemesis::PauseHolder {
        unless(
            shown.fenced.refused > 0,
            "the fence refused nothing, though the holder of the lock was paused".to_owned(),
        );
        let late = !shown.control.violations.is_empty();
        unless(late, "the control without tokens took no late write, so the fence was not tried".to_owned());
    }
    unless(shown.recovered_ms.is_some(), "writes never went on after the strike".to_owned());
    // What it declares.
    if declared.keeps_writes {
        unless(shown.lost == 0, format!("{} acknowledged writes are lost, but it declares to keep them", shown.lost));
        unless(shown.grants.is_empty(), first("tokens went back", &shown.grants));
        unless(shown.ids.is_empty(), first("ids", &shown.ids));
        unless(shown.watch.is_empty(), first("watch", &shown.watch));
        unless(shown.ghosts.is_empty(), first("directory", &shown.ghosts));
    } else if nemesis == Nemesis::IsolateLeader {
        unless(shown.lost > 0, "it declares to lose writes on failover, but the lab did not show it".to_owned());
    }
    if declared.linearizable && declared.keeps_writes && !declared.may_diverge {
        unless(shown.stale == 0, format!("{} linearizable reads were stale", shown.stale));
        let stale = shown.stale_cut;
        unless(stale == 0 || declared.serves_stale, format!("{stale} linearizable reads of the cut side were stale"));
        unless(shown.not_linearizable.is_empty(), first("registers", &shown.not_linearizable));
    }
    if declared.serves_stale && nemesis == Nemesis::IsolateLeader {
        unless(shown.stale_cut > 0, "it declares stale reads on the cut side, but the lab did not show one".to_owned());
    }
    if declared.minority_stops && isolated {
        let answered = shown.cut_acknowledged + shown.cut_reads;
        unless(answered == 0, format!("{answered} operations were answered on the cut side, which declares to stop"));
    }
    wrong
}

fn first(what: &str, found: &[String]) -> String {
    format!("{what}: {} ({} findings)", found.first().map_or("", String::as_str), found.len())
}

/// What a phase showed, in the words of the table.
fn observed(shown: &Shown) -> String {
    let mut words = Vec::new();
    let mut say = |holds: bool, text: String| {
        if holds {
            words.push(text);
        }
    };
    let cut = shown.cut_acknowledged + shown.cut_refused + shown.cut_reads + shown.cut_reads_refused > 0;
    say(
        cut,
        format!(
            "cut side: writes {} refused, {} acknowledged; reads {} refused, {} answered",
            shown.cut_refused, shown.cut_acknowledged, shown.cut_reads_refused, shown.cut_reads
        ),
    );
    say(shown.diverged, "**diverged**".to_owned());
    say(shown.lost > 0, format!("**lost {} acknowledged writes**", shown.lost));
    say(shown.stale > 0, format!("**{} stale reads**", shown.stale));
    say(shown.stale_cut > 0, format!("**{} stale reads on the cut side**", shown.stale_cut));
    say(!shown.not_linearizable.is_empty(), format!("{} registers not linearizable", shown.not_linearizable.len()));
    say(shown.stale_any > 0, format!("{} stale `Any` reads", shown.stale_any));
    say(!shown.grants.is_empty(), format!("{} grants whose token went back", shown.grants.len()));
    say(!shown.ids.is_empty(), format!("{} ids twice", shown.ids.len()));
    say(!shown.watch.is_empty(), format!("{} findings of the watch", shown.watch.len()));
    say(!shown.ghosts.is_empty(), format!("{} findings of the directory", shown.ghosts.len()));
    say(
        shown.fenced.refused > 0,
        format!("fence refused {} late writes (control took {})", shown.fenced.refused, shown.control.violations.len()),
    );
    if words.is_empty() { "nothing lost, nothing stale".to_owned() } else { words.join("; ") }
}

/// Where the page begins that the command writes, and where it ends.
const BEGIN: &str = "<!-- written by `cargo xtask lab`; do not edit below -->";
const END: &str = "<!-- end of what `cargo xtask lab` writes -->";

/// Writes the tables into the page, between its marks.
pub(crate) fn write(page: &Path, outcomes: &[Outcome]) -> Result<()> {
    let old = fs::read_to_string(page).with_context(|| format!("reading {}", page.display()))?;
    let (before, rest) = old.split_once(BEGIN).with_context(|| format!("{} has no {BEGIN}", page.display()))?;
    let (_, after) = rest.split_once(END).with_context(|| format!("{} has no {END}", page.display()))?;
    fs::write(page, format!("{before}{BEGIN}\n\n{}\n{END}{after}", tables(outcomes))).context("writing the page")
}

fn tables(outcomes: &[Outcome]) -> String {
    let mut engines: Vec<_> = outcomes.iter().map(|outcome| outcome.engine).collect();
    engines.dedup();
    let mut text = declared_table(outcomes, &engines);
    for engine in engines {
        let _ = write!(text, "\n### {}\n\n{}.\n\n", engine.name(), engine.made_of());
        text.push_str("| fault | observed | others write again | struck host writes again | as declared |\n|---|---|---|---|---|\n");
        for outcome in outcomes.iter().filter(|outcome| outcome.engine == engine) {
            let ms = |ms: Option<u64>| ms.map_or("never".to_owned(), |ms| format!("{:.1} s", ms as f64 / 1_000.0));
            let struck = match outcome.nemesis {
                Nemesis::PauseHolder | Nemesis::StepClock => "–".to_owned(),
                // Nobody looked for longer.
                _ if outcome.shown.rejoined_ms.is_none() => "not while watched".to_owned(),
                _ => ms(outcome.shown.rejoined_ms),
            };
            let verdict = if outcome.wrong.is_empty() {
                "yes".to_owned()
            } else {
                format!("**no**: {}", outcome.wrong.join("; "))
            };
            let (name, others) = (outcome.nemesis.name(), ms(outcome.shown.recovered_ms));
            let _ = writeln!(text, "| {name} | {} | {others} | {struck} | {verdict} |", observed(&outcome.shown));
        }
    }
    text
}

/// What each engine declared on these clusters.
fn declared_table(outcomes: &[Outcome], engines: &[Engine]) -> String {
    let of = |engine: &Engine| {
        outcomes.iter().find(|outcome| outcome.engine == *engine).map(|found| &found.shown.declared.all)
    };
    let declared: Vec<_> = engines.iter().filter_map(of).collect();
    let names: Vec<_> = engines.iter().map(|engine| engine.name()).collect();
    let mut text =
        format!("### Declared\n\n| guarantee | {} |\n|---|{}\n", names.join(" | "), "---|".repeat(names.len()));
    for (row, (name, _)) in declared.first().into_iter().flat_map(|all| all.iter()).enumerate() {
        let cells: Vec<_> = declared.iter().map(|all| all.get(row).map_or("", |(_, value)| value)).collect();
        let _ = writeln!(text, "| {name} | {} |", cells.join(" | "));
    }
    text
}
