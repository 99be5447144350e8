# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may import whom, read from the syntax tree. The rules are told in docs/development.md."""

from __future__ import annotations

import ast
import sys
import typing as t
from pathlib import Path

import pytest

PLUGINS = Path(__file__).resolve().parents[2] / "plugins"
COLLECTION = "ansible_collections.cnvm.platform.plugins."
PURE = ("_core", "_net", "_image", "_libvirt", "_oci", "_criu", "_migrate")

# What a pure room may have of the standard library: nothing that reads a clock, a file, a socket or chance.
PURE_LIBRARY = """
    __future__ abc array base64 binascii bisect collections contextlib copy dataclasses difflib email enum errno fnmatch
    functools hashlib hmac ipaddress itertools json math operator posixpath re shlex stat string struct textwrap types
    typing unicodedata uuid xml zlib
""".split()  # noqa: SIM905
PURE_NO_CALLS = frozenset(("open", "print", "input", "exec", "eval", "__import__"))


class Imported(t.NamedTuple):
    """One import: the module, from the top; relative ones are resolved against the room's place below plugins/."""

    module: str
    names: tuple[str, ...]
    guarded: bool


def place(path: Path) -> str:
    """The dotted place of a file below plugins/, without its own name."""
    return COLLECTION + ".".join(path.relative_to(PLUGINS).parent.parts)


def imports(source: str, package: str) -> t.Iterator[Imported]:
    """All imports of a file, wherever they stand. ``guarded``: in the body of a ``try`` that handles ImportError."""
    tree = ast.parse(source)
    guarded = {
        id(below)
        for node in ast.walk(tree)
        if isinstance(node, ast.Try) and any("ImportError" in ast.dump(one) for one in node.handlers)
        for statement in node.body
        for below in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Imported(alias.name, (), id(node) in guarded)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = ".".join(parts[: len(parts) + 1 - node.level]) if node.level else ""
            module = ".".join(part for part in (base, node.module or "") if part)
            yield Imported(module, tuple(alias.name for alias in node.names), id(node) in guarded)


def calls(source: str) -> set[str]:
    """The plain names that a file calls."""
    nodes = ast.walk(ast.parse(source))
    return {node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}


def room_of(module: str, names: tuple[str, ...]) -> str:
    """The room of the collection that an import leads to: '_core', '_host', '_module', 'plugin_utils', 'modules' …"""
    parts = module[len(COLLECTION) :].split(".") if module.startswith(COLLECTION) else []
    if parts and parts[0] == "module_utils":
        parts = parts[1:] or list(names)
    return parts[0] if parts else ""


def violations(room: str, source: str, package: str) -> list[str]:
    """What a file of ``room`` does that it may not."""
    found = []
    allowed: tuple[str, ...] = {
        "_core": ("_core",),
        "_host": (*PURE, "_host"),
        "_module": (*PURE, "_host"),
        "modules": (*PURE, "_host", "_module"),
        "plugin_utils": (*PURE, "plugin_utils"),
        **dict.fromkeys(PURE[1:], PURE),
    }.get(room, (*PURE, "plugin_utils"))
    for module, names, guarded in imports(source, package):
        top = module.split(".")[0]
        target = room_of(module, names)
        if module.startswith("ansible_collections."):
            if target not in allowed:
                found.append(f"imports {target or module}")
        elif top == "ansible":
            if room == "_module":
                good = module.startswith("ansible.module_utils.")
            else:
                good = room not in (*PURE, "_host", "modules")
            if not good:
                found.append(f"imports {module}")
        elif room in PURE:
            if top not in PURE_LIBRARY:
                found.append(f"imports {module}")
        elif top not in sys.stdlib_module_names and not guarded:
            found.append(f"imports {module} without a guard")
    if room in PURE:
        found += [f"calls {name}" for name in sorted(calls(source) & PURE_NO_CALLS)]
    return found


def room_of_file(path: Path) -> str:
    parts = path.relative_to(PLUGINS).with_suffix("").parts
    return parts[1] if parts[0] == "module_utils" else parts[0]


FILES = sorted(PLUGINS.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PLUGINS)))
def test_imports_of_file(path: Path) -> None:
    assert violations(room_of_file(path), path.read_text(encoding="utf-8"), place(path)) == []


# Hosts need not agree on the time, so what leads a move or decides reads no clock but ``time.monotonic``. These compare
# only what one host has written down itself.
READ_THE_TIME = {
    "_host/container_source.py": "which files of the layer are newer than its last copy",
    "_host/guest_watch.py": "which leases have ended",
    "_host/info.py": "how far the clock of this host is off, which is told",
    "_host/overlay.py": "when a peer was heard of last",
}


def reads_the_time(source: str) -> bool:
    """Whether it asks what time it is as a number to compare. A date for people to read is none (``time.gmtime``)."""
    found = {ast.unparse(node) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)}
    return bool(found & {"time.time", "time.time_ns", "datetime.now", "datetime.datetime.now", "datetime.utcnow"})


def test_who_reads_the_time() -> None:
    rooms = PLUGINS / "module_utils"
    found = {path.relative_to(rooms) for path in rooms.rglob("*.py") if reads_the_time(path.read_text("utf-8"))}
    assert sorted(map(str, found)) == sorted(READ_THE_TIME)
    assert reads_the_time("import time\nlate = time.time() > limit")


def test_no_package_files() -> None:
    assert [path for path in FILES if path.name == "__init__.py"] == []


def test_rooms_are_known() -> None:
    below = {path.relative_to(PLUGINS / "module_utils").parts[0] for path in FILES if "module_utils" in path.parts}
    assert below <= {*PURE, "_host", "_module.py"}


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("_core", "import os"),
        ("_core", "from .._oci import config"),
        ("_core", "from ansible.module_utils.basic import AnsibleModule"),
        ("_criu", "from .._host.files import read_json"),
        ("_criu", "def f():\n    from .._host import files"),
        ("_criu", "from .. import _host"),
        ("_net", "import time"),
        ("_net", "open('/etc/hosts')"),
        ("_oci", "import yaml"),
        ("_oci", "from datetime import datetime"),
        ("_migrate", "from .. import _module"),
        ("_host", "from ansible.module_utils.basic import AnsibleModule"),
        ("_host", "import libvirt"),
        ("_host", "try:\n    pass\nexcept ImportError:\n    import libvirt"),
        ("_module", "from ansible.errors import AnsibleError"),
        ("modules", "from ansible.module_utils.basic import AnsibleModule"),
        ("modules", "from ansible_collections.cnvm.platform.plugins.modules import container"),
        ("modules", "from ansible_collections.cnvm.platform.plugins.plugin_utils import _ssh"),
        ("modules", "from ansible_collections.community.general.plugins.module_utils import deps"),
        ("plugin_utils", "from ansible_collections.cnvm.platform.plugins.module_utils._host import files"),
        ("plugin_utils", "from ansible_collections.cnvm.platform.plugins.modules import guest"),
        ("action", "from ansible_collections.cnvm.platform.plugins.module_utils._module import run_module"),
        ("action", "import paramiko"),
    ],
)
def test_violation_is_seen(room: str, source: str) -> None:
    package = COLLECTION + (f"module_utils.{room}" if room in (*PURE, "_host") else "module_utils")
    assert violations(room, source, package)


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("_core", "import dataclasses\nfrom .errors import CnvmError"),
        ("_oci", "from .._core.errors import InputError\nfrom .config import check\nfrom .._net import nft"),
        (
            "_host",
            "import subprocess\nfrom .._criu import log\ntry:\n    import libvirt\nexcept ImportError:\n    pass",
        ),
        ("_module", "from ansible.module_utils.basic import AnsibleModule\nfrom ._host.system import Host"),
        ("modules", "from ansible_collections.cnvm.platform.plugins.module_utils._module import run_module"),
        ("action", "from ansible.plugins.action import ActionBase"),
        ("action", "from ansible_collections.cnvm.platform.plugins.plugin_utils._ssh import words"),
    ],
)
def test_what_is_allowed_is_allowed(room: str, source: str) -> None:
    package = COLLECTION + (f"module_utils.{room}" if room in (*PURE, "_host") else "module_utils")
    assert violations(room, source, package) == []
