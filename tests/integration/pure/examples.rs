//! `examples/`: users copy these files, so each must be valid without changes. Tier: pure.

#![allow(dead_code)] // This module uses only the examples of the testdata.

use crate::testdata::examples;
use std::collections::BTreeMap;

#[test]
fn examples_survive_a_round_trip_through_the_types() {
    let mut files = BTreeMap::new();
    for manifest in examples::manifests() {
        for document in &manifest.documents {
            let Some(binding) = examples::assert_is_typed(&manifest.file, &document.object) else { continue };
            let other = files.insert(binding.name().to_string(), manifest.file.clone());
            assert_eq!(other, None, "{}: another example has the same binding", manifest.file);
        }
    }
}

#[test]
fn every_channel_has_an_example() {
    let manifests = examples::conversations();
    let documents = manifests.iter().flat_map(|manifest| &manifest.documents);
    let shown: Vec<_> = documents.map(|document| document.object["spec"]["channel"].as_str().unwrap()).collect();
    let crd = serde_json::to_value(switchboard::api::conversation_crd().unwrap()).unwrap();
    let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    for channel in schema["properties"]["spec"]["properties"]["channel"]["enum"].as_array().unwrap() {
        assert!(shown.contains(&channel.as_str().unwrap()), "no example uses {channel}");
    }
}

#[test]
fn readme_lists_every_example() {
    let readme = std::fs::read_to_string(format!("{}/README.md", examples::EXAMPLES)).unwrap();
    for entry in std::fs::read_dir(examples::EXAMPLES).unwrap() {
        let entry = entry.unwrap();
        let slash = if entry.path().is_dir() { "/" } else { "" };
        let name = format!("{}{slash}", entry.file_name().to_string_lossy());
        assert!(name == "README.md" || readme.contains(&format!("\n| `{name}` |")), "README.md lacks {name}");
    }
}
