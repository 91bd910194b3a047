//! The rules of telephone numbers, against the examples that libphonenumber publishes, and against its reading of the ways to write
//! them. Tier: pure.

use crate::testdata;
use switchboard::api::Channel;
use switchboard::core::address::{Address, Role};

/// A way to write a number.
struct Written {
    /// `international`, `national`, `trunk` or another kind.
    kind: String,
    text: String,
    /// The number that libphonenumber reads in the text, in the region that it belongs to; `None` if it reads none.
    reading: Option<String>,
}

/// The example numbers of libphonenumber, and the ways to write them.
fn examples() -> Vec<(String, Vec<Written>)> {
    let text = std::fs::read_to_string(testdata::root().join("tests/testdata/telephone-numbers.tsv")).unwrap();
    let rows = text.lines().filter(|line| !line.starts_with('#')).map(|line| {
        let fields: Vec<&str> = line.split('\t').collect();
        let [number, _, _, written @ ..] = &fields[..] else { panic!("{line}") };
        let written = written.chunks(3).map(|written| {
            let [kind, text, reading] = *written else { panic!("{line}") };
            let reading = if reading == "=" { *number } else { reading };
            let reading = Some(reading).filter(|reading| !reading.is_empty());
            Written { kind: kind.to_owned(), text: text.to_owned(), reading: reading.map(str::to_owned) }
        });
        ((*number).to_owned(), written.collect())
    });
    rows.collect()
}

const TELEPHONES: [Channel; 3] = [Channel::Sms, Channel::WhatsApp, Channel::Rcs];

#[test]
fn every_example_number_of_every_region_is_accepted() {
    let examples = examples();
    assert!(examples.len() > 1000, "only {} numbers", examples.len());
    for (number, _) in examples {
        for channel in TELEPHONES {
            for role in [Role::Contact, Role::Proxy] {
                assert!(Address::parse(channel, role, &number).is_ok(), "{number} on {channel}");
            }
        }
    }
}

#[test]
fn no_proposal_is_a_number_that_libphonenumber_reads_otherwise() {
    let mut proposals = std::collections::BTreeMap::<_, (usize, usize)>::new();
    for Written { kind, text, reading } in examples().into_iter().flat_map(|(_, written)| written) {
        for channel in TELEPHONES {
            for role in [Role::Contact, Role::Proxy] {
                // A text can also be a short code or an ID.
                let Err(error) = Address::parse(channel, role, &text) else { continue };
                let (count, proposed) = proposals.entry(kind.clone()).or_default();
                *count += 1;
                if let Some(proposal) = error.canonical {
                    *proposed += 1;
                    assert_eq!(Some(proposal), reading, "{text:?} on {channel}");
                }
            }
        }
    }
    println!("texts and proposals by kind: {proposals:?}");
    for (kind, (count, proposed)) in proposals {
        match kind.as_str() {
            "international" | "rfc3966" => assert!(proposed * 100 > count * 90, "{kind}: {proposed} of {count}"),
            "trunk" => assert!(proposed * 100 > count * 10, "{kind}: {proposed} of {count}"),
            _ => assert_eq!(proposed, 0, "{kind} is unclear"),
        }
    }
}
