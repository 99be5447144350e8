# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Input that must be refused: the error names the option, and nothing is changed. Strings of a survey are numbers."""

from __future__ import annotations

import json
import typing as t

import pytest

from ansible_collections.cnvm.platform.tests.integration.hosts import HERE, App, playbook

NAMES = ["a/b", "../etc/x", "..", "", "a b", "-rf", "x" * 300, "é", "a\nb", "$(reboot)"]


def refused_moves() -> list[tuple[str, dict[str, t.Any], str]]:
    """What is asked for, and the option that the answer names."""
    wrong_names = [(f"container {name[:9]!r}", {"container": name}, "container") for name in NAMES]
    wrong_targets = [(f"target {name[:9]!r}", {"target": name}, "target") for name in NAMES]
    return [
        *wrong_names,
        *wrong_targets,
        ("target is no host", {"target": "host9"}, "target"),
        ("container is none", {"container": "nobody"}, "container"),
        ("mode", {"mode": "fast"}, "mode"),
        ("mode null", {"mode": None}, "mode"),
        ("boolean", {"allow_post_copy": "perhaps"}, "allow_post_copy"),
        ("number true", {"timeout_s": True}, "timeout_s"),
        ("number 1e3", {"timeout_s": "1e3"}, "timeout_s"),
        ("number 1_000", {"max_downtime_ms": "1_000"}, "max_downtime_ms"),
        ("number negative", {"max_downtime_ms": "-1"}, "max_downtime_ms"),
        ("number arabic", {"max_downtime_ms": "٣"}, "max_downtime_ms"),
        ("unknown key", {"speed": "high"}, "speed"),
    ]


@pytest.mark.parametrize(("given", "option"), [pytest.param(g, o, id=i) for i, g, o in refused_moves()])
def test_move(deployed: App, given: dict, option: str) -> None:
    """The helper itself, which trusts nobody."""
    source = deployed.source()
    request = {"container": deployed.name, "target": deployed.fleet.other(source).name, **given}
    said = source.helper("move", "start", json.dumps(request), check=False)
    assert option in said.get("failed", ""), said
    assert "Traceback" not in said["failed"]
    assert not deployed.remains(source, owner=source)


def test_move_to_itself(app: App) -> None:
    """It is there already."""
    source = app.source()
    said = source.helper("move", "start", json.dumps({"container": app.name, "target": source.name}), check=False)
    assert "target" in said["failed"]


def test_max_downtime(app: App) -> None:
    """A move that would take longer is refused before anything is frozen; numbers may be strings."""
    source = app.source()
    result = app.start(source=source, max_downtime_ms="1", timeout_s="600").result()
    assert result["outcome"] == "source"
    assert "max_downtime_ms" in result["error"]
    app.check(source, moves=0)


def container(**keys: t.Any) -> dict[str, t.Any]:
    """An item of the module container."""
    return {"name": "bad", "image": "python", "address": "10.100.101.120", **keys}


REFUSED = {
    "address outside": (container(address="10.9.9.9"), "address"),
    "address of the gateway": (container(address="10.100.101.254"), "address"),
    "address taken": (container(address="10.100.101.111"), "address"),
    "unknown key": (container(adress="10.100.101.121"), "adress"),
    "memory": (container(memory_mib="12e3"), "memory_mib"),
    "port taken": (container(ports=["8080:80"]), "port"),
    "image": (container(image="nothing"), "image"),
    **{f"name {name[:9]!r}": (container(name=name), "name") for name in NAMES},
}


def test_container(app: App) -> None:
    """One play tries them all, on the host that has the container of these tests."""
    source = app.source()
    before = source.sh("ls /var/lib/cnvm/workloads")
    items = [item for item, dummy in REFUSED.values()]
    done = playbook(
        str(HERE / "playbooks/refused.yml"), "-e", json.dumps({"wrong": items, "where": source.name}), check=False
    )
    said = {line.split("|", 2)[1]: line for line in done.stdout.replace('"', "").splitlines() if "SAID|" in line}
    for number, (what, (dummy, option)) in enumerate(REFUSED.items()):
        assert option in said.get(str(number), ""), (what, said.get(str(number)), done.stdout[-3000:])
    assert source.sh("ls /var/lib/cnvm/workloads") == before
    app.check(source, moves=0)
