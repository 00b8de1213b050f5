"""Rules that hold across the tree: who imports whom, names, command lines."""

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("bundle", "plugins", "engines", "service", "model", "export")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

# What each package may import: of ours, and of others. A new dependency gets its name here.
OURS = {
    "bundle": {"bundle"},
    "engines": {"bundle", "engines", "plugins"},
    "service": {"bundle", "engines", "service"},
    "model": {"bundle", "model", "plugins"},
    "export": {"bundle", "model", "engines", "plugins", "export"},
    "plugins": {"plugins"},
}
OTHERS = {
    "bundle": {"numpy", "PIL", "cv2", "pydantic"},
    "service": {
        *("fastapi", "starlette", "uvicorn", "pydantic", "pydantic_settings", "prometheus_client"),
        *("numpy", "PIL", "tqdm", "python_multipart", "anyio"),
    },
    "engines": {"numpy", "onnxruntime", "openvino"},
    "model": {
        *("torch", "numpy", "scipy", "safetensors", "faster_coco_eval", "tqdm", "cv2", "PIL"),
        *("sklearn", "skimage", "pydantic", "httpx"),
    },
    "export": {"torch", "numpy", "onnx", "onnxscript", "onnx_ir", "onnxruntime", "skimage", "PIL"},
    "plugins": set(),
}

# The options of every command, frozen: a new knob is a field of a config or of Settings.
COMMANDS = {
    "model.train": ["--config", "--data", "--init", "--out", "--resume"],
    "model.evaluate": [
        *("--batch-size", "--checkpoint", "--data", "--limit", "--out", "--results", "--split"),
    ],
    "model.checkpoint": [],
    "model.weights": ["--base-url", "--format", "--out"],
    "model.data.check": ["--decode", "--split"],
    "model.data.digits": ["--num-images", "--seed", "--split"],
    "export": [
        *("--data", "--name", "--out", "--precision", "--runtime", "--samples", "--shapes"),
    ],
    "export.evaluate": ["--batch-size", "--bundle", "--data", "--limit", "--out", "--split"],
    "plugins.build": [],
    "service.detect": ["--bundle", "--draw", "--format", "--out", "--threshold", "--top-k"],
}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> Iterator[str]:
    """Every dotted module name that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{relative(path)}: relative import"
            module = node.module or ""
            yield from (f"{module}.{alias.name}" for alias in node.names)


def forbidden_imports(path: Path) -> list[str]:
    """The imports of a file that the tables above do not allow."""
    package = path.relative_to(ROOT).parts[0]
    bad = []
    for name in imports(path):
        top = name.split(".")[0]
        if top in PACKAGES:
            if not any(f"{name}.".startswith(f"{ours}.") for ours in OURS[package]):
                bad.append(name)
        elif top not in sys.stdlib_module_names and top not in OTHERS[package]:
            bad.append(name)
    return bad


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_a_module_imports_only_what_its_package_may(path):
    assert forbidden_imports(path) == []


def test_the_service_and_the_bundle_import_without_torch():
    modules = [
        relative(path).removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        for path in SOURCES
        if path.relative_to(ROOT).parts[0] in ("bundle", "engines", "service")
    ]
    program = (
        "import importlib, sys\n"
        "for name in ('torch', 'onnx', 'scipy', 'safetensors', 'model', 'export'):\n"
        "    sys.modules[name] = None\n"
        f"for name in {modules}:\n"
        "    importlib.import_module(name)\n"
    )

    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True
    )

    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("module", COMMANDS)
def test_a_command_takes_these_options_and_no_more(module, monkeypatch, capsys):
    main = importlib.import_module(f"{module}.__main__" if module in PACKAGES else module).main
    monkeypatch.setattr(sys, "argv", [module, "--help"])

    with pytest.raises(SystemExit) as exit_info:
        main()

    options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", capsys.readouterr().out)) - {"--help"}
    assert exit_info.value.code == 0
    assert sorted(options) == COMMANDS[module]


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_only_settings_reads_the_environment(path):
    names = {f"{node.value.id}.{node.attr}" for node in ast.walk(ast.parse(path.read_text()))
             if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)}  # fmt: skip

    # $CXX names the compiler, as everywhere.
    assert relative(path) == "plugins/build.py" or not names & {"os.environ", "os.getenv"}


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_names_say_what_a_thing_is(path):
    classes = [node.name for node in ast.walk(ast.parse(path.read_text()))
               if isinstance(node, ast.ClassDef)]  # fmt: skip

    assert path.stem not in {"utils", "util", "misc", "common", "helpers", "types", "logging"}
    assert [name for name in classes if re.search(r"^Base|(Manager|Helper|Util)s?$", name)] == []


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_every_module_and_public_definition_has_a_docstring(path):
    tree = ast.parse(path.read_text())
    public = [node for node in tree.body
              if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
              and not node.name.startswith("_")]  # fmt: skip

    assert path.name == "__init__.py" or ast.get_docstring(tree)
    assert [node.name for node in public if not ast.get_docstring(node)] == []


def test_exceptions_of_every_kind_are_swallowed_in_two_places_only():
    swallowing = [
        relative(path)
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or getattr(node.type, "id", "") in ("Exception", "BaseException"))
        and not isinstance(node.body[-1], ast.Raise)
    ]

    assert set(swallowing) == {"service/boundary.py", "service/batching/batcher.py"}
