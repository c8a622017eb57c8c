"""Reads dataclasses of settings from JSON, checks them, and lists their fields.

A field's type gives its possible values: `Annotated[int, Bounds(1, 64)]` is a number within these
bounds, `Annotated[str, OneOf("a", "b")]` is one of these words, `tuple[KIND, ...]` is a list, a
dataclass is a section of its own, and `SECTION | None` is a section that may be missing. Sections
have their dotted names in the file, such as `waveglow_config.WN_config`.
"""

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from waveglow_jax.errors import UserError

NEVER = 10**9
"""The upper bound of counts such as steps: a number that no run reaches."""
_MOST_SHOWN = 60


@dataclass(frozen=True)
class Bounds:
    """The lowest and highest value of a number, and whether these bounds are excluded."""

    low: float
    high: float
    above_low: bool = False
    below_high: bool = False

    def __str__(self) -> str:
        at_least = "above" if self.above_low else "at least"
        at_most = "below" if self.below_high else "at most"
        return f"{at_least} {self.low} and {at_most} {self.high}"

    def hold(self, value: float) -> bool:
        above = value > self.low if self.above_low else value >= self.low
        return above and (value < self.high if self.below_high else value <= self.high)


@dataclass(frozen=True, init=False)
class OneOf:
    """The words that are a field's possible values."""

    words: tuple[str, ...]

    def __init__(self, *words: str):
        object.__setattr__(self, "words", words)

    def __str__(self) -> str:
        return " or ".join(map(repr, self.words))

    def hold(self, value: str) -> bool:
        return value in self.words


# ------------------------------------------------------------------------------ types


@cache
def _kinds(section: Any) -> dict[str, Any]:
    """The types of a section's fields, with their limits."""
    return get_type_hints(section, include_extras=True)


def _without_none(kind: Any) -> Any:
    if isinstance(kind, UnionType):
        return next(each for each in get_args(kind) if each is not NoneType)
    return kind


def _limit(kind: Any) -> Bounds | OneOf | None:
    """The limit of a type's values, or of a list's items; None if there is none."""
    if get_origin(kind) is tuple:
        return _limit(get_args(kind)[0])
    return kind.__metadata__[0] if get_origin(kind) is Annotated else None


def _bare(kind: Any) -> Any:
    return kind.__origin__ if get_origin(kind) is Annotated else kind


def _with_inner(sections: Mapping[str, Any]) -> dict[str, Any]:
    """The sections by their dotted names, nested sections included."""
    found: dict[str, Any] = {}
    for where, section in sections.items():
        kinds = {name: _without_none(kind) for name, kind in _kinds(section).items()}
        inner = {
            f"{where}.{n}": kind for n, kind in kinds.items() if dataclasses.is_dataclass(kind)
        }
        found |= {where: section, **_with_inner(inner)}
    return found


# ------------------------------------------------------------------------------ the check


def check_limits(section: Any, where: str) -> None:
    """Raises UserError if a field of the section, or of one inside it, exceeds its limits."""
    for name, kind in _kinds(section.__class__).items():
        value, limit, place = getattr(section, name), _limit(kind), f"{where}.{name}"
        if dataclasses.is_dataclass(value):
            check_limits(value, place)
        elif limit is not None and isinstance(value, tuple):
            for i, each in enumerate(value):
                _check_limit(limit, each, f"{place}[{i}]")
        elif limit is not None:
            _check_limit(limit, value, place)


def _check_limit(limit: Bounds | OneOf, value: Any, place: str) -> None:
    if not limit.hold(value):
        shown = repr(value) if isinstance(value, str) else str(value)
        raise UserError(f"{place} {_shown(shown)} must be {limit}")


def _shown(text: str) -> str:
    """A value as a message shows it: cut to a limit, because a file's values have any length."""
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


# ------------------------------------------------------------------------------ JSON


def read_section(sections: Mapping[str, Any], where: str, raw: Any) -> Any:
    """The section `where` of a file from its JSON.

    `sections` maps the names of the file's sections to their types. Raises UserError for a field
    that is unknown or of another type; does not check limits.
    """
    return _section(_with_inner(sections), where, raw)


def _section(sections: Mapping[str, Any], where: str, raw: Any) -> Any:
    if not isinstance(raw, dict):
        raise UserError(f"{where} must be a JSON object")
    kinds = _kinds(sections[where])
    unknown = set(raw) - set(kinds)
    if unknown:
        known = [f"{where}.{name}" for name in kinds]
        raise UserError(unknown_field(f"{where}.{min(unknown)}", known, sections))
    return sections[where](
        **{name: _typed(sections, kinds[name], v, f"{where}.{name}") for name, v in raw.items()}
    )


def _typed(sections: Mapping[str, Any], kind: Any, value: Any, where: str) -> Any:
    """A field's value from its JSON."""
    if isinstance(kind, UnionType):
        if value is None:
            return None
        kind = _without_none(kind)
    if where in sections:
        return _section(sections, where, value)
    if get_origin(kind) is tuple:
        if not isinstance(value, list):
            raise UserError(
                f"{where} is {_shown(json.dumps(value))}: it must be a list, such as [0.6, 1]"
            )
        item = get_args(kind)[0]
        return tuple(_typed(sections, item, v, f"{where}[{i}]") for i, v in enumerate(value))
    return typed(_bare(kind), value, where)


def typed(kind: type, value: Any, where: str) -> Any:
    """The value as a string, number or boolean of the type `kind`; UserError if it is none."""
    # JSON does not distinguish integers from floats; true is not a number here.
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            return math.inf  # infinity exceeds the bounds of every field
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise UserError(
            f"{where} is {_shown(json.dumps(value))}: it must be of type {kind.__name__}"
        )
    return value


def unknown_field(name: str, known: list[str], sections: Mapping[str, Any]) -> str:
    """The message for an unknown name; suggests that field elsewhere, or the closest one."""
    import difflib

    field = name.rpartition(".")[2]
    elsewhere = [
        f"{where}.{field}"
        for where, section in _with_inner(sections).items()
        if field in _kinds(section)
    ]
    close = elsewhere or difflib.get_close_matches(name, known, n=1)
    return f"{name} is no known field" + (f"; did you mean {close[0]}?" if close else "")


# ------------------------------------------------------------------------------ the list


@dataclass(frozen=True)
class FieldFacts:
    """Facts of one field: its dotted name, its type, its default in JSON, its limit in words ("":
    anything of the type), and the limit itself."""

    name: str
    kind: str
    default: str
    values: str
    limit: Bounds | OneOf | None


def facts_of(section: Any, where: str) -> Iterator[FieldFacts]:
    """The facts of every field of a section, nested sections included."""
    for name, kind in _kinds(section).items():
        place, inner = f"{where}.{name}", _without_none(kind)
        if inner is not kind:
            yield FieldFacts(place, "object", "null", "null, or the fields below", None)
        if dataclasses.is_dataclass(inner):
            yield from facts_of(inner, place)
            continue
        limit = _limit(kind)
        item = _bare(get_args(kind)[0] if get_origin(kind) is tuple else kind).__name__
        told = f"list of {item}" if get_origin(kind) is tuple else item
        values = " or ".join(limit.words) if isinstance(limit, OneOf) else str(limit or "")
        yield FieldFacts(place, told, json.dumps(getattr(section, name, None)), values, limit)


def must_divide(name: str, divisor: int, of_name: str, number: int) -> None:
    """Raises UserError, with both numbers, unless `divisor` divides `number`."""
    if number % divisor:
        raise UserError(f"{name} {divisor} must divide {of_name} {number}")
