"""What Prometheus reads of a running service."""

from __future__ import annotations

from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from guardtrace_proxy.server.service import Service

Labels = dict[str, str]
LISTENING = {"metrics": {"port": 0}}


class Scrape:
    """The samples of one reading."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.families = list(text_string_to_metric_families(text))
        self.samples = [sample for family in self.families for sample in family.samples]

    def value(self, name: str, **labels: str) -> float:
        """The sum of the samples with this name and these labels."""
        found = [each for each in self.samples if each.name == name]
        return sum(each.value for each in found if labels.items() <= each.labels.items())

    def labels(self, name: str) -> list[Labels]:
        return [each.labels for each in self.samples if each.name == name]

    @property
    def names(self) -> set[str]:
        """Of all samples."""
        return {each.name for each in self.samples}


def url_of(service: Service) -> str:
    assert service.metrics_listener is not None
    return f"http://127.0.0.1:{service.metrics_listener.port}/metrics"


def scrape(service: Service, **options: Any) -> Scrape:
    answer = httpx.get(url_of(service), trust_env=False, timeout=30, **options)
    assert answer.status_code == 200
    return Scrape(answer.text)
