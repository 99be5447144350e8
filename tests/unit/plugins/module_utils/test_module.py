# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one way out of a module, and commands run through AnsibleModule; with a real AnsibleModule."""

from __future__ import annotations

import errno
import json
import typing as t

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args

from ansible_collections.cnvm.platform.plugins.module_utils import _module
from ansible_collections.cnvm.platform.plugins.module_utils._core import secrets
from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import CommandError, Refused
from ansible_collections.cnvm.platform.plugins.module_utils._host.system import Host, Work

SPEC: dict[str, t.Any] = {"name": {"type": "str", "required": True}}


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> t.Callable[..., tuple[int, dict[str, t.Any]]]:
    """Run a module with ``work``; exit code and what it printed."""

    def run_it(work: Work, **args: t.Any) -> tuple[int, dict[str, t.Any]]:
        with patch_module_args({"name": "web", **args}), pytest.raises(SystemExit) as caught:
            _module.run_module(work, SPEC)
        return int(str(caught.value.code)), json.loads(capfd.readouterr().out)

    return run_it


@pytest.fixture
def host() -> t.Iterator[Host]:
    with patch_module_args({}):
        module = AnsibleModule(argument_spec={})
        module.run_command_environ_update = {"LC_ALL": "C"}
        yield _module.module_host(module)


def test_result_is_returned(run: t.Any) -> None:
    code, result = run(lambda host, params, check_mode: {"changed": True, "seen": params["name"]})
    assert code == 0
    assert (result["changed"], result["seen"]) == (True, "web")


def test_warnings_are_given_as_ansible_wants_them(run: t.Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a part of the result they are deprecated."""
    said: list[str] = []
    monkeypatch.setattr(AnsibleModule, "warn", lambda self, text: said.append(text))
    _code, result = run(lambda host, params, check_mode: {"changed": True, "warnings": ["Guest web is emulated."]})
    assert said == ["Guest web is emulated."]
    assert "warnings" not in result


def test_check_mode_is_always_supported(run: t.Any) -> None:
    code, result = run(lambda host, params, check_mode: {"check": check_mode}, _ansible_check_mode=True)
    assert (code, result["check"]) == (0, True)


def test_error_becomes_a_failure_with_hint_and_details(run: t.Any) -> None:
    def work(host: Host, params: t.Mapping[str, t.Any], check_mode: bool) -> dict[str, t.Any]:
        raise Refused("web runs on host2.", hint="Teleport it back.", owner="host2")

    code, result = run(work)
    assert code == 1
    assert result["failed"]
    assert result["msg"] == "web runs on host2. Teleport it back."
    assert (result["hint"], result["error"], result["details"]) == ("Teleport it back.", "Refused", {"owner": "host2"})


@pytest.mark.parametrize(
    ("error", "msg"),
    [
        (OSError(errno.ENOTDIR, "Not a directory", "/etc/passwd/x"), "/etc/passwd/x cannot be used: Not a dir"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device. Make room "),
    ],
)
def test_what_the_kernel_refuses_is_a_failure(run: t.Any, error: OSError, msg: str) -> None:
    def work(host: Host, params: t.Mapping[str, t.Any], check_mode: bool) -> dict[str, t.Any]:
        raise error

    code, result = run(work)
    assert code == 1
    assert result["msg"].startswith(msg)
    assert result["error"] == "HostError"


def test_a_defect_is_not_dressed_up(run: t.Any) -> None:
    def work(host: Host, params: t.Mapping[str, t.Any], check_mode: bool) -> dict[str, t.Any]:
        raise ZeroDivisionError

    with patch_module_args({"name": "web"}), pytest.raises(ZeroDivisionError):
        _module.run_module(work, SPEC)


def test_unknown_option_is_refused(run: t.Any) -> None:
    code, result = run(lambda host, params, check_mode: {}, nmae="web")
    assert code == 1
    assert "nmae" in result["msg"]


def test_command_output_and_input(host: Host) -> None:
    result = host.run(["cat"], stdin="a line without an end")
    assert (result.argv, result.rc, result.stdout, result.stderr) == (("cat",), 0, "a line without an end", "")


def test_command_speaks_english(host: Host) -> None:
    assert host.run(["sh", "-c", "echo $LC_ALL"]).stdout == "C\n"


def test_command_is_no_shell(host: Host) -> None:
    assert host.run(["echo", "$HOME", "~", "; *", "a  b"]).stdout == "$HOME ~ ; * a  b\n"


def test_bytes_that_are_no_text_survive(host: Host) -> None:
    assert host.run(["printf", r"\377x"]).stdout.encode("utf-8", "surrogateescape") == b"\xffx"


def test_failing_command(host: Host) -> None:
    with pytest.raises(CommandError, match=r"^'sh -c echo why >&2; exit 3' ended with code 3: why$"):
        host.run(["sh", "-c", "echo why >&2; exit 3"])
    assert host.run(["sh", "-c", "exit 3"], check=False).rc == 3


def test_missing_program(host: Host) -> None:
    with pytest.raises(CommandError, match="'no-such-program x' ended with code 127: no-such-program: "):
        host.run(["no-such-program", "x"])
    assert host.run(["no-such-program"], check=False).rc == 127


def test_deadline(host: Host) -> None:
    assert host.run(["sleep", "30"], check=False, timeout_s=0.2).rc == 124
    result = host.run(["echo", "in time"], timeout_s=30)
    assert (result.argv, result.stdout) == (("echo", "in time"), "in time\n")


def test_a_module_cannot_start_what_outlives_it(host: Host) -> None:
    with pytest.raises(RuntimeError, match="only the helper's launcher"):
        host.popen(["sleep", "1"])


def test_diff_of() -> None:
    assert _module.diff_of(1, 2) == {"before": 1, "after": 2}
    assert _module.diff_of(1, 2, "web") == {"before": 1, "after": 2, "before_header": "web", "after_header": "web"}


SECRET_SPEC: dict[str, t.Any] = {
    "name": {"type": "str", "required": True},
    "seeds": {
        "type": "list",
        "elements": "dict",
        "no_log": True,
        "options": {
            "path": {"type": "str"},
            "data": {"type": "raw", "no_log": True},
            "password": {"type": "str", "no_log": True},
        },
    },
}


@pytest.mark.parametrize("fails", [False, True])
def test_words_of_secret_data_do_not_blot_out_the_result(capfd: pytest.CaptureFixture[str], fails: bool) -> None:
    def work(host: Host, params: t.Mapping[str, t.Any], check_mode: bool) -> dict[str, t.Any]:
        found = {"path": params["seeds"][0]["path"], "said": "the password is horse battery"}
        if fails:
            raise Refused("/root/seed.iso is no seed.", **found)
        return {"changed": True, **found}

    data = {"users": [{"name": "root", "passwd": "correct"}], "n": 1}
    seeds = [{"path": "/root/seed.iso", "data": data, "password": "horse battery"}]
    with patch_module_args({"name": "web", "seeds": seeds}), pytest.raises(SystemExit):
        _module.run_module(work, SECRET_SPEC)
    printed = capfd.readouterr().out
    result = json.loads(printed)
    assert (result.get("details") or result)["path"] == "/root/seed.iso"
    assert result["invocation"]["module_args"]["seeds"][0]["path"] == "/root/seed.iso"
    assert result["invocation"]["module_args"]["seeds"][0]["data"] == secrets.HIDDEN
    assert "correct" not in printed
    assert "horse" not in printed
    assert result["failed" if fails else "changed"]


def test_the_journal_has_no_secret_data(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    monkeypatch.setattr(AnsibleModule, "log", lambda self, message, log_args=None: said.append(f"{message} {log_args}"))
    seeds = [{"path": "/seed.iso", "data": "#cloud-config\npassword: correct\n"}]
    with patch_module_args({"name": "web", "seeds": seeds}), pytest.raises(SystemExit):
        _module.run_module(lambda host, params, check_mode: {"changed": False}, SECRET_SPEC)
    assert said
    assert "correct" not in "".join(said) + capfd.readouterr().out


def test_other_modules_are_not_meant() -> None:
    assert not secrets.secret_data(SPEC)
    assert not secrets.secret_data({"password": {"type": "str", "no_log": True}})
    assert secrets.secret_data(SECRET_SPEC)
