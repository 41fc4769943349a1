"""The tables of docs/concepts/experts.md, made from what the tests cover.

`python -m tests.adapters.doc_tables` writes them again.
"""

from __future__ import annotations

import re
from pathlib import Path

from pidep.adapters.kinds import KINDS
from pidep.adapters.mixture import find_sites
from pidep.adapters.places import peft_can
from pidep.adapters.tested import EVERY
from pidep.experts.peft_format import peft_types
from tests.adapters.zoo import FITS, ZOO

PAGE = Path(__file__).parent.parent.parent / "docs" / "concepts" / "experts.md"
WEIGHS = {
    "lora": "r (in + out)",
    "adapter": "w (2 out + 1) + out",
    "prefix": "2 P × heads × head_dim (of the keys)",
    "prompt": "P D",
    "bitfit": "out",
}
FITS_WHERE = {
    "lora": "every Linear, and GPT-2's Conv1D",
    "adapter": "wherever attention and feed-forward end in a Linear or Conv1D of a known name",
    "prefix": "attention that goes through transformers' attention interface; "
    "not DeBERTa-v2, MPNet, BLIP, ViLT and FLAVA, "
    "not under a score cap (Gemma 2), not from channel to channel (Florence-2's images)",
    "prompt": "models that take `inputs_embeds`, and images cut into a plain row of patches; "
    "not Swin, "
    "not the text towers of CLIP, SigLIP and FLAVA, not Florence-2's images",
    "bitfit": (
        "every Linear, Conv1D and LayerNorm that has a bias; Llama, T5 and ModernBERT have none"
    ),
}
WHY_NOT = {
    "Linear or LayerNorm with a bias": "no bias",
    "attention that goes through transformers' attention interface": "own attention",
    "input embeddings that can be replaced": "windows",
}
"""What a message says the backbone lacks, and the table's words for it."""


def kinds_table() -> str:
    """Kinds by what they change, their size, PEFT's format, learning rate and backbones."""
    rows = [
        "| kind | what it changes | numbers a site | PEFT format | default learning rate | where "
        "it fits |",
        "| --- " * 6 + "|",
    ]
    for name in EVERY:
        kind = KINDS[name]
        peft = {
            "prefix": f"`{peft_types()['prefix']}`, see below",
            "adapter": "none",
            "bitfit": "none",
        }.get(name) or f"`{peft_types()[name]}`"
        rows.append(
            f"| `{name}` | {kind.changes} | {WEIGHS[name]} | {peft} | {kind.learning_rate:g} | "
            f"{FITS_WHERE[name]} |"
        )
    return "\n".join(rows)


def architectures_table() -> str:
    """Architectures by kind: the number of sites in the tests' models of two layers."""
    rows = [
        "| architecture | family | " + " | ".join(f"`{name}`" for name in EVERY) + " |",
        "| --- " * (len(EVERY) + 2) + "|",
    ]
    for name, architecture in ZOO.items():
        model = architecture.build()
        cells = []
        for kind in EVERY:
            fits = FITS[name][kind]
            peft = (
                isinstance(fits, int)
                and kind in ("prefix", "prompt")
                and peft_can(model, find_sites(model, kind=kind), kind=kind)
            )
            cells.append(
                f"{fits}{' (PEFT)' if peft else ''}"
                if isinstance(fits, int)
                else f"– {WHY_NOT[fits]}"
            )
        rows.append(f"| {name} | {architecture.family} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def minilm_listing() -> str:
    """The output of `pidep sites minilm`."""
    from typer.testing import CliRunner

    from pidep.cli.app import app

    done = CliRunner().invoke(app, ["sites", "minilm"], catch_exceptions=False)
    return f"```console\n$ pidep sites minilm\n{done.stdout.rstrip()}\n```"


PARTS = {"kinds": kinds_table, "architectures": architectures_table, "minilm": minilm_listing}


def part_of(page: str, name: str) -> str:
    """The text between `<!-- name -->` and `<!-- /name -->`."""
    match = re.search(rf"<!-- {name} -->\n(.*?)\n<!-- /{name} -->", page, re.DOTALL)
    assert match, f"{PAGE} has no part {name!r}"
    return match[1]


def main() -> None:
    """Write every part again."""
    page = PAGE.read_text(encoding="utf-8")
    for name, make in PARTS.items():
        old, new = (
            f"<!-- {name} -->\n{part}\n<!-- /{name} -->" for part in (part_of(page, name), make())
        )
        page = page.replace(old, new)
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
