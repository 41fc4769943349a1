"""`pidep graph`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from pidep.cli import render
from pidep.cli.options import Json, options
from pidep.cli.progress import progress
from pidep.similarity.settings import GraphSettings

if TYPE_CHECKING:
    from pidep.similarity.learned_text import KnownGain
    from pidep.similarity.measures import SiteAgreement
    from pidep.similarity.pool import Explanation

__all__ = ["graph"]

SITES_SHOWN = 3


@options(GraphSettings)
def graph(settings: GraphSettings, json: Json = False) -> None:
    """Show which tasks of a pool are similar, and why."""
    if settings.learn:
        _learn(settings, json=json)
        return
    if settings.explain is not None:
        _explain(settings.pool, settings.explain, settings.top_k, json=json)
        return
    import networkx

    from pidep.similarity.graph_files import write_graph

    with progress(logs=True):
        found = write_graph(settings)
    if json:
        render.as_json(networkx.node_link_data(found, edges="edges"))
    elif "top_k" in found.graph:
        _nearest_table(settings.pool, found, found.graph["top_k"])
    else:
        names = sorted(found)
        rows = [[left, *(_similarity(found, left, right) for right in names)] for left in names]
        render.table(f"task similarity in {settings.pool}", ["task", *names], rows)


def _similarity(found: Any, left: str, right: str) -> str:
    return "" if left == right else f"{found.edges[left, right]['similarity']:.4f}"


def _nearest_table(pool: Path, found: Any, top_k: int) -> None:
    rows = []
    for name in sorted(found):
        # An edge exists where either task is a neighbour of the other, so a task can have more
        # than top_k edges. Its own neighbours are the most similar ones.
        near = sorted(found[name].items(), key=lambda item: (-item[1]["similarity"], item[0]))
        cells = [f"{other}  {edge['similarity']:.4f}" for other, edge in near[:top_k]]
        rows.append([name, *cells, *[""] * (top_k - len(cells))])
    render.table(f"most similar tasks in {pool}", ["task", *map(str, range(1, top_k + 1))], rows)


def _learn(settings: GraphSettings, *, json: bool) -> None:
    from pidep.similarity.learned_text import learned_json, learned_sentences
    from pidep.tuning.learn_transfer import learn_transfer

    with progress(logs=True):
        learned = learn_transfer(settings)
    if json:
        render.as_json(learned_json(learned))
        return
    rows = [[name, f"{100 * weight:.2f}"] for name, weight in learned.ranker.weights.items()]
    render.table(f"transfer in {settings.pool}", ["feature", "points for one deviation"], rows)
    for sentence in learned_sentences(learned):
        typer.echo(sentence)


def _explain(pool: Path, task: str, top_k: int | None, *, json: bool) -> None:
    from pidep.similarity.learned_text import known_gains
    from pidep.similarity.pool import DEFAULT_TOP_K, explain_task

    found = explain_task(pool, task, top_k=top_k or DEFAULT_TOP_K)
    gains = known_gains(pool, task)
    if json:
        render.as_json(
            {
                "task": task,
                "neighbours": [_as_json(one) for one in found],
                "gains": [gain.to_json() for gain in gains],
            }
        )
        return
    rows = [
        [
            one.neighbour.name,
            f"{one.neighbour.similarity:.4f}",
            _sites(one.sites[:SITES_SHOWN]),
            _sites(one.sites[::-1][:SITES_SHOWN]),
        ]
        for one in found
    ]
    columns = ["task", "similarity", "agrees most at", "agrees least at"]
    render.table(f"neighbours of {task} in {pool}", columns, rows)
    if gains:
        parts = list(gains[0].predicted.parts)
        render.table(
            f"gains of {task} by helper, in points: predicted without it, and measured",
            ["helper", "level", *parts, "predicted", "interval", "measured"],
            [_gain_row(gain) for gain in gains],
        )


def _gain_row(gain: KnownGain) -> list[str]:
    from pidep.similarity.learned_text import points_interval

    said = gain.predicted
    shown = [said.level, *said.parts.values(), said.gain]
    return [
        gain.helper,
        *(f"{100 * value:.1f}" for value in shown),
        points_interval(said),
        f"{100 * gain.measured:.1f}",
    ]


def _as_json(one: Explanation) -> dict[str, Any]:
    sites = {site.site: site.similarity for site in one.sites}
    return {"name": one.neighbour.name, "similarity": one.neighbour.similarity, "sites": sites}


def _sites(agreements: list[SiteAgreement]) -> str:
    return "\n".join(f"{agreement.similarity:.4f} {agreement.site}" for agreement in agreements)
