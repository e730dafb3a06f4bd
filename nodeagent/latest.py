"""Results of functions of things that are never changed, only replaced: worked out again when one was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

T = TypeVar("T")


class Latest(Generic[T]):
    """The last result of one function; equal arguments that are other objects count as new."""

    def __init__(self, function: Callable[..., T]) -> None:
        self._function = function
        self._arguments: tuple[Any, ...] | None = None
        self._result: T | None = None

    def __call__(self, *arguments: Any) -> T:
        """Return the function's result; the same object as last time where no argument was replaced."""
        known = self._arguments
        if known is None or any(one is not other for one, other in zip(known, arguments, strict=True)):
            self._result = self._function(*arguments)
            self._arguments = arguments
        return cast("T", self._result)
