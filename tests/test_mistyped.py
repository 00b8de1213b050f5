"""Mistyped names are reported at once, before PyTorch is imported, which takes seconds."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

# In one process, for which importing PyTorch fails: the words of every command, and what it says.
PROGRAM = """
import contextlib, importlib, io, json, logging, sys
sys.modules["torch"] = None
told = []
for module, *words in json.loads(sys.argv[1]):
    logging.root.handlers.clear()  # they write where stderr was
    err = io.StringIO()
    with contextlib.redirect_stderr(err):
        try:
            status = importlib.import_module(module).main(words)
        except SystemExit as end:
            status = end.code
    if isinstance(status, str):  # a message, which Python would print
        status, err = 1, io.StringIO(status)
    told.append([status, err.getvalue()])
print(json.dumps(told))
"""
CASES = [
    (["model.train", "--config", "finetun"], "unknown config 'finetun'"),
    (["model.train", "--set", "epoch=3"], "unknown setting 'epoch'; did you mean one of: epochs"),
    (["model.train", "--set", "epochs=x"], "epochs: expected a whole number, got 'x'"),
    (["model.train", "--config", "none.toml"], "there is no configuration file none.toml"),
    (["model.train", "--config", "finetune"], "config finetune needs DATA=DIR (--data)"),
    (["model.train", "--config", "finetune", "--data", "none"], "DATA=none does not exist"),
    (["model.train", "--init", "none.safetensors"], "none.safetensors: no such checkpoint"),
    (["model.evaluate", "--checkpoint", "none.safetensors"], "no such checkpoint"),
    (["model.evaluate", "--results", "x.json", "--data", "none"], "DATA=none does not exist"),
    (["model.checkpoint", "show", "none.safetensors"], "no such checkpoint"),
    (["model.checkpoint", "convert", "none.pth", "x.safetensors"], "none.pth: no such file"),
    (["model.checkpoint", "convert", "README.md", "x.pth"], "ends in .safetensors, got x.pth"),
    (
        ["model.checkpoint", "convert", "README.md", "x.safetensors", "--classes", "none.json"],
        "none.json: no such file",
    ),
    (
        ["model.checkpoint", "convert", "README.md", "x.safetensors", "--num-heads", "eight"],
        "--num-heads: expected a whole number of at least 1, got eight",
    ),
    (
        ["model.evaluate", "--results", "x.json", "--batch-size", "1.5"],
        "--batch-size: expected a whole number of at least 1, got 1.5",
    ),
    (
        ["model.evaluate", "--checkpoint", "none.safetensors", "--out", "docs"],
        "expected a file to write, got the folder docs",
    ),
    (
        ["model.evaluate", "--results", "x.json", "--padding", "32"],
        "--padding: expected HEIGHTxWIDTH in pixels, such as 480x640, got 32",
    ),
    (["model.evaluate", "--results", "x.json", "--out", "y.json"], "they are in that file"),
    (
        ["export.evaluate", "--bundle", "none", "--out", "docs"],
        "expected a file to write, got the folder docs",
    ),
    (["model.weights", "to_stage"], "invalid choice: 'to_stage'"),
    (["export.evaluate", "--bundle", "none"], "none/manifest.json: no bundle there"),
    (["export.evaluate", "--bundle", "bundles/demo", "--data", "none"], "DATA=none does not exist"),
    (["export.published", "to_stage"], "invalid choice: 'to_stage'"),
    (["export.__main__", "none.safetensors", "--out", "x"], "no such checkpoint"),
    (["export.__main__", "a", "--out", "x", "--name", "a b"], "a name has up to 64 characters"),
    (["export.__main__", "a", "--out", "x", "--precision", "int9"], "invalid choice: 'int9'"),
    (["export.__main__", "a", "--out", "x", "--precision", "fp32,fp32"], "every precision once"),
    (["export.__main__", "a", "--out", "x", "--runtime", "tensort"], "invalid choice: 'tensort'"),
    (["benchmarks.reproduce", "--variants", "to_stage"], "invalid choice: 'to_stage'"),
    (["benchmarks.reproduce", "--limit", "0"], "LIMIT= (--limit) must be at least 1, got 0"),
    (["service.__main__", "--bundle", "x"], "no arguments, got --bundle x: its settings are env"),
    (["service.detect", "none.jpg"], "no such file or folder: none.jpg"),
    (["service.detect", "x", "--treshold", "1"], "unrecognized arguments: --treshold"),
]


@pytest.fixture(scope="module")
def told() -> list[tuple[int, str]]:
    """Exit status and words on stderr of every case."""
    command = [sys.executable, "-c", PROGRAM, json.dumps([words for words, _ in CASES])]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    return [(status, err) for status, err in json.loads(done.stdout)]


@pytest.mark.parametrize("number", range(len(CASES)), ids=[" ".join(words) for words, _ in CASES])
def test_it_is_reported_before_pytorch_is_imported(
    told: list[tuple[int, str]], number: int
) -> None:
    status, err = told[number]

    assert status in (1, 2)
    assert CASES[number][1] in err
