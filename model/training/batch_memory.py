"""The memory that a batch will take, measured before the first step, and how many images fit."""

import logging
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch

from bundle.memory import allowed_memory_bytes
from model.config import TrainConfig
from model.data.collate import MicroBatch
from model.network.deformable_detr import DeformableDetr
from model.training.memory import SMALLER_IMAGES, MemoryRanOut, is_out_of_memory
from model.training.optimiser_step import accumulate_gradients
from model.training.precision import forward_dtype

HEADROOM = 0.9  # of the memory may be planned for; workers and fragmentation need some, too
OBJECTS = 30  # in each image of the trial
PROCESS = Path("/proc/self")
log = logging.getLogger(__name__)


class Measure(Protocol):
    """Finds the memory that batches take, as `measure_batch` does."""

    def __call__(
        self, config: TrainConfig, size_px: tuple[int, int], *, device: torch.device
    ) -> "BatchMemory | None": ...


@dataclass(frozen=True)
class BatchMemory:
    """What a step needs, in bytes.

    Attributes:
        first: with one image in a forward pass; optimiser and moving average are included.
        each: for every further image.
        available: what this process may use.
    """

    first: int
    each: int
    available: int

    def needed(self, num_images: int) -> int:
        """The memory for that many images in a forward pass."""
        return self.first + (num_images - 1) * self.each

    def fits(self, num_images: int) -> bool:
        """Whether that many images leave some memory free."""
        return self.needed(num_images) <= HEADROOM * self.available


def plan_batch(
    config: TrainConfig, memory: BatchMemory | None, *, size_px: tuple[int, int]
) -> TrainConfig:
    """Log what the largest batch will take, and choose its size if `config.fit_batch` is set.

    A chosen batch_size divides the effective batch, which stays as it is.

    Args:
        memory: None if it cannot be measured on this system.
        size_px: (height, width) of the largest images, with padding.

    Raises:
        MemoryRanOut: not even one image fits.
        ValueError: the size is to be chosen, and `memory` is None.
    """
    if memory is None:
        if config.fit_batch:
            raise ValueError("batch_size=auto needs Linux or a GPU; set batch_size to a number")
        return config
    images = f"images of up to {size_px[1]}x{size_px[0]} pixels"
    effective = config.batch_size * config.accumulation_steps
    fitting = [n for n in range(1, effective + 1) if effective % n == 0 and memory.fits(n)]
    if config.fit_batch:
        if not fitting:
            raise MemoryRanOut(
                f"training on {images} takes {_gb(memory.first)} even one by one, and there are "
                f"{_gb(memory.available)}: {SMALLER_IMAGES}"
            )
        config = replace(
            config,
            batch_size=fitting[-1], accumulation_steps=effective // fitting[-1], fit_batch=False,
        )  # fmt: skip
    most = max(0, 1 + int((HEADROOM * memory.available - memory.first) // memory.each))
    log.log(
        logging.INFO if memory.fits(config.batch_size) else logging.WARNING,
        "memory: batch_size %d (x %d accumulation_steps), %s: %s of %s; %d would fit%s",
        *(config.batch_size, config.accumulation_steps, images),
        *(_gb(memory.needed(config.batch_size)), _gb(memory.available), most),
        "" if memory.fits(config.batch_size) else ": set batch_size=auto, or a smaller batch_size",
    )
    return config


def measure_batch(
    config: TrainConfig, size_px: tuple[int, int], *, device: torch.device
) -> BatchMemory | None:
    """Try a forward and backward pass of one image, twice, and of two, with a model of its own.

    None if the system does not report how much memory a process used at most. Torch's random state
    is changed.

    Raises:
        MemoryRanOut: not even one image fits.
    """
    if device.type == "cpu" and not _reset_peak(device):
        return None
    available = _available_bytes(device)
    before = _peak_bytes(device)
    model = DeformableDetr(config.model).to(device).train()
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    # Trials leave memory behind (threads, kernels' buffers), the first one most; it is not counted.
    trials = [_try(model, 1, config=config, size_px=size_px) for _ in range(2)]
    first = trials[-1]
    if first is None:
        raise MemoryRanOut(f"not even one image of {size_px[1]}x{size_px[0]} pixels fits into "
                           f"{_gb(available)}: {SMALLER_IMAGES}")  # fmt: skip
    each = first - before
    if first + each < available:  # or else a second image would not fit, nor its trial
        second = _try(model, 2, config=config, size_px=size_px)
        each = each if second is None else second - first
    least = 3 * size_px[0] * size_px[1] * 4  # the pixels alone
    copies = 2 if config.ema_decay is None else 3  # AdamW keeps two of every weight
    return BatchMemory(first + copies * weights, max(each, least), available)


def _try(
    model: DeformableDetr, num_images: int, *, config: TrainConfig, size_px: tuple[int, int]
) -> int | None:
    """The most memory in use while gradients are computed; None if there is not enough."""
    device = next(model.parameters()).device
    _reset_peak(device)
    try:
        accumulate_gradients(
            model,
            [_made_up_batch(num_images, size_px, num_classes=config.model.num_classes)],
            config=config,
            dtype=forward_dtype(config, device),
        )
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return None
    finally:
        model.zero_grad()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return _peak_bytes(device)


def _made_up_batch(num_images: int, size_px: tuple[int, int], *, num_classes: int) -> MicroBatch:
    """Noise with boxes anywhere, as `collate` returns it."""
    images = torch.randint(0, 256, (num_images, *size_px, 3), dtype=torch.uint8)
    targets = [
        {
            "labels": torch.randint(0, num_classes, (OBJECTS,)),
            "boxes": 0.25 + 0.25 * torch.rand(OBJECTS, 4),
            "size": torch.tensor(size_px),
            "image_id": number,
        }
        for number in range(num_images)
    ]
    return images, torch.zeros(num_images, *size_px, dtype=torch.bool), targets


def _available_bytes(device: torch.device) -> int:
    """The memory this process may use: on a CPU, the container's, shared with other processes."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device)
    free = _read_kb(Path("/proc/meminfo"), "MemAvailable")
    return min(allowed_memory_bytes(), free + _read_kb(PROCESS / "status", "VmRSS"))


def _reset_peak(device: torch.device, process: Path = PROCESS) -> bool:
    """Start measuring the peak of memory in use; False if that is not possible here."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        (process / "clear_refs").write_text("5")
        return _read_kb(process / "status", "VmHWM") > 0
    except (OSError, LookupError):
        return False


def _peak_bytes(device: torch.device) -> int:
    """The peak of memory in use since `_reset_peak`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    return _read_kb(PROCESS / "status", "VmHWM")


def _read_kb(path: Path, name: str) -> int:
    """A line like "VmHWM:  1234 kB" in bytes."""
    found = re.search(rf"^{name}:\s+(\d+) kB", path.read_text(), flags=re.M)
    if found is None:
        raise LookupError(f"{path} has no line {name}")
    return int(found[1]) * 1024


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB"
