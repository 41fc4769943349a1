"""What a sentence-transformers repository says about its embeddings, read from its files.

    modules.json                       the modules in their order, with their folders
    <transformer>/sentence_bert_config.json   where texts are cut, and whether they are lowercased
    <pooling>/config.json              the pooling
    config_sentence_transformers.json  the default prompt, and how embeddings are compared

Both the format of today (version 6) and the older ones. Whatever pidep cannot do is refused by
name: an embedding that is made otherwise looks just as good.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pidep.backbones.pooling import POOLINGS, Pooling
from pidep.errors import BackboneError

__all__ = ["Declared", "read_declared", "warn_if_unknown"]

_LOG = logging.getLogger(__name__)

_OLD_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_SETTINGS = tuple(
    f"sentence_{model}_config.json"
    for model in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
Read = Callable[[str], Any]
"""The content of a JSON file by its path in the repository; None where there is none."""


@dataclass(frozen=True)
class Declared:
    """How a checkpoint's embeddings are made."""

    pooling: Pooling = "mean"
    max_length: int | None = None
    """Tokens a text is cut to; None where only the model's positions count."""
    lower_case: bool = False
    """Whether texts are lowercased before the tokenizer reads them."""
    subfolder: str = ""
    """The folder of the transformer, in the repository."""


def read_declared(source: str | Path, *, name: str) -> Declared:
    """What a folder or hub id says; mean pooling where it says nothing.

    Raises:
        BackboneError: it asks for something that pidep cannot do, or a file is damaged.
    """
    where = f"backbone {name!r}"
    read = _reader(source, where)
    modules = read("modules.json")
    if modules is None:
        pooling = read("1_Pooling/config.json")
        return Declared() if pooling is None else Declared(_pooling(pooling, where))
    try:
        named = [(str(one["type"]).rpartition(".")[2], str(one["path"])) for one in modules]
    except (TypeError, KeyError) as error:
        raise BackboneError(f"{where}: modules.json has no list of types and paths") from error
    return _declared(named, read, where)


def _declared(modules: list[tuple[str, str]], read: Read, where: str) -> Declared:
    kinds = [kind for kind, _ in modules]
    # Dropout does nothing outside of training, and pidep normalises every embedding itself.
    if [kind for kind in kinds if kind not in ("Dropout", "Normalize")] != [
        "Transformer",
        "Pooling",
    ]:
        raise BackboneError(
            f"{where}: modules.json has {', '.join(kinds) or 'no module'}; expected Transformer, "
            "Pooling and perhaps Normalize, because pidep has no others; use another backbone"
        )
    _check_comparison(read("config_sentence_transformers.json") or {}, kinds, where)
    folders = dict(modules)
    found = read(_join(folders["Pooling"], "config.json"))
    if found is None:
        raise BackboneError(
            f"{where}: {_join(folders['Pooling'], 'config.json')} is missing; copy the whole "
            "repository"
        )
    folder = folders["Transformer"]
    found_settings = (read(_join(folder, file)) for file in _SETTINGS)
    settings: dict[str, Any] = next((one for one in found_settings if one), {})
    _check_transformer(settings, where)
    length = settings.get("max_seq_length")
    return Declared(
        pooling=_pooling(found, where),
        max_length=length if isinstance(length, int) and length > 0 else None,
        lower_case=bool(settings.get("do_lower_case")),
        subfolder=folder,
    )


def _pooling(config: Mapping[str, Any], where: str) -> Pooling:
    """The one pooling of a config, old or new."""
    mode = config.get("pooling_mode")
    if mode is None:
        mode = [new for old, new in _OLD_MODES.items() if config.get(old)] or ["mean"]
    modes = [mode] if isinstance(mode, str) else list(mode)
    if config.get("include_prompt") is False:
        raise BackboneError(
            f"{where}: its pooling leaves the prompt out (include_prompt is false), which pidep "
            "cannot do; use another backbone"
        )
    # The same direction as the mean, and pidep keeps only the direction.
    modes = ["mean" if one == "mean_sqrt_len_tokens" else one for one in modes]
    for known in POOLINGS:
        if modes == [known]:
            return known
    raise BackboneError(
        f"{where}: its pooling is {' + '.join(map(str, modes)) or 'empty'}, expected one of "
        f"{', '.join(POOLINGS)}; use another backbone"
    )


def _check_comparison(config: Mapping[str, Any], kinds: list[str], where: str) -> None:
    """Refuse a prompt before every text, and embeddings whose lengths count."""
    default = config.get("default_prompt_name")
    prompt = (config.get("prompts") or {}).get(default) if default else None
    if prompt:
        raise BackboneError(
            f"{where}: puts the prompt {prompt!r} before every text (default_prompt_name is "
            f"{default!r}), which pidep cannot do; set it to null in a copy of the folder, and "
            "write the prompt into the task's template and label texts"
        )
    compared = config.get("similarity_fn_name") or "cosine"
    # The dot product of normalised embeddings is their cosine.
    if compared != "cosine" and "Normalize" not in kinds:
        raise BackboneError(
            f"{where}: its embeddings are not normalised and compared by {compared!r}, and pidep "
            "compares by cosine; use another backbone"
        )


def _check_transformer(settings: Mapping[str, Any], where: str) -> None:
    """Refuse token states that are not the model's last hidden states."""
    task = settings.get("transformer_task") or "feature-extraction"
    method = ((settings.get("modality_config") or {}).get("text") or {}).get(
        "method_output_name", "last_hidden_state"
    )
    output = settings.get("module_output_name") or "token_embeddings"
    if (task, method, output) != (
        "feature-extraction",
        "last_hidden_state",
        "token_embeddings",
    ):
        raise BackboneError(
            f"{where}: its transformer gives {output} from {method} ({task}), and pidep pools "
            "the last hidden states; use another backbone"
        )


def _reader(source: str | Path, where: str) -> Read:
    """Reads JSON files of a folder or hub id."""
    from transformers.utils.hub import cached_file

    def read(name: str) -> Any:
        try:
            path = cached_file(
                str(source),
                name,
                _raise_exceptions_for_missing_entries=False,
            )
            return None if path is None else json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise BackboneError(f"{where}: {name} cannot be read ({reason})") from error

    return read


def warn_if_unknown(source: str | Path) -> None:
    """Log a warning where a hub id may declare something that this machine does not have."""
    from huggingface_hub import try_to_load_from_cache

    # The cache remembers files that the hub does not have. It gives None where nobody asked.
    if not Path(source).is_dir() and try_to_load_from_cache(str(source), "modules.json") is None:
        _LOG.warning(
            "backbone %r: modules.json is not in the hub's cache, and the hub cannot be asked; "
            "mean pooling is used, download the whole repository if it should be another",
            str(source),
        )


def _join(folder: str, name: str) -> str:
    return f"{folder.rstrip('/')}/{name}" if folder else name
