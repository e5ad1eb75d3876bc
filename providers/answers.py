"""Reading what a cloud answered: strictly where an odd answer could hide a machine, leniently where it could not.

Knows no cloud and no HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator

from .errors import UnexpectedResponse

WORDS_MAX = 300  # characters of a cloud's words in our message: its reason is at the start


class Wire(BaseModel):
    """A part of an answer. New fields are ignored, missing ones are errors; numbers may come as text; NaN is no number."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False, coerce_numbers_to_str=True)


T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)


def _or_none(value: object, read: ValidatorFunctionWrapHandler) -> object:
    try:
        return read(value)
    except (ValueError, ArithmeticError):
        return None


OddIsNone = Annotated[T | None, WrapValidator(_or_none)]
"""A field that we can do without: an odd price must not hide that a machine is there and bills."""


Id = Annotated[str, Field(pattern="[1-9A-Za-z]")]
"""The id of something that is there: a text, or a number other than 0."""


def record(data: object) -> dict[str, Any]:
    """`data` where it is a JSON object; an empty one where it is anything else."""
    return data if isinstance(data, dict) else {}


def fault(error: ValidationError) -> str:
    """The first thing that is not as agreed, and where."""
    first = error.errors(include_input=False, include_url=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or 'all of it'}: {first['msg']}"


def as_agreed(model: type[M], data: object, *, cloud: str, ids: tuple[str, ...] = ()) -> M:
    """The answer as its model; `UnexpectedResponse` with the first thing that is not as agreed, the cloud's words and every instance id."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        words = ": ".join(filter(None, [f"{cloud}'s answer is not as agreed", fault(error), said(data)]))
        raise UnexpectedResponse(words, instance_ids=ids) from error


def readable(rows: Iterable[object], read: Callable[[object], Iterable[T]], *, whose: str) -> list[T]:
    """What `read` makes of the rows. Those that make no sense are left out; if none makes any, the answer makes none."""
    found: list[Iterable[T]] = []
    trouble = ""
    for row in rows:
        try:
            found.append(list(read(row)))
        except ValidationError as error:
            trouble = trouble or fault(error)
        except (ValueError, ArithmeticError) as error:
            trouble = trouble or str(error)
    if trouble and not found:
        raise UnexpectedResponse(f"{whose} cannot be read: {trouble}")
    return [one for some in found for one in some]


def said(data: object) -> str:
    """The words of an error, of the several shapes that errors have; empty when there are none."""
    document = record(data)
    listed = document.get("errors")
    errors = [record(one).get("detail") or record(one).get("message") or one for one in (listed if isinstance(listed, list) else [])]
    told = [document.get("error"), *(document.get(name) for name in ("msg", "message", "detail")), *errors]
    words = [word for word in told if word and not isinstance(word, dict)] or [document.get("title")]
    return " ".join(" ".join(str(word).split()) for word in words if word)[:WORDS_MAX]
