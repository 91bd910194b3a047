//! The pages of the book, which `docs/SUMMARY.md` lists and `docs/build` builds. All paths are relative to the root of the repository.

use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag, TagEnd};
use std::collections::BTreeMap;

const SUMMARY: &str = "docs/SUMMARY.md";

/// A page of the book.
pub struct Page {
    pub path: String,
    text: String,
}

/// A fenced code block of a page.
pub struct Block {
    /// `PAGE:LINE`, for messages.
    pub place: String,
    /// The word after the fence, such as `sh`.
    pub language: String,
    pub text: String,
}

/// The paths of the pages, in the order of the summary.
pub fn paths() -> Vec<String> {
    let summary = Page::read(SUMMARY);
    summary.links().into_iter().map(|link| summary.resolve(&link)).collect()
}

/// The pages, in the order of the summary.
pub fn pages() -> Vec<Page> {
    paths().iter().map(|path| Page::read(path)).collect()
}

impl Page {
    fn read(path: &str) -> Self {
        let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{SUMMARY} lists {path}: {error}"));
        Self { path: path.to_owned(), text }
    }

    fn events(&self) -> Parser<'_> {
        Parser::new_ext(&self.text, Options::ENABLE_TABLES)
    }

    /// The destinations of its links and images.
    pub fn links(&self) -> Vec<String> {
        let destination = |event| match event {
            Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => Some(dest_url.into_string()),
            _ => None,
        };
        self.events().filter_map(destination).collect()
    }

    /// The path to which a relative link of this page leads.
    pub fn resolve(&self, link: &str) -> String {
        let mut parts: Vec<_> = self.path.split('/').collect();
        parts.pop();
        for part in link.split('/') {
            match part {
                "." => {}
                ".." => assert!(parts.pop().is_some(), "{}: {link} leaves the repository", self.path),
                part => parts.push(part),
            }
        }
        parts.join("/")
    }

    /// The anchors of its headings, which mdBook and GitHub derive in the same way.
    pub fn anchors(&self) -> Vec<String> {
        let (mut found, mut heading) = (Vec::new(), None::<String>);
        let mut seen = BTreeMap::<String, usize>::new();
        for event in self.events() {
            match (event, &mut heading) {
                (Event::Start(Tag::Heading { .. }), _) => heading = Some(String::new()),
                (Event::Text(text) | Event::Code(text), Some(heading)) => heading.push_str(&text),
                (Event::End(TagEnd::Heading(_)), _) => {
                    let anchor = anchor(&heading.take().unwrap_or_default());
                    let earlier = seen.entry(anchor.clone()).or_default();
                    found.push(if *earlier == 0 { anchor } else { format!("{anchor}-{earlier}") });
                    *earlier += 1;
                }
                _ => {}
            }
        }
        found
    }

    /// The commands of its blocks and the code in its text, each with its place. The transcripts of `docs/` are typed by another test.
    pub fn commands(&self) -> Vec<(String, String)> {
        let mut found = Vec::new();
        for Block { place, language, text } in self.blocks() {
            if language == "sh" || language == "console" && !self.path.starts_with("docs/") {
                let text = text.replace("\\\n", " ");
                let commands = text.lines().map(|line| line.strip_prefix("$ ").unwrap_or(line));
                found.extend(commands.map(|command| (place.clone(), command.to_owned())));
            }
        }
        let code = self.events().filter_map(|event| if let Event::Code(code) = event { Some(code) } else { None });
        found.extend(code.map(|code| (self.path.clone(), code.into_string())));
        found
    }

    /// Its fenced code blocks.
    pub fn blocks(&self) -> Vec<Block> {
        let (mut found, mut block) = (Vec::new(), None::<Block>);
        for (event, range) in self.events().into_offset_iter() {
            match (event, &mut block) {
                (Event::Start(Tag::CodeBlock(CodeBlockKind::Fenced(language))), _) => {
                    let line = self.text[..range.start].lines().count() + 1;
                    let place = format!("{}:{line}", self.path);
                    block = Some(Block { place, language: language.into_string(), text: String::new() });
                }
                (Event::Text(text), Some(block)) => block.text.push_str(&text),
                (Event::End(TagEnd::CodeBlock), _) => found.extend(block.take()),
                _ => {}
            }
        }
        found
    }
}

fn anchor(heading: &str) -> String {
    let is_kept = |letter: &char| letter.is_alphanumeric() || matches!(letter, ' ' | '-' | '_');
    heading.to_lowercase().chars().filter(is_kept).map(|letter| if letter == ' ' { '-' } else { letter }).collect()
}
