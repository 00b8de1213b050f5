"""What a request may ask for besides its images: stated here for both clients."""

from collections.abc import Sequence
from typing import Any, TypedDict


class Options(TypedDict, total=False):
    """What is wanted of the detections; the service decides what is left out, or None.

    Attributes:
        threshold: lowest score.
        num_detections: most of an image, up to what the model has.
        classes: names or ids of those wanted; by default all.
        nms_iou: of boxes of one class that overlap by more, only the best; by default all.
        tile: side in pixels of the tiles that larger images are cut into, for small objects.
    """

    threshold: float | None
    num_detections: int | None
    classes: Sequence[str] | None
    nms_iou: float | None
    tile: int | None


def given(options: Options) -> dict[str, Any]:
    """The options that say something, as parameters of a request.

    Raises:
        TypeError: one has a name that is not among them.
    """
    names = Options.__annotations__
    if unknown := next((name for name in options if name not in names), None):
        raise TypeError(f"unexpected argument {unknown!r}; expected {', '.join(names)}")
    return {name: value for name, value in options.items() if value is not None}
