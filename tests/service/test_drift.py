"""What a model finds is counted by score and class."""

import httpx
import pytest

pytestmark = pytest.mark.anyio


async def test_what_is_found_is_counted_whatever_the_request_asks_for(
    client: httpx.AsyncClient, png_bytes: bytes
) -> None:
    for threshold in ("0.05", "0.95"):
        await client.post(f"/detect?threshold={threshold}", content=png_bytes)

    exposition = (await client.get("/metrics")).text

    assert 'detr_score_count{model="toy"} 4.0' in exposition
    assert 'detr_score_bucket{le="0.3",model="toy"} 2.0' in exposition
    assert 'detr_score_bucket{le="0.8",model="toy"} 2.0' in exposition
    assert 'detr_detections_total{class_name="red",model="toy"} 2.0' in exposition
    assert 'class_name="green"' not in exposition
