"""The page about a run: it has every section, fetches nothing, and escapes all data."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.cluster.hierarchy import dendrogram

from pidep.errors import BackboneError, ExpertError, PidepError, TaskError, UsageError
from pidep.experts.folder import write_expert
from pidep.lab.report import Report, figures, write_report
from pidep.lab.report.neighbourhood import neighbourhood
from pidep.lab.report.page import SECTIONS
from pidep.lab.settings import ReportSettings
from pidep.settings import checked
from pidep.similarity.measures import similarity
from pidep.tuning import tune as tuning
from pidep.tuning.run_folder import read_run
from pidep.tuning.settings import TuneSettings
from tests.conftest import make_expert

pytestmark = pytest.mark.slow  # whole comparisons and pages

TINY = {
    "folds": 2,
    "steps": 4,
    "batch_size": 8,
    "eval_every": 2,
    "mixture_steps": 2,
    "rank": 2,
    "fisher_samples": 8,
}
EVIL = "<script>alert('$x$')</script>"
VOID = {"meta", "link", "br", "hr", "img", "input"}


def report_of(
    run: Path, out: Path | None = None, *, on_step: Any = None, **settings: object
) -> Report:
    """`write_report` with these settings."""
    values = {"run": run, "out": out, **settings}
    return write_report(checked(ReportSettings, values, where="report"), on_step=on_step)


class Strict(HTMLParser):
    """Every element is closed in order, every id is unique, and every reference has a target."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []
        assert len(set(self.ids)) == len(self.ids)
        assert {reference for reference in self.references if reference} <= set(self.ids)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for key, value in attrs:
            if key == "id":
                self.ids.append(value or "")
            self.references += re.findall(r"url\(#([^)]*)\)", value or "")
            if key == "href" and (value or "").startswith("#"):
                self.references.append((value or "")[1:])
            assert not key.startswith("on")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def made(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool of two experts, a few-shot run, and a run on all rows with helpers."""
    folder = tmp_path_factory.mktemp("report")
    rng = np.random.default_rng(0)
    rows = []
    for index in range(240):
        word = [("bad", "awful"), ("good", "great")][index % 2][int(rng.integers(2))]
        rows.append(
            {
                "text": (
                    f"{' '.join(rng.choice(['a', 'film', 'the', 'was', 'very'], size=5))} {word}"
                ),
                "label": [EVIL, "positive"][index % 2],
            }
        )
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    labels = json.dumps({EVIL: "negative <b>", "positive": "positive"})
    (folder / "film.yaml").write_text(
        f"name: film\nlabels: {labels}\ndata: {{path: rows.jsonl}}\nmax_length: 12\n"
    )
    common = {
        **TINY,
        "task": str(folder / "film.yaml"),
        "backbone": str(tiny_folder),
        "pool": folder / "pool",
        "neighbours_by": "fisher",
    }
    runs = {
        "one": {"top_k": 0},
        "two": {"top_k": 0, "seed": 1},
        "few": {"shots": 4},
        "full": {"add_to_pool": False, "policy": "anchored"},
    }
    runs["zero"] = {"policy": "zero-shot"}
    for name, more in runs.items():
        tuning.tune(
            checked(TuneSettings, {**common, "name": name, **more}, where="tune"),
            folder / "runs" / name,
        )
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy of the few-shot run that a test may break."""
    return Path(shutil.copytree(made / "runs" / "few", tmp_path / "few"))


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty figures, for tests that do not look at them: drawing takes most of the time."""
    monkeypatch.setattr("pidep.lab.report.figures.draw", lambda *_, **__: "<svg></svg>")


def change(path: Path, edit: Callable[[dict], object]) -> None:  # type: ignore[type-arg]
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def test_it_can_be_read_on_a_narrow_screen(made: Path, tmp_path: Path) -> None:
    """Faults that were seen in a browser: shifted headers, heat maps without a legend, tiny
    letters.
    """
    html = report_of(made / "runs" / "few", tmp_path / "few.html").out.read_text()
    for column in ("accuracy", "against own expert", "95 % interval", "similarity", "mean α"):
        assert f'<th scope="col" class="figure">{column}</th>' in html
    assert '<th scope="col" class="words">model</th>' in html
    for style in re.findall(r'<svg [^>]*style="([^"]*)"', html):
        most, least = (
            float(re.search(rf"{name}-width:(\d+)px", style)[1]) for name in ("max", "min")
        )  # type: ignore[index]
        assert least == pytest.approx(0.7 * most, abs=1)
    assert (
        len(re.findall(r"[Ss]hade: [^<]*\(light\)[^<]* to [^<]*dark\)", html))
        == html.count('aria-label="Confusion') + 2
    )
    assert html.count('<figure><div class="scroll"><svg ') == html.count("<svg ")


@pytest.mark.parametrize("values", [[0.5, 0.4], [0.0, 0.0]])
def test_losses_are_drawn_inside_the_axes(values: list[float]) -> None:
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    figures.set_loss_axis(axes, values)
    assert axes.get_ylim()[0] == 0
    assert axes.get_ylim()[1] > max(values)


def test_a_run_without_labels(made: Path, tmp_path: Path, undrawn: None) -> None:
    report = report_of(made / "runs" / "zero", tmp_path / "zero.html")
    html = report.out.read_text()
    Strict(html)
    assert [one.model for one in report.evaluation.predictions] == ["zero-shot mixture"]
    assert html.count("as the run says") == 1
    for words in (
        "zero-shot mixture",
        "nearest expert",
        "against bare backbone",
        "no label was read",
        "Predicted from texts alone",
    ):
        assert words in html, words
    assert "own expert" not in html.split("</style>")[1].replace("<h2", "")
    with pytest.raises(UsageError, match="no path to walk, a zero-shot run has no own expert"):
        report_of(made / "runs" / "zero", tmp_path / "zero.html", paths=True)


def test_a_run_whose_test_rows_have_no_labels(made: Path, tmp_path: Path, undrawn: None) -> None:
    rows = [json.loads(line) for line in (made / "rows.jsonl").read_text().splitlines()]
    (tmp_path / "texts.jsonl").write_text(
        "".join(json.dumps({"text": row["text"]}) + "\n" for row in rows)
    )
    (tmp_path / "bare.yaml").write_text(
        (made / "film.yaml")
        .read_text()
        .replace("rows.jsonl", "texts.jsonl")
        .replace("film", "bare")
    )
    config = json.loads((made / "runs" / "zero" / "config.yaml").read_text())
    tuning.tune(
        checked(
            TuneSettings,
            {**config, "task": str(tmp_path / "bare.yaml"), "name": "bare"},
            where="tune",
        ),
        tmp_path / "run",
    )
    html = report_of(tmp_path / "run").out.read_text()
    Strict(html)
    assert "Nothing was measured: the test rows have no labels." in html
    assert "Not computed: the test rows have no labels." in html


def test_the_page_holds_every_section_and_figure(made: Path, tmp_path: Path) -> None:
    steps: list[str] = []
    report = report_of(
        made / "runs" / "few",
        tmp_path / "few.html",
        paths=True,
        on_step=lambda phase, *_: steps.append(phase),
    )
    html = report.out.read_text(encoding="utf-8")
    assert len(html.encode()) == report.num_bytes < 400_000
    found = Strict(html)
    assert {*SECTIONS} <= set(found.ids)
    for title in (
        "Learning curves",
        "Similarity of 3 tasks",
        "Task graph of 3 tasks",
        "α of 4 experts",
        "Loss and metric along the lines",
    ):
        assert f'aria-label="{title}' in html
    assert html.count('aria-label="Confusion matrix of') == 2
    assert found.tags.count("svg") == 7
    for word in (
        "uniform mixture",
        "own expert, learned in the mixture",
        "no other candidate is",
        "95 % interval",
        "barrier",
    ):
        assert word in html
    assert "not those" not in html
    assert html.count("as the run says") == 2
    assert set(steps) == {"path to one", "path to two", "path to π"}
    paths = report.to_json()["paths"]
    assert (paths["rows"], paths["missing"]) == ("test", [])
    assert {line["end"] for line in paths["found"]} == {"one", "two", "π"}
    assert all(len(line["points"]) == 11 and line["barrier"] >= 0 for line in paths["found"])
    assert np.sum(report.to_json()["confusion"]["π"]) == read_run(made / "runs" / "few").test_rows


@pytest.mark.usefixtures("undrawn")
def test_a_report_says_what_it_does(
    made: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="pidep")
    report_of(made / "runs" / "few", tmp_path / "few.html")
    said = [(one.getMessage(), getattr(one, "done", None)) for one in caplog.records]
    assert ("report: reads the test rows and loads the backbone", None) in said
    assert [done for text, done in said if text == "report: predicts the test rows"] == [0, 1]


def test_nothing_is_fetched_and_nothing_runs(made: Path, tmp_path: Path) -> None:
    html = report_of(made / "runs" / "full", tmp_path / "full.html", paths=True).out.read_text(
        encoding="utf-8"
    )
    assert set(re.findall(r"https?://[^\s\"<)]*", html)) == {"https://arxiv.org/abs/2304.14381"}
    found = Strict(html)
    assert not {"script", "iframe", "object", "embed", "link", "img"} & set(found.tags)
    assert not re.search(r"@import|url\((?!#)", html)
    assert "held-back rows" in html  # a run on all rows has held-out rows


def test_the_same_run_gives_the_same_figure(made: Path) -> None:
    phases = read_run(made / "runs" / "few").phases
    assert figures.curves(phases) == figures.curves(phases)


@pytest.mark.usefixtures("undrawn")
def test_the_backbone_is_found_from_other_folders(run: Path, tmp_path: Path) -> None:
    """The settings have it as it was typed, the expert has its absolute path."""
    change(run / "config.yaml", lambda content: content.update(backbone="typed-elsewhere"))
    assert report_of(run, tmp_path / "labels.html").out.is_file()


def test_data_is_escaped_as_text(run: Path, tmp_path: Path) -> None:
    evaluated = report_of(run, tmp_path / "labels.html").out.read_text()
    assert (
        "&lt;script&gt;alert('$x$')" in evaluated
    )  # on the axes of the confusion matrix, as text and not as mathematics
    for name in ("task", "result"):
        change(run / f"{name}.json", lambda content: content.update(name=EVIL))
    change(run / "alpha.json", lambda content: content["experts"].__setitem__(1, EVIL))
    change(run / "config.yaml", lambda content: content.update(policy=EVIL))
    change(
        run / "expert" / "expert.json",
        lambda content: content["provenance"]["decision"].update(
            why=EVIL, chosen=EVIL, losses={EVIL: 1}
        ),
    )
    change(run / "provenance.json", lambda content: content["versions"].update({EVIL: EVIL}))
    plain = report_of(run, tmp_path / "names.html", evaluate=False).out.read_text()
    for html in (evaluated, plain):
        assert "<script" not in html
        assert "<b>" not in html
        Strict(html)
    assert "<title>&lt;script&gt;" in plain


@pytest.mark.usefixtures("undrawn")
def test_without_a_pool_or_neighbours_it_says_so(made: Path, run: Path, tmp_path: Path) -> None:
    alone = report_of(made / "runs" / "one", tmp_path / "one.html", evaluate=False).out.read_text()
    assert "took no neighbours" in alone
    assert "One expert, so α is 1 everywhere" in alone
    assert "parameters: backbone" in alone
    Strict(alone)
    change(run / "config.yaml", lambda content: content.update(pool=str(tmp_path / "gone")))
    (run / "own" / "fisher.safetensors").unlink(missing_ok=True)
    poor = report_of(run, tmp_path / "few.html", paths=True)
    assert "No pool with other tasks" in poor.out.read_text()
    assert set(poor.to_json()["paths"]["missing"]) == {"one", "two"}
    assert len(poor.to_json()["paths"]["found"]) == 1


@pytest.mark.usefixtures("undrawn")
def test_a_helper_that_changed_since_is_left_out_of_the_paths(
    made: Path, run: Path, tmp_path: Path, tiny
) -> None:
    pool = Path(shutil.copytree(made / "pool", tmp_path / "pool"))
    write_expert(make_expert(tiny, name="one"), pool / "one")
    report = report_of(run, tmp_path / "few.html", pool=pool, paths=True)
    assert report.to_json()["paths"]["missing"] == ["one"]
    assert "Not in the pool as they were mixed: one." in report.out.read_text()


def test_the_similarities_are_those_of_the_pool_in_the_order_of_the_tree(
    made: Path, tmp_path: Path, tiny
) -> None:
    from pidep.similarity.pool import read_pool

    pool = Path(shutil.copytree(made / "pool", tmp_path / "pool"))
    write_expert(
        make_expert(tiny, name="odd", rank=3), pool / "odd", fisher={"x": np.ones(3, np.float32)}
    )
    near = neighbourhood(read_run(made / "runs" / "few"), pool)
    assert near is not None
    assert dendrogram(near.tree, no_plot=True)["leaves"] == [0, 1, 2]
    assert near.left_out == ("odd",)
    entries = read_pool(made / "pool")
    one, two = near.names.index("one"), near.names.index("two")
    assert near.similarity[one, two] == pytest.approx(
        similarity(entries["one"].embedding, entries["two"].embedding)
    )
    recorded = read_run(made / "runs" / "few").neighbours
    assert near.similarity[near.names.index("few"), one] == pytest.approx(recorded["one"])
    assert len(near.nearest(2)) == 3


@pytest.mark.usefixtures("undrawn")
def test_seconds_by_phase_are_shown_where_they_are_recorded(run: Path, tmp_path: Path) -> None:
    change(run / "provenance.json", lambda content: content.pop("seconds_by_phase"))
    change(run / "provenance.json", lambda content: content["backbone"].pop("parameters"))
    older = report_of(run, tmp_path / "a.html", evaluate=False).out.read_text()
    assert "not recorded by this run" in older
    assert "not counted" in older
    change(
        run / "provenance.json",
        lambda content: content.update(seconds_by_phase={"own_expert": 1.25}),
    )
    change(run / "provenance.json", lambda content: content["backbone"].update(parameters=1_000))
    html = report_of(run, tmp_path / "b.html", evaluate=False).out.read_text()
    assert "seconds: own expert" in html
    assert "% of the backbone" in html


@pytest.mark.usefixtures("undrawn")
def test_what_does_not_fit_the_run_is_refused_and_nothing_is_written(
    run: Path, made: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.html"
    with pytest.raises(UsageError, match="no run folder"):
        report_of(tmp_path, out)
    with pytest.raises(UsageError, match=r"`pool` .*: no such folder"):
        report_of(run, out, pool=tmp_path / "gone")
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(UsageError, match="is a folder; give a file"):
        report_of(run, tmp_path / "folder.html")
    with pytest.raises(UsageError, match=r"expected a file that ends in \.html or \.htm, found"):
        report_of(run, tmp_path / "rows.jsonl")
    with pytest.raises(UsageError, match="`paths` measures on rows"):
        report_of(run, out, paths=True, evaluate=False)
    with pytest.raises(UsageError, match="no path to walk"):
        report_of(made / "runs" / "one", out, paths=True)
    change(run / "provenance.json", lambda content: content["data"].update(test="sha256:0"))
    with pytest.raises(
        TaskError, match=r"test rows are not those of the run; pidep report --no-evaluate"
    ):
        report_of(run, out)
    change(run / "task.json", lambda content: content["data"].update(path="gone.jsonl"))
    with pytest.raises(TaskError, match=r"no such data file; pidep report --no-evaluate"):
        report_of(run, out)
    change(run / "alpha.json", lambda content: content.update(experts=["one"]))
    with pytest.raises(UsageError, match=r"malformed \(ValueError: alpha\.json: not 1 weights"):
        report_of(run, out)
    (run / "own" / "expert.json").unlink()
    with pytest.raises(ExpertError, match=r"expert\.json"):
        report_of(run, out)
    assert not out.exists()


@pytest.mark.usefixtures("undrawn")
def test_another_backbone_is_refused(run: Path, tiny_folder: Path, tmp_path: Path) -> None:
    import torch
    from transformers import BertModel

    folder = Path(shutil.copytree(tiny_folder, tmp_path / "other"))
    model = BertModel.from_pretrained(folder)
    with torch.no_grad():
        model.embeddings.word_embeddings.weight.add_(1)
    model.save_pretrained(folder)
    change(run / "expert" / "expert.json", lambda content: content.update(backbone=str(folder)))
    with pytest.raises(BackboneError, match="tuned on sha256:"):
        report_of(run, tmp_path / "out.html")


@pytest.mark.parametrize("json_too", [False, True])
@pytest.mark.usefixtures("undrawn")
def test_the_command(
    made: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    json_too: bool,
) -> None:
    from pidep.cli import main

    out = tmp_path / "few.html"
    arguments = [
        "pidep",
        "report",
        str(made / "runs" / "few"),
        "--out",
        str(out),
        *(["--json"] if json_too else ["--paths"]),
    ]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capfd.readouterr().out
    assert not ended.value.code
    assert out.is_file()
    assert json.loads(printed)["out"] == str(out) if json_too else "barrier" in printed


def test_a_folder_that_is_no_run_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from pidep.cli import main

    monkeypatch.setattr(sys, "argv", ["pidep", "report", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capfd.readouterr()
    assert ended.value.code == 2
    assert printed.out == ""
    assert re.fullmatch(
        r"pidep: .*: no run folder \(it holds no result\.json\); give the folder pidep tune "
        r"wrote\n",
        printed.err,
    )


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("file", "edit", "section"),
    [
        (
            "expert/expert.json",
            lambda content: content["provenance"]["decision"].update(losses=3),
            "decision",
        ),
        ("provenance.json", lambda content: content["backbone"].update(parameters="x"), "Cost"),
    ],
)
def test_records_of_wrong_types_are_one_line(
    run: Path, tmp_path: Path, file: str, edit: Callable[[Any], object], section: str
) -> None:
    change(run / file, edit)
    with pytest.raises(PidepError, match=rf"run 'few': .* cannot be shown as .*{section}"):
        report_of(run, tmp_path / "a.html", evaluate=False)
    assert not (tmp_path / "a.html").exists()
