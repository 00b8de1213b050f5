"""The TensorRT part of a manifest: the plan, what it was built for, and the shapes it takes.

A plan is a serialized TensorRT engine. It runs only on the kind of GPU and with the version of
TensorRT that it was built with.
"""

from collections.abc import Collection
from typing import NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from bundle.layout import HALF_FORM, PLUGIN_FORM, STANDARD_FORM
from bundle.preprocess import Preprocess, resized_size

GPU_BATCH_SIZE = 8  # images in a batch on a GPU, by default


class BatchShape(NamedTuple):
    """Number and padded size of the images of one batch."""

    batch: int
    height: int
    width: int

    def fits(self, limit: "BatchShape") -> bool:
        """Whether no dimension exceeds the limit's."""
        return all(size <= most for size, most in zip(self, limit, strict=True))


class ShapeProfile(BaseModel):
    """The batches that a plan takes, from `min` to `max`, and the one it is tuned for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min: BatchShape
    opt: BatchShape
    max: BatchShape

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        is_ordered = self.min.fits(self.opt) and self.opt.fits(self.max)
        if not is_ordered or min(self.min) < 1 or self.min.batch != 1:
            raise ValueError(
                "expected 1 <= min <= opt <= max and batches from 1, got "
                f"{tuple(self.min)}, {tuple(self.opt)}, {tuple(self.max)}"
            )
        return self


class Fingerprint(BaseModel):
    """What a plan depends on besides the graph."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gpu: str  # as the driver names it
    compute_capability: str  # "8.6"
    tensorrt: str  # the full version
    plugin_sha256: str | None = None  # of the library with MSDeformAttn; None if it uses none

    def differences(self, here: "Fingerprint") -> list[str]:
        """What differs on this machine, in words; empty if the plan may run."""
        named = {
            "GPU": (self.gpu, here.gpu),
            "compute capability": (self.compute_capability, here.compute_capability),
            "TensorRT": (self.tensorrt, here.tensorrt),
        }
        # If one is missing, loading it gives a better message.
        if self.plugin_sha256 and here.plugin_sha256:
            named["plugin"] = (self.plugin_sha256[:12], here.plugin_sha256[:12])
        return [
            f"{name}: built for {built}, found {found}"
            for name, (built, found) in named.items()
            if built != found
        ]


class TensorRTPlan(BaseModel):
    """A plan in the bundle."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    graph: str = PLUGIN_FORM  # the form of the graph that it was built from
    fingerprint: Fingerprint
    profiles: tuple[ShapeProfile, ...] = Field(min_length=1)


def form_for_tensorrt(forms: Collection[str]) -> str:
    """The form of a bundle's graph from which a plan is built."""
    return next(form for form in (HALF_FORM, PLUGIN_FORM, STANDARD_FORM) if form in forms)


def max_batch(profiles: tuple[ShapeProfile, ...], preprocess: Preprocess) -> int:
    """The largest batch size at which every batch of preprocessed images fits a profile.

    Smaller images are padded up to a profile, so only the largest landscape and the largest
    portrait count. 0 if one of them fits no profile.
    """
    short = max(preprocess.short_side, preprocess.min_side)
    long = max(preprocess.long_side, short)
    return min(
        max(
            (profile.max.batch for profile in profiles if BatchShape(1, *size).fits(profile.max)),
            default=0,
        )
        for size in ((short, long), (long, short))
    )


def default_profiles(
    preprocess: Preprocess, max_batch_size: int = GPU_BATCH_SIZE
) -> tuple[ShapeProfile, ...]:
    """Profiles for landscapes and portraits, each for single images and for batches.

    They are tuned for 4:3 photographs, and take every size that preprocessing can produce.
    """
    least = preprocess.min_side
    short = max(preprocess.short_side, least)
    long = max(preprocess.long_side, short)
    low, wide = (max(side, least) for side in resized_size(3, 4, short_side=short, long_side=long))
    sizes = {(short, long): (low, wide)}
    sizes.setdefault((long, short), (wide, low))
    return tuple(
        ShapeProfile(
            min=BatchShape(1, least, least),
            opt=BatchShape(batch, *size),
            max=BatchShape(batch, *largest),
        )
        for batch in sorted({1, max_batch_size})
        for largest, size in sizes.items()
    )
