# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is on record when, and that nothing is left out unseen."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cnvm.platform.plugins.plugin_utils import _helper
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


def test_what_hosts_say_is_no_template(hosts: Stage) -> None:
    ran = hosts.path / "ran"
    text = f"{{{{ lookup('ansible.builtin.pipe', 'mkdir {ran}') }}}}"
    hosts.answers["host1"]["guest_info"]["guests"] += [{**GUEST, "name": text, "managed": False}]
    hosts.answers["host1"]["guest_migrate"] = {"failed": True, "msg": text, "plan": {"blockers": [text]}}
    said = hosts.playbook("evacuate", host="host1", check=False)
    assert f"g: {text}" in said
    assert f"{text}: not made by this collection" in said
    assert not ran.exists()


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


RECORD = Path(_helper.collection_root()) / "roles/evacuate/files/record.py"


def entry(name: str, target: str = "host2") -> dict[str, str]:
    return {"kind": "guest", "name": name, "uuid": f"u-{name}", "target": target}


def begin(path: Path, before: list[t.Any], after: list[t.Any]) -> subprocess.Popen[str]:
    """One run writes down what it has changed."""
    words = [sys.executable, str(RECORD), str(path)]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    stdin = t.cast("t.IO[str]", process.stdin)
    stdin.write(json.dumps({"before": before, "after": after}))
    stdin.close()
    return process


def put(path: Path, before: list[t.Any], after: list[t.Any]) -> bool:
    """The same; whether the file is another one now."""
    with begin(path, before, after) as process:
        said = t.cast("t.IO[str]", process.stdout).read()
    assert process.returncode == 0
    return said == "changed"


@pytest.mark.parametrize(
    ("there", "before", "after", "found"),
    [
        # The other run has brought c away since.
        ("abc", "a", "ab", "acb"),
        ("ac", "a", "ab", "acb"),
        # One that is back, here or by the other run.
        ("abc", "ab", "a", "ac"),
        ("b", "ab", "ab", "b"),
        # It went again, as the last one.
        ("abc", "ab", "ba", "cba"),
        ("", "", "", ""),
    ],
)
def test_what_others_have_written_down_stays(tmp_path: Path, there: str, before: str, after: str, found: str) -> None:
    path = tmp_path / "record.json"
    path.write_text(json.dumps([entry(name) for name in there]), encoding="utf-8")
    lists = [[entry(name) for name in names] for names in (before, after)]
    assert put(path, *lists) is (there != found)
    assert "".join(written(path)) == found
    assert [one.name for one in tmp_path.iterdir()] == ["record.json"]


def test_it_went_somewhere_else_since(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    assert put(path, [], [entry("a")])
    assert put(path, [entry("a")], [entry("a", "host3")])
    assert json.loads(path.read_text(encoding="utf-8")) == [entry("a", "host3")]
    assert path.stat().st_mode & 0o777 == 0o600
    # By the other run; this one has seen it come back to where it was.
    assert not put(path, [entry("a")], [])


def test_two_runs_write_one_after_the_other(tmp_path: Path) -> None:
    path, lock = tmp_path / "record.json", os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        runs = [begin(path, [], [entry(name)]) for name in "abc"]
        with pytest.raises(subprocess.TimeoutExpired):
            runs[0].wait(0.5)
        assert not path.exists()
    finally:
        os.close(lock)
    for run in runs:
        with run:
            assert run.wait(20) == 0
    assert sorted(written(path)) == ["a", "b", "c"]


def test_another_run_may_empty_the_host_meanwhile(hosts: Stage) -> None:
    """What is on record by it is no less away."""
    path = hosts.path / "here.json"
    other = {**entry("other"), "source": "host1"}
    # It writes as soon as this one has read the file.
    hosts.answers["host1"]["container_migrate"][0] = {
        **hosts.answers["host1"]["container_migrate"][0], "write": {"path": str(path), "text": json.dumps([other])}
    }  # fmt: skip
    hosts.playbook("evacuate", host="host1", record_file="here.json")
    assert written(path) == ["other", "c", "g"]
