//! What a call cost, from a table of prices. A model that is not in it has no price: the cost is
//! unknown then, and never 0.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::config::Price;

/// The prices that the kernel knows, by provider and model.
const KNOWN: &str = include_str!("prices.toml");

/// Prices by `provider/model`, those of the configuration before the known ones.
#[derive(Clone, Debug)]
pub struct Prices {
    configured: BTreeMap<String, Price>,
    known: BTreeMap<String, Price>,
}

/// Tokens of one call by what they cost. `input` counts all prompt tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Billed {
    pub(super) input: u32,
    pub(super) cached: u32,
    pub(super) cache_write: u32,
    pub(super) output: u32,
}

impl Prices {
    /// The known prices under the configured ones.
    #[must_use]
    pub fn new(configured: BTreeMap<String, Price>) -> Self {
        #[derive(Default, Deserialize)]
        struct Table {
            #[serde(flatten)]
            providers: BTreeMap<String, BTreeMap<String, Price>>,
        }
        // A table that could not be read would price nothing; a test reads it.
        let table: Table = toml::from_str(KNOWN).unwrap_or_default();
        let known = table
            .providers
            .into_iter()
            .flat_map(|(provider, models)| models.into_iter().map(move |(m, p)| (format!("{provider}/{m}"), p)))
            .collect();
        Self { configured, known }
    }

    /// The price of `provider/model`, a dated release of a known model included.
    #[must_use]
    pub fn of(&self, name: &str) -> Option<Price> {
        let found = |name: &str| self.configured.get(name).or_else(|| self.known.get(name)).copied();
        found(name).or_else(|| found(undated(name)?))
    }
}

/// The name without a release date at its end: `-2025-08-07` or `-20250805`.
fn undated(name: &str) -> Option<&str> {
    ["-0000-00-00", "-00000000"].into_iter().find_map(|shape| {
        let (stem, date) = name.split_at_checked(name.len().checked_sub(shape.len())?)?;
        let fits = date.chars().zip(shape.chars()).all(|(c, s)| if s == '0' { c.is_ascii_digit() } else { c == s });
        fits.then_some(stem)
    })
}

/// The cost in micro-USD, rounded up: USD per million tokens is micro-USD per token.
pub(super) fn cost(price: Price, billed: Billed) -> u64 {
    let part = |tokens: u32, usd: f64| f64::from(tokens) * usd;
    let plain = billed.input.saturating_sub(billed.cached).saturating_sub(billed.cache_write);
    let sum = part(plain, price.input)
        + part(billed.cached, price.cached.unwrap_or(price.input))
        + part(billed.cache_write, price.cache_write.unwrap_or(price.input))
        + part(billed.output, price.output);
    // Prices are bounded by the configuration and tokens by u32, so the sum is far below u64; the
    // cast saturates in any case. The small step back keeps 0.1 + 0.2 from costing one more.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "see above; never negative")]
    let micro = (sum - 1e-6).ceil().max(0.0) as u64;
    micro
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_known_table_is_whole_and_dated_names_are_found() {
        let prices = Prices::new(BTreeMap::new());
        assert!(prices.known.len() > 10, "{}", prices.known.len());
        for (name, p) in &prices.known {
            assert!(p.input > 0.0 && p.output >= p.input, "{name}: {p:?}");
            assert!(p.cached.is_none_or(|c| c <= p.input) && p.cache_write.is_none_or(|c| c >= p.input), "{name}");
        }
        let plain = prices.of("openai/gpt-4o-mini").unwrap();
        assert_eq!(prices.of("openai/gpt-4o-mini-2024-07-18"), Some(plain));
        assert!(prices.of("anthropic/claude-sonnet-4-5-20250929").is_some());
        for unknown in ["openai/gpt-99", "local/x.gguf", "openai/gpt-4o-mini-1", "other/gpt-4o", "", "-20250101"] {
            assert_eq!(prices.of(unknown), None, "{unknown}");
        }
    }

    #[test]
    fn configured_prices_come_first_and_each_kind_of_token_has_its_own() {
        let price = Price { input: 3.0, cached: Some(0.3), cache_write: Some(3.75), output: 15.0 };
        let prices = Prices::new([("openai/gpt-4o".to_owned(), price)].into());
        assert_eq!(prices.of("openai/gpt-4o"), Some(price));
        let billed = Billed { input: 1000, cached: 600, cache_write: 100, output: 10 };
        assert_eq!(cost(price, billed), 900 + 180 + 375 + 150);
        let flat = Price { cached: None, cache_write: None, ..price };
        assert_eq!(cost(flat, billed), 3000 + 150);
        assert_eq!(cost(Price { input: 0.1, ..flat }, Billed { input: 1, ..Billed::default() }), 1);
        assert_eq!(cost(flat, Billed::default()), 0);
        assert_eq!(cost(flat, Billed { input: 5, cached: 9, ..Billed::default() }), 27);
    }
}
