//! The reference of the API in docs/api.md, generated from the CRDs. Tier: pure. `make api-docs` writes the file.

use serde_json::{Map, Value};
use std::fmt::Write;

const FILE: &str = "docs/api.md";
/// Separates the description of a field from the descriptions of its values.
const VALUES: &str = "\n\nPossible values:\n";

/// A field of a kind.
struct Field {
    /// Its path, such as `spec.participants[].identity`.
    path: String,
    is_required: bool,
    schema: Map<String, Value>,
    /// The messages of its validation rules.
    rules: Vec<String>,
}

/// Collects the fields below `schema`, parents before children.
fn fields(path: &str, schema: &Value, found: &mut Vec<Field>) {
    let (path, schema) =
        if schema["type"] == "array" { (format!("{path}[]"), &schema["items"]) } else { (path.to_owned(), schema) };
    let required: Vec<&Value> = schema["required"].as_array().into_iter().flatten().collect();
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        let is_required = required.iter().any(|required| *required == name);
        found.push(Field {
            path: path.clone(),
            is_required,
            schema: field.as_object().unwrap().clone(),
            rules: Vec::new(),
        });
        fields(&path, field, found);
    }
}

/// Adds each rule of `schema`, and of the schemas below it, to the field that it validates.
fn add_rules(path: &str, schema: &Value, found: &mut [Field]) {
    for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
        let below = rule["fieldPath"].as_str().unwrap_or_default();
        let target = format!("{path}{below}");
        // A rule of the strings in a list is shown with the list.
        let target = target.trim_start_matches('.').trim_end_matches("[]");
        let field = found.iter_mut().find(|field| field.path == target);
        field.unwrap_or_else(|| panic!("no field {target}")).rules.push(rule["message"].as_str().unwrap().to_owned());
    }
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        add_rules(format!("{path}.{name}").trim_start_matches('.'), field, found);
    }
    if schema["type"] == "array" {
        add_rules(&format!("{path}[]"), &schema["items"], found);
    }
}

impl Field {
    fn text(&self, keyword: &str) -> &str {
        self.schema.get(keyword).and_then(Value::as_str).unwrap_or_default()
    }

    fn number(&self, keyword: &str) -> Option<u64> {
        self.schema.get(keyword).and_then(Value::as_u64)
    }

    fn is_duration(&self) -> bool {
        let rules = self.schema.get("x-kubernetes-validations").map(Value::to_string).unwrap_or_default();
        rules.contains("duration(self)")
    }

    fn type_(&self) -> &str {
        match self.text("type") {
            _ if self.schema.contains_key("enum") => "enum",
            "string" if self.is_duration() => "duration",
            "string" if self.text("format") == "date-time" => "date-time",
            "array" => "list of objects",
            type_ => type_,
        }
    }

    fn validation(&self) -> String {
        let mut parts = Vec::new();
        match (self.number("minLength"), self.number("maxLength")) {
            (Some(min), Some(max)) => parts.push(format!("{min} to {max} characters")),
            // The type column already describes a date-time and a duration.
            (None, Some(max)) if self.type_() == "string" => parts.push(format!("at most {max} characters")),
            _ => {}
        }
        parts.extend(self.number("maxItems").map(|max| format!("at most {max} items")));
        let keys = self.schema.get("x-kubernetes-list-map-keys").and_then(Value::as_array).into_iter().flatten();
        parts.extend(keys.map(|key| format!("unique `{}`", key.as_str().unwrap())));
        parts.extend(self.schema.get("minimum").and_then(Value::as_f64).map(|min| format!("at least {min}")));
        parts.extend(self.rules.iter().cloned());
        parts.join("<br>")
    }

    fn description(&self) -> &str {
        let text = self.text("description");
        text.split_once(VALUES).map_or(text, |(description, _)| description)
    }

    /// The values of an enum, with their descriptions.
    fn values(&self) -> Vec<(&str, &str)> {
        let (_, values) = self.text("description").split_once(VALUES).unwrap_or_default();
        values.lines().map(|line| line.strip_prefix("- `").unwrap().split_once("`: ").unwrap()).collect()
    }
}

fn row(text: &mut String, cells: &[&str]) {
    let cells: Vec<String> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
    writeln!(text, "| {} |", cells.join(" | ")).unwrap();
}

fn header(text: &mut String, title: &str, cells: &[&str]) {
    writeln!(text, "\n### {title}\n").unwrap();
    row(text, cells);
    writeln!(text, "|{}", "---|".repeat(cells.len())).unwrap();
}

fn write_kind(text: &mut String, crd: &Value) {
    let (names, version) = (&crd["spec"]["names"], &crd["spec"]["versions"][0]);
    let schema = &version["schema"]["openAPIV3Schema"];
    let mut found = Vec::new();
    fields("", schema, &mut found);
    add_rules("", schema, &mut found);

    writeln!(text, "\n## {}\n\n{}\n", names["kind"].as_str().unwrap(), schema["description"].as_str().unwrap())
        .unwrap();
    let scope = if crd["spec"]["scope"] == "Namespaced" { "Namespaced" } else { "Cluster-scoped" };
    let word = |value: &Value| value.as_str().unwrap().to_owned();
    writeln!(
        text,
        "{scope}. Resource `{}`, short name `{}`, category `{}`.",
        word(&names["plural"]),
        word(&names["shortNames"][0]),
        word(&names["categories"][0]),
    )
    .unwrap();

    header(text, "Fields", &["Field", "Type", "Required", "Default", "Validation", "Description"]);
    for field in &found {
        let required = if field.is_required { "yes" } else { "no" };
        let default = if field.schema.contains_key("default") { "see below" } else { "" };
        let path = format!("`{}`", field.path);
        row(text, &[&path, field.type_(), required, default, &field.validation(), field.description()]);
    }
    for field in &found {
        if let Some(default) = field.schema.get("default") {
            let default = serde_saphyr::to_string(default).unwrap();
            writeln!(text, "\nDefault of `{}`:\n\n```yaml\n{}\n```", field.path, default.trim()).unwrap();
        }
    }
    for field in &found {
        let values = field.values();
        if !values.is_empty() {
            header(text, &format!("Values of `{}`", field.path), &["Value", "Description"]);
            for (value, description) in values {
                row(text, &[&format!("`{value}`"), description]);
            }
        }
    }

    header(text, "Printer columns", &["Column", "Field", "Shown by", "Description"]);
    for column in version["additionalPrinterColumns"].as_array().unwrap() {
        let command = if column["priority"] == 1 { "`kubectl get -o wide`" } else { "`kubectl get`" };
        let (name, path) = (word(&column["name"]).to_uppercase(), format!("`{}`", word(&column["jsonPath"])));
        row(text, &[&name, &path, command, column["description"].as_str().unwrap()]);
    }
    writeln!(text, "\n### Selectable fields\n").unwrap();
    for field in version["selectableFields"].as_array().unwrap() {
        writeln!(text, "- `{}`", word(&field["jsonPath"]).trim_start_matches('.')).unwrap();
    }
}

#[test]
fn api_reference_is_generated_from_the_types() {
    let mut text = format!(
        "<!-- Generated from the Rust types by `make api-docs`. Do not edit. -->\n\n# API reference\n\n\
         API group `{}`, version `{}`. Besides the fields below, each object has the standard `apiVersion`, `kind` and `metadata`.\n\n\
         A *duration* is written as in [GEP-2257](https://gateway-api.sigs.k8s.io/geps/gep-2257/): `90s`, `30m`, `24h` or `1h30m`. \
         A *date-time* is written as in RFC 3339.\n",
        switchboard::api::GROUP,
        switchboard::api::VERSION,
    );
    for crd in switchboard::api::crds().unwrap() {
        write_kind(&mut text, &serde_json::to_value(crd).unwrap());
    }
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(FILE, &text).unwrap();
    }
    let stored = std::fs::read_to_string(FILE).unwrap_or_default();
    assert!(stored == text, "{FILE} is stale: run `make api-docs`");
}
