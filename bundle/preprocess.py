"""From the bytes of an image to what the graph takes: decode, resize, pad."""

from pydantic import BaseModel, ConfigDict


class Preprocess(BaseModel):
    """How images are sized and normalised; written into every checkpoint and bundle."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    short_side: int = 800
    long_side: int = 1333
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)  # RGB, 0..255, ImageNet
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    min_side: int = 1  # smallest padded height and width the graph takes, in pixels
