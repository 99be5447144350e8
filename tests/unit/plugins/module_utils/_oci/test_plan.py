# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is done to a container for each wish and each state of things."""

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import Refused
from ansible_collections.cnvm.platform.plugins.module_utils._oci.definition import definition_of, normalise
from ansible_collections.cnvm.platform.plugins.module_utils._oci.plan import Plan, Seen, plan

DIGEST, OTHER = "a" * 64, "b" * 64
OWNER = {"owner": "me"}


def wish(**values: t.Any) -> dict[str, t.Any]:
    return normalise({"name": "web", "image": "cnvm", **values})


def seen(**values: t.Any) -> Seen:
    definition = definition_of(wish(), "u", DIGEST, "cnvm")
    return Seen(**{"definition": definition, "owner": OWNER, "here": True, "active": True, "enabled": True, **values})


def made(item: dict[str, t.Any], state: Seen, **options: t.Any) -> Plan:
    return plan(item, state, **{"digest": DIGEST, "image_name": "cnvm", "new_uuid": "new", **options})


@pytest.mark.parametrize(
    ("wanted", "state", "actions"),
    [
        (wish(), Seen(), ["create", "enable", "start"]),
        (wish(restart="never"), Seen(), ["create", "start"]),
        (wish(state="present"), Seen(), ["create"]),
        (wish(state="stopped"), Seen(), ["create"]),
        (wish(state="absent"), Seen(), []),
        (wish(), seen(), []),
        (wish(state="present"), seen(), []),
        (wish(), seen(active=False), ["start"]),
        (wish(), seen(enabled=False), ["enable"]),
        (wish(), seen(active=False, enabled=False), ["enable", "start"]),
        (wish(state="present"), seen(active=False), []),
        (wish(state="stopped"), seen(), ["stop", "disable"]),
        (wish(state="stopped"), seen(active=False, enabled=False), []),
        (wish(state="absent"), seen(), ["stop", "remove"]),
        (wish(state="absent"), seen(active=False), ["remove"]),
        (wish(state="absent"), Seen(owner=OWNER), ["remove"]),
        (wish(labels={"a": "b"}), seen(), ["change labels"]),
        (wish(restart="never"), seen(), ["change restart", "disable"]),
        (wish(restart="never", state="present"), seen(), ["change restart", "disable"]),
        (wish(restart="on_failure", state="present"), seen(), ["change restart"]),
        (wish(env={"A": "1"}), seen(), ["stop", "change env", "start"]),
        (wish(env={"A": "1"}, state="present"), seen(), ["stop", "change env", "start"]),
        (wish(env={"A": "1"}), seen(active=False), ["change env", "start"]),
        (wish(env={"A": "1"}, state="present"), seen(active=False), ["change env"]),
        (wish(env={"A": "1"}, state="stopped"), seen(), ["stop", "change env", "disable"]),
    ],
)
def test_steps(wanted: dict[str, t.Any], state: Seen, actions: list[str]) -> None:
    found = made(wanted, state)
    assert found.actions == actions
    assert found.changed == bool(actions)


@pytest.mark.parametrize("state", ["running", "present", "stopped", "absent"])
def test_what_is_elsewhere_is_left_alone(state: str) -> None:
    found = made(wish(state=state, env={"A": "1"}), Seen(elsewhere="host2"))
    assert (found.changed, found.elsewhere) == (False, "host2")


@pytest.mark.parametrize("state", ["running", "present", "stopped", "absent"])
def test_what_is_moving_is_not_touched(state: str) -> None:
    with pytest.raises(Refused, match=r"cnvm\.platform\.recover"):
        made(wish(state=state), seen(moving=True))


def test_a_restart_can_be_forbidden() -> None:
    with pytest.raises(Refused, match="restarted for: cwd, env"):
        made(wish(env={"A": "1"}, cwd="/srv", labels={"a": "b"}), seen(), restart_on_change=False)
    assert made(wish(labels={"a": "b"}), seen(), restart_on_change=False).actions == ["change labels"]
    assert made(wish(env={"A": "1"}), seen(active=False), restart_on_change=False).actions == ["change env", "start"]


def test_another_image_must_be_wanted() -> None:
    with pytest.raises(Refused, match="image_change"):
        made(wish(image="other"), seen(), digest=OTHER, image_name="other")
    found = made(wish(image="other"), seen(), digest=OTHER, image_name="other", image_change=True)
    assert found.actions == ["stop", "change image", "change image_name", "start"]
    assert found.definition is not None
    assert found.definition["image"] == OTHER


def test_a_name_with_a_new_content_keeps_the_old_one() -> None:
    found = made(wish(), seen(), digest=OTHER)
    assert (found.changed, found.outdated) == (False, True)
    assert made(wish(), seen(), digest=OTHER, image_change=True).restart


def test_a_change_keeps_the_uuid() -> None:
    found = made(wish(env={"A": "1"}), seen())
    assert found.definition is not None
    assert found.definition["uuid"] == "u"


def test_doing_it_once_is_enough() -> None:
    first = made(wish(env={"A": "1"}, restart="never"), Seen())
    again = Seen(definition=first.definition, owner=OWNER, here=True, active=first.start, enabled=bool(first.enable))
    assert not made(wish(env={"A": "1"}, restart="never"), again).changed
