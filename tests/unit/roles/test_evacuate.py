# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is on record when, and that nothing is left out unseen."""

from __future__ import annotations

import json
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cnvm.platform.tests.unit.roles.stage import Stage, unsaid

CONTAINER = {"name": "c", "uuid": "u-c", "state": "running", "memory_bytes": 1 << 20, "moving": False}
GUEST = {"name": "g", "uuid": "u-g", "state": "running", "memory_mib": 1, "managed": True, "moving": False}
MOVED = {"changed": True, "outcome": "target", "frozen_ms": 10, "timeline": {"total_ms": 100}}


@pytest.fixture
def hosts(stage: Stage) -> Stage:
    """host1 has both, and they can go to host2."""
    for answers in stage.answers.values():
        answers.update(
            container_info={"containers": []}, guest_info={"libvirt": True, "guests": []}, container_recover={}
        )
        for module in ("container_migrate", "guest_migrate"):
            answers[module] = [{"changed": True, "plan": {"blockers": []}}, MOVED]
    stage.answers["host1"]["container_info"]["containers"] = [CONTAINER]
    stage.answers["host1"]["guest_info"]["guests"] = [GUEST]
    return stage


def written(path: Path) -> list[str]:
    return [one["name"] for one in json.loads(path.read_text(encoding="utf-8"))]


def default_file(stage: Stage) -> Path:
    return stage.path / "state/cnvm-platform/evacuations/host1.json"


def test_there(hosts: Stage) -> None:
    """Who becomes root everywhere does not on the controller: with this there would be no way to."""
    hosts.variables.update(ansible_become=True, ansible_become_user="nobody", ansible_become_exe="/nonexistent/sudo")
    hosts.path.chmod(0o755)
    said = hosts.playbook("evacuate", host="host1", record_file="here.json")
    assert said.count(" moved ") == 2
    # The directory was there before.
    assert hosts.path.stat().st_mode & 0o777 == 0o755
    assert written(hosts.path / "here.json") == ["c", "g"]
    assert not default_file(hosts).exists()


def test_how_guests_move(hosts: Stage) -> None:
    """When it is tried, and when it is done."""
    wanted: dict[str, t.Any] = {"max_downtime_ms": 900, "bandwidth_mib_s": 50, "connections": 4, "auto_converge": False}
    hosts.playbook("evacuate", host="host1", **wanted)
    for check in (True, False):
        ((_host, options),) = hosts.asked("guest_migrate", check=check)
        assert {key: options[key] for key in wanted} == wanted


def test_no_record_no_way_back(hosts: Stage) -> None:
    said = hosts.playbook("evacuate", host="host1", back=True, record_file="~/none.json", check=False)
    assert f"evacuate_record_file: there is no {Path.home()}/none.json on this controller." in said
    assert hosts.asked("container_info") == []


@pytest.mark.parametrize(("word", "value"), [("target", "host2"), ("sort", "largest"), ("first", "g")])
def test_the_way_back_has_no_choice(hosts: Stage, word: str, value: str) -> None:
    said = hosts.playbook("evacuate", host="host1", back=True, check=False, **{word: value})
    assert f"evacuate_{'order' if word == 'sort' else word}: not with evacuate_back" in said
    assert hosts.asked("container_info") == []


def test_a_host_that_was_empty_has_a_record(hosts: Stage) -> None:
    for module, key in (("container_info", "containers"), ("guest_info", "guests")):
        hosts.answers["host1"][module][key] = []
    hosts.playbook("evacuate", host="host1")
    assert "Nothing has to move." in hosts.playbook("evacuate", host="host1", back=True)


def test_it_is_on_record_before_it_goes(hosts: Stage) -> None:
    """Its host is lost as it moves: nobody knows where it is, and it is looked for on the way back."""
    hosts.answers["host1"]["container_migrate"][1] = "off"
    hosts.playbook("evacuate", host="host1", check=False)
    assert written(default_file(hosts)) == ["c"]


def test_a_record_that_cannot_be_written(hosts: Stage) -> None:
    (hosts.path / "file").touch()
    said = hosts.playbook("evacuate", host="host1", record_file="file/record.json", check=False)
    assert "Make the directory of the record" in said
    assert hosts.asked("container_migrate") == []


def test_guests_that_were_not_seen(hosts: Stage) -> None:
    hosts.answers["host1"]["guest_info"] = {"failed": True, "msg": "MODULE FAILURE"}
    hosts.playbook("evacuate", host="host1", check=False)
    assert hosts.asked("container_migrate") == []


def test_hosts_for_containers_only(hosts: Stage) -> None:
    hosts.answers["host1"]["guest_info"] = {"libvirt": False, "guests": []}
    hosts.answers["host2"]["guest_info"] = {"libvirt": False, "guests": []}
    said = hosts.playbook("evacuate", host="host1")
    assert said.count(" moved ") == 1


def test_no_guest_goes_where_libvirt_does_not_answer(hosts: Stage) -> None:
    hosts.answers["host2"]["guest_info"] = {"failed": True, "msg": "No.", "error": "LibvirtError"}
    said = hosts.playbook("evacuate", host="host1", check=False)
    assert "g: no libvirt that answers on host2" in said
    assert hosts.asked("container_migrate") == []


def test_a_word_that_is_empty_is_not_said(hosts: Stage) -> None:
    """A survey sends all of its words."""
    words = (
        "target", "sort", "first", "continue", "back", "record_file", "memory_reserve_mib", "mode", "allow_post_copy",
        "max_downtime_ms", "bandwidth_mib_s", "connections", "auto_converge", "timeout_s",
    )  # fmt: skip
    said = hosts.playbook("evacuate", host="host1", **unsaid(words))
    assert said.count(" moved ") == 2
    said = hosts.playbook("evacuate", host="", check=False)
    assert "evacuate_host: is not in this play." in said


def test_a_host_that_leaves_the_play_has_moved_nothing_more(hosts: Stage) -> None:
    """Such as one that is too busy to ask for the password of sudo in time: that is neither a failure nor no answer."""
    planned = {"changed": True, "plan": {"blockers": []}}
    hosts.answers["host1"]["guest_info"]["guests"] = [{**GUEST, "name": "a", "uuid": "u-a"}, GUEST]
    hosts.answers["host1"]["guest_migrate"] = [planned, planned, MOVED]
    hosts.answers["host1"]["container_migrate"] = [planned, "broken"]
    said = hosts.playbook("evacuate", host="host1", check=False, **{"continue": True})
    assert said.count(" moved ") == 1
    assert "g: host1 has left the play." in said
