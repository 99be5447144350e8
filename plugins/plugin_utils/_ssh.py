# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# This plugin util is PRIVATE to the collection.
"""Asks hosts over SSH, all at once, where there are no tasks yet: while an inventory is read."""

from __future__ import annotations

import concurrent.futures
import json
import os
import selectors
import shlex
import signal
import subprocess
import time
import typing as t

from ansible import constants
from ansible.errors import AnsibleError
from ansible.plugins.loader import connection_loader
from ansible.utils.path import unfrackpath

from ansible_collections.cnvm.platform.plugins.module_utils._core import paths
from ansible_collections.cnvm.platform.plugins.module_utils._core.values import human_bytes

# Variables that say how SSH comes to a host; those that the connection plugin ssh reads.
VARIABLES = (
    "ansible_connection", "ansible_host", "ansible_ssh_host", "ansible_port", "ansible_ssh_port", "ansible_user",
    "ansible_ssh_user", "ansible_private_key_file", "ansible_ssh_private_key_file", "ansible_ssh_common_args",
    "ansible_ssh_extra_args", "ansible_ssh_args", "ansible_control_path", "ansible_control_path_dir",
)  # fmt: skip
# Ansible's own ssh_args: they keep a connection open for its next task, and there is none here.
_SSH_ARGS = "-C -o ControlMaster=auto -o ControlPersist=60s"
_MOST_AT_ONCE = 50
# A host's answer is a few KiB for each workload. Who sends without end must not fill the controller's memory.
_MOST_BYTES = 64 << 20


class _TooLong(Exception):
    pass


def _option(name: str, variables: t.Mapping[str, t.Any], key: str) -> t.Any:
    """An option of Ansible's SSH for a host, from the variables and settings; None where nothing says it."""
    return constants.config.get_config_value(
        key, plugin_type="connection", plugin_name="ssh", variables={"inventory_hostname": name, **variables}
    )


def command(name: str, variables: t.Mapping[str, t.Any], timeout_s: int) -> tuple[tuple[str, ...], str]:
    """(SSH up to the host's address, that address), from the variables and settings that Ansible's own SSH has.

    Nothing is asked on a terminal, and no connection is left open: the one who asks would wait for its end.
    """
    connection_loader.get("ssh", class_only=True)  # what it knows of its options is loaded with it

    def option(key: str) -> str:
        value = _option(name, variables, key)
        return "" if value is None else str(value)

    argv = ["ssh", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={timeout_s}"]
    argv += ["-o", "ControlMaster=no", "-o", "ControlPath=none"]
    for key in ("ssh_args", "ssh_common_args", "ssh_extra_args"):
        try:
            argv += shlex.split(option(key)) if option(key) != _SSH_ARGS else []
        except ValueError as error:
            raise AnsibleError(f"ansible_{key}: {error}") from error
    if option("port"):
        argv += ["-p", option("port")]
    if option("private_key_file"):
        argv += ["-i", os.path.abspath(os.path.expanduser(option("private_key_file")))]
    user = option("remote_user")
    if user:
        argv += ["-l", user]
    return tuple(argv), option("host") or name


def way(variables: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """The variables of the way to a host, with what Ansible's settings say where they say nothing."""
    connection_loader.get("ssh", class_only=True)
    name = str(variables.get("inventory_hostname"))
    given = {key: variables[key] for key in VARIABLES if key in variables}
    found = {
        "ansible_user": "remote_user", "ansible_port": "port", "ansible_private_key_file": "private_key_file",
        "ansible_ssh_args": "ssh_args", "ansible_ssh_common_args": "ssh_common_args",
        "ansible_ssh_extra_args": "ssh_extra_args",
    }  # fmt: skip
    settings = {variable: _option(name, given, key) for variable, key in found.items()}
    if settings["ansible_ssh_args"] == _SSH_ARGS:
        del settings["ansible_ssh_args"]
    more = {key: variables[key] for key in ("ansible_become",) if key in variables}
    return {"inventory_hostname": name, **{key: value for key, value in settings.items() if value}, **given, **more}


def open_connection(name: str, variables: t.Mapping[str, t.Any]) -> tuple[str, ...]:
    """Options by which SSH goes through the connection that Ansible's last task has left open; none where none is.

    They come first: of an option that is there twice SSH takes the first.
    """
    plugin = connection_loader.get("ssh", class_only=True)
    host, port, user = (_option(name, variables, key) for key in ("host", "port", "remote_user"))
    path = _option(name, variables, "control_path") or plugin._create_control_path(host or name, port, user)
    try:
        path = path % {"directory": unfrackpath(_option(name, variables, "control_path_dir"))}
    except (ValueError, TypeError, KeyError) as error:
        raise AnsibleError(
            f"ansible_control_path: {path!r} is not allowed, it has a % other than that of %(directory)s and %%"
        ) from error
    return ("-o", f'ControlPath="{path}"') if os.path.exists(path) else ()


def helper_command(*words: str) -> str:
    """The shell command that runs ``cnvm-host`` as root."""
    said = shlex.join([paths.HELPER, *words])
    script = f'if [ "$(id -u)" = 0 ]; then exec {said}; else exec sudo -n {said}; fi'
    return shlex.join(["sh", "-c", script])


def ask(argv: t.Sequence[str], timeout_s: float) -> tuple[t.Any, str]:
    """(what a command answers as JSON, what went wrong)."""
    try:
        process = subprocess.Popen(
            list(argv), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
    except (OSError, ValueError) as error:  # the latter of words that no program can be given
        return None, str(error)
    with process:
        try:
            output, errors = _read(process, timeout_s)
        except BaseException as error:
            # With what it has started: a ProxyCommand would keep the pipes open.
            os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, _TooLong):
                return None, f"its answer is longer than {human_bytes(_MOST_BYTES)}"
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            return None, f"no answer within {timeout_s:g} s"
    if process.returncode:
        said = errors.decode(errors="replace").strip().splitlines()
        if process.returncode == 127:
            said = ["it has no cnvm-host; run the role cnvm.platform.host_bootstrap on it"]
        return None, said[-1].strip() if said else f"code {process.returncode}"
    try:
        return json.loads(output), ""
    except (ValueError, RecursionError):
        return None, "its answer is no JSON"


def _read(process: subprocess.Popen[bytes], timeout_s: float) -> tuple[bytes, bytes]:
    """What a command writes until its end, and its errors; TimeoutExpired or _TooLong."""
    end = time.monotonic() + timeout_s
    said: dict[t.Any, bytearray] = {process.stdout: bytearray(), process.stderr: bytearray()}
    with selectors.DefaultSelector() as waiting:
        for pipe in said:
            waiting.register(pipe, selectors.EVENT_READ)
        while waiting.get_map():
            ready = waiting.select(max(0.0, end - time.monotonic()))
            if not ready:
                raise subprocess.TimeoutExpired(process.args, timeout_s)
            for key, _events in ready:
                data = os.read(key.fd, 1 << 16)
                if not data:
                    waiting.unregister(key.fileobj)
                said[key.fileobj] += data
                if len(said[key.fileobj]) > _MOST_BYTES:
                    raise _TooLong
    process.wait(max(0.0, end - time.monotonic()))
    return bytes(said[process.stdout]), bytes(said[process.stderr])


def ask_all(commands: t.Mapping[str, t.Sequence[str]], timeout_s: float) -> dict[str, tuple[t.Any, str]]:
    """``ask`` of all of them at once, by name."""
    if not commands:
        return {}
    with concurrent.futures.ThreadPoolExecutor(max_workers=min(len(commands), _MOST_AT_ONCE)) as pool:
        asked = {name: pool.submit(ask, argv, timeout_s) for name, argv in commands.items()}
        return {name: one.result() for name, one in asked.items()}
