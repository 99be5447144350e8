# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A guest, and a fourth host of an older Debian: its QEMU is older, its libvirt, and so is what its CPUs can do."""

from __future__ import annotations

import contextlib
import json
import typing as t

import pytest

from ansible_collections.cnvm.platform.tests.integration.conftest import GUEST_PACKAGES
from ansible_collections.cnvm.platform.tests.integration.guest import Guest
from ansible_collections.cnvm.platform.tests.integration.hosts import HERE, SET, Fleet, Host, playbook

NAME = "host4"
# Parts of other packages there.
NOT_YET = ("libvirt-daemon-driver-storage-logical", "virtiofsd", "glusterfs-server")
# An older QEMU does not emulate it.
FEATURE = "sha-ni"


@pytest.fixture(scope="module")
def older(fleet: Fleet) -> Host:
    """The host, one of the overlay. It stays until the others go: without a word of it nobody starts a guest."""
    asked = {
        "local_hosts_set": SET,
        "cnvm_local_hosts": [{"name": NAME}],
        "local_hosts_suite": "bookworm",
        "local_hosts_flavour": "bare",
        "local_hosts_packages": [name for name in GUEST_PACKAGES if name not in NOT_YET],
    }
    playbook(str(HERE / "playbooks/local_hosts.yml"), "-e", json.dumps(asked))
    playbook(str(HERE / "playbooks/older_host.yml"), "-e", f"older={NAME}")
    fleet.hosts = Fleet((*fleet.hosts, NAME)).hosts
    return fleet[NAME]


@contextlib.contextmanager
def deployed(guest: Guest) -> t.Iterator[None]:
    """It runs on its first host."""
    guest.deploy()
    guest.watch()
    try:
        yield
    finally:
        guest.dismiss()
        guest.remove()


def test_all_that_it_lacks_is_told_at_once(fleet: Fleet, older: Host) -> None:
    """In check mode. One that is off needs no QEMU that takes its memory, nor, without KVM, a CPU."""
    more = {"cpu": {"model": "qemu64", "features": [{"name": FEATURE}]}}
    guest = Guest(fleet, "newer", "10.100.101.124", more=more, movers=("host1", NAME))
    command = ("cnvm.platform.migrate", "-e", f"guest={guest.name}", "-e", f"target={NAME}", "--check")
    with deployed(guest):
        home = guest.source()
        said = playbook(*command, check=False).stdout
        guest.check(home, [home])
        home.run("virsh", "destroy", guest.name)
        then = playbook(*command, check=False).stdout
        guest.settle(home, running=False)
    machine = f"machine: the QEMU of {NAME} has no machine pc-q35-"
    for word in (machine, f"cpu: {NAME} cannot give {guest.name} its CPU: ", FEATURE, f"QEMU: {NAME} has 7.2."):
        assert word in said, said
    assert machine in then, then
    assert "cpu: " not in then, then
    assert "QEMU: " not in then, then


def test_off_from_it_and_back(fleet: Fleet, older: Host) -> None:
    """One that it has made runs on a newer host, whose libvirt adds to what it has, and on the older one again.

    While it runs it does not come back. Nor does it leave while it runs, here: the memory of one that is emulated may
    arrive damaged from QEMU 7.2, when the machine is busy.
    """
    guest = Guest(fleet, "elder", "10.100.101.125", movers=(NAME, "host1"))
    away = guest.other(older)

    def moves_off(home: Host) -> None:
        home.run("virsh", "destroy", guest.name)
        held = guest.content(home)
        move = guest.start(home)
        result = move.result()
        assert (result["outcome"], result["mode"]) == ("target", "offline"), result
        guest.settle(move.target, running=False)
        assert guest.content(move.target) == held
        guest.starts_on(move.target)

    with deployed(guest):
        moves_off(older)
        result = guest.start(away).result()
        assert (result["outcome"], result["failed_phase"]) == ("source", "preflight"), result
        assert f"QEMU: {NAME} has 7.2." in result["error"], result
        guest.begins_anew(away, [older, away])
        moves_off(away)
        guest.begins_anew(older, [older, away, older])
