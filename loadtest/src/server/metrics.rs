//! The router's `/metrics`, as far as a load test reads it: sums of counters and quantiles of
//! histograms. Not a Prometheus client. Invariant: what is not in the text is `None`.

use std::collections::{BTreeMap, BTreeSet};

/// One sample: name, labels, value.
#[derive(Clone, Debug, PartialEq)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

/// All samples of one moment.
#[derive(Clone, Debug, Default)]
pub struct Scrape {
    samples: Vec<Sample>,
}

impl Scrape {
    /// Reads the text format; lines that are none are passed over.
    pub fn parse(text: &str) -> Self {
        Self { samples: text.lines().filter_map(sample).collect() }
    }

    /// Sum over all series of that name; `None` when there is none.
    pub fn sum(&self, name: &str) -> Option<f64> {
        self.sum_where(name, &[])
    }

    /// Sum over the series of that name that have all these labels.
    pub fn sum_where(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let mut values = self.of(name, labels).map(|sample| sample.value).peekable();
        values.peek()?;
        Some(values.sum())
    }

    /// How much a counter grew since `before`. A series that is not there yet counts as zero; one
    /// that is in neither gives `None`.
    pub fn since(&self, before: &Self, name: &str) -> Option<f64> {
        Some(self.sum(name)? - before.sum(name).unwrap_or(0.0))
    }

    /// All counters that grew since `before`, summed over their series, by name.
    pub fn moved_since(&self, before: &Self) -> BTreeMap<String, f64> {
        let names: BTreeSet<&str> = self
            .samples
            .iter()
            .map(|sample| sample.name.as_str())
            .filter(|name| name.ends_with("_total") && !name.contains("_within_"))
            .collect();
        let moved = |name: &str| Some((name.to_owned(), self.since(before, name)?));
        names.into_iter().filter_map(moved).filter(|(_, n)| *n > 0.0).collect()
    }

    /// What a histogram took in since `before`, over all series with these labels. `buckets` is the
    /// name of its cumulative counters, told apart by the label `le`. `None` when there are none or
    /// nothing was recorded.
    pub fn histogram_since(
        &self,
        before: &Self,
        buckets: &str,
        labels: &[(&str, &str)],
    ) -> Option<Histogram> {
        let mut edges: BTreeMap<u64, (f64, f64)> = BTreeMap::new();
        for (sign, scrape) in [(1.0, self), (-1.0, before)] {
            for sample in scrape.of(buckets, labels) {
                let Some(edge) = sample.labels.get("le").and_then(|le| edge(le)) else { continue };
                // Edges are positive, so the order of their bits is their order.
                edges.entry(edge.to_bits()).or_insert((edge, 0.0)).1 += sign * sample.value;
            }
        }
        let cumulative: Vec<(f64, f64)> = edges.into_values().collect();
        let total = cumulative.last()?.1;
        (total > 0.0).then_some(Histogram { cumulative, total })
    }

    fn of(&self, name: &str, labels: &[(&str, &str)]) -> impl Iterator<Item = &Sample> {
        let has = |sample: &Sample| {
            labels.iter().all(|(k, v)| sample.labels.get(*k).map(String::as_str) == Some(v))
        };
        self.samples.iter().filter(move |sample| sample.name == name && has(sample))
    }
}

fn edge(le: &str) -> Option<f64> {
    if le == "+Inf" { Some(f64::INFINITY) } else { le.parse().ok() }
}

fn sample(line: &str) -> Option<Sample> {
    if line.starts_with('#') {
        return None;
    }
    let (head, value) = line.rsplit_once(' ')?;
    let value = value.parse().ok()?;
    let Some((name, rest)) = head.split_once('{') else {
        return Some(Sample { name: head.to_owned(), labels: BTreeMap::new(), value });
    };
    let mut labels = BTreeMap::new();
    let mut rest = rest.strip_suffix('}')?;
    while !rest.is_empty() {
        let (key, tail) = rest.split_once("=\"")?;
        let end = closing_quote(tail)?;
        labels.insert(key.trim_start_matches(',').to_owned(), tail[..end].to_owned());
        rest = tail[end + 1..].trim_start_matches(',');
    }
    Some(Sample { name: name.to_owned(), labels, value })
}

/// The quote that is not escaped.
fn closing_quote(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.bytes().position(|byte| {
        let ends = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        ends
    })
}

/// What fell between the edges of a histogram.
#[derive(Clone, Debug, PartialEq)]
pub struct Histogram {
    /// Upper edge and how many are at or below it.
    cumulative: Vec<(f64, f64)>,
    /// How many in all.
    pub total: f64,
}

impl Histogram {
    /// The value below which the part `q` (0 to 1) lies, interpolated within its bucket. In the
    /// last, open bucket there is nothing to interpolate with: `None`.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let rank = q * self.total;
        let (mut low, mut below) = (0.0, 0.0);
        for &(edge, count) in &self.cumulative {
            if count >= rank {
                if edge.is_infinite() {
                    return None;
                }
                let inside = count - below;
                let part = if inside > 0.0 { (rank - below) / inside } else { 1.0 };
                return Some(low + (edge - low) * part);
            }
            (low, below) = (edge, count);
        }
        None
    }

    /// Upper edges and counts within them, for plots; the open bucket is left out.
    pub fn bars(&self) -> Vec<(f64, f64)> {
        let mut below = 0.0;
        let bars = self.cumulative.iter().map(|&(edge, count)| {
            let inside = count - below;
            below = count;
            (edge, inside)
        });
        bars.filter(|(edge, _)| edge.is_finite()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# HELP x y\n# TYPE x counter\n\
        x{node=\"a\",shard=\"0\"} 3\nx{node=\"a\",shard=\"1\"} 4\nplain 7\n\
        h_bucket{role=\"observer\",le=\"10\"} 50\nh_bucket{role=\"observer\",le=\"20\"} 99\n\
        h_bucket{role=\"observer\",le=\"+Inf\"} 100\nh_sum{role=\"observer\"} 900\n\
        odd{text=\"a \\\" } b\"} 1\nnonsense\n";

    #[test]
    fn counters_are_summed_over_their_series() {
        let scrape = Scrape::parse(TEXT);
        assert_eq!(scrape.sum("x"), Some(7.0));
        assert_eq!(scrape.sum_where("x", &[("shard", "1")]), Some(4.0));
        assert_eq!(scrape.sum("plain"), Some(7.0));
        assert_eq!(scrape.sum("y"), None);
        assert_eq!(scrape.sum("odd"), Some(1.0));
        assert_eq!(scrape.since(&Scrape::default(), "x"), Some(7.0));
    }

    #[test]
    fn quantiles_are_interpolated_and_the_open_bucket_has_none() {
        let now = Scrape::parse(TEXT);
        let histogram =
            now.histogram_since(&Scrape::default(), "h_bucket", &[("role", "observer")]).unwrap();
        assert_eq!(histogram.quantile(0.25), Some(5.0));
        assert_eq!(histogram.quantile(0.5), Some(10.0));
        assert_eq!(histogram.quantile(0.99), Some(20.0));
        assert_eq!(histogram.quantile(0.999), None);
        assert_eq!(now.histogram_since(&now, "h_bucket", &[]), None, "nothing new");
        assert_eq!(now.histogram_since(&now, "absent", &[]), None);
    }
}
