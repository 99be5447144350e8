# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This module util is PRIVATE to the collection.
"""Python libraries that come from the distribution's packages."""

from __future__ import annotations

import contextlib
import glob
import sys
import typing as t

_PLACES = ("/usr/lib/python3/dist-packages", "/usr/lib64/python3.*/site-packages", "/usr/lib/python3*/site-packages")


@contextlib.contextmanager
def libraries() -> t.Iterator[None]:
    """Within the block, ``import`` looks where distributions put libraries, after all other places.

    Our helper runs without the site module, and so does not look there itself.
    """
    added = [place for pattern in _PLACES for place in sorted(glob.glob(pattern)) if place not in sys.path]
    sys.path.extend(added)
    try:
        yield
    finally:
        sys.path[:] = [place for place in sys.path if place not in added]
