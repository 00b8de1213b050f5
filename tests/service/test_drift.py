"""What a model finds is counted by score and class."""

import asyncio

import httpx
import numpy as np
import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from service.score_histogram import ScoreHistogram

pytestmark = pytest.mark.anyio


async def test_what_is_found_is_counted_whatever_the_request_asks_for(
    client: httpx.AsyncClient, png_bytes: bytes
) -> None:
    for threshold in ("0.05", "0.95"):
        await client.post(f"/detect?threshold={threshold}", content=png_bytes)
    await asyncio.sleep(0)  # what follows an answer: this client is on the same loop

    exposition = (await client.get("/metrics")).text

    assert 'detr_score_count{model="toy"} 4.0' in exposition
    assert 'detr_score_bucket{le="0.3",model="toy"} 2.0' in exposition
    assert 'detr_score_bucket{le="0.8",model="toy"} 2.0' in exposition
    assert 'detr_detections_total{class_name="red",model="toy"} 2.0' in exposition
    assert 'class_name="green"' not in exposition


def test_scores_taken_at_once_are_shown_as_those_taken_one_by_one() -> None:
    together, alone, bounds = CollectorRegistry(), CollectorRegistry(), (0.2, 0.3, 0.5, 1)
    at_once = ScoreHistogram("scores", "Scores.", bounds=bounds, registry=together)
    one_by_one = Histogram("scores", "Scores.", ["model"], buckets=bounds, registry=alone)
    edges = np.array([0.1, 0.2, 0.3, 0.5, 1.0], np.float32)

    for model, scores in [("a", edges), ("b", edges[:2]), ("a", edges[3:]), ("c", edges[:0])]:
        at_once.observe(scores, model=model)
        one_by_one.labels(model)
        for score in scores.tolist():
            one_by_one.labels(model).observe(score)

    assert _lines(together) == _lines(alone)


def _lines(registry: CollectorRegistry) -> list[str]:
    lines = generate_latest(registry).decode().splitlines()
    return [line for line in lines if "_created" not in line]
