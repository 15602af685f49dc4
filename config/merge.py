"""Takes entries of one source after another, checks them one by one, lets the later entry win.

A mistake never stops the reading: all of them are reported together, even one in a value that a
later source overrides, because a wrong line that happens to have no effect today will have one
tomorrow.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from embar_shm.config.entries import Entry
from embar_shm.config.fields import AtMost, Key, check_value

__all__ = ["Setting", "Settings", "did_you_mean"]


@dataclass(frozen=True)
class Setting:
    """A checked value in effect. `turn` counts settings: the larger one was set later."""

    value: object
    entry: Entry
    turn: int


class Settings:
    """Collects settings of some keys and mistakes, in order of precedence."""

    def __init__(self, keys: Sequence[Key]) -> None:
        self.mistakes: list[str] = []
        self.key_of = {name: key for key in keys for name in (key.name, *key.aliases)}
        self.settings: dict[str, Setting] = {}
        self.doubtful: set[str] = set()  # keys with a mistake: rules about them would only guess
        self._turn = 0

    def add(self, source: Iterable[Entry], spell: Callable[[str], str] = str) -> None:
        """Takes one source; `spell` writes a key the way this source does."""
        seen: dict[str, Entry] = {}
        for entry in source:
            key = self.key_of.get(entry.name)
            if key is None:
                self.mistakes.append(f"{entry.name_place}: {self.unknown_key(entry, spell)}")
            elif key.name in seen:
                self.mistakes.append(f"{entry.name_place}: {_set_again(entry, seen[key.name])}")
                self.doubtful.add(key.name)
            else:
                seen[key.name] = entry
                self._set(key, entry)

    def overlay(self, later: Settings) -> None:
        """Takes what `later` has in effect; its mistakes stay where they are."""
        for name, setting in later.settings.items():
            self._turn += 1
            self.settings[name] = replace(setting, turn=self._turn)
        self.doubtful |= later.doubtful

    def unknown_key(self, entry: Entry, spell: Callable[[str], str]) -> str:
        """What to say about a key that does not exist."""
        return f"unknown key {entry.written!r}" + did_you_mean(
            entry.written, [spell(name) for name in self.key_of]
        )

    def report(self, rule: AtMost) -> None:
        """A broken rule is a mistake once, at whichever of its two keys was set last."""
        low, high = self.key_of[rule.low], self.key_of[rule.high]
        low_is_later = self.turn_of(low) > self.turn_of(high)
        blamed, other = (low, high) if low_is_later else (high, low)
        self.mistakes.append(
            f"{self.settings[blamed.name].entry.value_place}: "
            f"{blamed.show(self.value(blamed))} is {'above' if low_is_later else 'below'} "
            f"{other.name} {other.show(self.value(other))} ({self.origin(other)}): {rule.because}"
        )

    def value(self, key: Key) -> object:
        """What is in effect."""
        setting = self.settings.get(key.name)
        return key.default if setting is None else setting.value

    def turn_of(self, key: Key) -> int:
        """When it was set; 0: it was not."""
        setting = self.settings.get(key.name)
        return 0 if setting is None else setting.turn

    def origin(self, key: Key) -> str:
        """Where the value came from."""
        setting = self.settings.get(key.name)
        return "default" if setting is None else setting.entry.origin

    def _set(self, key: Key, entry: Entry) -> None:
        parts = entry.items if key.is_list and entry.items is not None else (entry,)
        values: list[Any] = []
        for part in parts:
            try:
                values.append(check_value(key, part.read()))
            except ValueError as error:
                self.mistakes.append(f"{part.value_place}: {error}")
                self.doubtful.add(key.name)
        if len(values) == len(parts):
            value = tuple(itertools.chain(*values)) if parts is entry.items else values[0]
            self._turn += 1
            self.settings[key.name] = Setting(value, entry, self._turn)


def _set_again(entry: Entry, first: Entry) -> str:
    if entry.name == first.name:
        return f"{entry.written!r} is set twice (first at {first.origin})"
    return f"{entry.written!r} is another name of {first.written!r} ({first.origin}): keep one"


def did_you_mean(name: str, existing: Sequence[str]) -> str:
    """ " (did you mean 'this'?)" when one of them is close, else nothing."""
    by_lower = {candidate.lower(): candidate for candidate in existing}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1)
    return f" (did you mean {by_lower[close[0]]!r}?)" if close else ""
