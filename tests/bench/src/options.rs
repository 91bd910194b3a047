//! The options in the environment, as `make bench NAME=value` sets them.

use std::env;

/// The selection of scenarios and their size.
#[derive(Clone, Debug)]
pub struct Options {
    /// A quick run checks that every scenario works. Its numbers are too small for a measurement.
    pub quick: bool,
    /// The numbers of the selected scenarios; empty for all of them.
    pub only: Vec<u8>,
}

impl Options {
    /// Reads `QUICK=1` and `ONLY=1,8`.
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

    /// Whether this scenario is selected.
    pub fn wants(&self, scenario: u8) -> bool {
        self.only.is_empty() || self.only.contains(&scenario)
    }

    /// The number for a full run or for a quick run.
    pub fn pick(&self, full: usize, quick: usize) -> usize {
        if self.quick { quick } else { full }
    }

    /// The number of conversations in a large state.
    pub fn many(&self) -> usize {
        self.pick(100_000, 1000)
    }

    /// The numbers of stored conversations in scenarios that measure their cost. A quick run has only one.
    pub fn sizes(&self) -> Vec<usize> {
        let some = (!self.quick).then_some(10_000);
        some.into_iter().chain([self.many()]).collect()
    }

    /// The number of measured pairs.
    pub fn pairs(&self) -> usize {
        self.pick(5, 1)
    }
}

fn text(name: &str) -> Result<String, String> {
    let value = env::var_os(name).unwrap_or_default();
    value.into_string().map_err(|value| format!("{name} is {}, which is not UTF-8", value.display()))
}
