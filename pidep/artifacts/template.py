"""A task's template as a field of a record."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import PlainSerializer, PlainValidator

from pidep.inputs.template import Template

__all__ = ["TemplateField"]

TemplateField: TypeAlias = Annotated[
    Template, PlainValidator(Template.of), PlainSerializer(Template.to_json)
]
"""Checked by the template itself, so that a record cannot hold one that the rows' code refuses."""
