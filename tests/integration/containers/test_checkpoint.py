# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The container is saved into a file and goes on from it, with its client; what is damaged changes nothing."""

from __future__ import annotations

import typing as t

from ansible_collections.cnvm.platform.tests.integration.hosts import App, call

DIRECTORY = "/var/lib/cnvm/itest-checkpoints"
PATH = f"{DIRECTORY}/app.tar.zst"


def save(app: App, **args: t.Any) -> dict[str, t.Any]:
    result = call(app.source(), "container_checkpoint", container=app.name, path=PATH, **{"force": True, **args})
    assert "checkpoint" in result, result
    return result


def test_it_goes_on_while_it_is_saved(app: App) -> None:
    home = app.source()
    home.sh(f"rm -rf {DIRECTORY}")
    assert save(app, force=False)["changed"]
    assert home.sh(f"stat -c %a {DIRECTORY} {PATH}").split() == ["700", "600"]
    assert home.sh(f"ls {DIRECTORY}").split() == ["app.tar.zst"]
    assert not save(app, force=False)["changed"]
    app.check(home, moves=0)


def test_it_is_put_aside_and_goes_on(app: App) -> None:
    home = app.source()
    save(app, leave_running=False)
    assert home.run("systemctl", "is-active", f"cnvm-container@{app.name}", check=False).stdout.strip() == "inactive"
    assert call(home, "container_restore", path=PATH)["changed"]
    # Another set of namespaces, the same processes: the client's connection lives on.
    app.check(home, moves=1)


def test_it_is_refused_while_the_container_runs(app: App) -> None:
    home = app.source()
    save(app)
    assert "runs on this host" in call(home, "container_restore", path=PATH)["msg"]
    away = app.move()
    assert "is not on" in call(home, "container_restore", path=PATH)["msg"]
    app.check(away, moves=1)


def test_damage_is_refused_and_changes_nothing(app: App) -> None:
    home = app.source()
    save(app, leave_running=False)
    damaged = f"{DIRECTORY}/damaged.tar.zst"
    plain = f"{DIRECTORY}/plain"
    home.sh(f"zstd -dqc {PATH} > {plain}")
    size = int(home.sh(f"stat -c %s {plain}"))
    before = home.sh(f"cd /var/lib/cnvm/workloads/{app.name}; find . | sort; cat owner.json")
    for spoil in (
        f"printf X | dd of={plain} bs=1 seek={size * 2 // 3} conv=notrunc status=none",
        f"truncate -s {size // 2} {plain}",
        f": > {plain}",
    ):
        home.sh(f"{spoil}; zstd -qf {plain} -o {damaged}")
        result = call(home, "container_restore", path=damaged, container=app.name)
        assert "error" in result, result
        assert result["error"] == "InputError"
    assert home.sh(f"cd /var/lib/cnvm/workloads/{app.name}; find . | sort; cat owner.json") == before
    assert call(home, "container_restore", path=PATH)["changed"]
    app.check(home, moves=1)


def test_a_full_disk_leaves_the_container_as_it_is(app: App) -> None:
    home = app.source()
    home.sh(f"mkdir -p {DIRECTORY}/full; mount -t tmpfs -o size=64k none {DIRECTORY}/full")
    try:
        path = f"{DIRECTORY}/full/app.tar.zst"
        for leave_running in (True, False):
            result = call(home, "container_checkpoint", container=app.name, path=path, leave_running=leave_running)
            assert "error" in result, result
            assert home.sh(f"ls {DIRECTORY}/full") == ""
        app.check(home, moves=0)
    finally:
        home.sh(f"umount {DIRECTORY}/full")
