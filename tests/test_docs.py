"""The documents say what the code does, and leave nothing out."""

import fnmatch
import json
import re
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from bundle.detect import detect
from bundle.manifest import Bundle, Manifest, version_of
from bundle.preprocess import decode_image
from engines.load import open_engine
from model.configs import CONFIGS
from service import errors
from service.description import ANSWERS
from service.metrics import Metrics
from service.schemas import DetectQuery
from service.settings import Settings

ROOT = Path(__file__).parents[1]
TRACKED = subprocess.run(
    ["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True
).stdout.split("\n")[:-1]
PAGES = [name for name in TRACKED if name.endswith(".md")]
MAKEFILE = (ROOT / "Makefile").read_text()
HELP = dict(re.findall(r"^([a-z-]+):.*?## (.*)$", MAKEFILE, flags=re.M))  # by target
TARGETS = list(HELP)
MACHINE_PATHS = re.compile(r"(?<![\w.:}/-])/(work|farm|home|root|Users|mnt|opt)/\w")
PACKAGE_HOSTS = re.compile(r"pypi\.org|pythonhosted\.org|registry\.npmjs\.org|deb\.debian\.org")
LEFTOVERS = re.compile(r"\b(TODO|FIXME|XXX)\b(?! #\d)")


def text(name: str) -> str:
    return (ROOT / name).read_text()


def tree_patterns() -> list[str]:
    """The first word of every line of the tree in docs/architecture.md."""
    block = re.search(r"```text\n(.*?)```", text("docs/architecture.md"), flags=re.S)
    assert block is not None
    return [line.split()[0] for line in block[1].splitlines() if line.strip()]


def commands() -> list[tuple[str, str]]:
    """(page, line) of every line of every shell block in the documents."""
    shell_block = re.compile(r"```(?:sh|console|bash)\n(.*?)```", flags=re.S)
    blocks = [(page, block) for page in PAGES for block in shell_block.findall(text(page))]
    return [(page, line) for page, block in blocks for line in block.splitlines()]


def test_every_file_has_its_line_in_the_tree():
    patterns = tree_patterns()

    missing = [name for name in TRACKED
               if not any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]  # fmt: skip

    assert missing == []


def test_every_line_of_the_tree_names_a_file_that_is_there():
    stale = [pattern for pattern in tree_patterns() if not fnmatch.filter(TRACKED, pattern)]

    assert stale == []


def test_every_setting_is_documented():
    page = text("docs/operations.md")
    documented = set(re.findall(r"`DETR_([A-Z0-9_]+)`", page))

    assert documented == {name.upper() for name in Settings.model_fields}


def test_every_config_is_documented():
    section = text("docs/training.md").split("## Configurations")[1].split("## Data")[0]
    documented = set(re.findall(r"^\| `(\w+)` \|", section, flags=re.M))

    assert documented == set(CONFIGS)


def test_every_metric_is_documented():
    documented = set(re.findall(r"`(detr_[a-z_]+)`", text("docs/operations.md")))
    exposed = {f"{metric.name}_total" if metric.type == "counter" else metric.name
               for metric in Metrics().registry.collect()
               if metric.name.startswith("detr_")}  # fmt: skip

    assert documented == exposed


@pytest.mark.parametrize("target", TARGETS)
def test_every_make_target_is_documented(target):
    assert any(f"make {target}" in text(page) for page in PAGES)


def test_every_make_target_says_what_it_does():
    phony = re.search(r"^\.PHONY: (.*)$", MAKEFILE, flags=re.M)

    assert phony is not None
    assert sorted(phony[1].split()) == sorted(TARGETS)


def test_commands_in_the_documents_exist():
    wrong = []
    for page, line in commands():
        for target, options in re.findall(r"(?:^|&& )make (\S+)((?: [A-Z_]+=\S+)*)", line):
            taken = re.findall(r"([A-Z_]+)=", HELP.get(target, ""))
            known = set(re.findall(r" ([A-Z_]+)=", options)) <= set(taken)
            wrong += [] if target in TARGETS and known else [f"{page}: {line}"]
        for module in re.findall(r"python -m ([a-z_.]+)", line):
            file = ROOT / module.replace(".", "/")
            found = file.with_suffix(".py").exists() or (file / "__main__.py").exists()
            wrong += [] if found or module in ("venv", "pytest") else [f"{page}: {line}"]

    assert wrong == []


@pytest.mark.parametrize("page", PAGES)
def test_links_between_documents_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text(page))
    relative = [link for link in links if "://" not in link]

    assert [link for link in relative if not (ROOT / page).parent.joinpath(link).exists()] == []


@pytest.mark.parametrize(
    "unwanted", [MACHINE_PATHS, PACKAGE_HOSTS, LEFTOVERS], ids=["paths", "hosts", "leftovers"]
)
def test_no_file_holds_what_belongs_to_one_machine_or_one_moment(unwanted):
    found = []
    for name in TRACKED:
        data = (ROOT / name).read_bytes()
        if b"\0" not in data and name != "tests/test_docs.py":
            found += [f"{name}: {match[0]}" for match in unwanted.finditer(data.decode())]

    assert found == []


def test_every_error_is_documented_with_its_status():
    documented = set(re.findall(r"^\| (\d+) \| `(\w+)` \|", text("docs/api.md"), flags=re.M))
    kinds = [kind for kind in vars(errors).values()
             if isinstance(kind, type) and issubclass(kind, errors.ServiceError)]  # fmt: skip

    assert documented == {(str(kind.status), kind.code) for kind in kinds}


def test_every_query_parameter_is_documented():
    section = text("docs/api.md").split("## POST /detect")[1].split("### Answer")[0]
    documented = set(re.findall(r"^\| `(\w+)` \|", section, flags=re.M))

    assert documented == set(DetectQuery.model_fields)


def test_the_answers_in_the_readme_and_of_the_api_are_from_the_demo_bundle(tmp_path):
    # Engines keep what they compiled in the bundle.
    bundle = Bundle.load(shutil.copytree(ROOT / "bundles/demo", tmp_path / "demo"))
    manifest = bundle.manifest
    image = decode_image((bundle.directory / "samples/2.png").read_bytes())
    with closing(open_engine(bundle, engine="onnxruntime", threads=1)) as engine:
        (found,) = detect(engine.run, [image], preprocess=manifest.preprocess,
                          threshold=manifest.lowest_scores())  # fmt: skip

    (readme,) = re.findall(r"```json\n(.*?)```", text("README.md"), flags=re.S)
    example = ANSWERS["detections"]["value"]

    for answer, places in ((json.loads(readme), range(len(found.scores))), (example, [0])):
        assert answer["model"] == {"name": "demo", "variant": "two_stage",
                                   "version": version_of(manifest)}  # fmt: skip
        (result,) = answer["results"]
        assert len(result["detections"]) == len(places)
        for place, shown in zip(places, result["detections"], strict=True):
            kind = manifest.classes[found.labels[place]]
            assert (shown["category_id"], shown["category_name"]) == (kind.id, kind.name)
            assert shown["score"] == pytest.approx(found.scores[place], abs=1e-4)
            assert shown["bbox"] == pytest.approx(found.boxes_xywh_px[place], abs=2e-3)


@pytest.mark.parametrize("page", PAGES)
def test_every_table_has_a_row_of_headings(page):
    lines = ["", *text(page).splitlines()]
    rules = [n for n, line in enumerate(lines) if re.fullmatch(r"\|(?: *:?-+:? *\|)+", line)]

    assert [n for n in rules if lines[n - 1].count("|") != lines[n].count("|")] == []


def test_every_bundle_of_the_repository_is_listed_with_its_ap():
    listed = re.findall(r"^\| `(\w+)` \|.*\| AP ([\d.]+), AP50 ([\d.]+) \|$",
                        text("bundles/README.md"), flags=re.M)  # fmt: skip
    manifests = [Manifest.load(path.parent) for path in (ROOT / "bundles").glob("*/manifest.json")]

    assert sorted(listed) == sorted(
        (one.name, f"{one.metrics['AP']:.3f}", f"{one.metrics['AP50']:.3f}") for one in manifests
    )
    served = dict(part.split("=") for part in re.findall(r"(\w+=bundles/\w+)", text("Makefile")))
    assert served == {one.name: f"bundles/{one.name}" for one in manifests}


def test_the_python_page_runs_as_it_is_written():
    (program,) = re.findall(r"```python\n(.*?)```", text("docs/python.md"), flags=re.S)

    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True
    )

    assert result.returncode == 0, result.stderr
    assert {line.split()[0] for line in result.stdout.splitlines()} == {
        path.name for path in (ROOT / "bundles/demo/samples").iterdir()
    }


@pytest.mark.parametrize(
    ("schema", "name"),
    [
        ("vendor.github-workflows", ".github/workflows/check.yml"),
        ("vendor.github-issue-forms", ".github/ISSUE_TEMPLATE/bug.yml"),
        ("vendor.github-issue-forms", ".github/ISSUE_TEMPLATE/idea.yml"),
        ("vendor.citation-file-format", "CITATION.cff"),
    ],
)
def test_files_for_the_forge_are_what_it_reads(schema, name):
    tool = Path(sys.executable).parent / "check-jsonschema"
    options = ["--builtin-schema", schema, "--default-filetype", "yaml"]

    result = subprocess.run([tool, *options, ROOT / name], capture_output=True, text=True)

    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("page", [page for page in PAGES if page != "CHANGELOG.md"])
def test_files_named_in_a_page_are_there(page):
    names = re.findall(r"`(?!\S*(?:DATE|NAME))([\w/.-]+\.(?:py|cpp|cu|h|md))\b", text(page))
    folders = (ROOT, (ROOT / page).parent)

    assert [name for name in names if not any((at / name).exists() for at in folders)] == []


def test_the_map_from_the_paper_names_code_that_is_there():
    named = re.findall(r"`([\w/]+\.py)` `(?:\w+\.)?(\w+)", text("model/README.md"))

    assert len(named) > 15
    assert [pair for pair in named if pair[1] not in text(f"model/{pair[0]}")] == []


# Of the past, and of another project.
READABLE = [name for name in TRACKED
            if b"\0" not in (ROOT / name).read_bytes()
            and name not in ("CHANGELOG.md", "tests/data/coco_demo100/SOURCE.md")]  # fmt: skip
PACKAGES = "bundle|plugins|engines|service|detr_client|model|export|benchmarks|tests"


def test_no_file_describes_another_that_is_not_there():
    folders = "|".join({re.escape(name.split("/")[0]) for name in TRACKED if "/" in name})
    path = re.compile(rf"(?<![\w/.-])(?:\./)?((?:{folders})/(?!\S*(?:DATE|NAME))[\w/.-]*\w/?)")
    suffixes = {Path(name).suffix for name in TRACKED} - {""}
    present = {*TRACKED, *(f"{folder}/" for name in TRACKED for folder in Path(name).parents)}

    missing = [f"{name}: {found}" for name in READABLE for found in path.findall(text(name))
               if (Path(found).suffix in suffixes or found.endswith("/"))
               and found not in present]  # fmt: skip

    assert missing == []


def module_files() -> dict[str, str]:
    """The files of all modules by the names they are imported by."""
    paths = {name.removeprefix("client/").removesuffix(".py"): name
             for name in TRACKED if name.endswith(".py")}  # fmt: skip
    return {path.removesuffix("/__init__").replace("/", "."): name for path, name in paths.items()}


def test_every_module_that_a_file_runs_is_there():
    run = re.compile(rf"-m ((?:{PACKAGES})\b[\w.]*\w)")
    modules = module_files()

    found = [(name, module) for name in READABLE for module in run.findall(text(name))]

    assert len(found) > 50
    assert [pair for pair in found if not {pair[1], f"{pair[1]}.__main__"} & modules.keys()] == []


def test_modules_named_in_a_docstring_or_comment_are_there():
    dotted = re.compile(rf"`((?:{PACKAGES})(?:\.\w+)+)`")
    sources = [name for name in READABLE if not name.endswith(".md")]
    contents = {module: text(name) for module, name in module_files().items()}

    named = [(name, found) for name in sources for found in dotted.findall(text(name))]
    members = [(name, found, *found.rpartition(".")) for name, found in named
               if found not in contents]  # fmt: skip

    assert len(named) > 10
    assert [(name, found) for name, found, module, _, last in members
            if not re.search(rf"\b{last}\b", contents.get(module, ""))] == []  # fmt: skip
