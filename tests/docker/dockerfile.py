"""Reads a Dockerfile and carries out its steps in folders, for machines without a container engine.

Every stage gets a folder that stands for its root. Absolute paths of the image (`/venv`, `/app`)
are rewritten to be in it; a COPY brings exactly what it names.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

IMAGE_PATH = re.compile(r"(?<![\w./])/(venv|app|build)\b")


@dataclass
class Stage:
    """One FROM block while it is carried out; `workdir` is a path of the image."""

    root: Path
    workdir: str = "/"
    user: str = "0"
    environment: dict[str, str] = field(default_factory=dict)
    command: list[str] = field(default_factory=list)
    healthcheck: list[str] = field(default_factory=list)

    def folder(self, path: str) -> Path:
        """Where a path in the image is on this machine."""
        return self.root / os.path.normpath(os.path.join(self.workdir, path)).lstrip("/")

    def rewrite(self, text: str) -> str:
        """The text with the image's absolute paths replaced by those below `root`."""
        return IMAGE_PATH.sub(lambda match: f"{self.root}/{match[1]}", text)

    def variables(self) -> dict[str, str]:
        """What a process of the container sees: ENV and a bare PATH, nothing of this shell."""
        bare = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/nonexistent"}
        return bare | {name: self.rewrite(value) for name, value in self.environment.items()}

    def python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run this machine's Python, with its packages, on the files of the image."""
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder("."),
            env=self.variables(),
            capture_output=True,
            text=True,
        )


def instructions(text: str) -> list[tuple[str, str]]:
    """(KEYWORD, rest) of every instruction; comments left out, continued lines joined."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    pairs = [line.split(maxsplit=1) for line in joined.splitlines() if line.strip()]
    return [(keyword.upper(), rest) for keyword, rest in pairs]


def build(dockerfile: Path, context: Path, out: Path, *, installs: bool = True) -> Stage:
    """Carry out the Dockerfile's steps below `out`; returns the last stage.

    Without `installs`, RUN and what is copied from other stages are left out.
    """
    stages: dict[str, Stage] = {}
    stage = Stage(out)
    for keyword, rest in instructions(dockerfile.read_text()):
        if keyword == "FROM":
            name = rest.split(" AS ")[1] if " AS " in rest else "final"
            stage = stages[name] = Stage(out / name)
            stage.root.mkdir(parents=True)
        elif keyword == "WORKDIR":
            stage.workdir = rest
            stage.folder(".").mkdir(parents=True, exist_ok=True)
        elif not installs and (keyword == "RUN" or rest.startswith("--from=")):
            continue
        elif keyword == "COPY":
            _copy(stage, rest.split(), stages, context)
        elif keyword == "RUN":
            _run(stage, rest)
        elif keyword == "ENV":
            stage.environment |= dict(pair.split("=", 1) for pair in rest.split())
        elif keyword == "USER":
            stage.user = rest
        elif keyword == "CMD":
            stage.command = json.loads(stage.rewrite(rest))
        elif keyword == "HEALTHCHECK":
            stage.healthcheck = json.loads(stage.rewrite(rest.split(" CMD ", 1)[1]))
        elif keyword != "EXPOSE":
            raise ValueError(f"{dockerfile.name}: {keyword} is not handled here")
    return stage


def _copy(stage: Stage, words: list[str], stages: dict[str, Stage], context: Path) -> None:
    source_stage = None
    if words[0].startswith("--from="):
        source_stage = stages[words.pop(0).removeprefix("--from=")]
    *sources, target = words
    if target.endswith("/"):
        stage.folder(target).mkdir(parents=True, exist_ok=True)
    for source in sources:
        origin = source_stage.folder(source) if source_stage else context / source
        if origin.is_dir():
            ignore = shutil.ignore_patterns("__pycache__", "*.pyc") if not source_stage else None
            shutil.copytree(
                origin, stage.folder(target), symlinks=True, dirs_exist_ok=True, ignore=ignore
            )
        else:
            shutil.copy(origin, stage.folder(target))


def _run(stage: Stage, command: str) -> None:
    command = re.sub(r"^python(?= )", f"{sys.base_prefix}/bin/python3", command)
    command = command.replace(" --no-cache-dir", "")  # it has what `make install` downloaded
    pip = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_"))}
    pip["PIP_NO_COMPILE"] = "1"  # which takes longer than the few starts here without byte code
    own = {"HOME": os.environ.get("HOME", "/"), "NVCC": "none"}  # Python's image has no nvcc
    subprocess.run(
        stage.rewrite(command),
        shell=True,
        check=True,
        cwd=stage.folder("."),
        env=stage.variables() | pip | own,
    )
