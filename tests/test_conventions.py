"""Rules that hold across the tree: who imports whom, names, command lines."""

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from fnmatch import fnmatch
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text()


def import_table(heading: str) -> dict[str, list[set[str]]]:
    """A table of docs/architecture.md: first column -> the `names` of each of the other columns."""
    section = ARCHITECTURE.split(f"## {heading}\n")[1].split("\n#")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| `")]
    names = [[set(re.findall(r"`([\w/]+)`", cell)) for cell in row] for row in rows]
    return {first.pop(): others for first, *others in names}


# What each package may import: of ours, and of others. A new dependency gets its name there.
PACKAGES = {
    name: (ours, others) for name, (ours, others, _) in import_table("Who may import whom").items()
}
# Others that only some files of a package may import: (package, name) -> a pattern of their paths.
RESTRICTED = {
    (pattern.split("/")[0], name): pattern
    for names, pattern in re.findall(r"([^;|]+) in `([\w/*]+)` only", ARCHITECTURE)
    for name in re.findall(r"`(\w+)`", names)
}
# What a folder may import of its own package; the files above the folders may import all of it.
FOLDERS = {name: ours for name, (ours,) in import_table("Inside a package").items()}

SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

MAX_LINES = 400  # of a file
MAX_BODY = 50  # lines of a function, without its docstring

# The options of every command, frozen: a new knob is a field of a config or of Settings.
COMMANDS = {
    "model.train": ["--config", "--data", "--init", "--out", "--resume", "--set", "--val-fraction"],
    "model.evaluate": [
        *(
            "--batch-size",
            "--checkpoint",
            "--data",
            "--limit",
            "--out",
            "--padding",
            "--report",
            "--results",
            "--save-thresholds",
            "--split",
            "--val-fraction",
        ),
    ],
    "model.checkpoint convert": ["--classes", "--num-heads", "--num-queries"],
    "model.checkpoint show": ["--tensors"],
    "model.weights": ["--base-url", "--format", "--out"],
    "model.data.check": ["--decode", "--report", "--split", "--val-fraction"],
    "model.data.convert": ["--out", "--val-fraction"],
    "model.data.digits": ["--num-images", "--seed", "--split"],
    "export": [
        *("--data", "--name", "--out", "--precision", "--runtime", "--samples", "--shapes"),
        "--val-fraction",
    ],
    "export.evaluate": [
        "--batch-size",
        "--bundle",
        "--data",
        "--decoder",
        "--limit",
        "--out",
        "--padding",
        "--report",
        "--save-thresholds",
        "--split",
        "--val-fraction",
    ],
    "export.published": ["--base-url", "--format", "--out"],
    "plugins.build": ["--to-serve"],
    "service.bulk": [
        *("--address", "--bundle", "--chunk-size", "--cpus", "--format", "--nms-iou"),
        *("--num-detections", "--out", "--threshold", "--workers"),
    ],
    "service.ray_app": [
        *("--address", "--cpus", "--gpus", "--max-replicas", "--min-replicas", "--wait"),
    ],
    "service.selftest": ["--bundle"],
    "service.detect": [
        *("--annotations", "--bundle", "--draw", "--format", "--nms-iou"),
        *("--num-detections", "--out", "--threshold", "--tile", "--top-k"),
    ],
}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def nodes(path: Path) -> list[ast.AST]:
    """Everything in a file's syntax tree."""
    return list(ast.walk(parsed(path)))


def found_in(
    paths: Iterable[Path], find: Callable[[Path], Collection[object]]
) -> dict[str, Collection[object]]:
    """What `find` gives for each file, if it is not empty."""
    found = {relative(path): find(path) for path in paths}
    return {name: things for name, things in found.items() if things}


def imports(path: Path) -> Iterator[str]:
    """Every dotted module name that a file imports."""
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{relative(path)}: relative import"
            module = node.module or ""
            yield from (f"{module}.{alias.name}" for alias in node.names)


def module_name(path: Path) -> str:
    """A file as it is imported; a package by its own name. `client` is a project, not a package."""
    return (
        relative(path)
        .removeprefix("client/")
        .removesuffix(".py")
        .replace("/", ".")
        .removesuffix(".__init__")
    )


MODULES = {module_name(path): path for path in SOURCES}


def imported_modules(path: Path) -> set[str]:
    """The modules of ours that a file imports, by the longest name that is one."""
    found = set()
    for name in imports(path):
        while name not in MODULES and "." in name:
            name = name.rpartition(".")[0]
        found.add(name)
    return found & MODULES.keys() - {module_name(path)}


def is_within(name: str, place: str) -> bool:
    """Whether a dotted name names a folder or file, or something in it."""
    return f"{name}.".startswith(place.replace("/", ".") + ".")


def forbidden_imports(path: Path) -> list[str]:
    """The imports of a file that the tables do not allow."""
    package, folder = path.relative_to(ROOT).parts[0], relative(path.parent)
    ours, others = PACKAGES[package]
    allowed = sys.stdlib_module_names | ours | others | {package}
    room = next((room for room in FOLDERS if f"{folder}/".startswith(f"{room}/")), None)
    places = {room, *FOLDERS[room]} if room else {package}
    return [
        name
        for name in imports(path)
        if name.split(".")[0] not in allowed
        or not fnmatch(relative(path), RESTRICTED.get((package, name.split(".")[0]), "*"))
        or (is_within(name, package) and not any(is_within(name, place) for place in places))
    ]


def test_a_module_imports_only_what_its_package_may():
    assert found_in(SOURCES, forbidden_imports) == {}


def test_of_the_engines_only_one_may_import_torch():
    assert RESTRICTED["engines", "torch"] == "engines/gpu/torch_*"


@pytest.mark.parametrize("package", PACKAGES)
def test_the_table_names_no_dependency_that_nobody_imports(package):
    files = [path for path in SOURCES if relative(path).startswith(f"{package}/")]
    imported = {name.split(".")[0] for path in files for name in imports(path)}

    assert PACKAGES[package][1] - imported == set()


def test_the_tables_know_every_package_and_folder():
    folders = {relative(path.parent) for path in SOURCES}

    assert {folder for folder in folders if folder.count("/") == 1} == FOLDERS.keys()
    assert {path.parent.name for path in ROOT.glob("*/*.py")} == {*PACKAGES, "tests"} - {"client"}


def test_no_module_imports_itself_by_way_of_others():
    graph = {name: imported_modules(path) for name, path in MODULES.items()}

    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_the_service_and_the_bundle_import_without_torch():
    modules = [
        name
        for name in MODULES
        if name.startswith(("bundle", "engines", "service"))
        and not name.startswith("engines.gpu.torch_")  # imported only if that engine is chosen
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


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_takes_these_options_and_no_more(command, monkeypatch, capsys):
    module, *subcommand = command.split()
    main = importlib.import_module(f"{module}.__main__" if module in PACKAGES else module).main
    monkeypatch.setattr(sys, "argv", [module, *subcommand, "--help"])

    with pytest.raises(SystemExit) as exit_info:
        main()

    options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", capsys.readouterr().out)) - {"--help"}
    assert exit_info.value.code == 0
    assert sorted(options) == COMMANDS[command]


def test_every_command_has_its_options_frozen():
    commands = {
        name.removesuffix(".__main__")
        for name, path in MODULES.items()
        if 'if __name__ == "__main__":' in path.read_text() and not is_within(name, "benchmarks")
    }

    # The service itself takes no options: it is configured by its environment alone.
    assert {command.split()[0] for command in COMMANDS} | {"service"} == commands


def test_only_settings_reads_the_environment():
    # $CXX names the compiler, as everywhere; torchrun tells a process its $RANK and how often it
    # was restarted; a benchmark sets the threads of its peers; ONNX Runtime is told to be silent.
    exempt = {"service/settings.py", "plugins/build.py", "model/train.py", "model/distributed.py"}
    exempt.add("engines/__init__.py")
    paths = [path for path in SOURCES if not relative(path).startswith("benchmarks/")]

    readers = found_in(paths, lambda path: attributes(path) & {"os.environ", "os.getenv"})

    assert readers.keys() - exempt == set()


def attributes(path: Path) -> set[str]:
    """Every `name.attribute` in a file."""
    return {
        f"{node.value.id}.{node.attr}"
        for node in nodes(path)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }


def test_names_say_what_a_thing_is():
    vague = {"utils", "util", "misc", "common", "helpers", "types", "logging"}

    assert [relative(path) for path in SOURCES if path.stem in vague] == []
    assert found_in(SOURCES, vague_classes) == {}


def vague_classes(path: Path) -> list[str]:
    classes = [node.name for node in nodes(path) if isinstance(node, ast.ClassDef)]
    return [name for name in classes if re.search(r"^Base|(Manager|Helper|Util)s?$", name)]


def test_every_module_and_public_definition_has_a_docstring():
    assert found_in(SOURCES, undocumented) == {}


def undocumented(path: Path) -> list[str]:
    """Public classes and functions without a docstring; also the module, if it has code."""
    module = parsed(path)
    public = [node for node in module.body
              if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
              and not node.name.startswith("_")]  # fmt: skip
    silent = [node.name for node in public if not ast.get_docstring(node)]
    if path.name != "__init__.py" and not ast.get_docstring(module):
        silent.append("the module")
    return silent


def test_every_layer_says_which_shapes_it_maps():
    assert found_in(sorted((ROOT / "model/network").glob("*.py")), layers_without_shapes) == {}


def layers_without_shapes(path: Path) -> list[int]:
    return [node.lineno for node in nodes(path)
            if isinstance(node, ast.FunctionDef) and node.name == "forward"
            and not re.search(r"\((B|\.\.\.), ", ast.get_docstring(node) or "")]  # fmt: skip


@pytest.mark.parametrize("folder", [*PACKAGES, "tests"])
def test_a_file_fits_in_a_head(folder):
    lengths = {path: len(path.read_text().splitlines()) for path in (ROOT / folder).rglob("*.py")}

    assert [relative(path) for path, length in lengths.items() if length > MAX_LINES] == []


def test_a_function_is_read_at_one_glance():
    assert found_in(SOURCES, long_functions) == {}


def long_functions(path: Path) -> list[str]:
    functions = [node for node in nodes(path)
                 if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]  # fmt: skip
    return [node.name for node in functions if num_lines(node) > MAX_BODY]


def num_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """The lines of a function, signature included and docstring left out."""
    assert function.end_lineno is not None
    docstring = ast.get_docstring(function, clean=False) or ""
    return function.end_lineno - function.lineno + 1 - len(docstring.splitlines())


def num_positional(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """How many parameters may be passed by position, self left out."""
    parameters = [*function.args.posonlyargs, *function.args.args]
    return sum(parameter.arg not in ("self", "cls") for parameter in parameters)


def public_functions(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """The public functions of a module, and the public methods and constructors of its classes."""
    body = parsed(path).body
    classes = [node for node in body
               if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]  # fmt: skip
    nodes = [*body, *(member for kind in classes for member in kind.body)]
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [node for node in functions if node.name == "__init__" or node.name[0] != "_"]


# The operator's tensors have the order of its schema in every backend, and a layer's `forward`
# takes tensors as torch calls it.
def test_public_functions_take_keywords_after_their_second_parameter():
    paths = [
        path
        for path in SOURCES
        if path.parent.name != "ops"
        and path.stem not in ("cpu_kernels", "cuda_kernels", "triton_kernels", "triton_source")
    ]

    assert found_in(paths, positional_functions) == {}


def positional_functions(path: Path) -> list[str]:
    functions = [node for node in public_functions(path) if node.name != "forward"]
    return [node.name for node in functions if num_positional(node) > 2]


# Requests, batches, and trackers, which are foreign packages that must not end a run.
def test_exceptions_of_every_kind_are_swallowed_in_three_places_only():
    swallowing = [
        relative(path)
        for path in SOURCES
        for node in nodes(path)
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or {"Exception", "BaseException"} & set(names_in(node.type)))
        and not isinstance(node.body[-1], ast.Raise)
    ]

    assert set(swallowing) == {
        "service/boundary.py", "service/batching/runner.py", "model/training/trackers.py"
    }  # fmt: skip


def names_in(expression: ast.expr) -> list[str]:
    return [node.id for node in ast.walk(expression) if isinstance(node, ast.Name)]
