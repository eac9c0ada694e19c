"""Annotations of the project's functions are checked at every call: shapes by jaxtyping, types by beartype.

As jaxtyping's own import hook does, with less work a call: functions without a shape in their signature need
no memory of sizes, and arguments are checked once, not again with what is returned.
"""

from collections.abc import Sequence
from functools import partial
from inspect import isfunction, isgeneratorfunction
from typing import Any, ForwardRef, get_args

import jaxtyping
from beartype import beartype

_jaxtyped = jaxtyping.jaxtyped


def install(packages: Sequence[str]) -> None:
    """For modules of these packages that are imported from now on."""
    jaxtyping.install_import_hook(packages, "beartype.beartype")
    jaxtyping.jaxtyped = checked  # what the hook writes above every function and class


def checked(function: Any = None, *, typechecker: Any = None) -> Any:
    """In the place of `jaxtyping.jaxtyped`."""
    if function is None:
        return partial(checked, typechecker=typechecker)
    # beartype checks a generator's arguments only when the first value is asked for.
    plain = isfunction(function) and not isgeneratorfunction(function)
    if plain and not any(map(_has_shape, function.__annotations__.values())):
        return beartype(function)
    return _jaxtyped(function, typechecker=_check_once)


def _has_shape(hint: Any) -> bool:
    """Or is a string, which jaxtyping looks up."""
    if isinstance(hint, str | ForwardRef):
        return True
    return (isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray)) or any(
        map(_has_shape, get_args(hint))
    )


def _check_once(function: Any) -> Any:
    """jaxtyping asks twice: for a function that takes the arguments and returns Any, to be called before the
    real one, and for one of the whole signature, after it. There the arguments' sizes are known already."""
    if function.__annotations__.get("return", Any) is not Any:
        function.__annotations__ = {"return": function.__annotations__["return"]}
    return beartype(function)
