# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Settings that all unit tests share."""

from __future__ import annotations

from hypothesis import settings

# No deadline: machines of all speeds run this. No database: nothing is written beside the code.
settings.register_profile("cnvm", deadline=None, database=None, print_blob=True)
settings.load_profile("cnvm")
