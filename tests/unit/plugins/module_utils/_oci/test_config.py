# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""config.json as runtimes get it, and who the user in it is."""

from __future__ import annotations

import json
import typing as t

import pytest

from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import InputError
from ansible_collections.cnvm.platform.plugins.module_utils._oci import config
from ansible_collections.cnvm.platform.plugins.module_utils._oci.definition import definition_of, normalise
from ansible_collections.cnvm.platform.plugins.module_utils._oci.users import Account, find_account

PROCESS = {"args": ["/init"], "env": ["PATH=/bin", "LANG=C.UTF-8"], "cwd": "/srv"}
PASSWD = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:33::/var/www:/bin/false\nbad line\nodd:x:5:x::home:\n"
GROUP = "root:x:0:\nweb:x:33:\nlog:x:4:web,other\nssl:x:99:web\n"


def built(process: t.Optional[t.Mapping[str, t.Any]] = None, **values: t.Any) -> dict[str, t.Any]:
    process = PROCESS if process is None else process
    item = normalise({"name": "web", "image": "cnvm", **values})
    return config.build(definition_of(item, "u", "d", "cnvm"), process, uid=0, gid=0, home="/root")


def test_the_image_gives_the_process() -> None:
    process = built()["process"]
    assert process["args"] == ["/init"]
    assert process["cwd"] == "/srv"
    assert process["env"] == ["HOME=/root", "LANG=C.UTF-8", "PATH=/bin"]


def test_the_definition_goes_over_the_image() -> None:
    process = built(command=["sleep", "5"], cwd="/tmp", env={"LANG": "de", "A": "1"})["process"]
    assert process["args"] == ["sleep", "5"]
    assert process["cwd"] == "/tmp"
    assert process["env"] == ["A=1", "HOME=/root", "LANG=de", "PATH=/bin"]


def test_no_command_at_all() -> None:
    with pytest.raises(InputError, match="names no command"):
        built({})


def test_nothing_of_the_host_is_shared() -> None:
    made = built()
    assert {space["type"] for space in made["linux"]["namespaces"]} == {"pid", "ipc", "uts", "mount", "network"}
    assert [space["path"] for space in made["linux"]["namespaces"] if "path" in space] == ["/run/netns/cnvm-web"]
    assert made["linux"]["resources"]["devices"] == [{"allow": False, "access": "rwm"}]
    assert all(mount["type"] != "bind" for mount in made["mounts"])
    assert "hooks" not in made
    assert made["process"]["noNewPrivileges"] is True
    assert made["process"]["terminal"] is False
    assert not set(made["process"]["capabilities"]["bounding"]) & set(config.HOST_CAPABILITIES)


def test_a_user_starts_without_capabilities() -> None:
    item = definition_of(normalise({"name": "web", "image": "x"}), "u", "d", "")
    caps = config.build(item, PROCESS, uid=33, gid=33)["process"]["capabilities"]
    assert caps["effective"] == caps["permitted"] == []
    assert caps["bounding"]


def test_capabilities() -> None:
    caps = built(capabilities_add=["NET_ADMIN"], capabilities_drop=["NET_RAW"])["process"]["capabilities"]["bounding"]
    assert "CAP_NET_ADMIN" in caps
    assert "CAP_NET_RAW" not in caps


def test_limits() -> None:
    made = built(memory_mib=64, cpus="1.5", pids_limit=100)["linux"]["resources"]
    assert made["memory"] == {"limit": 64 * 2**20}
    assert made["cpu"] == {"period": 100000, "quota": 150000}
    assert made["pids"] == {"limit": 100}
    assert set(built()["linux"]["resources"]) == {"devices"}


def test_mounts_come_after_ours_and_parents_first() -> None:
    mounts = [
        {"destination": "/a/b", "source": "/x", "read_only": True},
        {"destination": "/a", "type": "tmpfs", "size_mib": 4},
    ]
    made = built(mounts=mounts)["mounts"]
    assert [mount["destination"] for mount in made][-2:] == ["/a", "/a/b"]
    assert {"ro", "nosuid", "nodev"} <= set(made[-1]["options"])
    assert "size=4m" in made[-2]["options"]


def test_seccomp() -> None:
    profile = built()["linux"]["seccomp"]
    denied = {name for rule in profile["syscalls"] for name in rule["names"] if "args" not in rule}
    assert {"mount", "setns", "unshare", "bpf", "keyctl", "io_uring_setup", "kexec_load", "init_module"} <= denied
    assert not denied & {"clone", "execve", "openat", "ptrace", "prlimit64", "rseq", "futex", "memfd_create"}
    assert "seccomp" not in built(seccomp="unconfined")["linux"]


def test_seccomp_refuses_each_flag_that_makes_a_namespace() -> None:
    rules = [rule["args"][0] for rule in config.seccomp_profile("x86_64")["syscalls"] if "args" in rule]
    assert {rule["value"] for rule in rules} == {1 << shift for shift in (17, 25, 26, 27, 28, 29, 30)}
    assert all(rule["value"] == rule["valueTwo"] and rule["op"] == "SCMP_CMP_MASKED_EQ" for rule in rules)
    assert {rule["index"] for rule in rules} == {0}
    assert config.seccomp_profile("s390x")["syscalls"][-1]["args"][0]["index"] == 1


def test_the_same_definition_gives_the_same_text() -> None:
    assert json.dumps(built(env={"B": "1", "A": "2"})) == json.dumps(built(env={"A": "2", "B": "1"}))


@pytest.mark.parametrize(
    ("user", "account"),
    [
        ("", Account(0, 0, (), "/root")),
        ("root", Account(0, 0, (), "/root")),
        ("web", Account(33, 33, (4, 99), "/var/www")),
        ("33", Account(33, 33, (4, 99), "/var/www")),
        ("web:log", Account(33, 4, (), "/var/www")),
        ("web:5", Account(33, 5, (), "/var/www")),
        ("1000", Account(1000, 0, (), "/")),
        ("1000:1001", Account(1000, 1001, (), "/")),
        ("odd", Account(5, 0, (), "/")),
    ],
)
def test_accounts(user: str, account: Account) -> None:
    assert find_account(user, PASSWD, GROUP) == account


@pytest.mark.parametrize("user", ["nobody", "web:none", "4294967295", "-1", "web:4294967295", "٣", "9" * 5000])
def test_accounts_that_do_not_exist(user: str) -> None:
    with pytest.raises(InputError, match="option: the image has no"):
        find_account(user, PASSWD, GROUP, "option")
