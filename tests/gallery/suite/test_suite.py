"""The sixteen tasks: stated sizes, the same rows everywhere, no row on both sides, no leaked
answer.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path

import pytest
from _pytest.mark.structures import ParameterSet

from pidep.errors import TaskError
from pidep.gallery.icons.catalog import Icon
from pidep.gallery.icons.draw import drawn_file
from pidep.gallery.suite import vision_language
from pidep.gallery.suite.facts import DRAWN, FACTS
from pidep.gallery.suite.files import packaged_files, sides_of
from pidep.gallery.suite.icons import BADGES, SHARES, SPLIT_SEED, group_of, icons_of
from pidep.gallery.suite.pictures import Picture, Turned, picture_file
from pidep.gallery.suite.row import Sides, SuiteRow
from pidep.gallery.suite.statements import statement
from pidep.inputs.images import load_image, pixels_digest
from pidep.tasks.data import load_data
from pidep.tasks.task import load_task

PINNED = {
    "mkdocs-material": "9.8.1",
    "fontawesomefree": "6.6.0",
    "resvg-py": "0.5.0",
    "scikit-learn": "1.9.1",
}
"""Package versions that the digests and sizes below belong to."""
GOLDEN = {
    "vision/digits": ("2fbd109fa51c907e", "edfbffa091aa85e0"),
    "vision/family": ("03f437c34428e400", "27918290ed9895d5"),
    "vision/filled": ("5cc6f3376ee5143b", "852f735eb0c6b95a"),
    "vision/category": ("cd37818bd753037d", "526a82e5630768d4"),
    "vision/turned": ("16ed313c11074733", "2c4c3beb6171191a"),
    "language/domain": ("7fa33fb7a1c3b15f", "66892003722e63de"),
    "language/strength": ("83cd53c293f06587", "5d14a0aeee5dbab2"),
    "vl/fits": ("2065ad0602c6c4bd", "e6bab0a6d5c1e0dd"),
    "vl/caption": ("d0a3641662e0fff0", "c1574b2116dc7bd4"),
    "vl/badge": ("1920ad95cb052fee", "de88b6ed6c147240"),
    "vl/entail": ("bb26b88c1c067fa1", "6d7385e107412728"),
    "vl/find": ("213117756befbdbb", "ec7ba8f684550ea3"),
}
"""First digits of the digests of training and test rows: labels, texts, choices and pixels."""
SLOW = {"vision/turned", *(name for name in FACTS if FACTS[name].modality == "language")}
"""Tasks whose rows are drawn to be chosen, or whose sentences pip fetches the first time."""
WITH_ICONS = [
    name for name in DRAWN if name != "vision/digits" and not name.startswith("language/")
]


def digest_of(picture: Picture) -> str:
    """SHA-256 over the pixels, independent of the file's compression."""
    return pixels_digest(load_image(picture_file(picture)))


def rows_digest(rows: Sequence[SuiteRow], of: Callable[[Picture], str] = digest_of) -> str:
    """SHA-256 over labels, texts, candidates and pixels in order; equal on all machines."""
    sha = hashlib.sha256()
    for row in rows:
        image = None if row.image is None else of(row.image)
        choices = [choice if isinstance(choice, str) else of(choice) for choice in row.choices]
        sha.update(json.dumps([row.label, row.text, image, choices]).encode() + b"\n")
    return "sha256:" + sha.hexdigest()


def some(names: Iterable[str]) -> list[ParameterSet]:
    """Names as parameters; slow tasks are marked slow."""
    return [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in names]


as_stated = pytest.mark.skipif(
    any(version(package) != pinned for package, pinned in PINNED.items()),
    reason="stated for the packages of constraints.txt",
)


@cache
def sides(name: str) -> Sides:
    """The rows of a task, chosen once for all tests of this file."""
    return sides_of(name)


@cache
def digest(picture: Picture) -> str:
    """The digest of a picture, computed once for all tests of this file."""
    return digest_of(picture)


def pictures(rows: list[SuiteRow]) -> Iterator[Picture]:
    for row in rows:
        if row.image is not None:
            yield row.image
        yield from (choice for choice in row.choices if not isinstance(choice, str))


def icons(rows: list[SuiteRow]) -> set[Icon]:
    found = (picture.icon if isinstance(picture, Turned) else picture for picture in pictures(rows))
    return {picture for picture in found if isinstance(picture, Icon)}


def test_what_is_stated_is_of_the_pinned_packages() -> None:
    """Without this test, the tests of digests and sizes could be skipped for ever."""
    lines = (Path(__file__).parents[3] / "constraints.txt").read_text().splitlines()
    assert {f"{package}=={pinned}" for package, pinned in PINNED.items()} <= set(lines)


def test_there_are_sixteen() -> None:
    count = Counter(facts.modality for facts in FACTS.values())
    assert count == {"vision": 5, "language": 6, "vision-language": 5}
    names = [facts.fields["name"] for facts in FACTS.values()]
    assert len(set(names)) == 16


@as_stated
@pytest.mark.parametrize("name", some(DRAWN))
def test_sizes_are_as_stated_and_every_label_has_rows(name: str) -> None:
    found, facts = sides(name), FACTS[name]
    assert (len(found.train), len(found.test)) == (facts.train, facts.test)
    labels = (
        set(facts.fields["labels"])
        if "labels" in facts.fields
        else set(range(vision_language.CHOICES))
    )
    train = Counter(row.label for row in found.train)
    assert set(train) == labels == {row.label for row in found.test}
    assert min(train.values()) >= 32
    if facts.balance.startswith("even:") or facts.balance in ("even", "even places"):
        assert len(set(train.values())) == 1


@as_stated
@pytest.mark.slow
@pytest.mark.parametrize("name", DRAWN)
def test_the_same_rows_on_every_machine(name: str) -> None:
    found = sides(name)
    digests = (rows_digest(rows, digest) for rows in (found.train, found.test))
    assert tuple(one.removeprefix("sha256:")[:16] for one in digests) == GOLDEN[name]


@pytest.mark.slow
def test_no_icon_base_name_or_file_is_on_both_sides_of_the_suite() -> None:
    train, test = (
        set().union(*(icons(getattr(sides(name), side)) for name in WITH_ICONS))
        for side in ("train", "test")
    )
    assert train
    assert not {group_of(icon) for icon in train} & {group_of(icon) for icon in test}
    assert not {icon.path.read_bytes() for icon in train} & {
        icon.path.read_bytes() for icon in test
    }


@pytest.mark.slow
def test_no_picture_is_on_both_sides_of_the_suite() -> None:
    train, test = (
        {digest(picture) for name in DRAWN for picture in pictures(getattr(sides(name), side))}
        for side in ("train", "test")
    )
    assert len(train) > 8000
    assert not train & test


def test_the_connector_was_trained_on_no_test_icon() -> None:
    from pidep.gallery.icons.catalog import catalog
    from pidep.gallery.icons.split import parts

    trained_on = set(parts(catalog(), shares=SHARES, seed=SPLIT_SEED)["train"])
    assert not trained_on & set(icons_of("test"))
    assert set(icons_of("train")) <= trained_on


@pytest.mark.slow
def test_a_sentence_is_on_the_same_side_in_every_task() -> None:
    train: set[str] = set()
    test: set[str] = set()
    for name in FACTS:
        if FACTS[name].modality == "language":
            train |= {" ".join(row.text.lower().split()) for row in sides(name).train}
            test |= {" ".join(row.text.lower().split()) for row in sides(name).test}
    assert len(train) > 13_000
    assert not train & test


@pytest.mark.parametrize("name", some(name for name in FACTS if name not in DRAWN))
def test_sizes_of_sentences_as_they_come(name: str) -> None:
    data = load_data(load_task(name))
    assert (len(data.train.rows), len(data.test.rows)) == (FACTS[name].train, FACTS[name].test)
    assert [row.text for row in sides(name).test] == data.test.rows, (
        "the rule that divides them is that of task files"
    )


@pytest.mark.parametrize("name", ["vl/fits", "vl/entail"])
@pytest.mark.parametrize("side", ["train", "test"])
def test_neither_words_nor_picture_alone_give_the_answer(name: str, side: str) -> None:
    """Every picture, every name and every word of a statement has both answers equally often."""
    rows: list[SuiteRow] = getattr(sides(name), side)
    answers = Counter((row.image, row.label) for row in rows)
    assert all(
        answers[image, "yes"] == answers[image, "no"]
        and answers[image, "true"] == answers[image, "false"]
        for image, _ in answers
    )
    said = Counter(
        (word, row.label in ("yes", "true"))
        for row in rows
        for word in ([row.text] if name == "vl/fits" else row.text.split())
    )
    articles = {"a", "an"} if name == "vl/entail" else set()
    assert not {word for word, _ in said if said[word, True] != said[word, False]} - articles


@pytest.mark.parametrize("name", ["vl/caption", "vl/find"])
def test_choices_are_four_different_ones_and_hard(name: str) -> None:
    for side in ("train", "test"):
        places: Counter[str | int] = Counter()
        for row in getattr(sides(name), side):
            assert len(set(row.choices)) == 4
            places[row.label] += 1
        assert len(set(places.values())) == 1
    for icon, four, right in vision_language.among_four("test", 500):
        assert four[right] == icon
        assert len({one.label for one in four}) == 4
        others = [one for one in four if one != icon]
        hard = [
            one
            for one in others
            if one.base == icon.base or (set(one.label.split()) & set(icon.label.split()))
        ]
        assert len(hard) >= 2
        assert sum(one.base == icon.base for one in others) <= 2


def test_a_badge_is_not_in_the_text() -> None:
    rows = sides("vl/badge").test
    assert all(not set(row.text.split()) & {"plus", "minus", "outline", "remove"} for row in rows)
    assert {row.label for row in rows} == set(BADGES)


def test_filled_comes_in_pairs_of_which_the_filled_has_more_ink() -> None:
    import numpy as np
    from PIL import Image

    rows = sides("vision/filled").test[:120]

    def ink(row: SuiteRow) -> float:
        assert isinstance(row.image, Icon)
        return 255.0 - float(np.asarray(Image.open(drawn_file(row.image)).convert("L")).mean())

    more = [
        ink(filled) > ink(outline) for filled, outline in zip(rows[::2], rows[1::2], strict=True)
    ]
    assert sum(more) >= 0.9 * len(more)


def test_statements_read_well() -> None:
    assert statement("account") == "an account"
    assert (
        statement("bell", style="outlined", badge="off")
        == "an outlined bell with a slash across it"
    )
    assert statement("bell", style="filled") == "a filled bell"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Sides:
    """A cache of its own and a task of a few rows."""
    from pidep.gallery.suite import files

    monkeypatch.setenv("PIDEP_CACHE", str(tmp_path / "cache"))
    few = (
        next(icon for icon in icons_of("test") if icon.family == "material"),
        next(icon for icon in icons_of("train")),
    )
    found = Sides(
        [SuiteRow("right", image=Turned(few[1], 1))],
        [SuiteRow(1, "which?", choices=(few[0], few[1]))],
    )
    monkeypatch.setitem(files.CHOOSE, "vision/turned", lambda: found)
    return found


def test_rows_are_written_once_and_pictures_lie_beside_them(
    small: Sides, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from pidep.gallery.suite import files

    paths = packaged_files("vision/turned")
    (row,) = [json.loads(line) for line in paths["train"].read_text().splitlines()]
    assert row == {"image": row["image"], "label": "right"}
    assert (paths["train"].parent / row["image"]).is_file()
    (row,) = [json.loads(line) for line in paths["test"].read_text().splitlines()]
    assert row == {"text": "which?", "choices": row["choices"], "label": 1}

    (tmp_path / "cache").rename(tmp_path / "moved")
    monkeypatch.setenv("PIDEP_CACHE", str(tmp_path / "moved"))
    monkeypatch.setitem(files.CHOOSE, "vision/turned", lambda: pytest.fail("chosen again"))
    again = packaged_files("vision/turned")
    assert again["train"].is_relative_to(tmp_path / "moved")
    assert (again["test"].parent / row["choices"][0]).is_file()


def test_pictures_that_went_missing_are_drawn_again(small: Sides) -> None:
    paths = packaged_files("vision/turned")
    picture = paths["train"].parent / json.loads(paths["train"].read_text())["image"]
    picture.unlink()
    packaged_files("vision/turned")
    assert picture.is_file()


def test_a_digest_does_not_depend_on_where_pictures_lie(
    small: Sides, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = rows_digest(small.train), rows_digest(small.test)
    monkeypatch.setenv("PIDEP_CACHE", str(tmp_path / "another"))
    assert (rows_digest(small.train), rows_digest(small.test)) == before
    assert rows_digest([SuiteRow("right", image=Turned(small.train[0].image.icon, 2))]) != before[0]  # type: ignore[union-attr]


def test_unknown_names_and_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        TaskError,
        match=r"packaged task 'vl/fit': expected one of sentiment/amazon.*did you mean 'vl/fits'\?",
    ):
        packaged_files("vl/fit")

    def missing(*_: object) -> None:
        raise TaskError(
            "icons: package fontawesomefree is not installed; run: pip install --no-deps "
            "fontawesomefree"
        )

    from pidep.gallery.suite import icons as suite_icons

    suite_icons.icons_of.cache_clear()
    monkeypatch.setattr(suite_icons, "catalog", missing)
    with pytest.raises(TaskError, match="pip install --no-deps fontawesomefree"):
        sides_of("vision/filled")
