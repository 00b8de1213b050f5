"""The page of results: the numbers that are printed, of any detections, in a browser."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model.evaluate import main
from model.evaluation.coco_metrics import format_report, score
from model.evaluation.epoch_table import append_epoch
from model.evaluation.results_page import Subject, facts_of, report_after_training, write_report
from tests.chromium import needs_chromium, open_browser, open_page
from tests.model.evaluation.hand_made import GreyImages, column, found, truth_of
from tests.model.html_page import Element, read_page

FIXTURE = Path("tests/data/coco_fixture12")
SUBJECT = Subject("runs/mine/best.safetensors", padding="AP was not measured with padding.")
PageOf = Callable[..., Element]


@pytest.fixture
def page_of(tmp_path: Path) -> PageOf:
    """The page of a truth and detections."""

    def page_of(
        truth: dict[str, Any], results: list[dict[str, Any]], subject: Subject = SUBJECT
    ) -> Element:
        path = tmp_path / "made" / "report.html"
        write_report(score(truth, results), GreyImages(truth), subject=subject, path=path)
        return read_page(path)

    return page_of


def section(page: Element, name: str) -> Element:
    (one,) = [one for one in page.all("section") if one.attributes["id"] == name]
    return one


def rows_of(element: Element) -> list[list[str]]:
    """The cells of all rows, without those of bars."""
    return [[cell.text for cell in row.children if cell.attributes.get("class") != "bar"]
            for row in element.all("tr")]  # fmt: skip


def some_wrong(truth: dict[str, Any]) -> list[dict[str, Any]]:
    """A detection of most boxes; some are shifted, and some of another class."""
    ids = [category["id"] for category in truth["categories"]]
    return [
        found(entry["image_id"], ids[(ids.index(entry["category_id"]) + (at % 7 == 0)) % len(ids)],
              [entry["bbox"][0] + 3 * (at % 5), *entry["bbox"][1:]], at=(at % 17) / 17)
        for at, entry in enumerate(truth["annotations"])
        if at % 4 and not entry.get("iscrowd")
    ]  # fmt: skip


def test_the_page_has_the_numbers_that_the_command_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = json.loads((FIXTURE / "instances.json").read_text())
    (tmp_path / "results.json").write_text(json.dumps(some_wrong(truth)))

    status = main(
        [
            *("--results", str(tmp_path / "results.json"), "--data", str(FIXTURE)),
            *("--report", str(tmp_path / "new" / "page.html")),
        ]
    )

    page = read_page(tmp_path / "new" / "page.html")
    *classes, overall, _blank = (lines := capsys.readouterr().out.splitlines())[1:83]
    shown = {row[0]: [row[1], *row[2:4], *row[7:]] for row in rows_of(section(page, "classes"))}
    numbers = [row[:2] for row in rows_of(section(page, "numbers"))[:12]]
    assert status == 0
    assert len(classes) == 80
    assert [[name, *shown[name]] for name in (line[:14].strip() for line in classes)] == [
        [line[:14].strip(), *line[14:].split()] for line in classes
    ]
    assert numbers == [line.split()[:2] for line in lines[83:95]]
    assert f"score {overall.split()[3]}: precision {overall.split()[4]}" in page.text


def test_perfect_detections_have_no_errors(page_of: PageOf) -> None:
    truth = truth_of((1, 7, column(0)), (2, 8, column(1)))

    page = page_of(truth, [found(1, 7, column(0)), found(2, 8, column(1))])

    assert rows_of(section(page, "confusion")) == [
        ["", "cat", "dog", "missed"],
        ["cat", "1", "", ""],
        ["dog", "", "1", ""],
        ["no box", "", "", ""],
    ]
    assert "No box was taken for another class." in page.text
    assert "None of the 2 images has an error" in page.text
    assert rows_of(section(page, "numbers"))[0][:2] == ["AP", "1.000"]


def test_swapped_classes_are_named(page_of: PageOf) -> None:
    truth = truth_of((1, 7, column(0)), (1, 8, column(1)), (2, 8, column(2)))
    swapped = [found(1, 8, column(0)), found(1, 7, column(1)), found(2, 7, column(2))]

    page = page_of(truth, swapped)

    assert "dog taken for cat (2), cat taken for dog (1)." in page.text
    assert "no best threshold" in page.text
    assert [figure.text.split(": ")[-1] for figure in section(page, "worst").all("figure")] == [
        "2 of another class", "1 of another class",
    ]  # fmt: skip


def test_overconfident_scores_are_shown(page_of: PageOf) -> None:
    truth = truth_of(*((1, 7, column(number)) for number in range(6)))
    results = [found(1, 7, column(number), at=0.95) for number in range(12)]

    page = page_of(truth, results)

    assert "Expected calibration error: 0.450; scores are too high by 0.450" in page.text
    assert rows_of(section(page, "calibration"))[-1] == ["0.9 to 1.0", "12", "0.950", "0.500"]


def test_errors_are_drawn_and_named(page_of: PageOf) -> None:
    truth = truth_of((1, 7, column(0)), (1, 7, column(2)), (1, 8, column(4)))
    results = [found(1, 7, column(0), at=0.9), found(1, 7, column(4), at=0.9),
               found(1, 8, column(6), at=0.9)]  # fmt: skip

    (figure,) = section(page_of(truth, results), "worst").all("figure")

    assert figure.texts("figcaption") == ["1.png: 1 missed, 1 false, 1 of another class"]
    assert [(group.attributes["class"], group.all("rect")[0].attributes["class"], group.text)
            for group in figure.all("g")] == [
        ("c1", "box dashed", "cat"), ("c4", "box dashed", ""), ("c4", "box", "cat 0.90, is dog"),
        ("c3", "box", "dog 0.90"), ("c0", "box dashed", ""), ("c0", "box", "cat 0.90"),
    ]  # fmt: skip


def test_at_most_fifty_images_are_drawn(page_of: PageOf) -> None:
    truth = truth_of(*((number + 1, 7, column(0)) for number in range(60)), num_images=60)

    page = page_of(truth, [])

    assert len(page.all("figure")) - len(section(page, "curves").all("figure")) == 50 + 1
    assert "The 50 images with the most errors, of 60 with any and 60 in all" in page.text


@pytest.mark.parametrize("name", ["<b>", "<script>alert(1)</script>", '"><img src=x>', "{{ 7 }}"])
def test_a_class_name_is_text_whatever_it_contains(page_of: PageOf, name: str) -> None:
    truth = truth_of((1, 7, column(0)), (1, 8, column(1)), names=(name, "dog"))

    page = page_of(truth, [found(1, 8, column(0)), found(1, 7, column(1))])

    assert page.all("b") == page.all("script") == page.all("img") == []
    assert name in [row[0] for row in rows_of(section(page, "classes"))]
    assert f"{name} taken for dog (1)" in page.text


def test_only_the_beginning_of_a_long_name_is_shown(page_of: PageOf) -> None:
    truth = truth_of((1, 7, column(0)), (1, 8, column(1)), names=("x" * 3000, "dog"))

    page = page_of(truth, [found(1, 8, column(0)), found(1, 7, column(1))])

    assert "x" * 58 not in page.text
    assert f"{'x' * 57}... taken for dog (1)" in page.text


@pytest.mark.parametrize(
    "truth",
    [
        truth_of((1, 7, column(0)), names=["only"]),
        truth_of((1, 7, column(0)), names=["one", "without boxes"]),
        truth_of(),
        truth_of((1, 7, column(0)), crowds=[0]),
        truth_of(
            *((1, 7 + n, column(n % 20)) for n in range(80)), names=[str(n) for n in range(80)]
        ),
    ],
    ids=["one class", "a class without boxes", "no boxes", "only crowds", "80 classes"],
)
@pytest.mark.parametrize("results", [[], [found(2, 7, column(3), at=0.7)]], ids=["none", "wrong"])
def test_there_is_a_page_of_any_truth(
    page_of: PageOf, truth: dict[str, Any], results: list[dict[str, Any]]
) -> None:
    page = page_of(truth, results)

    printed = format_report(score(truth, results)).splitlines()[-12:]
    assert [row[1] for row in rows_of(section(page, "numbers"))[:12]] == [
        line.split()[1] for line in printed
    ]
    assert len(rows_of(section(page, "classes"))) == len(truth["categories"]) + 1


def test_a_matrix_of_many_classes_is_limited_and_keeps_its_sum(page_of: PageOf) -> None:
    boxes = [(1, 7 + n, [4 * n, 4 * n, 3, 3]) for n in range(80)]
    truth = truth_of(*boxes, names=[f"class {n}" for n in range(80)])

    page = page_of(truth, [found(*box) for box in boxes[3:]])

    heading, *rows = rows_of(section(page, "confusion"))
    assert heading[1:4] == ["class 0", "class 1", "class 2"]
    assert heading[-2:] == ["51 other classes", "missed"]
    assert sum(int(cell) for row in rows for cell in row[1:] if cell) == 80


def test_learning_curves_show_the_epochs_of_the_run(page_of: PageOf, tmp_path: Path) -> None:
    table = tmp_path / "metrics.csv"
    for epoch in (1, 2, 3):
        losses = {"training_loss": 9 / epoch, "validation_loss": 9.5 / epoch}
        append_epoch(table, {"epoch": epoch, "AP": epoch / 10, "AP50": epoch / 5, **losses})

    page = page_of(truth_of(), [], Subject("mine", epochs=table, epoch=2))

    learning = section(page, "learning")
    assert len(learning.all("svg")) > 2
    assert "epoch 2, evaluated here" in learning.text
    assert learning.all("path")[-1]
    assert f"From {table}." in learning.text


@pytest.mark.parametrize(
    ("content", "said"), [(None, "There is no metrics.csv"), ("epoch\nx", "is not the table")]
)
def test_a_page_without_epochs_says_why(
    page_of: PageOf, tmp_path: Path, content: str | None, said: str
) -> None:
    table = tmp_path / "metrics.csv"
    if content is not None:
        table.write_text(content)

    page = page_of(truth_of(), [], Subject("mine", epochs=table))

    assert said in section(page, "learning").text


def test_what_was_evaluated_and_what_may_be_wrong_is_said(page_of: PageOf) -> None:
    origin = {"source": "model.train", "data": {"dataset": "mine", "classes": ["a"]}, "epochs": 3}
    subject = Subject("best", {"variant": "base", **dict(facts_of(origin))}, notes=["<look>"])

    page = page_of(truth_of((1, 7, column(0)), crowds=[0]), [], subject)

    assert rows_of(section(page, "numbers"))[12:-1] == [
        ["variant", "base"], ["training, source", "model.train"],
        ["training, data, dataset", "mine"], ["training, epochs", "3"], ["images", "2"],
        ["boxes", "0, and 1 crowds"], ["classes", "2"], ["detections", "0"],
    ]  # fmt: skip
    assert page.texts("p")[:2] == ["best", "<look>"]


def test_an_image_that_cannot_be_read_is_replaced_by_the_reason(tmp_path: Path) -> None:
    class Damaged(GreyImages):
        def read_image(self, index: int) -> Any:
            raise ValueError("1.png is damaged")

    truth = truth_of((1, 7, column(0)))

    write_report(score(truth, []), Damaged(truth), subject=SUBJECT, path=tmp_path / "page.html")

    (figure,) = section(read_page(tmp_path / "page.html"), "worst").all("figure")
    assert figure.text == "1 missed: 1.png is damaged"


def test_a_page_that_cannot_be_written_costs_a_run_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "report.html").mkdir()

    report_after_training(
        score(truth_of(), []),
        GreyImages(truth_of()),
        subject=SUBJECT,
        path=tmp_path / "report.html",
    )

    assert [record.message for record in caplog.records] == [
        f"{tmp_path / 'report.html'} was not written: Is a directory"
    ]


@needs_chromium
def test_a_browser_opens_the_page_without_a_complaint_or_a_request(tmp_path: Path) -> None:
    truth = truth_of(*((1, 7 + n % 40, column(n % 20)) for n in range(80)),
                     names=[f"a rather long class name {n}" for n in range(40)])  # fmt: skip
    path = tmp_path / "report.html"
    write_report(score(truth, some_wrong(truth)), GreyImages(truth), subject=SUBJECT, path=path)
    complaints: list[str] = []

    with (
        open_browser() as browser,
        open_page(browser, path.as_uri(), complaints) as page,
    ):
        wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        page.set_viewport_size({"width": 375, "height": 800})
        narrow = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        charts = page.locator(".chart > svg").count()
        pictures = page.locator("svg image").count()

    assert max(wide, narrow) <= 0
    assert (charts, pictures) == (3, 1)
    assert complaints == []
