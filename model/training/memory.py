"""When the memory of the training process itself runs out."""

import torch

OUT_OF_MEMORY = (
    "no memory left: lower batch_size and raise accumulation_steps by as much, which trains the "
    "same, or lower short_sides and long_side; what was saved last is whole, and a smaller batch "
    "goes on from its last.safetensors with --init"
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, torch on a GPU, or torch on a CPU could not get memory."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
