//! The transcripts in `docs/`: the blocks `console` of a page are typed into a shell, in their order, and must print what the page
//! shows. A page starts with nothing and uses namespaces and addresses of its own. Tier: processes.

use crate::common::book::{Block, Page, pages};
use crate::common::cluster::Cluster;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// A command of a transcript.
#[derive(Debug, Default, PartialEq)]
struct Typed {
    command: String,
    /// The output that the page shows.
    shown: String,
}

impl Typed {
    /// Whether the command goes on in the next line: after a backslash, or until the end of a here-document.
    fn is_unfinished(&self) -> bool {
        let mut lines = self.command.lines();
        let here_document = lines.next().is_some_and(|first| first.ends_with("<<'EOF'"));
        self.command.ends_with('\\') || here_document && lines.next_back() != Some("EOF")
    }

    /// Whether the page shows that the command fails.
    fn must_fail(&self) -> bool {
        self.shown.lines().any(|line| line.starts_with("Error from server") || line.starts_with("error: "))
    }
}

/// The commands of a block: each starts after `$ `, and the lines up to the next one are its output.
fn typed(block: &str) -> Vec<Typed> {
    let mut found = Vec::<Typed>::new();
    for line in block.lines() {
        if let Some(command) = line.strip_prefix("$ ") {
            found.push(Typed { command: command.to_owned(), ..Typed::default() });
            continue;
        }
        let last = found.last_mut().expect("a transcript starts with a command");
        let text = if last.is_unfinished() { &mut last.command } else { &mut last.shown };
        text.push_str(if text.is_empty() { "" } else { "\n" });
        text.push_str(line);
    }
    found
}

/// Whether a printed word is the shown one, or differs from it only as it does from run to run: an age (`5s`, or `2m5s` on a slow machine), a
/// time of RFC 3339, a UID. Durations in full minutes are settings, and must be equal.
fn is_same(shown: &str, printed: &str) -> bool {
    let age = |word: &str| {
        let seconds = word.strip_suffix('s').map(|word| word.split_once('m').unwrap_or(("0", word)));
        seconds.is_some_and(|(minutes, seconds)| minutes.parse::<u8>().is_ok() && seconds.parse::<u8>().is_ok())
    };
    let time = |word: &str| word.parse::<k8s_openapi::jiff::Timestamp>().is_ok();
    let uid = |word: &str| {
        let lengths = word.split('-').map(str::len);
        lengths.eq([8, 4, 4, 4, 12]) && word.bytes().all(|byte| byte == b'-' || byte.is_ascii_hexdigit())
    };
    let varies = |is: &dyn Fn(&str) -> bool| is(shown) && is(printed);
    shown == printed || varies(&age) || varies(&time) || varies(&uid)
}

/// Compares the words, since a page may break a long line, and an age changes the width of a column.
fn is_same_text(shown: &str, printed: &str) -> bool {
    let (shown, printed): (Vec<_>, Vec<_>) = (shown.split_whitespace().collect(), printed.split_whitespace().collect());
    shown.len() == printed.len() && shown.iter().zip(printed).all(|(shown, printed)| is_same(shown, printed))
}

/// Types the transcripts of a page. The working directory has the repository's `examples/`, and keeps what the commands write.
fn type_page(cluster: &Cluster, directory: &Path, blocks: &[Block]) -> Result<usize, String> {
    let binaries = Path::new(env!("CARGO_BIN_EXE_switchboard")).parent().unwrap();
    let mut count = 0;
    for block in blocks {
        for typed in typed(&block.text) {
            let mut shell = cluster.control_plane.shell(&format!("{{ {}\n}} 2>&1", typed.command));
            let path = shell.get_envs().find_map(|(name, value)| if name == "PATH" { value } else { None }).unwrap();
            let path = format!("{}:{}", binaries.display(), path.to_str().unwrap());
            let output = shell.env("PATH", path).current_dir(directory).output().unwrap();
            let printed = String::from_utf8_lossy(&output.stdout);
            if output.status.success() == typed.must_fail() || !is_same_text(&typed.shown, &printed) {
                let Typed { command, shown } = typed;
                return Err(format!(
                    "{}: $ {command}\n--- the page shows:\n{shown}\n--- it printed ({}):\n{printed}",
                    block.place, output.status
                ));
            }
            count += 1;
        }
    }
    Ok(count)
}

#[test]
fn transcripts_of_the_book_show_what_is_printed() {
    let cluster = Cluster::shared();
    let (mut count, mut wrong) = (0, Vec::new());
    // Those of the command line need conversations that no page creates; `plugin::documentation` types them.
    let is_typed = |page: &&Page| page.path.starts_with("docs/") && page.path != "docs/cli.md";
    for page in pages().iter().filter(is_typed) {
        let blocks: Vec<_> = page.blocks().into_iter().filter(|block| block.language == "console").collect();
        let name = page.path.replace('/', "-");
        let directory: PathBuf = cluster.control_plane.data_dir().join(name);
        fs::create_dir_all(&directory).unwrap();
        symlink(fs::canonicalize("examples").unwrap(), directory.join("examples")).unwrap();
        match type_page(cluster, &directory, &blocks) {
            Ok(typed) => count += typed,
            Err(difference) => wrong.push(difference),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    assert!(count > 40, "only {count} commands were typed");
}

#[test]
fn transcript_is_read_as_commands_with_their_output() {
    let block = "$ a \\\n  b\nout 1\nout 2\n$ c <<'EOF'\nd\nEOF\n$ e\n";
    let expected = [("a \\\n  b", "out 1\nout 2"), ("c <<'EOF'\nd\nEOF", ""), ("e", "")];
    let expected = expected.map(|(command, shown)| Typed { command: command.to_owned(), shown: shown.to_owned() });
    assert_eq!(typed(block), expected);
}

#[test]
fn only_ages_times_and_uids_may_differ_from_the_page() {
    for (shown, printed) in [
        ("alice   5s", "alice 17s"),
        ("alice   5s", "alice 2m17s"),
        ("at 2026-01-31T09:30:00Z", "at 2027-02-01T10:31:01.123Z"),
        ("6f2b1c1e-6c83-4a0f-9c39-8a4f0a9f6a7b", "00000000-6c83-4a0f-9c39-8a4f0a9f6a7b"),
    ] {
        assert!(is_same_text(shown, printed), "{shown}");
    }
    for (shown, printed) in
        [("30m", "31m"), ("30s", "30m"), ("alice 5s", "alice 5s more"), ("alice 5s", "bob 5s"), ("5s", "5"), ("", "x")]
    {
        assert!(!is_same_text(shown, printed), "{shown}");
    }
}
