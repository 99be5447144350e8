# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Three hosts for all tests, and a container that each test finds running with a client on it."""

from __future__ import annotations

import fcntl
import json
import os
import typing as t
from pathlib import Path

import pytest
import yaml

from ansible_collections.cnvm.platform.plugins.module_utils._core.local_hosts import debian_mirror
from ansible_collections.cnvm.platform.tests.dev import SUDO
from ansible_collections.cnvm.platform.tests.integration.guest import Guest
from ansible_collections.cnvm.platform.tests.integration.hosts import (
    ACCESS,
    HERE,
    NAMES,
    SET,
    App,
    Fleet,
    playbook,
    run,
)

ROOT = HERE.parents[1]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cnvm-platform/integration"
PACKAGES = "python3-minimal"
SOURCES = (".list", ".sources")
# What guests need, as in the scenario guests, with which the hosts share their base.
GUEST_PACKAGES = yaml.safe_load((ROOT / "extensions/molecule/guests/molecule.yml").read_text(encoding="utf-8"))[
    "provisioner"
]["inventory"]["hosts"]["all"]["vars"]["local_hosts_packages"]
READY = ACCESS / "ready"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--keep-hosts", action="store_true", help="leave the hosts up, and take those that an earlier run left"
    )


def root_file_system() -> Path:
    """A small Debian with Python, made once."""
    CACHE.mkdir(parents=True, exist_ok=True)
    path, new = CACHE / "rootfs.tar", CACHE / "rootfs.new.tar"
    with open(CACHE / "rootfs.lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            texts = {str(file): file.read_text() for file in Path("/etc/apt").glob("**/*") if file.suffix in SOURCES}
            mirror = debian_mirror(texts, "\nID=debian\n" in "\n" + Path("/etc/os-release").read_text())
            options = ["--quiet", "--variant=minbase", f"--include={PACKAGES}"]
            run([*SUDO, "mmdebstrap", *options, "trixie", str(new), mirror], seconds=900)
            new.replace(path)
    return path


def absent() -> None:
    """No hosts of ours, also none of a run that was cut off."""
    READY.unlink(missing_ok=True)
    playbook(
        str(HERE / "playbooks/local_hosts.yml"),
        "-e",
        json.dumps({"local_hosts_set": SET, "local_hosts_state": "absent"}),
    )


@pytest.fixture(scope="session")
def fleet(request: pytest.FixtureRequest) -> t.Iterator[Fleet]:
    """The hosts, ready for containers; the first one has the image."""
    keep = request.config.getoption("--keep-hosts")
    if not keep:
        absent()
    hosts = {
        "cnvm_local_hosts": [{"name": name} for name in NAMES],
        "local_hosts_set": SET,
        "local_hosts_packages": GUEST_PACKAGES,
    }
    try:
        if not (keep and READY.exists()):
            playbook(str(HERE / "playbooks/local_hosts.yml"), "-e", json.dumps(hosts))
            playbook(str(HERE / "playbooks/site.yml"), "-e", f"rootfs={root_file_system()}")
            READY.touch()
        yield Fleet()
    finally:
        if not keep:
            absent()


@pytest.fixture(scope="session")
def deployed(fleet: Fleet) -> App:
    """The container, started."""
    app = App(fleet)
    app.deploy()
    return app


@pytest.fixture
def app(deployed: App) -> t.Iterator[App]:
    """The container as a test finds it: somewhere, whole, with a client; anew if the last test broke it."""
    try:
        deployed.settle(deployed.source())
        deployed.watch()
    except (AssertionError, ValueError, KeyError):
        deployed.dismiss()
        deployed.fleet.change(**{host.name: {"state": "present"} for host in deployed.movers})
        deployed.deploy()
        deployed.watch()
    yield deployed
    deployed.dismiss()


@pytest.fixture(scope="session")
def deployed_guest(fleet: Fleet) -> Guest:
    """The guest, started."""
    guest = Guest(fleet)
    guest.deploy()
    return guest


@pytest.fixture
def guest(deployed_guest: Guest) -> t.Iterator[Guest]:
    """The guest as a test finds it: somewhere, running, with a client; anew if the last test broke it."""
    try:
        deployed_guest.settle(deployed_guest.source())
        deployed_guest.watch()
    except (AssertionError, ValueError, KeyError):
        deployed_guest.dismiss()
        deployed_guest.fleet.change(**{host.name: {"state": "present"} for host in deployed_guest.movers})
        deployed_guest.deploy()
        deployed_guest.watch()
    yield deployed_guest
    deployed_guest.dismiss()
