"""Published files on disk."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Any], Path]:
    """Writes an object to a file as torch.save does."""

    def write(content: Any) -> Path:
        path = tmp_path / "published.pth"
        torch.save(content, path)
        return path

    return write
