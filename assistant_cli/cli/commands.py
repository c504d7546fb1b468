"""Typer's commands without the price of what they do not use.

Typer 0.29 builds a pydantic adapter for every parameter, also for plain text, and importing
pydantic takes as long as everything else that `kv get` does. Text needs no conversion, and a
default that has its type already needs none either; for the rest Typer converts as ever.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import typer
from typer._coercion import build_runtime_param
from typer.core import TyperCommand, TyperGroup

from ..errors import ClosedPipeError, UsageError

# Help lists commands with their first sentence, over several lines where need be.
_WHOLE_SENTENCE = 1_000
_WHOLE_NUMBER = re.compile(r"-?[0-9]{1,40}", re.ASCII)
_LARGEST = 2**63 - 1
"""What Postgres counts to."""
_NEGATIVE_NUMBER = re.compile(r"-[0-9][0-9.eE+-]*", re.ASCII)


class _Conversion:
    """Stands in for Typer's conversion of one parameter."""

    def __init__(self, descriptor: Any) -> None:
        self._descriptor = descriptor

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        several = param.multiple or param.nargs == -1
        if value is None:
            return () if several else None
        annotation = self._descriptor.annotation
        if annotation == list[str]:
            return list(value)
        if isinstance(annotation, type) and isinstance(value, annotation):
            return value
        if annotation is int:
            return self._whole_number(str(value), param, ctx)
        return build_runtime_param(self._descriptor).coerce(value, param=param, ctx=ctx)

    def _whole_number(self, text: str, param: Any, ctx: Any) -> int:
        """A number within its bounds; pydantic's words for what is none are for programmers."""
        given = self._descriptor.parameter_info
        least = given.min
        most = _LARGEST if given.max is None else given.max
        if not _WHOLE_NUMBER.fullmatch(text):
            raise typer.BadParameter(f"{text!r} is not a whole number", ctx=ctx, param=param)
        number = int(text)
        if least is not None and number < least:
            raise typer.BadParameter(f"{least} is the least", ctx=ctx, param=param)
        if number > most:
            raise typer.BadParameter(f"{most} is the most", ctx=ctx, param=param)
        return number


def _lighten(parameters: Sequence[Any]) -> list[Any]:
    for parameter in parameters:
        parameter._runtime_param = _Conversion(parameter.type_descriptor)
    return list(parameters)


class Command(TyperCommand):
    """A command; `-5` is a value to it, while `--bogus` is still no option."""

    def get_short_help_str(self, limit: int = 0) -> str:
        return super().get_short_help_str(max(limit, _WHOLE_SENTENCE))

    def get_params(self, ctx: Any) -> list[Any]:
        return _lighten(super().get_params(ctx))

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # Typer would exit with 1, which is left to crashes.
            raise ClosedPipeError from None

    def make_parser(self, ctx: Any) -> Any:
        parser = super().make_parser(ctx)
        process = parser._process_opts

        def process_options(word: str, state: Any) -> None:
            if _NEGATIVE_NUMBER.fullmatch(word):
                state.largs.append(word)
            else:
                process(word, state)

        parser._process_opts = process_options  # type: ignore[method-assign, assignment]
        return parser


class CommandBehindDashes(Command):
    """A command whose argument `command` is all that stands behind `--`, and nothing else."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        end = args.index("--") if "--" in args else len(args)
        rest = super().parse_args(ctx, args[:end])
        if ctx.params.get("command") and not ctx.resilient_parsing:
            raise UsageError("write -- before the command to run")
        ctx.params["command"] = args[end + 1 :]
        return rest


class Group(TyperGroup):
    """A group of such commands."""

    def get_short_help_str(self, limit: int = 0) -> str:
        return super().get_short_help_str(max(limit, _WHOLE_SENTENCE))

    def get_params(self, ctx: Any) -> list[Any]:
        return _lighten(super().get_params(ctx))
