# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""The timeline of a move: what was done when, in milliseconds since its beginning, and the bytes it took."""

from __future__ import annotations

import typing as t


class Timeline:
    """``clock`` gives seconds that only ever grow (monotonic)."""

    def __init__(self, clock: t.Callable[[], float]) -> None:
        self.clock = clock
        self.phases: list[dict[str, t.Any]] = []
        self.bytes: dict[str, int] = {}
        self._start = clock()

    def elapsed_ms(self) -> float:
        """Since the beginning."""
        return round((self.clock() - self._start) * 1000, 1)

    def begin(self, phase: str) -> None:
        """End the phase that runs and begin another."""
        self.end()
        self.phases.append({"phase": phase, "start_ms": self.elapsed_ms()})

    def end(self) -> None:
        """End the phase that runs."""
        if self.phases and "ms" not in self.phases[-1]:
            last = self.phases[-1]
            last["ms"] = round(self.elapsed_ms() - last["start_ms"], 1)

    def phase(self) -> str:
        """The phase that runs or ran last."""
        return str(self.phases[-1]["phase"]) if self.phases else ""

    def add_bytes(self, kind: str, count: int) -> None:
        """``count`` more bytes of ``kind`` (image, layer, template, disks …) went over the link."""
        self.bytes[kind] = self.bytes.get(kind, 0) + count

    def between_ms(self, first: str, last: str) -> float:
        """From the beginning of the phase ``first`` to the end of ``last``; 0 where one is missing."""
        start = next((p["start_ms"] for p in self.phases if p["phase"] == first), None)
        end = next((p["start_ms"] + p.get("ms", 0) for p in self.phases if p["phase"] == last), None)
        return 0.0 if start is None or end is None else round(end - start, 1)

    def as_result(self) -> dict[str, t.Any]:
        """``phases`` (each ``phase``, ``start_ms``, ``ms``), ``total_ms`` and ``bytes`` by kind."""
        self.end()
        return {"phases": self.phases, "total_ms": self.elapsed_ms(), "bytes": dict(self.bytes)}
