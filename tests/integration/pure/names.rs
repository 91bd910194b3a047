//! The names in this repository are those of the field. Tier: pure.

use std::path::{Path, PathBuf};

/// Names that earlier versions of this code used, each with the field's name. The test searches texts and paths for them.
const FORMER_NAMES: [(&str, &str); 29] = [
    ("teller", "event_recorder"),
    ("Telling", "PendingEvent"),
    ("tell_since", "backfill_since"),
    ("FactReason", "NoticeReason"),
    ("StatusFacts", "PreviousStatus"),
    ("census", "stats"),
    ("Departed", "Tombstones"),
    ("survey", "plan_all"),
    ("changed_lately", "recently_changed"),
    ("passed_over", "log_invalid"),
    ("ask_for", "enqueue"),
    ("came_out_well", "mark_succeeded"),
    ("look_at_first", "blocked_on"),
    ("is_under_way", "is_in_progress"),
    ("PATIENCE", "*_TIMEOUT"),
    ("AT_ONCE", "MAX_TASKS_PER_TURN"),
    ("REMEMBERED", "TOMBSTONE_TTL"),
    ("Undecidable", "Undecided"),
    ("Elector", "LeaderElector"),
    ("stand_by", "watch_until_expired"),
    ("GIVEN_BACK", "RELEASED"),
    ("WentBack", "HistoryRewound"),
    ("Keeper", "SelfManagedCertificate"),
    ("Admitter", "AdmissionHandler"),
    ("CallLayer", "ClientMetricsLayer"),
    ("Desk", "TestNamespace"),
    ("Faulty", "FaultCluster"),
    ("Tenure", "HoldInterval"),
    ("strays", "orphaned_writes"),
];

/// The folders that the test searches, besides the documents at the root.
const FOLDERS: [&str; 6] = ["src", "tests", "charts", "docs", "examples", "image"];

#[test]
fn former_names_are_not_used() {
    let mut files = Vec::new();
    for folder in FOLDERS {
        find(Path::new(folder), &mut files);
    }
    let root = std::fs::read_dir(".").unwrap().map(|entry| entry.unwrap().path().strip_prefix(".").unwrap().to_owned());
    files.extend(root.filter(|path| path.extension().is_some_and(|extension| extension == "md")));
    assert!(files.len() > 200, "the tests do not run at the root of the repository: {files:?}");

    let found: Vec<String> =
        files.iter().filter(|path| *path != Path::new(file!())).flat_map(|path| uses(path)).collect();
    assert!(found.is_empty(), "former names are in use:\n{}", found.join("\n"));
}

/// The files below `directory`, except build output and lists of dependencies.
fn find(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let (path, kind) = (entry.path(), entry.file_type().unwrap());
        if kind.is_dir() && entry.file_name() != "target" {
            find(&path, files);
        } else if kind.is_file() && !["go.mod", "go.sum", "Cargo.lock"].iter().any(|others| path.ends_with(others)) {
            files.push(path);
        }
    }
}

/// The former names in the path (line 0) and in the lines of a file. A binary file has no lines.
fn uses(path: &Path) -> Vec<String> {
    let text = std::fs::read(path).ok().and_then(|bytes| String::from_utf8(bytes).ok()).unwrap_or_default();
    let name = path.display().to_string();
    let lines = std::iter::once((0, name.as_str())).chain((1..).zip(text.lines()));
    let mut uses = Vec::new();
    for (line, text) in lines {
        for word in text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_') {
            if let Some((former, better)) = FORMER_NAMES.iter().find(|(former, _)| *former == word) {
                uses.push(format!("{name}:{line}: {former}: call it {better}"));
            }
        }
    }
    uses
}

#[test]
fn former_names_are_found_as_whole_words_in_texts_and_paths() {
    let directory = std::env::temp_dir().join(format!("switchboard-names-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let path = directory.join("teller.rs");
    std::fs::write(&path, "LeaderElector\nstruct Elector;\nElectors\n").unwrap();
    let uses = uses(&path);
    std::fs::remove_dir_all(&directory).unwrap();
    let ends = ["teller.rs:0: teller: call it event_recorder", "teller.rs:2: Elector: call it LeaderElector"];
    assert_eq!(uses.len(), ends.len(), "{uses:?}");
    assert!(uses.iter().zip(ends).all(|(found, end)| found.ends_with(end)), "{uses:?}");
}
