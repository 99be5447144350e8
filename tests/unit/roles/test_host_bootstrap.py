# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The helper's launcher, rendered and run: the one place that starts processes on a host."""

from __future__ import annotations

import datetime
import importlib.machinery
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
import types
import typing as t
from pathlib import Path

import pytest
import yaml
from ansible.plugins.filter.core import to_bool
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ansible_collections.cnvm.platform.plugins.module_utils._core.digest import files_digest
from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import InputError
from ansible_collections.cnvm.platform.plugins.module_utils._core.names import NAME_RULE, check_name
from ansible_collections.cnvm.platform.plugins.module_utils._host import helper
from ansible_collections.cnvm.platform.plugins.plugin_utils import _helper
from ansible_collections.cnvm.platform.plugins.test import good_name
from ansible_collections.cnvm.platform.tests.unit.roles.stage import Stage

ROLE = Path(_helper.collection_root()) / "roles/host_bootstrap"


def render(template: str, **variables: t.Any) -> str:
    """As the module template renders it."""
    environment = Environment(
        loader=FileSystemLoader(ROLE / "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["bool"] = to_bool
    return environment.get_template(template).render(ansible_managed="Ansible managed", **variables)


def expression(text: str, **variables: t.Any) -> t.Any:
    """What a condition of a task comes to."""
    environment = Environment(undefined=StrictUndefined)
    environment.tests["ansible.builtin.search"] = lambda value, pattern: re.search(pattern, value) is not None
    environment.tests["cnvm.platform.good_name"] = good_name.good_name
    return environment.compile_expression(text, undefined_to_none=False)(**variables)


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The helper as it is on a host, in a temporary directory."""
    library = tmp_path_factory.mktemp("library")
    files = _helper.helper_files(_helper.collection_root())
    helper.install(str(library), files, "1.2.3", files_digest(files))
    path = library / "cnvm-host"
    path.write_text(
        render("cnvm-host.j2", host_bootstrap_python=sys.executable, __host_bootstrap_library=str(library)),
        encoding="utf-8",
    )
    path.chmod(0o755)
    return path


@pytest.fixture(scope="module")
def code(launcher: Path) -> t.Iterator[types.ModuleType]:
    """The launcher's own functions."""
    path, bytecode = sys.path[:], sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    loader = importlib.machinery.SourceFileLoader("cnvm_host_launcher", str(launcher))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    yield module
    sys.path[:], sys.dont_write_bytecode = path, bytecode
    for name in [name for name in sys.modules if name.split(".")[0] == "cnvm_platform"]:
        del sys.modules[name]


def call(launcher: Path, *words: str, **kwargs: t.Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([launcher, *words], capture_output=True, text=True, check=False, timeout=60, **kwargs)


def test_version(launcher: Path) -> None:
    done = call(launcher, "version", env={"PATH": ""})
    assert json.loads(done.stdout) == helper.installed(str(launcher.parent))
    assert json.loads(done.stdout)["version"] == "1.2.3"
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("words", [(), ("bogus",), ("info", "no-port")])
def test_an_expected_error_is_one_line(launcher: Path, words: tuple[str, ...]) -> None:
    done = call(launcher, *words)
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "Traceback" not in done.stderr


def test_a_reader_who_goes_away_is_no_crash(launcher: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as pipe:
        done = subprocess.run([launcher, "version"], stdout=pipe, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 141
    assert done.stderr == ""


def test_environment_of_whoever_calls_does_not_matter(launcher: Path, tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('hijacked')", encoding="utf-8")
    done = call(
        launcher, "version", cwd=tmp_path, env={"PYTHONPATH": str(tmp_path), "PYTHONSTARTUP": "x", "LANG": "xx"}
    )
    assert done.returncode == 0, done.stderr


def test_run_gives_output_and_code(code: types.ModuleType) -> None:
    done = code.run(["sh", "-c", "cat; echo more; echo oops >&2; exit 3"], stdin="said\n", check=False)
    assert (done.rc, done.stdout, done.stderr) == (3, "said\nmore\n", "oops\n")
    assert done.argv == ("sh", "-c", "cat; echo more; echo oops >&2; exit 3")


def test_run_checks(code: types.ModuleType) -> None:
    with pytest.raises(code.CnvmError, match="ended with code 3: oops"):
        code.run(["sh", "-c", "echo oops >&2; exit 3"])


def test_run_of_a_program_that_is_not_there(code: types.ModuleType) -> None:
    done = code.run(["/nonexistent/program"], check=False)
    assert done.rc == 127
    assert "/nonexistent/program: " in done.stderr
    with pytest.raises(code.CnvmError, match="127"):
        code.run(["/nonexistent/program"])


def test_run_says_a_signal_as_a_shell_does(code: types.ModuleType) -> None:
    assert code.run(["sh", "-c", "kill -9 $$"], check=False).rc == 137


def test_run_does_not_block_on_much_output(code: types.ModuleType) -> None:
    done = code.run(["sh", "-c", "head -c 3000000 /dev/zero >&2; head -c 3000000 /dev/zero"], timeout_s=30)
    assert (len(done.stdout), len(done.stderr)) == (3000000, 3000000)


def test_run_gives_bytes_that_are_no_text(code: types.ModuleType) -> None:
    done = code.run(["printf", r"\377"])
    assert done.stdout.encode("utf-8", "surrogateescape") == b"\xff"
    assert code.run(["cat"], stdin=done.stdout).stdout == done.stdout


def test_run_does_not_wait_for_what_a_program_left_behind(code: types.ModuleType) -> None:
    started = time.monotonic()
    done = code.run(["sh", "-c", "sleep 20 & echo $!"])
    assert time.monotonic() - started < 15
    os.kill(int(done.stdout), 9)


def test_run_kills_the_whole_group_in_time(code: types.ModuleType, tmp_path: Path) -> None:
    script = (
        f"trap '' TERM; sh -c 'trap \"\" TERM; echo $$ > {tmp_path}/child; while :; do sleep 0.1; done' & wait; wait"
    )
    done = code.run(["sh", "-c", script], check=False, timeout_s=1)
    assert done.rc == 124
    assert "did not end within 1 s" in done.stderr
    child = int((tmp_path / "child").read_text())
    state = Path(f"/proc/{child}/stat")
    # A zombie that nobody collects in this container is dead, too.
    assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"


def test_programs_are_run_in_plain_language(code: types.ModuleType) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["cnvm-host", "version"])
        patch.setenv("LC_ALL", "de_DE.UTF-8")
        patch.setenv("PATH", "/opt/bin")
        patch.setattr(code.cli, "main", lambda argv, host: 0 if host.run(["sh", "-c", "exit 0"]).rc == 0 else 1)
        assert code.main() == 0
        assert os.environ["LC_ALL"] == "C"
        assert os.environ["PATH"].split(":")[0] == "/opt/bin"
        assert "/usr/sbin" in os.environ["PATH"].split(":")


def test_only_criu_comes_from_the_newer_suite() -> None:
    packages = ["criu", "libcriu2"]
    text = render("cnvm-criu.pref.j2", host_bootstrap_criu_suite="forky", __host_bootstrap_newer_packages=packages)
    entries = [
        dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith("#"))
        for block in text.split("\n\n")
    ]
    assert entries == [
        {"Package": "*", "Pin": "release n=forky", "Pin-Priority": "-1"},
        {"Package": "criu libcriu2", "Pin": "release n=forky", "Pin-Priority": "600"},
    ]


@pytest.mark.parametrize(("said", "accept"), [(True, True), (False, False), ("yes", True), ("false", False)])
def test_an_expired_index_is_only_taken_when_asked_for(said: bool | str, accept: bool) -> None:
    """Also when it is said on the command line or in a survey, as text."""
    text = render(
        "cnvm-criu.sources.j2",
        host_bootstrap_criu_mirror="http://deb.debian.org/debian",
        host_bootstrap_criu_suite="forky",
        host_bootstrap_criu_accept_expired_index=said,
    )
    assert ("Check-Valid-Until: no" in text) is accept
    assert "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg" in text


def test_openings_only_ever_accept() -> None:
    text = render(
        "firewall.sh.j2",
        __host_bootstrap_info={"firewall": {"chains": [{"family": "inet", "table": "filter", "chain": "input"}]}},
        __host_bootstrap_open_ports=["51820/udp"],
        host_bootstrap_tunnel_interface="cnvm-wg",
    )
    rules = [line.strip() for line in text.splitlines() if "nft insert" in line]
    assert len(rules) == 2
    assert all(rule.endswith("""accept comment '"cnvm"'""") for rule in rules)
    assert "open inet filter input" in text
    assert subprocess.run(["sh", "-n"], input=text, text=True, check=False).returncode == 0


@pytest.mark.parametrize(
    ("kind", "said", "changed"),
    [
        ("firewalld", {"stdout": "success\n", "stderr": ""}, True),
        ("firewalld", {"stderr": "Warning: ALREADY_ENABLED: '51820:udp' already in 'public'\n"}, False),
        ("firewalld", {"stderr": "Warning: ZONE_ALREADY_SET: 'cnvm-wg' already bound to 'trusted'\n"}, False),
        ("ufw", {"stdout": "Rule added\nRule added (v6)\n"}, True),
        ("ufw", {"stdout": "Skipping adding existing rule\nSkipping adding existing rule (v6)\n"}, False),
    ],
)
def test_openings_that_were_there_are_no_change(kind: str, said: dict[str, str], changed: bool) -> None:
    (task,) = yaml.safe_load((ROLE / f"tasks/firewall_{kind}.yml").read_text(encoding="utf-8"))
    assert expression(task["changed_when"], **{task["register"]: said}) is changed
    # What is said is only said in full, and in English, when asked like this.
    assert "-q" not in task["ansible.builtin.command"]["argv"]
    assert task["environment"] == {"LC_ALL": "C"}


def tasks_of(name: str) -> dict[str, dict[str, t.Any]]:
    """A file's tasks by name."""
    tasks = yaml.safe_load((ROLE / f"tasks/{name}.yml").read_text(encoding="utf-8"))
    return {task["name"]: task for task in tasks}


def test_what_a_service_has_not_read_is_newer_than_its_start(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.touch()
    time.sleep(0.02)
    # As systemctl shows it.
    start = datetime.datetime.now(datetime.timezone.utc).strftime("%a %Y-%m-%d %H:%M:%S.%f UTC")
    time.sleep(0.02)
    new.touch()
    task = tasks_of("newer")["Which of its files changed since then"]
    variables = {"__host_bootstrap_service_files": [str(old), str(new)], "__host_bootstrap_started": {"stdout": start}}
    argv = expression(task["ansible.builtin.command"]["argv"].strip("{} "), **variables)
    done = subprocess.run(argv, capture_output=True, text=True, check=True, env={**os.environ, "LC_ALL": "C"})
    assert done.stdout.split() == [str(new)]
    assert expression(task["when"], **variables)
    # One that was never started.
    assert not expression(task["when"], __host_bootstrap_started={"stdout": ""})


@pytest.mark.parametrize(("lines", "applied"), [(["1", "0"], False), (["0", "0"], True), (["1"], True), ([], True)])
def test_kernel_settings_are_applied_where_they_are_not_in_force(lines: list[str], applied: bool) -> None:
    task = tasks_of("kernel")["Apply the kernel's settings"]
    wanted = {"net.ipv4.ip_forward": 1, "fs.pipe-user-pages-soft": 0}
    now = {"stdout_lines": lines}
    assert expression(task["when"][0], __host_bootstrap_sysctl=wanted, __host_bootstrap_sysctl_now=now) is applied


@pytest.mark.parametrize(
    ("ports", "told"),
    [
        ([], None),
        ([("51820/udp", "wireguard-go", "cnvm-wg"), ("4789/udp", "", "cnvm-vx")], None),
        ([("51820/udp", "wireguard-go", "wg0"), ("4789/udp", "", "vxlan1")], "51820/udp by wg0, 4789/udp by vxlan1."),
        ([("4789/udp", "", ""), ("22/tcp", "sshd", "")], "4789/udp by the kernel, 22/tcp by sshd."),
    ],
)
def test_only_the_overlay_may_have_its_ports(ports: list[tuple[str, str, str]], told: str | None) -> None:
    variables = yaml.safe_load((ROLE / "vars/main.yml").read_text(encoding="utf-8"))
    keys = ("port", "program", "interface")
    users = expression(
        variables["__host_bootstrap_port_users"].strip("{} "),
        __host_bootstrap_info={"ports": [dict(zip(keys, port, strict=True)) for port in ports]},
        host_bootstrap_tunnel_interface="cnvm-wg",
    )
    (problem,) = [each for each in variables["__host_bootstrap_problems"] if "Ports that are" in each["say"]]
    assert expression(problem["ok"].strip("{} "), __host_bootstrap_port_users=users) is (told is None)
    if told:
        said = Environment(undefined=StrictUndefined).from_string(problem["say"])
        assert f"in use: {told} Stop what" in said.render(__host_bootstrap_port_users=users)


@pytest.mark.parametrize(
    "name", ["host1", "a.b-c_d", "x" * 63, "x" * 64, "a b", "é1", "2001:db8::1", "-x", "root@host1"]
)
def test_a_name_that_is_none_is_refused_before_anything_is_done(name: str) -> None:
    """Not only by the module that would know the host by it."""
    variables = yaml.safe_load((ROLE / "vars/main.yml").read_text(encoding="utf-8"))
    (problem,) = [each for each in variables["__host_bootstrap_problems"] if "name in the inventory" in each["say"]]
    good = expression(problem["ok"].strip("{} ") + " ", inventory_hostname=name)
    try:
        check_name(name, "name")
    except InputError:
        assert not good
        assert NAME_RULE in problem["say"].replace("\n", " ")
    else:
        assert good


@pytest.mark.parametrize("text", [True, False])
def test_lists_may_be_text(text: bool) -> None:
    """As on the command line, or from a survey."""
    variables = yaml.safe_load((ROLE / "vars/main.yml").read_text(encoding="utf-8"))
    ports = "4789/udp, 51820/udp" if text else ["4789/udp", "51820/udp"]
    opened = Environment(undefined=StrictUndefined)
    opened.tests["match"] = lambda value, pattern: re.match(pattern, value) is not None
    found = opened.compile_expression(variables["__host_bootstrap_open_ports"].strip("{} \n"))
    assert found(host_bootstrap_ports=ports) == ["51820/udp"]
    assert found(host_bootstrap_ports="") == []
    wanted = variables["__host_bootstrap_wanted_packages"].strip("{} \n").rpartition("else [])\n")[2].strip(" +")
    assert expression(wanted, host_bootstrap_packages="a, b" if text else ["a", "b"]) == ["a", "b"]
    assert expression(wanted, host_bootstrap_packages="" if text else []) == []


# What host_info says of a host that is fit.
FIT: dict[str, t.Any] = {
    "user_id": 0,
    "os": {"id": "rocky", "major_version": "9", "family": "rhel", "pretty_name": "Rocky Linux 9"},
    "python": "3.11.2",
    "systemd": True,
    "kernel": "6.1.0",
    "cgroup": {"version": 2},
    "criu": {"version": "", "minimum_version": "3.17"},
    "ports": [],
    "sshd": {"problem": ""},
    "storage": {"path": "/var/lib/cnvm", "free_bytes": 2**34, "filesystem": "ext4"},
    "host_id": "",
    "virtualization": {"container": "", "kvm": {"device": True, "usable": True, "reason": ""}},
    "clock": {"skew_s": -3.5},
}
# What is wrong with a host, by its name here, and the one thing that it is told.
UNFIT: dict[str, tuple[dict[str, t.Any], str]] = {
    "user": ({"user_id": 1000}, "tasks ran as user id 1000. Run with --become"),
    "system": ({"os": {**FIT["os"], "id": "arch", "family": "arch", "pretty_name": "Arch"}}, "Arch is not supported."),
    "python": ({"python": "3.8.10"}, "Python is 3.8.10, 3.9 or newer is needed"),
    "init": ({"systemd": False}, "Boot the host with systemd as process 1"),
    "kernel": ({"kernel": "5.10.0-30-amd64"}, "The kernel is 5.10.0-30-amd64, 5.11 or newer is needed"),
    "cgroup": ({"cgroup": {"version": 1}}, "Boot with systemd.unified_cgroup_hierarchy=1"),
    "criu": ({"criu": {"version": "", "minimum_version": "4.2"}}, "CRIU 3.19 does not work on Linux 6.1.0"),
    "ports": ({"ports": [{"port": "4789/udp", "program": "me", "interface": ""}]}, "in use: 4789/udp by me. Stop"),
    "sshd": ({"sshd": {"problem": "PermitRootLogin is no."}}, "can start one program: PermitRootLogin is no."),
    "space": ({"storage": {**FIT["storage"], "free_bytes": 2**29}}, "has 512 MiB free, 1024 are needed"),
    "overlayfs": ({"storage": {**FIT["storage"], "filesystem": "overlay"}}, "lies on overlay, which cannot hold"),
    "twin1": ({"machine_digest": "same"}, "the same identity as twin2 (a clone)"),
    "twin2": ({"machine_digest": "same"}, "the same identity as twin1 (a clone)"),
    "clone1": ({"host_id": "same"}, "the same identity as clone2 (a clone)"),
    "clone2": ({"host_id": "same"}, "the same identity as clone1 (a clone)"),
}
# What is not ideal, but no reason to leave it alone.
ODD: dict[str, tuple[dict[str, t.Any], str]] = {
    "nspawn": ({"virtualization": {**FIT["virtualization"], "container": "nspawn"}}, "container itself (nspawn)"),
    "kvm": (
        {"virtualization": {"container": "", "kvm": {"device": True, "usable": False, "reason": "busy"}}},
        "/dev/kvm is there but cannot run a guest: busy.",
    ),
    "clock": ({"clock": {"skew_s": -40.0}}, "Its clock is -40.0 s away from the controller's"),
}


def test_a_host_is_told_what_is_wrong_with_it(tmp_path: Path) -> None:
    """Before anything is done to it: the one that has nothing is told nothing, each other one what it is."""
    hosts = {"fit": ({}, ""), **UNFIT, **ODD}
    stage = Stage(tmp_path).build(*hosts)
    for name, (defect, _said) in hosts.items():
        stage.answers[name]["host_info"] = {"host_info": {**FIT, "machine_digest": name, **defect}}
    role = {"name": "cnvm.platform.host_bootstrap", "tasks_from": "preflight"}
    tasks = [{"name": "Look", "ansible.builtin.include_role": role}]
    play = tmp_path / "look.yml"
    play.write_text(yaml.safe_dump([{"name": "Look", "hosts": "cnvm_hosts", "gather_facts": False, "tasks": tasks}]))
    done = stage.playbook(str(play), "--forks=20", check=False)
    told = dict(re.findall(r"\[(\w+)\](?:: FAILED!)? => \{(.*?)\}", done))
    problems = {name: said.split("nothing was changed:")[1] for name, said in told.items() if "nothing was" in said}
    assert problems.keys() == UNFIT.keys(), done
    assert told.keys() - problems.keys() == ODD.keys(), done
    for name, (_defect, said) in {**UNFIT, **ODD}.items():
        assert said in told[name]
    assert all(said.count("\\n- ") == 1 for said in problems.values()), problems
    assert all(told[name].count('", "') == 0 for name in ODD), done


def test_every_distribution_sets_the_same_variables() -> None:
    files = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in (ROLE / "vars").glob("*-*.yml")}
    assert set(files) == {"debian-12", "debian-13", "ubuntu-24", "rhel-9"}
    names = set(files["debian-13"])
    assert all(set(variables) == names for variables in files.values())
    unknown = yaml.safe_load((ROLE / "vars/unknown.yml").read_text(encoding="utf-8"))
    assert unknown["__host_bootstrap_os_known"] is False
    assert set(unknown) == names


def test_units_that_are_no_templates_say_when_they_start() -> None:
    units = [path for path in (ROLE / "files").glob("*.service") if "@" not in path.name]
    assert units
    assert [path.name for path in units if "[Install]" not in path.read_text(encoding="utf-8")] == []
