# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who has a workload, by what this host knows and by what its peers say."""

from __future__ import annotations

import io
import json
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._core import paths
from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import HostError, InputError
from ansible_collections.cnvm.platform.plugins.module_utils._core.runner import CommandResult
from ansible_collections.cnvm.platform.plugins.module_utils._host import placement
from ansible_collections.cnvm.platform.plugins.module_utils._host.system import Host

OVERLAY: dict[str, t.Any] = {
    "subnet": "10.0.0.0/24",
    "gateway": "10.0.0.254",
    "bridge": "cnvm0",
    "mtu": 1400,
    "self": {"name": "host1", "address": "10.0.0.1"},
    "peers": [
        {"name": "host2", "tunnel": "10.1.0.2", "address": "10.0.0.2"},
        {"name": "host3", "tunnel": "10.1.0.3", "address": "10.0.0.3"},
    ],
}
HERE = {"here": True, "claim": False, "address": "10.0.0.20"}


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host with an identity and nothing on it."""
    monkeypatch.setattr(paths, "WORKLOADS", str(tmp_path / "workloads"))
    monkeypatch.setattr(paths, "HOST_FILE", str(tmp_path / "host.json"))
    monkeypatch.setattr(paths, "OVERLAY_FILE", str(tmp_path / "overlay.json"))
    (tmp_path / "host.json").write_text('{"host_id": "me", "name": "host1"}')
    (tmp_path / "overlay.json").write_text(json.dumps(OVERLAY))
    return tmp_path


def record(state: Path, name: str, owner: str = "me", **fields: t.Any) -> None:
    place = state / "workloads" / name
    place.mkdir(parents=True)
    values = {"owner": owner, "owner_name": {"me": "host1"}.get(owner, owner), "generation": 3, "uuid": "u", **fields}
    (place / "owner.json").write_text(json.dumps(values))
    (place / "definition.json").write_text('{"address": "10.0.0.20"}')


def test_local_placement(state: Path) -> None:
    record(state, "mine")
    record(state, "given", "host2")
    record(state, "coming", claim=True)
    (state / "workloads/empty").mkdir()
    (state / "workloads/mine/move.json").write_text("{}")
    found = placement.local_placement()
    assert (found["host_id"], found["name"]) == ("me", "host1")
    assert sorted(found["workloads"]) == ["coming", "given", "mine"]
    mine, given, coming = (found["workloads"][name] for name in ("mine", "given", "coming"))
    assert (mine["here"], mine["address"], mine["moving"], mine["generation"]) == (True, "10.0.0.20", True, 3)
    assert (given["here"], given["address"], given["owner_name"]) == (False, "", "host2")
    assert coming["claim"] is True


def test_the_cards_of_a_guest_are_told(state: Path) -> None:
    """Of one that is this host's, and of one that is just being made."""
    card = {"mac": "52:54:00:00:00:77", "type": "network"}
    for name, owner in (("mine", "me"), ("given", "host2")):
        record(state, name, owner, kind="guest")
        (state / f"workloads/{name}/definition.json").write_text(json.dumps({"networks": [card]}))
    record(state, "coming", claim=True, macs=["52:54:00:00:00:78"])
    found = placement.local_placement()["workloads"]
    macs = {name: one["macs"] for name, one in found.items()}
    assert macs == {"mine": ["52:54:00:00:00:77"], "given": [], "coming": ["52:54:00:00:00:78"]}


def peers(answers: t.Mapping[str, t.Any]) -> Host:
    """A host whose SSH gives these answers."""

    def run(argv: t.Sequence[str], **kwargs: t.Any) -> CommandResult:
        assert argv[0] == "ssh"
        assert "StrictHostKeyChecking=no" not in argv
        answer = answers[argv[-2]]
        if isinstance(answer, int):
            return CommandResult(tuple(argv), answer, stderr="ssh: connect: refused\n")
        return CommandResult(tuple(argv), 0, stdout=answer if isinstance(answer, str) else json.dumps(answer))

    return Host(run=run)


def test_all_peers_are_asked() -> None:
    found = placement.ask_peers(peers({"host2": {"workloads": {"web": HERE}}, "host3": 255}), OVERLAY)
    assert found["host2"] == {"ok": True, "workloads": {"web": HERE}, "host_id": None}
    assert found["host3"] == {"ok": False, "error": "ssh: connect: refused (code 255)"}


@pytest.mark.parametrize(
    "answer",
    [
        "", "not JSON", "[]", "{}", '{"workloads": []}', "[" * 100_000, '{"workloads": {"web": "here"}}',
        '{"workloads": {"web": {"here": true, "generation": "new"}}}',
    ],
)  # fmt: skip
def test_nonsense_is_no_answer(answer: str) -> None:
    found = placement.ask_peers(peers({"host2": answer, "host3": {"workloads": {}}}), OVERLAY)
    assert (found["host2"]["ok"], found["host3"]["ok"]) == (False, True)


def test_the_helper_asks_for_the_module() -> None:
    said = {"peers": {"host2": {"ok": True, "workloads": {}}}}

    def run(argv: t.Sequence[str], **kwargs: t.Any) -> CommandResult:
        return CommandResult(tuple(argv), 0, stdout=json.dumps(said))

    assert placement.ask(Host(run=run), OVERLAY) == said["peers"]
    with pytest.raises(HostError, match="host_bootstrap"):
        placement.ask(Host(run=lambda argv, **kwargs: CommandResult(tuple(argv), 0, stdout="x")), OVERLAY)


def test_the_command(state: Path) -> None:
    record(state, "mine")
    out = io.BytesIO()
    host = Host(run=peers({"host2": {"workloads": {}}, "host3": 1}).run, stdout=out)
    assert placement.commands()["placement"]([], host) == 0
    assert placement.commands()["placement"](["ask"], host) == 0
    local, asked = (json.loads(line) for line in out.getvalue().splitlines())
    assert list(local["workloads"]) == ["mine"]
    assert sorted(asked["peers"]) == ["host2", "host3"]
    with pytest.raises(InputError, match="Usage"):
        placement.commands()["placement"](["tell"], host)
