# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""config.json from outside."""

from __future__ import annotations

import copy
import json
import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import InputError
from ansible_collections.cnvm.platform.plugins.module_utils._oci import bundle

# As `runc spec` makes it, shortened.
GOOD: dict[str, t.Any] = {
    "ociVersion": "1.2.1",
    "process": {
        "terminal": True,
        "user": {"uid": 0, "gid": 0},
        "args": ["sh"],
        "env": ["PATH=/bin", "TERM=xterm"],
        "cwd": "/",
        "capabilities": {"bounding": ["CAP_KILL"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"]},
        "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
        "noNewPrivileges": True,
    },
    "root": {"path": "rootfs", "readonly": True},
    "hostname": "runc",
    "mounts": [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid"]},
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup"},
    ],
    "linux": {
        "resources": {"devices": [{"allow": False, "access": "rwm"}]},
        "namespaces": [{"type": "pid"}, {"type": "network"}, {"type": "mount"}],
        "maskedPaths": ["/proc/kcore"],
    },
}


def each(key: str, *values: t.Any) -> list[tuple[str, t.Any]]:
    """Cases with the same key."""
    return [(key, value) for value in values]


def each_listed(key: str, *values: t.Any) -> list[tuple[str, t.Any]]:
    """Cases with the same key and lists of one value."""
    return [(key, [value]) for value in values]


def changed(path: str, value: object) -> dict[str, t.Any]:
    made = copy.deepcopy(GOOD)
    at: t.Any = made
    *parents, last = path.split(".")
    for name in parents:
        at = at.setdefault(name, {})
    at[last] = value
    return made


def test_what_runc_makes_is_taken() -> None:
    process, left_out = bundle.check(bundle.parse(json.dumps(GOOD).encode()))
    assert process == bundle.Process(args=("sh",), env=("PATH=/bin", "TERM=xterm"))
    assert "process.terminal" in left_out


def test_user_and_login_user() -> None:
    made = changed("process.user", {"uid": 33, "gid": 4, "additionalGids": [5]})
    made["annotations"] = {bundle.LOGIN_USER: "cnvm", "org.example.anything": "x"}
    process, _left_out = bundle.check(made)
    assert (process.user, process.login_user) == ("33:4", "cnvm")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b"[]", "no object"),
        (b"\xef\xbb\xbf{}", "byte order mark"),
        (b'{"a": 1, "a": 2}', "twice"),
        (b'{"x": {"hooks": 1, "hooks": 2}}', "twice"),
        (b"\xff\xfe", "no JSON"),
        (b" " * (bundle.MOST_BYTES + 1), "bytes"),
        (b"[" * 100_000, "no JSON"),
        (b'{"a": ' * 100_000, "no JSON"),
    ],
)
def test_text_that_is_no_good(data: bytes, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        bundle.parse(data)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        *each("ociVersion", None, "", "2.0.0", "1.4.0", "1.3.0-dev", "1.0", 1, "1.\u0660.0", "1." + "9" * 5000 + ".0"),
        *each("root", None, {}, {"path": "/"}, {"path": "../rootfs"}, {"path": "/rootfs"}, "rootfs"),
        *each("process.args", None, [], "sh", [""], ["a\0"], [1]),
        *each("process.cwd", None, "", "x", "/a/../..", "/proc/self/fd/7", "//proc/self/fd/7", 1, "/a\0"),
        *each("process.env", "A=1", ["A"], ["=1"], [1], ["A=\0"]),
        *each("process.user", {"uid": -1}, {"uid": 2**32 - 1}, {"uid": "root"}, {"uid": True}, {"gid": 1.5}, []),
        *each(
            "process.rlimits",
            [{"type": "RLIMIT_NOFILE", "soft": 2, "hard": 1}],
            [{"type": "RLIMIT_X", "soft": 1, "hard": 1}],
            [{"type": ["RLIMIT_CPU"], "soft": 1, "hard": 1}],
            [{"type": "RLIMIT_CPU", "soft": 1, "hard": 1}] * 2,
            [1],
            [{"type": "RLIMIT_CPU", "soft": "1", "hard": "2"}],
        ),
        *each(
            "process.capabilities",
            {"bounding": ["CAP_ROOT"]},
            {"other": []},
            {"ambient": ["CAP_KILL"]},
            {"bounding": "CAP_KILL"},
        ),
        *each_listed(
            "mounts",
            {"destination": "x", "type": "tmpfs"},
            {"destination": "/x", "type": "nfs"},
            {"destination": "/proc", "type": "tmpfs"},
            {"destination": "/proc/sys", "type": "tmpfs"},
            {"destination": "/a/../proc", "type": "tmpfs"},
            "x",
            {"type": "tmpfs"},
        ),
        *each_listed("linux.namespaces", {"type": "user"}, {"type": "x"}, {}, "pid"),
        ("hooks", {"afterlife": []}),
        ("hooks", []),
        ("annotations", {"a": 1}),
    ],
)
def test_what_breaks_the_rules(path: str, value: object) -> None:
    with pytest.raises(InputError, match=r"^config\.json: ") as caught:
        bundle.check(changed(path, value), drop=True)
    assert path.split(".")[-1] in caught.value.message or path in caught.value.message


WANTS_THE_HOST: list[tuple[str, t.Any]] = [
    *(("hooks", {name: [{"path": "/bin/sh"}]}) for name in ("prestart", "createRuntime", "startContainer", "poststop")),
    *(
        ("annotations", {name: "x"})
        for name in ("org.criu.config", "run.oci.handler", "org.systemd.property.ExecStart")
    ),
    ("mounts", [{"destination": "/x", "type": "bind", "source": "/etc", "options": ["rbind"]}]),
    ("mounts", [{"destination": "/x", "type": "none", "source": "/etc", "options": ["bind"]}]),
    ("linux.devices", [{"path": "/dev/sda", "type": "b", "major": 8, "minor": 0}]),
    ("linux.resources", {"devices": [{"allow": True, "access": "rwm"}]}),
    ("linux.resources", {"devices": [{"allow": True, "type": "b", "major": 8, "access": "rwm"}]}),
    ("linux.namespaces", [{"type": "network", "path": "/proc/1/ns/net"}]),
]


@pytest.mark.parametrize(("path", "value"), WANTS_THE_HOST)
def test_what_wants_something_of_the_host(path: str, value: object) -> None:
    with pytest.raises(InputError, match="foreign_settings"):
        bundle.check(changed(path, value))
    process, left_out = bundle.check(changed(path, value), drop=True)
    assert process.args == ("sh",)
    assert any(path.split(".")[0] in one for one in left_out)


def test_what_is_made_is_taken_back_as_it_was() -> None:
    process = bundle.Process(
        args=("/init", "x"), env=("LANG=C", "PATH=/bin"), cwd="/srv", user="33:4", login_user="cnvm"
    )
    made = bundle.bundle_config(process, uid=33, gid=4, machine="x86_64")
    again, _left_out = bundle.check(bundle.parse(json.dumps(made).encode()))
    assert again == process


def test_override() -> None:
    process = bundle.Process(args=("a",), env=("A=1", "B=2"), cwd="/x", user="5:5")
    found = bundle.override(process, {"env": {"B": "3", "C": 4}, "args": ["b"], "user": "web", "login_user": "me"})
    assert found == bundle.Process(("b",), ("A=1", "B=3", "C=4"), "/x", "web", "me")
    with pytest.raises(InputError):
        bundle.override(process, {"cwd": "relative"})
    # As in the environment of a container.
    assert bundle.override(process, {"env": {"B": None}}).env == ("A=1", "B=")
    with pytest.raises(InputError, match=r"config\.env: B: True is not text"):
        bundle.override(process, {"env": {"B": True}})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
PLACES = [
    "ociVersion",
    "root",
    "process",
    "process.args",
    "process.user",
    "process.env",
    "process.cwd",
    "process.rlimits",
    "process.capabilities",
    "mounts",
    "linux",
    "linux.namespaces",
    "linux.devices",
    "linux.resources",
    "hooks",
    "annotations",
]


@given(st.sampled_from(PLACES), JSON)
def test_whatever_stands_there_it_is_taken_or_refused(path: str, value: object) -> None:
    try:
        process, _left_out = bundle.check(changed(path, value))
    except InputError:
        return
    assert process.args
    assert process.cwd.startswith("/")
