//! What is computed from many blocks: medians, and the interval in which most of them lie.

/// The middle of many values, and between which most of them lie.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// A tenth is below.
    pub low: f64,
    /// Half is below.
    pub median: f64,
    /// A tenth is above.
    pub high: f64,
    /// How many values there are.
    pub values: usize,
}

impl Spread {
    /// Of these values; `None` if there are none.
    pub fn of(values: &[f64]) -> Option<Self> {
        let at = |part| quantile(values, part);
        Some(Spread { low: at(0.1)?, median: at(0.5)?, high: at(0.9)?, values: values.len() })
    }
}

/// The value below which that part of them lies, between two of them where it falls between.
pub fn quantile(values: &[f64], part: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let place = sorted.len().checked_sub(1)? as f64 * part;
    let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    Some(below + (above - below) * place.fract())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_the_values() {
        let values = [5.0, 1.0, 4.0, 2.0, 3.0];
        assert_eq!(quantile(&values, 0.5), Some(3.0));
        assert_eq!(quantile(&values, 0.125), Some(1.5));
        assert_eq!(quantile(&values, 1.0), Some(5.0));
        assert_eq!(quantile(&[], 0.5), None);
        assert_eq!(Spread::of(&[7.0]), Some(Spread { low: 7.0, median: 7.0, high: 7.0, values: 1 }));
    }
}
