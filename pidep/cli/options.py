"""Command-line options made from a settings model.

`@options(TuneSettings)` gives a command an option for every setting and calls it with a checked
`TuneSettings`. A setting `batch_size` is the option `--batch-size`. A list takes several values
with commas, or the option again.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any

import typer

from pidep.cli.command import with_flags
from pidep.settings import Setting, Settings, read_settings, settings_of

__all__ = ["OUTPUT", "Json", "options"]

OUTPUT = "Output"
"""Panel of the options that say where results go."""
Json = Annotated[
    bool, typer.Option("--json", help="Print the result as JSON.", rich_help_panel=OUTPUT)
]
"""Annotation of the option `--json`."""
_CONFIG = Annotated[
    Path | None,
    typer.Option(
        help="YAML file with any of these settings. Options on the command line win.",
        rich_help_panel=OUTPUT,
        metavar="PATH",
    ),
]
_METAVARS = {int: "N", float: "X", str: "TEXT", Path: "PATH"}


def options(
    *models: type[Settings], yaml: bool = False
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the settings of some models.

    The command's first parameters receive the settings, one for each model. The other parameters
    stay its own options.

    Args:
        models: the settings.
        yaml: whether `--config` reads the first model's settings from a file, too.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(command, eval_str=True).parameters.values())[len(models) :]

        def run(context: typer.Context, **values: Any) -> None:
            config = values.pop("config", None)
            name = context.info_name or command.__name__
            found = [
                read_settings(
                    model,
                    config if model is models[0] else None,
                    _given(context, settings_of(model), values),
                    where=name,
                )
                for model in models
            ]
            command(*found, **{parameter.name: values[parameter.name] for parameter in own})

        run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [
                Parameter("context", Parameter.KEYWORD_ONLY, annotation=typer.Context),
                *_made(models, yaml=yaml),
                *(one.replace(kind=Parameter.KEYWORD_ONLY) for one in own),
            ]
        )
        # typer would otherwise look for the types of `run`'s own parameters.
        run.__annotations__ = {}
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.__module__ = command.__module__
        return run

    return decorate


def _made(models: Sequence[type[Settings]], *, yaml: bool) -> list[Parameter]:
    """The parameters of all models, and `--config` where a file can hold settings."""
    flags = {one.name: one.flag for model in models for one in settings_of(model) if one.flag}
    made = [
        part
        for model in models
        for one in settings_of(model)
        for part in _parameters(one, flags, yaml=yaml and model is models[0])
    ]
    config = Parameter("config", Parameter.KEYWORD_ONLY, default=None, annotation=_CONFIG)
    return [*made, config] if yaml else made


def _parameters(setting: Setting, flags: Mapping[str, str], *, yaml: bool) -> list[Parameter]:
    """The parameter of a setting, and a hidden one for each older spelling."""
    if not setting.shown.flag:
        return []
    annotation = _annotation(setting)
    if setting.shown.argument:
        text = f"{setting.help}{_facts(setting)}" if not setting.required else setting.help
        info = typer.Argument(help=text, metavar=setting.flag, show_default=False)
        # With --config the file can hold the argument. Then the settings tell that it is missing.
        required = setting.required and not yaml
        return [_parameter(setting.name, annotation, info, Parameter.empty if required else None)]
    shown = [_parameter(setting.name, annotation, _option(setting, flags, yaml=yaml), None)]
    hidden = [
        _parameter(_alias(setting, number), annotation, typer.Option(spelling, hidden=True), None)
        for number, spelling in enumerate(setting.shown.aliases)
    ]
    return shown + hidden


def _parameter(name: str, annotation: Any, info: Any, default: Any) -> Parameter:
    return Parameter(
        name, Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[annotation, info]
    )


def _annotation(setting: Setting) -> Any:
    """The type for typer. Values stay text: the settings convert and check them."""
    if setting.many:
        return list[str] | None
    return setting.kind | None if setting.kind in (bool, Path) else str | None


def _option(setting: Setting, flags: Mapping[str, str], *, yaml: bool) -> Any:
    # A flag that no file can turn on needs no option that turns it off.
    both = setting.kind is bool and (yaml or setting.default is not False)
    spelling = f"{setting.flag}/--no-{setting.flag[2:]}" if both else setting.flag
    return typer.Option(
        spelling,
        help=f"{with_flags(setting.help, flags)}{_facts(setting)}",
        rich_help_panel=setting.panel,
        metavar=_metavar(setting),
        show_default=False,
        autocompletion=setting.choices.__iter__ if setting.choices else None,
    )


def _facts(setting: Setting) -> str:
    """Whether it is required, its default and its bounds, in brackets."""
    default = "" if setting.default is False else setting.default_text
    default = "required" if setting.required else f"default: {default}" if default else ""
    facts = [default, setting.bounds_text]
    shown = "; ".join(fact for fact in facts if fact)
    return f"  [{shown}]" if shown else ""


def _metavar(setting: Setting) -> str | None:
    if setting.kind is bool:
        return None
    one = "|".join(setting.choices) if setting.choices and not setting.many else None
    one = one or _METAVARS.get(setting.kind, "TEXT")
    return f"{one},..." if setting.many and setting.shown.commas else one


def _alias(setting: Setting, number: int) -> str:
    return f"{setting.name}_spelled_{number}"


def _given(
    context: typer.Context, settings: list[Setting], values: Mapping[str, Any]
) -> dict[str, Any]:
    """The settings that the command line names; defaults and the YAML file fill the others."""
    found = {}
    for setting in settings:
        aliases = [_alias(setting, number) for number, _ in enumerate(setting.shown.aliases)]
        for name in (setting.name, *aliases):
            source = context.get_parameter_source(name)
            # Only what was typed: a default would otherwise replace the YAML file's value.
            if source is not None and source.name != "DEFAULT":
                found[setting.name] = _value(setting, values[name])
    return found


def _value(setting: Setting, value: Any) -> Any:
    """A list is split at its commas. A number is converted, so that messages show it as one."""
    if setting.many:
        split = setting.shown.commas and not setting.shown.argument
        return [part.strip() for text in value for part in text.split(",")] if split else value
    try:
        return setting.kind(value) if setting.kind in (int, float) else value
    except ValueError:
        return value
