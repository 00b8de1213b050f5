"""How images are resized and normalised for a published model, from the settings with its weights.

What `bundle.preprocess` does not do, such as squeezing images into a square, is refused by name.
"""

from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

from pydantic import ValidationError

from bundle.preprocess import Preprocess
from model.checkpoints.published_settings import is_same, refuse, require_supported

PREPROCESSOR_FILE = "preprocessor_config.json"
_BILINEAR = 2  # of Pillow
_HUGGING_FACE = {
    "do_resize": True,
    "size": {"shortest_edge": 800, "longest_edge": 1333},
    "max_size": 1333,  # the default if the size is a single number
    "resample": _BILINEAR,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}
_DIGITS = 6  # after the decimal point: 0.485 * 255 is 123.675


def from_preprocessor_config(config: Mapping[str, Any]) -> Preprocess:
    """The preprocessing in a preprocessor_config.json of transformers.

    Raises:
        ValueError: a setting is not supported or malformed; names it.
    """
    given = {**_HUGGING_FACE, **{key: value for key, value in config.items() if value is not None}}
    require_supported(
        PREPROCESSOR_FILE, given, supported={"do_resize": True, "resample": _BILINEAR}
    )
    short_side, long_side = _sides(given)
    scale = _positive(given, "rescale_factor") if given["do_rescale"] else 1.0
    mean, std = [0.0] * 3, [1.0] * 3
    if given["do_normalize"]:
        mean, std = _colours(given, "image_mean"), _colours(given, "image_std")
    try:
        return Preprocess.model_validate({
            "short_side": short_side,
            "long_side": long_side,
            "mean": [round(value / scale, _DIGITS) for value in mean],
            "std": [round(value / scale, _DIGITS) for value in std],
        })  # fmt: skip
    except ValidationError as error:
        name = f"image_{error.errors()[0]['loc'][0]}"
        supported = "means from 0 to 255 and deviations from 1, after the division by its scale"
        refuse(PREPROCESSOR_FILE, name, value=given[name], supported=supported)


def _sides(given: Mapping[str, Any]) -> tuple[int, int]:
    """The short side and the largest long side, in pixels."""
    size = given["size"]
    if _is_side(size) and _is_side(given["max_size"]):
        return size, given["max_size"]
    if isinstance(size, Mapping):
        shortest = size.get("shortest_edge")
        longest = size.get("longest_edge", given["max_size"])
        if _is_side(shortest) and _is_side(longest):
            return shortest, longest
        # A box that images have to fit into: only for a square one, orientation does not matter.
        height, width = size.get("max_height"), size.get("max_width")
        if _is_side(height) and height == width:
            return height, height
    return refuse(
        PREPROCESSOR_FILE, "size", value=size, supported="a shortest_edge and a longest_edge"
    )


def _is_side(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _positive(given: Mapping[str, Any], name: str) -> float:
    value = given[name]
    if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
        refuse(PREPROCESSOR_FILE, name, value=value, supported="a positive number")
    return float(value)


def _colours(given: Mapping[str, Any], name: str) -> list[float]:
    value = given[name]
    if not isinstance(value, list) or len(value) != 3 or not all(
        isinstance(item, int | float) and not isinstance(item, bool) for item in value
    ):  # fmt: skip
        refuse(PREPROCESSOR_FILE, name, value=value, supported="three numbers")
    return [float(item) for item in value]


def from_test_pipeline(where: str, config: Mapping[str, Any]) -> Preprocess | None:
    """The preprocessing of the test pipeline in an mmdetection configuration; None without one.

    Raises:
        ValueError: it resizes images in a way that is not supported; names it.
    """
    steps = list(_steps(_test_pipeline(config)))
    for step in steps:
        if "Resize" in str(step.get("type")) and step["type"] != "Resize":
            refuse(f"{where}, test pipeline,", "type", value=step["type"], supported="Resize")
    sizing = {key: value for step in steps for key, value in step.items()
              if key in ("img_scale", "scale", "keep_ratio", "scale_factor")}  # fmt: skip
    scale = sizing.get("scale", sizing.get("img_scale"))
    if not sizing:
        return None
    name = "scale" if "scale" in sizing else "img_scale"
    if not (isinstance(scale, tuple) and len(scale) == 2 and all(map(_is_side, scale))):
        refuse(f"{where}, test pipeline,", name, value=scale, supported="(long side, short side)")
    # mmdetection 3 distorts images to the scale unless told to keep their aspect ratio.
    keeps_ratio = sizing.get("keep_ratio", name == "img_scale")
    if not is_same(keeps_ratio, True):
        refuse(f"{where}, test pipeline,", "keep_ratio", value=keeps_ratio, supported=True)
    return Preprocess(short_side=min(scale), long_side=max(scale))


def _test_pipeline(config: Mapping[str, Any]) -> Any:
    """The pipeline, where version 3 or 2 keeps it or in the variable that both use."""
    for path in (("test_dataloader", "dataset", "pipeline"), ("data", "test", "pipeline")):
        found: Any = config
        for key in path:
            found = found.get(key) if isinstance(found, Mapping) else None
        if found:
            return found
    return config.get("test_pipeline")


def _steps(pipeline: Any) -> Iterator[Mapping[str, Any]]:
    """Every step, including nested ones."""
    for step in pipeline if isinstance(pipeline, tuple) else ():
        if isinstance(step, Mapping):
            yield step
            yield from _steps(step.get("transforms"))
