//! The book: its summary, its links, and the reference of the error codes. Tier: pure.

use crate::common::book::{Page, pages, paths};
use crate::common::chart::documents;
use crate::testdata::examples::assert_is_typed;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// The files with these extensions in a directory and below it.
fn files(directory: &str, extensions: &[&str]) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let below = entries.flat_map(|path| {
        let (is_directory, name) = (path.is_dir(), path.to_str().unwrap().to_owned());
        let is_wanted = path.extension().is_some_and(|found| extensions.contains(&found.to_str().unwrap()));
        if is_directory { files(&name, extensions) } else { is_wanted.then_some(name).into_iter().collect() }
    });
    below.collect()
}

#[test]
fn summary_lists_each_page_once() {
    let listed = paths();
    let unique: BTreeSet<_> = listed.iter().cloned().collect();
    assert_eq!(unique.len(), listed.len(), "docs/SUMMARY.md lists a page twice: {listed:?}");
    for page in files("docs", &["md"]) {
        assert!(page == "docs/SUMMARY.md" || unique.contains(&page), "docs/SUMMARY.md lacks {page}");
    }
}

/// Users copy the manifests. Those of transcripts are created on an API server.
#[test]
fn manifests_of_the_book_have_no_unknown_field() {
    let mut kinds = Vec::new();
    for block in pages().iter().flat_map(Page::blocks).filter(|block| block.language == "yaml") {
        for manifest in documents(&block.text) {
            if let Some(kind) = manifest["kind"].as_str() {
                assert_is_typed(&block.place, &manifest);
                kinds.push(kind.to_owned());
            }
        }
    }
    assert_eq!(kinds, ["Conversation"]);
}

#[test]
fn getting_started_names_the_image_of_this_version() {
    let page = fs::read_to_string("docs/getting-started.md").unwrap();
    let tags = page.match_indices("/switchboard:").map(|(at, name)| &page[at + name.len()..]);
    let tags: Vec<_> = tags.map(|rest| rest.split(['`', '\n']).next().unwrap()).collect();
    assert_eq!(tags, [env!("CARGO_PKG_VERSION"); 2]);
}

/// What `docs/build` copies into the book besides pages.
fn copied() -> Vec<String> {
    let script = fs::read_to_string("docs/build").unwrap();
    let line = script.lines().find_map(|line| line.strip_prefix("tar -cf - ")).unwrap();
    line.split(" | ").next().unwrap().split(' ').map(str::to_owned).collect()
}

#[test]
fn each_link_of_the_book_leads_somewhere() {
    let (pages, copied) = (pages(), copied());
    let anchors: BTreeMap<_, _> = pages.iter().map(|page| (page.path.clone(), page.anchors())).collect();
    let mut broken = Vec::new();
    for page in &pages {
        for link in page.links().iter().filter(|link| !link.contains("://")) {
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if path.is_empty() { page.path.clone() } else { page.resolve(path) };
            let file = Path::new(&target);
            let is_copied = || copied.iter().any(|copied| file.starts_with(copied)) && file.is_file();
            let is_right = anchors.get(&target).map_or_else(
                || file.extension().is_none_or(|extension| extension != "md") && is_copied(),
                |anchors| anchor.is_empty() || anchors.iter().any(|found| found == anchor),
            );
            if !is_right {
                broken.push(format!("{}: {link}", page.path));
            }
        }
    }
    assert_eq!(
        broken,
        Vec::<String>::new(),
        "neither a page of the book, a section of one, nor a file that docs/build copies"
    );
}

/// The numbers of five digits in `text` that stand between these.
fn codes<'a>(text: &'a str, before: &'a str, after: &'a str) -> impl Iterator<Item = String> + 'a {
    text.match_indices(after).filter_map(move |(end, _)| {
        let start = end.checked_sub(5)?;
        let code = text.get(start..end).filter(|code| code.bytes().all(|byte| byte.is_ascii_digit()))?;
        let is_delimited = text[..start].ends_with(|letter: char| before.contains(letter));
        is_delimited.then(|| code.to_owned())
    })
}

/// The cells of the rows of the tables in a page whose header starts with `header`.
fn rows(page: &str, header: &str) -> Vec<Vec<String>> {
    let (mut found, mut is_inside) = (Vec::new(), false);
    for line in page.lines() {
        let cells = line.strip_prefix("| ").and_then(|line| line.strip_suffix('|'));
        match cells {
            _ if line.starts_with(header) => is_inside = true,
            Some(cells) if is_inside => found.push(cells.split('|').map(|cell| cell.trim().to_owned()).collect()),
            _ => is_inside &= line.starts_with("|-"),
        }
    }
    found
}

/// The documented codes are those of the CRDs' rules (the schema), of the denials of the webhook, and of the policies that warn.
#[test]
fn codes_page_lists_each_code_and_its_sources() {
    let mut sources = BTreeMap::<String, BTreeSet<&str>>::new();
    let mut add = |code, source| {
        sources.entry(code).or_default().insert(source);
    };
    for crd in files("crds", &["yaml"]) {
        codes(&fs::read_to_string(crd).unwrap(), "' \"", ": ").for_each(|code| add(code, "schema"));
    }
    let denials = fs::read_to_string("src/core/denial.rs").unwrap();
    let (denials, _) = denials.split_once("#[cfg(test)]").unwrap();
    codes(denials, "\"", "\"").for_each(|code| add(code, "webhook"));
    for policy in files("charts/switchboard/templates/admission", &["yaml"]) {
        codes(&fs::read_to_string(policy).unwrap(), " ", ": ").for_each(|code| add(code, "warning"));
    }

    let rows = rows(&fs::read_to_string("docs/codes.md").unwrap(), "| code | from |");
    let documented: BTreeMap<_, BTreeSet<_>> =
        rows.iter().map(|row| (row[0].clone(), row[1].split(", ").collect())).collect();
    assert_eq!(documented, sources);
}

#[test]
fn sizing_shows_the_results_of_the_benchmark() {
    let results = rows(&fs::read_to_string("tests/bench/results/results.md").unwrap(), "| # ");
    let results: BTreeMap<_, _> =
        results.iter().map(|row| (row[1].as_str(), (row[2].as_str(), row[4].as_str()))).collect();
    let shown = rows(&fs::read_to_string("docs/sizing.md").unwrap(), "| measurement |");
    assert_eq!(shown.len(), 11, "{shown:?}");
    for row in &shown {
        let (result, ratio) = results[row[0].as_str()];
        let expected = if row[1].contains(", ") { format!("{result}, {ratio} of ") } else { result.to_owned() };
        assert!(row[1].starts_with(&expected), "{row:?} is not {expected}");
    }
}
