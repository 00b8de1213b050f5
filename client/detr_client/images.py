"""What can be sent as an image, and how it becomes a file in the request."""

import io
from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, Union, cast

if TYPE_CHECKING:
    import numpy.typing as npt
    from PIL import Image

# A path, the bytes of a file, (H, W[, 3 or 4]) uint8 RGB, or a Pillow image.
ImageLike: TypeAlias = Union[str, "PathLike[str]", bytes, "npt.NDArray[Any]", "Image.Image"]


class File(NamedTuple):
    """One file of a request."""

    name: str
    data: bytes

    @property
    def sent_name(self) -> str:
        """The name, with ? for what is not Unicode."""
        return self.name.encode(errors="replace").decode()


def to_file(image: ImageLike, name: str) -> File:
    """The file to send for an image; arrays and Pillow images become lossless PNG.

    Args:
        name: for an image that has none.

    Raises:
        ValueError: a URL, an array of another dtype or shape, or a mode that PNG does not have.
        TypeError: not an image.
        OSError: the file cannot be read.
    """
    if isinstance(image, bytes):
        return File(name, image)
    if isinstance(image, str) and image.lower().startswith(("http://", "https://")):
        raise ValueError(f"expected a file, got the URL {image!r}; download it first")
    if isinstance(image, str | PathLike):
        path = Path(image)
        return File(path.name, path.read_bytes())
    if hasattr(image, "save"):
        return File(f"{name}.png", _to_png(cast("Image.Image", image)))
    if hasattr(image, "__array_interface__"):
        return File(f"{name}.png", _to_png(_from_array(image)))
    raise TypeError(
        f"expected a path, bytes, a uint8 array or a Pillow image, got {type(image).__name__}"
    )


def several(images: Iterable[ImageLike]) -> Sequence[ImageLike]:
    """The images, as a sequence.

    Raises:
        TypeError: it is one image. The rows of an array would pass for images themselves.
    """
    shape: tuple[int, ...] = getattr(images, "shape", ())
    is_array = len(shape) == 2 or (len(shape) == 3 and shape[2] in (3, 4))
    is_file = any(hasattr(images, name) for name in ("save", "read"))
    if isinstance(images, str | bytes | PathLike) or is_array or is_file:
        raise TypeError("expected a list of images, got one image; use detect, or write [image]")
    is_sequence = hasattr(images, "__len__") and hasattr(images, "__getitem__")
    return cast("Sequence[ImageLike]", images) if is_sequence else list(images)


def _from_array(array: "npt.NDArray[Any]") -> "Image.Image":
    try:
        from PIL import Image
    except ImportError as error:
        raise ValueError("arrays need Pillow: pip install 'detr-client[images]'") from error
    is_image = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if array.dtype.name != "uint8" or not is_image or array.size == 0:
        raise ValueError(
            "expected an array (H, W), (H, W, 3) or (H, W, 4) of uint8 in RGB, got "
            f"{array.shape} of {array.dtype.name}"
        )
    return Image.fromarray(array)


def _to_png(image: "Image.Image") -> bytes:
    buffer = io.BytesIO()
    try:
        image.save(buffer, "PNG", compress_level=1)  # a higher level is slower and seldom smaller
    except OSError as error:
        raise ValueError(f"{error}; convert it first: image.convert('RGB')") from error
    return buffer.getvalue()
