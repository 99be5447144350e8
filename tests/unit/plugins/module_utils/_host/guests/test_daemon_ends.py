# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""libvirt's daemon ends in the middle."""

from __future__ import annotations

import contextlib
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import HostError
from ansible_collections.cnvm.platform.plugins.module_utils._libvirt import domain, errors

from ..fake_domains import FakeConnection, FakeError
from .bring import MORE, WEB, Steps, bring, foreign, one

RPC = FakeError(errors.RPC, "Cannot recv data: Connection reset by peer")


@pytest.fixture
def dies(connection: FakeConnection, monkeypatch: pytest.MonkeyPatch) -> t.Callable[..., t.Any]:
    """The daemon ends as it is told to define a guest, before or after it has written it down. It is there again for
    the next run."""
    define = connection.defineXML

    @contextlib.contextmanager
    def within(*, written: bool) -> t.Iterator[None]:
        def refuse(*args: t.Any) -> t.NoReturn:
            raise RPC

        with monkeypatch.context() as patch:

            def end(text: str) -> t.NoReturn:
                if written:
                    define(text)
                for name in ("lookupByName", "listAllDomains", "getAllDomainStats"):
                    patch.setattr(connection, name, refuse)
                raise RPC

            patch.setattr(connection, "defineXML", end)
            with pytest.raises(HostError, match=r"define the guest '.*': Cannot recv data") as caught:
                yield
        assert "the next run goes on from there" in str(caught.value)

    return within


@pytest.mark.parametrize("written", [False, True])
@pytest.mark.parametrize("again", ["the same", "absent"])
def test_a_creation_during_which_the_daemon_ends_is_made_again(
    steps: Steps, dies: t.Callable[..., t.Any], written: bool, again: str
) -> None:
    bring(steps.guest)
    whole = steps.seen()
    bring(steps.absent)
    with dies(written=written):
        bring(steps.guest)
    assert (steps.place / "pool/web-vdb.qcow2").exists()
    if again == "the same":
        bring(steps.guest)
        assert steps.seen() == whole
    bring(steps.absent)
    steps.gone()


@pytest.mark.parametrize("written", [False, True])
@pytest.mark.parametrize("adopt", [False, True])
def test_a_change_during_which_the_daemon_ends_is_finished(
    connection: FakeConnection, place: Path, dies: t.Callable[..., t.Any], written: bool, adopt: bool
) -> None:
    if adopt:
        foreign(connection)
    else:
        bring({**WEB, "name": "old", "state": "stopped", "disks": []})
    wanted = {**MORE, "name": "old", "machine": "pc" if adopt else "q35"}
    with dies(written=written):
        bring(wanted, adopt=adopt)
    made = [place / f"workloads/old/disks/{name}.qcow2" for name in ("vda", "vdb")]
    assert all(path.exists() for path in made)
    assert len(domain.parse(t.cast("t.Any", connection.domains["old"].stored))["disks"]) == (2 if written else 0)
    uuid = domain.parse(t.cast("t.Any", connection.domains["old"].stored))["uuid"]
    bring(wanted, adopt=adopt)
    assert domain.parse(t.cast("t.Any", connection.domains["old"].stored))["uuid"] == uuid
    assert not bring(wanted)["changed"]
    assert not (place / "workloads/old/making.json").exists()
    assert one({"name": "old", "state": "absent", "delete_disks": True})["kept_disks"] == []
    assert not any(path.exists() for path in made)


def test_what_a_guest_has_is_not_removed_with_a_change_that_failed(
    connection: FakeConnection, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libvirt may have taken it, and have failed as it was asked for something else."""
    bring({**WEB, "state": "stopped"})
    define = connection.defineXML

    def fail(text: str) -> t.NoReturn:
        define(text)
        raise FakeError(errors.INTERNAL_ERROR, "no event")

    with monkeypatch.context() as patch:
        patch.setattr(connection, "defineXML", fail)
        with pytest.raises(HostError, match="no event"):
            bring(MORE)
    assert (place / "workloads/web/disks/vdb.qcow2").exists()
    bring(MORE)
    assert not bring(MORE)["changed"]
    assert one({"name": "web", "state": "absent", "delete_disks": True})["kept_disks"] == []
