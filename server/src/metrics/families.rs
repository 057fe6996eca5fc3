//! Prometheus' families of metrics, made of plain numbers.

use std::time::Duration;

use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType};

use super::{CLASSES, Observed};

/// Returns a family with one gauge.
pub(super) fn gauge(name: &str, help: &str, labels: &[(&str, &str)], value: u64) -> MetricFamily {
    family(name, help, MetricType::GAUGE, vec![metric(MetricType::GAUGE, labels, value)])
}

/// Returns a family with one counter.
pub(super) fn counter(name: &str, help: &str, labels: &[(&str, &str)], value: u64) -> MetricFamily {
    family(name, help, MetricType::COUNTER, vec![metric(MetricType::COUNTER, labels, value)])
}

/// Returns a histogram for each set of labels.
pub(super) fn histogram(name: &str, help: &str, all: &[(Vec<(&str, &str)>, Observed)]) -> MetricFamily {
    let metrics = all.iter().map(|(labels, observed)| {
        let mut count = 0;
        let buckets = observed.classes.iter().enumerate().take(CLASSES - 1).map(|(class, more)| {
            count += more;
            let mut bucket = Bucket::default();
            bucket.set_cumulative_count(count);
            bucket.set_upper_bound(Duration::from_micros(1 << class).as_secs_f64());
            bucket
        });
        let mut histogram = Histogram::default();
        histogram.set_bucket(buckets.collect());
        histogram.set_sample_count(observed.classes.iter().sum());
        histogram.set_sample_sum(observed.sum.as_secs_f64());
        let mut metric = labelled(labels);
        metric.set_histogram(histogram);
        metric
    });
    family(name, help, MetricType::HISTOGRAM, metrics.collect())
}

/// Returns a family of metrics.
pub(super) fn family(name: &str, help: &str, kind: MetricType, metrics: Vec<Metric>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(metrics);
    family
}

fn labelled(labels: &[(&str, &str)]) -> Metric {
    let labels = labels.iter().map(|(name, value)| {
        let mut label = LabelPair::default();
        label.set_name((*name).to_owned());
        label.set_value((*value).to_owned());
        label
    });
    Metric::from_label(labels.collect())
}

/// Returns a counter, or a gauge.
#[expect(clippy::cast_precision_loss, reason = "Prometheus' numbers are floating-point numbers")]
pub(super) fn metric(kind: MetricType, labels: &[(&str, &str)], value: u64) -> Metric {
    if kind != MetricType::COUNTER {
        return measured(labels, value as f64);
    }
    let mut metric = labelled(labels);
    let mut counter = Counter::default();
    counter.set_value(value as f64);
    metric.set_counter(counter);
    metric
}

/// Returns a gauge's metric.
pub(super) fn measured(labels: &[(&str, &str)], value: f64) -> Metric {
    let mut metric = labelled(labels);
    let mut gauge = Gauge::default();
    gauge.set_value(value);
    metric.set_gauge(gauge);
    metric
}
