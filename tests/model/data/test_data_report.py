"""The page about data: its numbers, images and faults, whatever the data holds."""

import base64
import io
import json
import re
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.data import check
from model.data.data_report import report_before_training, write_page
from model.data.loading import RunData, open_data
from tests.chromium import needs_chromium, open_browser, open_page
from tests.model.html_page import Element, read_page
from tests.model.runs import run_config, write_images

GREY = Image.new("RGB", (60, 40), "grey")
Box = tuple[int, Sequence[float]]  # number of the class, and [x, y, width, height]


def write_split(
    folder: Path,
    split: str,
    images: dict[str, Image.Image],
    *,
    boxes: Sequence[Box] = (),
    names: Sequence[str] = ("cat",),
) -> None:
    """A split in COCO's format; its first image has all the boxes."""
    (folder / "images" / split).mkdir(parents=True)
    for name, image in images.items():
        image.save(folder / "images" / split / name)
    content = {
        "images": [
            {"id": number, "file_name": name, "width": image.width, "height": image.height}
            for number, (name, image) in enumerate(images.items())
        ],
        "annotations": [
            {"id": number, "image_id": 0, "category_id": category_id, "bbox": bbox}
            for number, (category_id, bbox) in enumerate(boxes)
        ],
        "categories": [{"id": number, "name": name} for number, name in enumerate(names)],
    }
    (folder / f"{split}.json").write_text(json.dumps(content))


@pytest.fixture
def page_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Path], Element]:
    """The page that the check of a data set writes."""

    def page_of(folder: Path) -> Element:
        path = tmp_path / "made" / "data.html"
        monkeypatch.setattr("sys.argv", ["check", str(folder), "--report", str(path)])
        check.main()
        return read_page(path)

    return page_of


@pytest.fixture
def run_data(tmp_path: Path) -> RunData:
    return open_data(run_config(), write_images(tmp_path / "data"))


def test_images_that_no_annotation_names_are_counted(
    page_of: Callable[[Path], Element], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "val"):
        write_split(tmp_path, split, {"a.png": GREY}, boxes=[(0, (1, 1, 9, 9))])
    for name in ("b.png", ".c.png", "notes.txt"):
        (tmp_path / "images" / "val" / name).write_text("?")

    page = page_of(tmp_path)

    said = f"images beside those of train and val, not used: 1, such as {tmp_path}/images/val/b.png"
    assert said in capsys.readouterr().out
    assert said in page.text


def table_of(page: Element, title: str) -> dict[str, list[str]]:
    """First column -> the numbers beside it."""
    (table,) = [one for one in page.all("table") if title in one.text]
    return {
        row.texts("th")[0]: [text for text in row.texts("td") if text]
        for row in table.all("tr")
        if row.all("td")
    }


def pictures_of(page: Element) -> dict[str, Element]:
    return {figure.texts("figcaption")[0]: figure for figure in page.all("figure")}


def thumbnail_of(figure: Element) -> Image.Image:
    (image,) = figure.all("image")
    _, data = image.attributes["href"].split("base64,")
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_the_splits_are_counted_beside_each_other(page_of, tmp_path):
    boxes: list[Box] = [(0, [1, 2, 10, 20]), (0, [5, 5, 32, 32]), (1, [0, 0, 50, 10])]
    write_split(
        tmp_path, "train", {"a.png": GREY, "b.png": GREY}, boxes=boxes, names=("cat", "dog")
    )
    write_split(tmp_path, "val", {"c.png": GREY}, boxes=boxes[:1], names=("cat", "dog"))

    page = page_of(tmp_path)

    assert table_of(page, "by class") == {"cat": ["2", "1"], "dog": ["1", "0"]}
    assert table_of(page, "by size")["32 to 64"] == ["1", "0"]
    assert table_of(page, "width / height")["1:2 to 4:5"] == ["1", "1"]
    assert table_of(page, "number of objects") | {"1": ["0", "1"]} == {
        "none": ["1", "0"], "1": ["0", "1"], "2 to 4": ["1", "0"], "5 to 9": ["0", "0"],
        "10 to 19": ["0", "0"], "20 to 49": ["0", "0"], "50 to 99": ["0", "0"],
        "100 and more": ["0", "0"],
    }  # fmt: skip
    assert "classes: 2; boxes: 3: cat 2, dog 1" in page.texts("li")
    assert "images: 2, 60 pixels wide, 40 high, 1 without objects; crowds: 0" in page.texts("li")


def test_boxes_are_drawn_where_they_are_annotated(page_of, tmp_path):
    boxes: list[Box] = [(0, [1, 2, 10, 20]), (1, [40.5, 5, 30, 8])]
    write_split(tmp_path, "train", {"a.png": GREY}, boxes=boxes, names=("cat", "dog"))

    figure = pictures_of(page_of(tmp_path))["a.png, 60 x 40"]

    (svg,) = figure.all("svg")
    sides = [[float(rect.attributes[side]) for side in ("x", "y", "width", "height")]
             for rect in figure.all("rect")]  # fmt: skip
    assert svg.attributes["viewbox"] == "0 0 60 40"
    assert sides == [[1, 2, 10, 20], [40.5, 5, 30, 8]]
    assert figure.texts("text") == ["cat", "dog"]


def test_the_page_holds_all_it_shows(page_of, tmp_path):
    page = page_of(write_images(tmp_path / "data"))

    links = [one.attributes.get("href", one.attributes.get("src"))
             for tag in ("a", "link", "img", "image", "script", "iframe")
             for one in page.all(tag)]  # fmt: skip
    assert len(links) > 8
    assert all(link.startswith("data:") for link in links)
    assert not re.search(r"url\(|@import", page.texts("style")[0])


@pytest.mark.parametrize(
    "name", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "a & b", "{{ 7 * 7 }}"]
)
def test_names_are_text_whatever_they_contain(page_of, tmp_path, name):
    file = name.replace("/", "_") + ".png"
    write_split(tmp_path, "train", {file: GREY}, boxes=[(0, [1, 1, 9, 9])], names=(name,))

    page = page_of(tmp_path)

    assert page.all("script") == page.all("img") == []
    assert table_of(page, "by class") == {name: ["1"]}
    assert pictures_of(page)[f"{file}, 60 x 40"].texts("text") == [name]


def test_a_path_that_is_no_text_does_not_lose_the_page(tmp_path):
    data = open_data(run_config(), write_images(tmp_path / "\udcff"))
    assert data.report is not None

    report_before_training(data.report, tmp_path / "data.html", augmented=data.train)

    assert len(pictures_of(read_page(tmp_path / "data.html"))) > 6


def test_boxes_of_a_class_that_cannot_be_read_are_drawn_with_its_id(page_of, tmp_path):
    boxes: list[Box] = [(0, [1, 1, 9, 9]), (1, [5, 5, 9, 9])]
    write_split(tmp_path, "train", {"a.png": GREY}, boxes=boxes, names=("cat", "\ud800"))

    page = page_of(tmp_path)

    assert "FATAL malformed: categories[1]" in page.texts("pre")[0]
    assert table_of(page, "by class") == {"cat": ["1"]}
    assert pictures_of(page)["a.png, 60 x 40"].texts("text") == ["cat", "category 1"]


def test_long_names_with_the_same_beginning_are_counted_apart(page_of, tmp_path):
    names = ["x" * 3000, "x" * 3001]
    boxes = [(number, [1, 1, 9, 9]) for number in (0, 1)]
    write_split(tmp_path, "train", {"a.png": GREY}, boxes=boxes, names=names)

    page = page_of(tmp_path)

    assert "x" * 58 not in page.text
    assert page.text.count("x" * 57 + "...") == 2 + 2 + 2  # in the table, the line, the picture


def test_every_one_of_a_thousand_classes_is_counted(page_of, tmp_path):
    names = [f"class {number}" for number in range(1000)]
    boxes = [(number, [1, 1, 9, 9]) for number in range(1000)]
    write_split(tmp_path, "train", {"a.png": GREY}, boxes=boxes, names=names)

    page = page_of(tmp_path)

    assert table_of(page, "by class") == {name: ["1"] for name in names}
    caption, figure = next(iter(pictures_of(page).items()))
    assert caption == "a.png, 60 x 40; 200 of 1000 boxes drawn"
    assert len(figure.all("rect")) == 200
    assert any("class 0 1, class 1 1, class 2 1, ..., class 997 1" in line
               for line in page.texts("li"))  # fmt: skip


@pytest.mark.parametrize(
    ("size", "thumbnail"),
    [((1, 1), (1, 1)), ((1, 3000), (1, 320)), ((3000, 1), (320, 1)), ((10_000, 64), (320, 2))],
)
def test_images_of_any_size_become_small_ones(page_of, tmp_path, size, thumbnail):
    image = Image.new("RGB", size, "red")
    write_split(tmp_path, "train", {"a.png": image}, boxes=[(0, [0, 0, 1, 1])])

    figure = pictures_of(page_of(tmp_path))[f"a.png, {size[0]} x {size[1]}"]

    assert thumbnail_of(figure).size == thumbnail


def test_an_image_that_cannot_be_drawn_says_why(page_of, tmp_path):
    write_split(tmp_path, "train", {"a.png": GREY, "b.png": GREY}, boxes=[(0, [1, 1, 9, 9])])
    path = tmp_path / "images/train/a.png"
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 6] ^= 0xFF  # amid the pixels, where the header shows nothing
    path.write_bytes(content)

    (said, shown) = pictures_of(page_of(tmp_path))

    assert said.startswith(f"{path}: ")
    assert shown == "b.png, 60 x 40"


def test_faults_are_listed_with_files_that_are_missing(page_of, tmp_path):
    write_split(tmp_path, "train", {"a.png": GREY, "b.png": GREY}, boxes=[(0, [1, 1, 0, 9])])
    (tmp_path / "images/train/b.png").unlink()

    page = page_of(tmp_path)

    assert "FATAL missing-file: image 1: there is no file" in page.texts("pre")[0]
    assert "empty-box" in page.texts("pre")[0]
    assert list(pictures_of(page)) == ["a.png, 60 x 40"]


@pytest.mark.parametrize("images", [{}, {"a.png": GREY}])
def test_a_split_without_images_or_boxes_has_a_page(page_of, tmp_path, images):
    write_split(tmp_path, "train", {"b.png": GREY}, boxes=[(0, [1, 1, 9, 9])])
    write_split(tmp_path, "val", images)

    page = page_of(tmp_path)

    assert table_of(page, "by class") == {"cat": ["1", "0"]}
    assert page.texts("h2")[1] == "val"


def test_look_alikes_are_shown_side_by_side(page_of, tmp_path):
    photo = Image.open(next(Path("tests/data/coco_fixture12/images").rglob("*.jpg")))
    write_split(tmp_path, "train", {"a.png": photo}, boxes=[(0, [1, 1, 9, 9])])
    write_split(tmp_path, "val", {"b.jpg": photo.resize((200, 150))}, boxes=[(0, [1, 1, 9, 9])])

    page = page_of(tmp_path)

    (section,) = [one for one in page.all("section") if one.attributes.get("id") == "look-alikes"]
    assert "validation images that look like training images: 1, such as" in section.text
    assert [caption.split(",")[0] for caption in section.texts("figcaption")] == [
        "val: b.jpg", "train: a.png",
    ]  # fmt: skip


def test_pictures_end_when_their_time_does(run_data, tmp_path):
    clock = count(0, 4).__next__  # four seconds pass at every look

    write_page(run_data.report, tmp_path / "data.html", comparison=None, clock=clock)

    page = read_page(tmp_path / "data.html")
    assert "Shown: 3 of 6 images." in page.text
    assert "Shown: 2 of 2 images." in page.text


def test_a_run_shows_its_data_as_it_trains_on_it(run_data, tmp_path, caplog):
    caplog.set_level("INFO")

    report_before_training(run_data.report, tmp_path / "data.html", augmented=run_data.train)

    (section,) = [one for one in read_page(tmp_path / "data.html").all("section")
                  if "As trained on" in one.text]  # fmt: skip
    image, target = run_data.train[0]
    figure = section.all("figure")[0]
    cx, cy, w, h = (target["boxes"][0].numpy() * np.tile(image.shape[1::-1], 2)).tolist()
    rect = figure.all("rect")[0].attributes
    assert figure.text.endswith(f"image 1, {image.shape[1]} x {image.shape[0]}")
    assert len(figure.all("rect")) == len(target["boxes"])
    assert [float(rect[side]) for side in ("x", "y", "width", "height")] == pytest.approx(
        [cx - w / 2, cy - h / 2, w, h], abs=0.01
    )
    assert "train: classes: 3; boxes: 12: " in caplog.text
    assert "no validation image looks like a training image" in caplog.text
    assert f"{tmp_path / 'data.html'} shows the data" in caplog.text


def test_a_page_that_cannot_be_written_costs_a_run_one_line(run_data, tmp_path, caplog):
    (tmp_path / "data.html").mkdir()
    caplog.set_level("WARNING")

    report_before_training(run_data.report, tmp_path / "data.html", augmented=run_data.train)

    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.message == f"{tmp_path / 'data.html'} was not written: Is a directory"
    assert {path.name for path in tmp_path.iterdir()} == {"data", "data.html"}


@needs_chromium
def test_a_browser_opens_the_page_without_a_complaint_or_a_request(run_data, tmp_path):
    report_before_training(run_data.report, tmp_path / "data.html", augmented=run_data.train)
    complaints: list[str] = []

    with (
        open_browser() as browser,
        open_page(browser, (tmp_path / "data.html").as_uri(), complaints) as page,
    ):
        heading = page.inner_text("h1")
        images = page.locator("svg image").count()
        width = page.evaluate("document.documentElement.scrollWidth - innerWidth")

    assert heading == "Data before training"
    assert images == 6 + 2 + 6
    assert width <= 0
    assert complaints == []
