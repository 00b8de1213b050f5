"""The options of a request, for both clients."""

from collections.abc import Sequence
from typing import Any, TypedDict


class Options(TypedDict, total=False):
    """Which detections are wanted; the service decides for an option that is omitted or None.

    Attributes:
        threshold: lowest score.
        num_detections: at most this many per image, up to the model's maximum.
        classes: names or ids of the classes wanted; by default all.
        nms_iou: where boxes of one class overlap by more, keep only the best; by default all.
        tile: side in pixels of the tiles that larger images are cut into, for small objects.
    """

    threshold: float | None
    num_detections: int | None
    classes: Sequence[str] | None
    nms_iou: float | None
    tile: int | None


def given(options: Options) -> dict[str, Any]:
    """The options that are set, as parameters of a request.

    Raises:
        TypeError: an option has an unknown name.
    """
    names = Options.__annotations__
    if unknown := next((name for name in options if name not in names), None):
        raise TypeError(f"unexpected argument {unknown!r}; expected {', '.join(names)}")
    return {name: value for name, value in options.items() if value is not None}
