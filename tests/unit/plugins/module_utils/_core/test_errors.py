# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an error tells."""

from __future__ import annotations

from ansible_collections.cnvm.platform.plugins.module_utils._core import errors


def test_error_has_message_hint_and_details() -> None:
    error = errors.HostError("No space.", hint="Make room.", path="/var", needed=3)
    assert str(error) == "No space. Make room."
    assert (error.message, error.hint) == ("No space.", "Make room.")
    assert error.details == {"path": "/var", "needed": 3}
    assert isinstance(error, errors.CnvmError)


def test_error_without_hint() -> None:
    assert str(errors.Refused("It runs elsewhere.")) == "It runs elsewhere."
