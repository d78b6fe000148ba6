"""Histograms reach as far as what they measure may take by default: beyond their last bucket all waits look alike."""

from __future__ import annotations

import pytest
from prometheus_client import generate_latest

from guardtrace_proxy.policy.schema import Policy
from guardtrace_proxy.server.settings import AuditorSettings, UpstreamSettings
from guardtrace_proxy.telemetry.metrics import Metrics
from tests.telemetry.scraping import Scrape

JUDGED = {
    "tenant": "t",
    "phase": "thinking",
    "depth": "label",
    "level": "0",
    "action": "pass",
    "enforced": True,
    "escalated": False,
    "tokens": 1,
}


def within(metrics: Metrics, name: str, seconds: float) -> float:
    """How many were no longer than this, by the bucket that ends there."""
    found = Scrape(generate_latest(metrics.registry).decode())
    ends = {float(each["le"]) for each in found.labels(f"guardtrace_{name}_bucket")}
    assert seconds in ends
    (value,) = [
        sample.value
        for sample in found.samples
        if sample.name == f"guardtrace_{name}_bucket" and float(sample.labels["le"]) == seconds
    ]
    return value


@pytest.mark.parametrize("name", ["upstream_first_text_seconds", "client_first_text_seconds"])
def test_a_first_text_that_comes_late_has_a_bucket(name: str) -> None:
    metrics = Metrics()
    for seconds in (31, 61, 121, 301, 599):
        metrics.first_text_came("u", seconds)
        metrics.first_text_left("u", seconds)
    assert [within(metrics, name, end) for end in (30, 60, 120, 300, 600)] == [0, 1, 2, 3, 5]
    assert UpstreamSettings.model_fields["read_timeout_ms"].default <= 600 * 1000


@pytest.mark.parametrize("name", ["audit_seconds", "hold_seconds"])
def test_an_audit_that_is_tried_again_and_again_has_a_bucket(name: str) -> None:
    metrics = Metrics()
    for seconds in (31, 61, 119):
        metrics.judged(**JUDGED, audit_seconds=seconds, hold_seconds=seconds)
    assert [within(metrics, name, end) for end in (30, 60, 120)] == [0, 1, 3]
    longest = Policy(version=1).hold_limit_ms + AuditorSettings(base_url=None).timeout_ms
    assert longest <= 120 * 1000
