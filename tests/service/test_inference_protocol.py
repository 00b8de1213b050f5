"""/v2, asked by NVIDIA's own client and by hand, on a served bundle."""

import base64
import json
import tracemalloc
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from service.errors import InvalidRequest
from service.tensors import read_infer_request

Image = npt.NDArray[np.uint8]
URL = "/v2/models/toy/infer"


@pytest.fixture
def client(address: str) -> Iterator[triton.InferenceServerClient]:
    client = triton.InferenceServerClient(address.removeprefix("http://"))
    yield client
    client.close()


def tensor(name: str, array: npt.NDArray[Any], *, binary: bool) -> triton.InferInput:
    datatype = "BYTES" if array.dtype == object else "UINT8"
    tensor = triton.InferInput(name, array.shape, datatype)
    return tensor.set_data_from_numpy(array, binary_data=binary)


def files(*contents: bytes | str) -> npt.NDArray[np.object_]:
    return np.array(contents, dtype=object)


@pytest.fixture(scope="module")
def expected(address: str, png_bytes: bytes) -> list[dict[str, Any]]:
    """What POST /detect finds in the scene."""
    answer = httpx.post(f"{address}/detect?threshold=0", content=png_bytes).json()
    found: list[dict[str, Any]] = answer["results"][0]["detections"]
    return found


def check_row(answer: triton.InferResult, expected: list[dict[str, Any]], row: int = 0) -> None:
    for output, key in [("boxes", "bbox"), ("scores", "score"), ("category_ids", "category_id")]:
        values = [one[key] for one in expected]
        np.testing.assert_allclose(answer.as_numpy(output)[row], values, rtol=1e-6)
    names = answer.as_numpy("category_names").astype("S")[row]
    assert [name.decode() for name in names] == [one["category_name"] for one in expected]


def test_the_client_finds_a_live_and_ready_server_and_its_model(
    client: triton.InferenceServerClient,
) -> None:
    metadata = client.get_model_metadata("toy")

    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("toy")
    assert client.is_model_ready("toy", metadata["versions"][0])
    assert not client.is_model_ready("other")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    assert metadata["inputs"] == [
        {"name": "image", "datatype": "BYTES", "shape": [-1]},
        {"name": "pixels", "datatype": "UINT8", "shape": [-1, -1, -1, 3]},
    ]
    assert metadata["outputs"] == [
        {"name": "scores", "datatype": "FP32", "shape": [-1, 3]},
        {"name": "category_ids", "datatype": "INT64", "shape": [-1, 3]},
        {"name": "category_names", "datatype": "BYTES", "shape": [-1, 3]},
        {"name": "boxes", "datatype": "FP32", "shape": [-1, 3, 4]},
    ]


@pytest.mark.parametrize("shape", [(2,), (2, 1)])
def test_files_as_bytes_are_detected_in(
    client: triton.InferenceServerClient,
    expected: list[dict[str, Any]],
    png_bytes: bytes,
    webp_bytes: bytes,
    shape: tuple[int],
) -> None:
    images = files(png_bytes, webp_bytes).reshape(shape)

    answer = client.infer("toy", [tensor("image", images, binary=True)], request_id="7")

    check_row(answer, expected, row=0)
    check_row(answer, expected, row=1)
    assert answer.get_response()["id"] == "7"


def test_files_in_json_are_base64_text(
    client: triton.InferenceServerClient, expected: list[dict[str, Any]], png_bytes: bytes
) -> None:
    images = files(base64.b64encode(png_bytes))

    answer = client.infer("toy", [tensor("image", images, binary=False)])

    check_row(answer, expected)


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("num_images", [None, 1, 2])
def test_decoded_pixels_are_detected_in(
    client: triton.InferenceServerClient,
    expected: list[dict[str, Any]],
    scene: Image,
    binary: bool,
    num_images: int | None,
) -> None:
    pixels = scene if num_images is None else np.stack([scene] * num_images)
    outputs = [triton.InferRequestedOutput(name, binary_data=binary)
               for name in ("boxes", "scores", "category_ids", "category_names")]  # fmt: skip

    answer = client.infer("toy", [tensor("pixels", pixels, binary=binary)], outputs=outputs)

    assert answer.as_numpy("scores").shape == (num_images or 1, 3)
    check_row(answer, expected, row=-1)


def test_pixels_get_the_answer_of_the_file_that_has_them(
    client: triton.InferenceServerClient, scene: Image, png_bytes: bytes
) -> None:
    of_pixels = client.infer("toy", [tensor("pixels", scene[None], binary=True)])
    of_file = client.infer("toy", [tensor("image", files(png_bytes), binary=True)])

    np.testing.assert_array_equal(of_pixels.as_numpy("boxes"), of_file.as_numpy("boxes"))


def test_only_the_outputs_that_are_asked_for_are_sent(
    client: triton.InferenceServerClient, scene: Image
) -> None:
    wanted = [triton.InferRequestedOutput("boxes", binary_data=True),
              triton.InferRequestedOutput("scores", binary_data=False)]  # fmt: skip

    answer = client.infer("toy", [tensor("pixels", scene, binary=True)], outputs=wanted)

    sent = answer.get_response()["outputs"]
    assert [one["name"] for one in sent] == ["boxes", "scores"]
    assert ["data" in one for one in sent] == [False, True]


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("image", files(b"text"), "JPEG"),
        ("image", files(), "empty"),
        ("image", np.zeros((4, 4, 3), np.uint8), "expected the datatype BYTES, got 'UINT8'"),
        ("pixels", np.zeros((4, 4), np.uint8), r"expected the shape \[height, width, 3\]"),
        ("pixels", np.zeros((0, 4, 3), np.uint8), r"expected the shape \[height, width, 3\]"),
        ("pixels", np.zeros((0, 4, 4, 3), np.uint8), "empty"),
        ("pixels", np.zeros((17, 1, 1, 3), np.uint8), "images .* at most 16, got 17"),
        ("pixel", np.zeros((4, 4, 3), np.uint8), "did you mean 'pixels'"),
    ],
)
def test_the_client_is_told_what_is_wrong_with_an_input(
    client: triton.InferenceServerClient, name: str, array: npt.NDArray[Any], message: str
) -> None:
    with pytest.raises(InferenceServerException, match=message):
        client.infer("toy", [tensor(name, array, binary=True)])


def test_a_model_or_output_of_another_name_is_refused(
    client: triton.InferenceServerClient, scene: Image
) -> None:
    pixels = [tensor("pixels", scene, binary=True)]

    with pytest.raises(InferenceServerException, match="no model 'other': served here: 'toy'"):
        client.infer("other", pixels)
    with pytest.raises(InferenceServerException, match="no model 'toy' in version '1'"):
        client.infer("toy", pixels, model_version="1")
    with pytest.raises(
        InferenceServerException, match=r"unknown output 'box': did you mean 'boxes'"
    ):
        client.infer("toy", pixels, outputs=[triton.InferRequestedOutput("box")])


def test_an_output_in_another_form_or_place_is_refused(
    client: triton.InferenceServerClient, scene: Image
) -> None:
    pixels = [tensor("pixels", scene, binary=True)]
    in_memory = triton.InferRequestedOutput("scores")
    in_memory.set_shared_memory("region", 400)

    for output, name in (
        (triton.InferRequestedOutput("scores", class_count=3), "classification"),
        (in_memory, "shared_memory_region"),
    ):
        with pytest.raises(InferenceServerException, match=f"parameter '{name}' is not supported"):
            client.infer("toy", pixels, outputs=[output])


def test_a_compressed_body_is_refused_by_name(
    client: triton.InferenceServerClient, scene: Image
) -> None:
    pixels = [tensor("pixels", scene, binary=True)]

    with pytest.raises(InferenceServerException, match="without Content-Encoding, got 'gzip'"):
        client.infer("toy", pixels, request_compression_algorithm="gzip")


def pixels_of(data: Any, shape: list[int]) -> dict[str, Any]:
    return {"name": "pixels", "datatype": "UINT8", "shape": shape, "data": data}


def files_of(shape: list[Any], *texts: str) -> dict[str, Any]:
    return {"name": "image", "datatype": "BYTES", "shape": shape, "data": texts}


def test_what_is_null_is_not_given(address: str) -> None:
    tensor = {**pixels_of([0, 0, 0], [1, 1, 3]), "parameters": None}
    body = {"id": None, "parameters": None, "outputs": None, "inputs": [tensor]}

    response = httpx.post(f"{address}{URL}", json=body)

    assert response.status_code == 200
    assert len(response.json()["outputs"]) == 4


@pytest.mark.parametrize("shape", [[], [1, 1, 1], [2, 2], [1, 0], [1.0], ["1"], [True], [None]])
def test_files_have_the_shape_that_is_described(address: str, shape: list[Any]) -> None:
    response = httpx.post(f"{address}{URL}", json={"inputs": [files_of(shape, "eA==")]})

    assert response.status_code == 422
    assert "shape" in response.json()["error"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "inputs: Field required"),
        ({"inputs": []}, "expected one input"),
        ({"inputs": [pixels_of([0, 0, 0], [1, 1, 3])] * 2}, "expected one input"),
        ({"inputs": [pixels_of([0, 0], [1, 1, 3])]}, "expected 3 values for the shape"),
        ({"inputs": [pixels_of([0] * 3, [-1, -1, 3])]}, "expected the shape"),
        ({"inputs": [pixels_of([0, 0, 256], [1, 1, 3])]}, "whole numbers in 0..255"),
        ({"inputs": [pixels_of([0, 0, -1], [1, 1, 3])]}, "whole numbers in 0..255"),
        ({"inputs": [pixels_of([0, 0, 0.5], [1, 1, 3])]}, "whole numbers in 0..255"),
        ({"inputs": [pixels_of([True] * 3, [1, 1, 3])]}, "whole numbers in 0..255"),
        ({"inputs": [pixels_of([[0], [0, 0]], [1, 1, 3])]}, "whole numbers in 0..255"),
        ({"inputs": [pixels_of(None, [1, 1, 3])]}, "either 'data' or"),
        ({"inputs": [pixels_of([0] * 3, [20_000, 20_000, 3])]}, "pixels an image"),
        ({"inputs": [pixels_of([0] * 3, [10**4298, 10, 10, 3])]}, "less than 2147483648"),
        ({"inputs": [pixels_of([0] * 3, [-(10**4298), 10, 10, 3])]}, "greater than or equal to -1"),
        ({"inputs": [files_of([1], "ä")]}, "base"),
        ({"inputs": [{**files_of([1]), "data": [[1]]}]}, "text"),
        ({"inputs": [files_of([2], "eA==")]}, "2"),
    ],
)
def test_json_that_is_not_a_request_for_inference_is_explained(
    address: str, body: dict[str, Any], message: str
) -> None:
    response = httpx.post(f"{address}{URL}", json=body)

    assert response.status_code == 422
    assert message in response.json()["error"]


@pytest.mark.parametrize("value", ["0", '{"name": "scores"}'], ids=["wrong", "right"])
@pytest.mark.parametrize("where", ["inputs", "outputs"])
def test_very_many_tensors_are_refused_without_a_model_of_each(where: str, value: str) -> None:
    body = f'{{"inputs": [], "{where}": [{",".join([value] * 20_000)}]}}'.encode()
    tracemalloc.start()

    with pytest.raises(InvalidRequest, match=where) as refused:
        read_infer_request(body, None)
    _, most_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert len(refused.value.message) < 300
    assert most_bytes < 20_000 * 300


def test_texts_for_pixels_take_no_memory_for_the_longest_in_every_place() -> None:
    values = ["a" * 100_000, *["b"] * 400]
    body = json.dumps({"inputs": [pixels_of(values, [1, 1, 3])]}).encode()
    _, (tensor,) = read_infer_request(body, None)
    tracemalloc.start()

    with pytest.raises(InvalidRequest, match=r"whole numbers in 0\.\.255"):
        tensor.pixels()
    _, most_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert most_bytes < 100_000


def binary_request(size: object, *, datatype: str = "UINT8") -> bytes:
    name, shape = ("pixels", [1, 1, 3]) if datatype == "UINT8" else ("image", [1])
    head = {"name": name, "datatype": datatype, "shape": shape,
            "parameters": {"binary_data_size": size}}  # fmt: skip
    return json.dumps({"inputs": [head]}).encode()


@pytest.mark.parametrize(
    ("head", "raw", "length", "message"),
    [
        (binary_request(3), b"abcd", None, "bytes after the last tensor, which belong to none: 1"),
        (binary_request(4), b"abc", None, "binary_data_size"),
        (binary_request(-1), b"abc", None, "binary_data_size"),
        (binary_request("3"), b"abc", None, "binary_data_size"),
        (binary_request(2), b"ab", None, "expected 3 values"),
        (binary_request(3, datatype="BYTES"), b"abc", None, "element 0 is longer"),
        (binary_request(5, datatype="BYTES"), b"\x09\0\0\0a", None, "element 0 is longer"),
        (binary_request(3), b"abc", "-1", "Inference-Header-Content-Length"),
        (binary_request(3), b"abc", "9999", "Inference-Header-Content-Length"),
        (binary_request(3), b"abc", "9" * 5000, "Inference-Header-Content-Length"),
        (binary_request(3), b"abc", "5", "the JSON body cannot be read"),
    ],
)
def test_lengths_that_do_not_fit_the_body_are_explained(
    address: str, head: bytes, raw: bytes, length: str | None, message: str
) -> None:
    headers = {"Inference-Header-Content-Length": length or str(len(head))}

    response = httpx.post(f"{address}{URL}", content=head + raw, headers=headers)

    assert response.status_code in (400, 422)
    assert message in response.json()["error"]
