"""POST /v1/vision/detection, asked as the clients of DeepStack ask it, on a served bundle."""

import httpx
import pytest


def ask(address: str, image: bytes, **fields: str) -> httpx.Response:
    url = f"{address}/v1/vision/detection"
    return httpx.post(url, files={"image": ("image", image)}, data=fields)


def corners(bbox: list[float]) -> dict[str, int]:
    x, y, width, height = bbox
    return {
        "x_min": round(x),
        "y_min": round(y),
        "x_max": round(x + width),
        "y_max": round(y + height),
    }


def test_objects_have_labels_confidences_and_corners(address: str, png_bytes: bytes) -> None:
    """The boxes of POST /detect, in whole pixels."""
    response = ask(address, png_bytes, min_confidence="0.5", api_key="")

    of_detect = httpx.post(f"{address}/detect?threshold=0.5", content=png_bytes).json()
    (red, green) = of_detect["results"][0]["detections"]
    answer = response.json()
    assert response.status_code == 200
    assert answer["duration"] >= 0
    assert {"success": True, "code": 200}.items() <= answer.items()
    assert answer["predictions"] == [
        {"label": "red", "confidence": red["score"], **corners(red["bbox"])},
        {"label": "green", "confidence": green["score"], **corners(green["bbox"])},
    ]


@pytest.mark.parametrize(("threshold", "labels"), [("0.8", ["red"]), ("1", []), ("0", 3)])
def test_only_objects_of_the_least_confidence_are_answered(
    address: str, png_bytes: bytes, threshold: str, labels: list[str] | int
) -> None:
    response = ask(address, png_bytes, min_confidence=threshold)

    found = [one["label"] for one in response.json()["predictions"]]
    assert labels in (found, len(found))


@pytest.mark.parametrize("value", ["high", "-0.1", "1.1", "nan", "", "\u0660.5", "0_0", "1e999"])
def test_a_confidence_out_of_range_is_refused(address: str, png_bytes: bytes, value: str) -> None:
    response = ask(address, png_bytes, min_confidence=value)

    assert response.status_code == 422
    assert response.json()["error"] == f"expected 'min_confidence' once, in 0..1, got {value!r}"


def test_a_confidence_that_is_given_twice_or_as_a_file_is_refused(
    address: str, png_bytes: bytes
) -> None:
    url, image = f"{address}/v1/vision/detection", ("image", ("image", png_bytes))

    twice = httpx.post(url, files=[image], data={"min_confidence": ["0.9", "0.1"]})
    as_file = httpx.post(url, files=[image, ("min_confidence", ("a", b"0.5"))])

    assert (twice.status_code, as_file.status_code) == (422, 422)
    assert twice.json()["error"].endswith("got '0.9', '0.1'")
    assert as_file.json()["error"].endswith("got 'a file'")


@pytest.mark.parametrize(
    ("files", "status", "message"),
    [
        ([("imgae", ("a", b"x"))], 422, "in the field 'image', got the fields 'imgae'"),
        ([("image", ("a", b""))], 422, "got 0 bytes"),
        ([("image", ("a", b"text"))], 415, "JPEG"),
        ([("image", ("a", b"x")), ("image", ("b", b"x"))], 422, "one file"),
        ([], 422, "expected a multipart form"),
    ],
)
def test_a_failure_has_the_shape_that_these_clients_read(
    address: str, files: list[tuple[str, tuple[str, bytes]]], status: int, message: str
) -> None:
    response = httpx.post(f"{address}/v1/vision/detection", files=files)

    failure = response.json()
    assert response.status_code == status
    assert message in failure.pop("error")
    assert failure == {"success": False, "code": status, "predictions": []}


def test_a_route_of_deepstack_that_is_not_offered_fails_in_its_shape(address: str) -> None:
    response = httpx.post(f"{address}/v1/vision/face")

    assert response.status_code == 404
    assert response.json()["success"] is False
