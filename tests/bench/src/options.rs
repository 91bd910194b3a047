//! What is asked for, by the environment, as `make bench NAME=value` sets it.

use std::env;

/// What to measure, and how much of it.
#[derive(Clone, Debug)]
pub struct Options {
    /// A check that everything works, in minutes: small numbers, which say little.
    pub quick: bool,
    /// These scenarios alone, by their numbers; empty: all of them.
    pub only: Vec<u8>,
}

impl Options {
    /// `QUICK=1`, `ONLY=1,8`.
    pub fn from_environment() -> Result<Self, String> {
        let quick = match text("QUICK")?.as_str() {
            "" | "0" => false,
            "1" => true,
            text => return Err(format!("QUICK is {text:?}, but must be 1 or 0, as in `make bench QUICK=1`")),
        };
        let only = text("ONLY")?;
        let numbers = only.split(',').map(str::trim).filter(|number| !number.is_empty()).map(str::parse);
        let only = numbers
            .collect::<Result<Vec<u8>, _>>()
            .map_err(|_| format!("ONLY is {only:?}, but must be numbers of scenarios, as in `make bench ONLY=1,8`"))?;
        Ok(Self { quick, only })
    }

    /// Whether this scenario is asked for.
    pub fn wants(&self, scenario: u8) -> bool {
        self.only.is_empty() || self.only.contains(&scenario)
    }

    /// The number for a real measurement, or the one for a check that everything works.
    pub fn pick(&self, full: usize, quick: usize) -> usize {
        if self.quick { quick } else { full }
    }

    /// How many conversations many are.
    pub fn many(&self) -> usize {
        self.pick(100_000, 1000)
    }

    /// How many conversations are stored where it is measured what they cost: some, and many. Of a check, many alone.
    pub fn sizes(&self) -> Vec<usize> {
        let some = (!self.quick).then_some(10_000);
        some.into_iter().chain([self.many()]).collect()
    }

    /// How many pairs are measured.
    pub fn pairs(&self) -> usize {
        self.pick(5, 1)
    }
}

fn text(name: &str) -> Result<String, String> {
    let value = env::var_os(name).unwrap_or_default();
    value.into_string().map_err(|value| format!("{name} is {}, which is no text", value.display()))
}
