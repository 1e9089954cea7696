"""Methods of the SDK that are wrapped, and restored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Patches:
    """Wraps methods of classes, and restores them.

    If another library has wrapped a method since, that wrapper stays, and so does ours below it: it has to ask
    `are_active` whether it still does anything.
    """

    def __init__(self) -> None:
        self.are_active = True
        self._originals: list[tuple[type, str, object, object]] = []

    def wrap(self, owner: type, name: str, make: Callable[[Any], object]) -> None:
        """Replace the method `name`, which `owner` itself defines, with what `make` returns for it."""
        original, wrapper = vars(owner)[name], make(getattr(owner, name))
        self._originals.append((owner, name, original, wrapper))
        setattr(owner, name, wrapper)

    def restore(self) -> None:
        """Restore the methods that still have our wrapper."""
        self.are_active = False
        for owner, name, original, wrapper in self._originals:
            if vars(owner).get(name) is wrapper:
                setattr(owner, name, original)
        self._originals.clear()
