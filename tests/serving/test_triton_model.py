"""The shim's model: one response for each request, and an error fails its own request only."""

from __future__ import annotations

import gc
import json
import runpy
import time
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pidep.artifacts import MergedRecord
from pidep.export.recipe import shipped
from pidep.inputs.template import Template
from pidep.runtime import Answer, softmax
from pidep.serving import ExpertStore
from pidep.serving.metrics import Metrics
from pidep.serving.triton_model import TritonPythonModel
from tests.conftest import png
from tests.serving.backend_utils import (
    InferenceResponse,
    MetricFamily,
    Request,
    counted,
    install,
    responses,
)
from tests.serving.experts import small_expert
from tests.serving.small_bank import NEW, write_small_bank, write_small_merged

MAIL = Template("the {subject} a {body}")


@pytest.fixture(autouse=True)
def _utils(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)


def opened(version_folder: Path) -> TritonPythonModel:
    model = TritonPythonModel()
    arguments = {"model_repository": str(version_folder.parent), "model_version": "1"}
    model.initialize(arguments)
    return model


@pytest.fixture
def store(tmp_path: Path) -> ExpertStore:
    store = ExpertStore(tmp_path / "expert_store")
    store.publish(small_expert(), "film")
    store.publish(small_expert(name="book", seed=1), "book")
    store.publish(replace(small_expert(name="mail"), template=MAIL), "mail")
    return store


@pytest.fixture
def bank(tmp_path: Path, store: ExpertStore) -> Iterator[TritonPythonModel]:
    model = opened(write_small_bank(tmp_path / "repo"))
    yield model
    model.finalize()


@pytest.fixture
def merged(tmp_path: Path) -> TritonPythonModel:
    return opened(write_small_merged(tmp_path / "repo"))


def columns(*rows: bytes) -> dict[str, list[bytes]]:
    """The inputs of rows that are given as columns, for the expert `mail`."""
    return {"COLUMNS": list(rows), "EXPERT": [b"mail"] * len(rows)}


class Deaf(Request):
    """Fails where its outputs are asked for."""

    def requested_output_names(self) -> list[str]:
        raise RuntimeError("no outputs")


def asked(texts: list[bytes], experts: list[bytes], **more: Any) -> Request:
    return Request({"TEXT": texts, "EXPERT": experts}, **more)


def execute(model: TritonPythonModel, *requests: Request) -> list[InferenceResponse]:
    return responses(model, list(requests))


def test_rows_of_several_requests_are_answered_by_their_experts(bank: Any) -> None:
    first, second = execute(
        bank,
        asked([b"good film", b"bad"], [b"film", b"book"]),
        asked([b"the film"], [b"film"]),
    )
    film, book = small_expert().digest.encode(), small_expert(name="book", seed=1).digest.encode()
    assert first.error is None
    assert first.arrays["DIGEST"].tolist() == [[film], [book]]
    assert second.arrays["DIGEST"].tolist() == [[film]]
    assert first.arrays["LABELS"].tolist() == [[b"negative", b"positive"]] * 2
    assert first.arrays["SCORES"].dtype == np.float32
    np.testing.assert_allclose(first.arrays["SCORES"].sum(1), 1.0, rtol=1e-6)
    best = first.arrays["SCORES"].argmax(1)
    assert first.arrays["LABEL"].tolist() == [[(b"negative", b"positive")[at]] for at in best]


def test_a_batch_answers_as_its_requests_alone(bank: Any) -> None:
    both = [asked([b"good film"], [b"film"]), asked([b"bad film"], [b"book"])]
    together = execute(bank, *both)
    for one, response in zip(both, together, strict=True):
        (alone,) = execute(bank, one)
        np.testing.assert_array_equal(alone.arrays["SCORES"], response.arrays["SCORES"])


@pytest.mark.parametrize(
    ("tensors", "code", "message"),
    [
        ({"EXPERT": [b"film"]}, "INVALID_ARG", "input TEXT is missing"),
        ({"TEXT": [b"a"]}, "INVALID_ARG", "input EXPERT is missing"),
        ({"TEXT": [b"a", b"b"], "EXPERT": [b"film"]}, "INVALID_ARG", "has 2 rows, EXPERT 1"),
        (
            {"TEXT": [b"a"], "EXPERT": [b"film"], "IMAGE": [b"", b""]},
            "INVALID_ARG",
            "TEXT has 1 rows, IMAGE 2; give one value a row",
        ),
        ({"TEXT": [b"\xff"], "EXPERT": [b"film"]}, "INVALID_ARG", r"TEXT: not UTF-8 (byte 0)"),
        ({"TEXT": [b"a"], "EXPERT": [b"nope"]}, "NOT_FOUND", "unknown expert 'nope'"),
        (
            {"TEXT": [b"a"], "EXPERT": [b"film"], "IMAGE": [png(0)]},
            "INVALID_ARG",
            "row 1: has an image; this model reads text only",
        ),
        (
            {"TEXT": [b"a"], "EXPERT": [b"film"], "IMAGE": [b"\x89PNG"]},
            "INVALID_ARG",
            "row 1: expected PNG, JPEG",
        ),
        (
            {"TEXT": [b"a" * 65537], "EXPERT": [b"film"]},
            "INVALID_ARG",
            "row 1: expected at most 65536 bytes of text (max_text_bytes), found 65537",
        ),
        (
            {"TEXT": [b"a"] * 2, "EXPERT": [b"film", b"x" * 10_000_000]},
            "INVALID_ARG",
            "row 2: expected at most 65536 bytes of text",
        ),
        (
            {"TEXT": [b"a", b" "], "EXPERT": [b"film"] * 2},
            "INVALID_ARG",
            "row 2: expected a text, an image or both, found neither",
        ),
        ({"TEXT": [b""], "EXPERT": [b"@backbone"]}, "INVALID_ARG", "row 1: expected a text"),
        (
            columns(b'{"body": "a"}'),
            "INVALID_ARG",
            "row 1: no column 'subject'; the row has 'body'",
        ),
        (
            columns(b'{"subject": "a", "body": "b"}', b'{"subject": "a", "bdy": "b"}'),
            "INVALID_ARG",
            "row 2: unknown column 'bdy' (did you mean 'body'?)",
        ),
        (columns(b'{"subject": " ", "body": ""}'), "INVALID_ARG", "row 1: the text is empty"),
        (
            columns(b'{"subject": "a"}', b'{"subject": "' + b"a" * 65536 + b'"}'),
            "INVALID_ARG",
            "row 2: expected at most 65536 bytes of text (max_text_bytes), found 65551",
        ),
        (columns(b"[]"), "INVALID_ARG", "row 1: columns: expected a JSON object"),
        (
            {**columns(b'{"subject": "a", "body": "b"}'), "TEXT": [b"a"]},
            "INVALID_ARG",
            "row 1: has a text and columns",
        ),
        (
            {**columns(b"{}"), "TEXT": [b"a", b"b"]},
            "INVALID_ARG",
            "TEXT has 2 rows, COLUMNS 1; give one value a row",
        ),
        (
            {"COLUMNS": [b"{}"], "EXPERT": [b"film"]},
            "INVALID_ARG",
            "row 1: is given as columns, and what answers it has no template",
        ),
        ({"COLUMNS": [b"{}"], "EXPERT": [b"@backbone"]}, "INVALID_ARG", "row 1: is given as"),
    ],
)
def test_an_error_is_of_its_request_alone(
    bank: Any, tensors: dict[str, list[bytes]], code: str, message: str
) -> None:
    good = asked([b"good"], [b"film"])
    before, wrong, after = execute(bank, good, Request(tensors), good)
    assert wrong.error is not None
    assert wrong.error.code == code
    assert message in wrong.error.text
    assert not wrong.output_tensors
    for response in (before, after):
        assert response.error is None
        assert response.arrays["DIGEST"].tolist() == [[small_expert().digest.encode()]]


ALL = ("SCORES", "LABELS", "LABEL", "DIGEST", "EMBEDDING", "ERROR")


def test_an_error_is_of_its_row_alone_where_the_request_says_so(bank: Any) -> None:
    texts = [b"good film", b"good", f"good {NEW}".encode(), b"", b"bad"]
    experts = [b"film", b"nobody", b"film", b"film", b"book"]
    (mixed,) = execute(bank, asked(texts, experts, wanted=ALL, given='{"row_errors": true}'))
    (alone,) = execute(bank, asked(texts[:1], experts[:1], wanted=ALL))
    assert mixed.error is None
    errors = [error.decode() for (error,) in mixed.arrays["ERROR"]]
    assert [error.partition(":")[0] for error in errors] == [
        "",
        "NOT_FOUND",
        "INTERNAL",
        "INVALID_ARG",
        "",
    ]
    assert "unknown expert 'nobody'" in errors[1]
    for name in ("SCORES", "LABEL", "DIGEST", "EMBEDDING"):
        np.testing.assert_array_equal(mixed.arrays[name][:1], alone.arrays[name])
    assert alone.arrays["ERROR"].tolist() == [[b""]]
    assert mixed.arrays["DIGEST"][1:4].tolist() == [[b""]] * 3
    assert not mixed.arrays["SCORES"][1:4].any()


@pytest.mark.parametrize("given", ["{}", "", '{"row_errors": false}', '{"row_errors": "yes"}'])
def test_a_wrong_row_fails_its_request_otherwise(bank: Any, given: str) -> None:
    (response,) = execute(
        bank, asked([b"good", b"good"], [b"film", b"nobody"], wanted=ALL, given=given)
    )
    assert response.error is not None
    assert response.error.code == "NOT_FOUND"


def test_a_request_of_wrong_rows_alone_is_answered(bank: Any) -> None:
    (response,) = execute(
        bank, asked([b"good"] * 2, [b"nobody"] * 2, wanted=ALL, given='{"row_errors": true}')
    )
    assert response.error is None
    assert response.arrays["EMBEDDING"].shape == (2, 4)
    assert response.arrays["LABEL"].tolist() == [[b""]] * 2


@pytest.mark.parametrize("form", ["bank", "merged"])
def test_a_row_that_the_graph_fails_on_fails_alone(
    form: str, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(form)
    good, wrong = (
        Request({"TEXT": [text], "EXPERT": [b"film"]})
        for text in (b"good film", f"good {NEW}".encode())
    )
    responses = execute(model, good, wrong, good, wrong, good)
    for response in responses[1::2]:
        assert response.error is not None
        assert response.error.code == "INTERNAL"
        assert "the row cannot be answered" in response.error.text
        assert not response.output_tensors
    (alone,) = execute(model, good)
    for response in responses[::2]:
        assert response.error is None
        np.testing.assert_array_equal(response.arrays["SCORES"], alone.arrays["SCORES"])


def test_a_request_that_cannot_be_read_at_all_fails_alone(bank: Any) -> None:
    """An input that is no array: the reader raises an unexpected exception."""
    good = asked([b"good"], [b"film"])
    odd = Request({"TEXT": [b"a"], "EXPERT": [5]})  # type: ignore[list-item]
    deaf = Deaf({"TEXT": [b"a"], "EXPERT": [b"film"]})
    before, first, second, after = execute(bank, good, odd, deaf, good)
    for response in (first, second):
        assert response.error is not None
        assert response.error.code == "INTERNAL"
    assert before.error is after.error is None


@pytest.mark.parametrize("form", ["bank", "merged"])
def test_a_text_without_a_token_is_refused_alone(form: str, request: pytest.FixtureRequest) -> None:
    """The tokenizer of the small models drops private characters, and has no special tokens."""
    model = request.getfixturevalue(form)
    good, wrong = (
        Request({"TEXT": [text], "EXPERT": [b"film"]}) for text in (b"good film", "\ue000".encode())
    )
    before, refused, after = execute(model, good, wrong, good)
    assert refused.error is not None
    assert refused.error.code == "INVALID_ARG"
    assert "the tokenizer makes no token of it" in refused.error.text
    (alone,) = execute(model, good)
    for response in (before, after):
        np.testing.assert_array_equal(response.arrays["SCORES"], alone.arrays["SCORES"])


def test_columns_are_answered_as_the_text_that_training_made_of_them(bank: Any) -> None:
    rows = [{"subject": "good", "body": "film"}, {"body": 3, "subject": "bad"}]
    texts = [MAIL.render(row, "row").encode() for row in rows]
    as_text, as_columns, mixed = execute(
        bank,
        asked(texts, [b"mail", b"mail"]),
        Request(columns(*(json.dumps(row).encode() for row in rows))),
        Request(
            {
                "TEXT": [texts[0], b""],
                "COLUMNS": [b"", json.dumps(rows[1]).encode()],
                "EXPERT": [b"mail", b"mail"],
            }
        ),
    )
    for name, expected in as_text.arrays.items():
        np.testing.assert_array_equal(as_columns.arrays[name], expected)
        np.testing.assert_array_equal(mixed.arrays[name], expected)
    assert as_text.arrays["SCORES"][0, 0] != as_text.arrays["SCORES"][1, 0]


def test_a_merged_model_has_the_template_in_its_record(tmp_path: Path) -> None:
    folder = write_small_merged(tmp_path / "repo")
    record = MergedRecord.read(folder).model_copy(update={"template": MAIL})
    record.sealed(folder).write(folder)
    assert MergedRecord.read(folder).template == MAIL
    model = opened(folder)
    row = {"subject": "good", "body": "film"}
    as_text, as_columns, wrong = execute(
        model,
        Request({"TEXT": [MAIL.render(row, "row").encode()]}),
        Request({"COLUMNS": [json.dumps(row).encode()]}),
        Request({"COLUMNS": [b'{"subject": "good"}']}),
    )
    np.testing.assert_array_equal(as_columns.arrays["SCORES"], as_text.arrays["SCORES"])
    assert wrong.error is not None
    assert "row 1: no column 'body'" in wrong.error.text


@pytest.mark.parametrize(
    "tensors",
    [
        {"TEXT": [b"a" * 10**6], "EXPERT": [b"film"]},
        {"TEXT": [b"a"], "EXPERT": [b"film"], "IMAGE": [b"no image"]},
        {"TEXT": [b"\xff"], "EXPERT": [b"film"]},
        {"TEXT": [b"a"], "EXPERT": [b"nope"]},
        {"TEXT": [b" "], "EXPERT": [b"film"]},
        {"COLUMNS": [b'{"text": "a"}'], "EXPERT": [b"film"]},
        {"COLUMNS": [b"{"], "EXPERT": [b"film"]},
    ],
)
def test_a_refused_request_is_freed_at_once(bank: Any, tensors: dict[str, list[bytes]]) -> None:
    """Its tensors are shared memory of the server, which grows while they live."""
    refused = Request(tensors)
    alive = weakref.ref(refused)
    gc.disable()
    try:
        responses = execute(bank, refused, asked([b"good"], [b"film"]))
        assert responses[0].error is not None
        del refused, responses
        assert alive() is None
    finally:
        gc.enable()


def test_only_what_is_asked_for_is_returned(bank: Any) -> None:
    (response,) = execute(bank, asked([b"a"], [b"film"], wanted=("EMBEDDING", "DIGEST")))
    assert sorted(response.arrays) == ["DIGEST", "EMBEDDING"]
    assert response.arrays["EMBEDDING"].shape == (1, 4)


def test_the_bare_backbone_embeds_and_has_no_label(bank: Any) -> None:
    wanted = ("EMBEDDING", "LABEL", "SCORES")
    (response,) = execute(bank, asked([b"film"], [b"@backbone"], wanted=wanted))
    np.testing.assert_allclose(response.arrays["EMBEDDING"], [[0.04, 0, 0, 0]])
    assert response.arrays["LABEL"].tolist() == [[b""]]
    assert response.arrays["SCORES"].shape == (1, 0)


def test_a_batch_of_wrong_requests_runs_nothing(bank: Any) -> None:
    (response,) = execute(bank, Request({}))
    assert response.error is not None


def test_a_merged_model_reads_no_expert(merged: Any) -> None:
    (response,) = execute(merged, Request({"TEXT": [b"film", b"bad"]}))
    expected = softmax(np.float32([[4.0, 0.0], [3.0, 0.0]]))
    np.testing.assert_array_equal(response.arrays["SCORES"], expected)
    assert response.arrays["LABEL"].tolist() == [[b"negative"]] * 2
    assert response.arrays["DIGEST"].tolist() == [[b"sha256:film"]] * 2
    merged.finalize()


def test_a_merged_model_cuts_texts_where_training_cut_them(merged: Any) -> None:
    long, cut = Request({"TEXT": [b"film film film film film"]}), Request({"TEXT": [b"film " * 4]})
    first, second = execute(merged, long, cut)
    np.testing.assert_array_equal(first.arrays["SCORES"], second.arrays["SCORES"])


def test_what_triton_server_loads_is_this_model() -> None:
    assert runpy.run_path(str(shipped("model.py")))["TritonPythonModel"] is TritonPythonModel


def test_a_status_row_shares_a_batch_and_tells_what_is_served(
    bank: Any, store: ExpertStore
) -> None:
    # Finite weights whose sum is not: the probe rows find it.
    huge = {**small_expert().sites["layer.0"], "lora_A": np.full((2, 4), 3e38, np.float32)}
    bad = store.publish(replace(small_expert(), scaling=1.0, sites={"layer.0": huge}), "bad").new
    deadline = time.monotonic() + 20
    state: dict[str, Any] = {"refused": {}}
    while "bad" not in state["refused"]:
        assert time.monotonic() < deadline
        status, answer = execute(
            bank, asked([b"any text"], [b"@status"]), asked([b"good"], [b"film"])
        )
        assert answer.arrays["DIGEST"].tolist() == [[small_expert().digest.encode()]]
        state = json.loads(status.arrays["LABEL"][0, 0])
    assert state["ready"]
    assert state["silent_s"] < 20
    assert state["revision"] == store.manifest().revision
    assert list(state["served"]) == ["book", "film", "mail"]
    assert state["refused"]["bad"]["digest"] == bad
    assert state["entry"].startswith("sha256:")


def test_a_model_is_ready_while_it_follows_its_store(bank: Any, merged: Any) -> None:
    assert bank.is_ready()
    assert merged.is_ready()
    bank.finalize()
    assert not bank.is_ready()


def test_every_answer_names_its_entry(bank: Any, merged: Any) -> None:
    wanted = ("ENTRY", "DIGEST")
    (first,) = execute(bank, asked([b"a", b"good"], [b"film", b"@backbone"], wanted=wanted))
    (second,) = execute(merged, Request({"TEXT": [b"film"]}, wanted=wanted))
    entries = [value for row in first.arrays["ENTRY"].tolist() for value in row]
    assert len(entries) == 2
    assert len(set(entries)) == 1
    assert entries[0].startswith(b"sha256:")
    assert second.arrays["ENTRY"].tolist() != [[entries[0]]]


def test_rows_are_counted_by_expert_and_version(bank: Any) -> None:
    film, book = small_expert().digest[:19], small_expert(name="book", seed=1).digest[:19]
    execute(
        bank,
        asked([b"good film", b"bad"], [b"film", b"book"]),
        asked([b"good"], [b"film"]),
        asked([b"good"], [b"made up by a client"]),
        asked([f"good {NEW}".encode()], [b"film"]),
        asked([b"a"], [b"film", b"film"]),
    )
    assert counted("pidep_rows_total") == {
        f"expert=film version={film}": 2,
        f"expert=book version={book}": 1,
    }
    # What a client makes up is no label.
    assert counted("pidep_row_errors_total") == {
        "expert= code=NOT_FOUND": 1,
        "expert=film code=INTERNAL": 1,
        "expert= code=INVALID_ARG": 1,
    }
    assert counted("pidep_batch_rows") == counted("pidep_batch_seconds") == {"": 1}


def test_a_swap_shows_in_the_gauges(bank: Any, store: ExpertStore) -> None:
    old = small_expert().digest[:19]
    execute(bank, asked([b"good"], [b"film"]))
    assert counted("pidep_resident_experts") == {"": 3}
    revision = counted("pidep_store_revision")[""]
    # `mail` has the tensors of `film` and a digest of its own.
    assert counted("pidep_resident_bytes") == {"": 3 * 2 * 4 * 4 * 4}
    new = store.publish(small_expert(seed=7), "film").new
    deadline = time.monotonic() + 20
    while execute(bank, asked([b"good"], [b"film"]))[0].arrays["DIGEST"][0, 0].decode() != new:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    execute(bank, asked([b"good"], [b"film"]))
    assert counted("pidep_store_revision") == {"": revision + 1}
    assert counted("pidep_swaps_total") == {"": 2}
    execute(bank, asked([b"good"], [b"film"]))
    assert counted("pidep_rows_total")[f"expert=film version={new[:19]}"] >= 2
    # The old version may come back.
    assert f"expert=film version={old}" in counted("pidep_rows_total")


def test_versions_that_have_gone_are_listed_up_to_a_bound() -> None:
    metrics = Metrics("bank")
    gauges = {"resident_bytes": 0, "cold_experts": 0, "refused_versions": 0, "store_revision": 0}
    none, counts = np.zeros(0, np.float32), {"swaps": 0, "evictions": 0, "cold_loads": 0}
    for at in range(300):
        digest = f"sha256:{at:03d}".ljust(71, "0")
        metrics.batch(["film"], [Answer(("a",), none, none, digest, none)], seconds=0.1)
        metrics.count()
        metrics.residents({"film": digest}, counted=counts, **gauges)
    listed = counted("pidep_rows_total")
    # The one that is served, and the last that were.
    assert len(listed) == 257
    assert list(listed)[-1] == "expert=film version=sha256:299000000000"
    assert all(value == 1 for value in listed.values())


def test_a_model_that_ends_removes_no_metric(bank: Any) -> None:
    # A process that was loaded beside it has the same ones, and the server would end.
    execute(bank, asked([b"good"], [b"film"]))
    before = counted("pidep_rows_total")
    assert before
    bank.finalize()
    assert counted("pidep_rows_total") == before


def test_a_server_without_metrics_answers(
    tmp_path: Path, store: ExpertStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def off(*_: Any, **__: Any) -> None:
        raise RuntimeError("metrics are disabled")

    monkeypatch.setattr(MetricFamily, "__init__", off)
    model = opened(write_small_bank(tmp_path / "repo"))
    (response,) = execute(model, asked([b"good"], [b"film"]))
    assert response.error is None
    model.finalize()
