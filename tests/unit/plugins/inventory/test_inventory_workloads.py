# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plugin with an ``ssh`` that answers from files: who is asked, and when an earlier answer is taken."""

from __future__ import annotations

import json
import typing as t
from pathlib import Path

import pytest
from ansible import template
from ansible.errors import AnsibleParserError
from ansible.inventory.data import InventoryData
from ansible.parsing.dataloader import DataLoader

from ansible_collections.cnvm.platform.plugins.inventory.workloads import InventoryModule
from ansible_collections.cnvm.platform.plugins.plugin_utils import _ssh

# ansible-core 2.18 and older trust all that is not marked otherwise.
trust_as_template = getattr(template, "trust_as_template", str)
trusted = getattr(template, "is_trusted_as_template", None)
FAKE_SSH = """#!/bin/sh
case "$*" in *dead*) echo "$1 $2" >>{folder}/dead; exit 255;; esac
while [ $# -gt 2 ]; do shift; done
echo "$1" >>{folder}/asked
cat "{folder}/$1.json" || {{ echo "ssh: connect to host $1 port 22: Connection refused" >&2; exit 255; }}
"""
HOSTS = {"host1": {"ansible_host": "192.0.2.1"}, "host2": {"ansible_host": "192.0.2.2"}}


class Bench:
    """The plugin, its options, and the hosts that it asks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kept: dict[str, t.Any] = {}
        self.warnings: list[str] = []
        self.inventory = InventoryData()
        self.options: dict[str, t.Any] = {
            "hosts": HOSTS, "inventory": [], "pattern": "cnvm_hosts", "timeout_s": 30, "direct_networks": [],
            "accept_new_host_keys": False, "only_reachable": False, "prefix": "cnvm_", "strict": True, "compose": {},
            "groups": {}, "keyed_groups": [], "leading_separator": True, "cache": True, "cache_timeout": 3600,
        }  # fmt: skip
        self.says("192.0.2.1", "web")
        self.says("192.0.2.2", "db", state="stopped")

    def says(self, address: str, name: str, /, **more: t.Any) -> None:
        """What a host answers from now on."""
        item = {"name": name, "uuid": name, "managed": True, "state": "running", "address": "10.0.0.9", "generation": 1}
        answer = {"schema": 1, "guests": [{**item, **more}], "containers": [], "guests_error": ""}
        (self.folder / f"{address}.json").write_text(json.dumps(answer))

    def hushes(self, address: str) -> None:
        """It does not answer any more."""
        (self.folder / f"{address}.json").unlink()

    def asked(self) -> int:
        """How many questions there were."""
        file = self.folder / "asked"
        return len(file.read_text().splitlines()) if file.exists() else 0

    def read(self, *, cache: bool = True, again: bool = False) -> dict[str, dict[str, t.Any]]:
        """The variables of all hosts of the inventory: a new one, or what the last reading gave (``again``)."""
        plugin: t.Any = InventoryModule()
        plugin._options = dict(self.options)
        plugin.display = self
        plugin._read_config_data = lambda path: {}
        plugin._recall = lambda path: self.kept  # Ansible's cache plugins are not what is tested
        plugin._keep = lambda path, value: self.kept.update(json.loads(json.dumps(value)))
        inventory = self.inventory if again else InventoryData()
        self.inventory = inventory
        self.warnings = []
        plugin.parse(inventory, DataLoader(), str(self.folder / "workloads.yml"), cache=cache)
        return {name: host.get_vars() for name, host in inventory.hosts.items()}

    def warning(self, text: str) -> None:
        """What Ansible's display would show."""
        self.warnings.append(text)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    program = tmp_path / "ssh"
    program.write_text(FAKE_SSH.format(folder=tmp_path))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return Bench(tmp_path)


def test_all_are_listed(bench: Bench) -> None:
    found = bench.read()
    assert {name: one["cnvm_host"] for name, one in found.items()} == {"web": "host1", "db": "host2"}
    assert "192.0.2.1" in found["web"]["ansible_ssh_common_args"]
    assert bench.warnings == []


def test_a_connection_that_is_open_but_dead_is_not_relied_on(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_ssh, "open_connection", lambda name, variables: ("-o", "ControlPath=/dead"))
    assert set(bench.read()) == {"web", "db"}
    assert (bench.folder / "dead").read_text() == "-o ControlPath=/dead\n" * 2
    assert bench.warnings == []


def test_only_reachable_ones(bench: Bench) -> None:
    bench.options["only_reachable"] = True
    assert list(bench.read()) == ["web"]


def test_a_fresh_answer_is_not_asked_for_again(bench: Bench) -> None:
    bench.read()
    bench.says("192.0.2.1", "other")
    assert set(bench.read()) == {"web", "db"}
    assert bench.asked() == 2
    assert set(bench.read(cache=False)) == {"other", "db"}


def test_an_old_answer_is(bench: Bench) -> None:
    bench.read()
    bench.kept["hosts"]["host1"]["answered_at"] -= 4000
    bench.says("192.0.2.1", "other")
    bench.says("192.0.2.2", "new")
    assert set(bench.read()) == {"other", "db"}


def test_other_hosts_are_asked(bench: Bench) -> None:
    bench.options["hosts"] = {"host1": HOSTS["host1"]}
    assert set(bench.read()) == {"web"}
    bench.options["hosts"] = HOSTS
    assert set(bench.read()) == {"web", "db"}


def test_a_silent_host_without_an_earlier_answer(bench: Bench) -> None:
    bench.hushes("192.0.2.1")
    assert set(bench.read()) == {"db"}
    assert "host1" in bench.warnings[0]
    assert "Connection refused" in bench.warnings[0]


@pytest.mark.parametrize("how", ["silent", "no JSON", "of another version"])
def test_the_last_answer_of_a_silent_host(bench: Bench, how: str) -> None:
    bench.read()
    bench.hushes("192.0.2.1")
    if how != "silent":
        (bench.folder / "192.0.2.1.json").write_text("{}" if how == "of another version" else "Welcome!")
    for _time in range(2):
        found = bench.read(cache=False)
        assert found["web"]["cnvm_stale"]
        assert not found["db"]["cnvm_stale"]
        assert len(bench.warnings) == 1
    bench.says("192.0.2.1", "web")
    assert not bench.read(cache=False)["web"]["cnvm_stale"]


def test_a_silent_host_is_asked_again_and_no_other(bench: Bench) -> None:
    """That it was silent is no answer, however fresh."""
    bench.read()
    bench.hushes("192.0.2.1")
    bench.read(cache=False)
    bench.says("192.0.2.2", "new")
    for count in (5, 6):
        found = bench.read()
        assert {name: one["cnvm_stale"] for name, one in found.items()} == {"web": True, "db": False}
        assert (bench.asked(), len(bench.warnings)) == (count, 1)
    bench.says("192.0.2.1", "web")
    for _time in range(2):
        assert not bench.read()["web"]["cnvm_stale"]
        assert (bench.asked(), bench.warnings) == (7, [])


def test_guests_of_a_host_whose_libvirt_is_silent(bench: Bench) -> None:
    bench.read()
    answer = {
        "schema": 1,
        "guests": [],
        "containers": [{"name": "box", "state": "running"}],
        "guests_error": "No libvirt.",
    }
    (bench.folder / "192.0.2.1.json").write_text(json.dumps(answer))
    for _time in range(2):
        found = bench.read(cache=False)
        assert {name: one["cnvm_stale"] for name, one in found.items()} == {"web": True, "box": False, "db": False}
        assert "No libvirt." in bench.warnings[0]
    bench.hushes("192.0.2.1")
    for _time in range(2):
        found = bench.read(cache=False)
        assert {name: one["cnvm_stale"] for name, one in found.items()} == {"web": True, "box": True, "db": False}
        assert len(bench.warnings) == 1
    (bench.folder / "192.0.2.1.json").write_text(json.dumps(answer))
    bench.read()
    bench.says("192.0.2.1", "web")
    found = bench.read()  # libvirt may answer by now
    assert {name: one["cnvm_stale"] for name, one in found.items()} == {"web": False, "db": False}


# Both would make a folder of the name that is put in.
TEMPLATES = (
    "{{{{ lookup('ansible.builtin.pipe', 'mkdir {0}') }}}}",
    "#jinja2:variable_start_string:'[[',variable_end_string:']]'\n[[ lookup('ansible.builtin.pipe', 'mkdir {0}') ]]",
)


@pytest.mark.parametrize("text", TEMPLATES)
def test_what_hosts_say_is_no_template(bench: Bench, text: str) -> None:
    ran = bench.folder / "ran"
    text = text.format(ran)
    said = {"description": text, "tags": {"group": text, text: "x"}, "template": text}
    bench.says("192.0.2.1", "web", **said)
    bench.options["compose"] = {"about": trust_as_template("cnvm_workload.description")}
    bench.options["keyed_groups"] = [{"key": trust_as_template("cnvm_tags")}, {"key": trust_as_template("cnvm_group")}]
    bench.options["strict"] = False  # the other guest has no description
    assert bench.read()["web"]["about"] == text
    assert not ran.exists()


def believed(value: object) -> list[str]:
    """The texts and keys in ``value`` that Ansible takes for a template where they look like one."""
    if isinstance(value, dict):
        return [*value, *[text for one in value.values() for text in believed(one)]]
    if isinstance(value, list):
        return [text for one in value for text in believed(one)]
    marked = not trusted(value) if trusted is not None else getattr(value, "__UNSAFE__", False)
    return [value] if isinstance(value, str) and not marked else []


def test_what_could_become_one_is_not_believed(bench: Bench) -> None:
    """A filter can bring to the beginning what is one there alone, and put keys into a text."""
    texts = [*TEMPLATES, *(f" {text}" for text in TEMPLATES), "{# x #}", "{% x %}", "x #}", "#jinja2:a:'b'", "a\nb"]
    bench.says("192.0.2.1", "web", description=texts, tags=dict.fromkeys(texts, "x"), xml=[{text: 1} for text in texts])
    web = bench.read()["web"]
    assert web["cnvm_workload"]["description"] == texts
    # What is harmless is: programs that read the inventory would find marks in it.
    assert {"web", "10.0.0.9", web["ansible_ssh_common_args"]} <= set(believed(web))
    assert [text for text in believed(web) if set(text) & set("{}#\n")] == []


def test_its_name_is_known_everywhere(bench: Bench) -> None:
    bench.options["compose"] = {"called": trust_as_template("inventory_hostname")}
    bench.options["groups"] = {"webs": trust_as_template("inventory_hostname == 'web'")}
    assert {one["called"] for one in bench.read().values()} == {"web", "db"}


def test_hosts_of_an_inventory_file(bench: Bench) -> None:
    file = bench.folder / "hosts.json"
    file.write_text(json.dumps({"cnvm_hosts": {"hosts": HOSTS, "vars": {"ansible_port": "{{ 2200 + 22 }}"}}}))
    bench.options.update(hosts={}, inventory=["hosts.json"])
    assert "-p 2222 " in bench.read()["web"]["ansible_ssh_common_args"]


def test_no_other_host_of_the_inventory_is_replaced(bench: Bench) -> None:
    """Neither one that was read before, nor one of the same files that is not asked."""
    bench.inventory.add_host("web")
    bench.inventory.set_variable("web", "ansible_host", "192.0.2.80")
    for _time in range(2):  # the second one finds its own workloads there, and says what it said before
        found = bench.read(again=True)
        assert set(found) == {"web", "web.host1", "db"}
        assert found["web"] == {**found["web"], "ansible_host": "192.0.2.80"}
        assert "cnvm_host" not in found["web"]
        assert len(bench.warnings) == 1
        assert "The inventory has a host 'web'" in bench.warnings[0]
    hosts = {"cnvm_hosts": {"hosts": HOSTS}, "bastions": {"hosts": {"db": {"ansible_host": "192.0.2.81"}}}}
    (bench.folder / "hosts.json").write_text(json.dumps(hosts))
    bench.options.update(hosts={}, inventory=["hosts.json"])
    assert set(bench.read()) == {"web", "db.host2"}


@pytest.mark.parametrize("name", ["all", "ungrouped", "cnvm_hosts", "cnvm_guests", "cnvm_state_stopped", "racks", "up"])
def test_no_workload_has_the_name_of_a_group(bench: Bench, name: str) -> None:
    """Ansible would take the group for it: one of the files, its own, ours, or one that an expression makes."""
    bench.says("192.0.2.1", name)
    (bench.folder / "hosts.json").write_text(json.dumps({"cnvm_hosts": {"hosts": HOSTS}}))
    keyed = {"key": trust_as_template("'racks'"), "separator": "", "parent_group": "up"}
    bench.options.update(hosts={}, inventory=["hosts.json"], keyed_groups=[keyed])
    bench.options["compose"] = {"kind": trust_as_template("cnvm_kind")}
    for _time in range(2):
        found = bench.read(again=True)
        assert {name: one["kind"] for name, one in found.items()} == {f"{name}.host1": "guest", "db": "guest"}
        (warning,) = bench.warnings
        assert warning == f"The inventory has a group {name!r}: the guest of host1 is '{name}.host1' here."
    for group in ("cnvm_guests", "racks"):
        assert {host.name for host in bench.inventory.groups[group].hosts} == set(found)


@pytest.mark.parametrize("named", ["web", "db"])
def test_a_group_that_the_user_makes_has_its_name_for_itself(bench: Bench, named: str) -> None:
    """Whoever comes first: the one who makes it, or the one of its name. A host that was read before is in it."""
    bench.options["groups"] = {named: trust_as_template("cnvm_state == 'stopped'")}
    bench.inventory.add_group("web")
    bench.inventory.add_host("phys1", "web")
    found = bench.read(again=True)
    assert set(found) == {"phys1", "web.host1", "db" if named == "web" else "db.host2"}
    guests = {host.name for host in bench.inventory.groups["cnvm_guests"].get_hosts()}
    assert guests == set(found) - {"phys1"}


def test_groups_by_the_source(bench: Bench) -> None:
    """They are known when it is looked whether a workload has the name of one."""
    bench.says("192.0.2.1", "lab")
    bench.inventory.current_source = "/lab/workloads.yml"
    bench.options["keyed_groups"] = [{"key": trust_as_template("inventory_file | dirname | basename"), "separator": ""}]
    assert set(bench.read(again=True)) == {"lab.host1", "db"}
    assert {host.name for host in bench.inventory.groups["lab"].hosts} == {"lab.host1", "db"}


def test_one_that_is_off_does_no_harm(bench: Bench) -> None:
    """It is listed, by what it is, and nobody tries to reach it."""
    bench.says("192.0.2.2", "db", state="stopped", address=None, tags={"group": "back"})
    found = bench.read()
    groups = {name: {host.name for host in group.hosts} for name, group in bench.inventory.groups.items()}
    for name in ("cnvm_state_stopped", "cnvm_host_host2", "cnvm_group_back"):
        assert groups[name] == {"db"}
    assert groups["cnvm_guests"] == {"web", "db"}
    assert groups["cnvm_reachable"] == {"web"}
    assert "ansible_host" not in found["db"]
    assert found["db"]["cnvm_unreachable_reason"] == "The guest db is stopped."
    assert bench.warnings == []


@pytest.mark.parametrize("given", ["hosts", "inventory"])
def test_a_way_that_is_said_by_another_hosts_variables(bench: Bench, given: str) -> None:
    way = trust_as_template("-J admin@{{ hostvars['host2'].ansible_host }}")
    jump = {"net": "192.0.2", "ansible_host": trust_as_template("{{ net }}.2")}
    hosts = {"host1": {**HOSTS["host1"], "ansible_ssh_common_args": way}, "host2": jump}
    bench.options.update(hosts=hosts)
    if given == "inventory":
        (bench.folder / "hosts.json").write_text(json.dumps({"cnvm_hosts": {"hosts": hosts}}))
        bench.options.update(hosts={}, inventory=["hosts.json"])
    assert "-J admin@192.0.2.2 " in bench.read()["web"]["ansible_ssh_common_args"]
    assert bench.warnings == []


def test_a_host_whose_way_is_not_known(bench: Bench) -> None:
    """The others are asked; what it said the last time is not taken for the controller's own."""
    bench.read()
    way = trust_as_template("-J {{ nobody }}")
    bench.options["hosts"] = {**HOSTS, "host1": {**HOSTS["host1"], "ansible_ssh_common_args": way}}
    found = bench.read(cache=False)
    assert (found["web"]["cnvm_stale"], found["db"]["cnvm_stale"]) == (True, False)
    assert found["web"]["cnvm_unreachable_reason"].startswith("There is no way to host1: its variables say no way")
    assert "ansible_host" not in found["web"]
    assert "(ansible_ssh_common_args: " in bench.warnings[0]
    assert "'nobody' is undefined" in bench.warnings[0]
    bench.read()
    assert len(bench.warnings) == 1


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"ansible_ssh_common_args": '-o ProxyCommand="ssh jump'}, "(ansible_ssh_common_args: No closing quotation)"),
        ({"ansible_control_path": "/tmp/%C"}, "(ansible_control_path: '/tmp/%C' is not allowed"),
        ({"ansible_port": "ssh"}, "ansible_port"),
        ({"ansible_host": "a\0b"}, "embedded null byte"),
        ("foo", "(hosts: 'foo' is not a mapping of variables)"),
    ],
)
def test_a_host_with_a_bad_variable_empties_nothing(bench: Bench, variables: object, said: str) -> None:
    bench.options["hosts"] = {**HOSTS, "host1": variables}
    assert set(bench.read()) == {"db"}
    (warning,) = bench.warnings
    assert warning.startswith("The host host1 does not say which workloads it has: ")
    assert said in warning


def test_a_host_whose_answer_is_no_text_empties_nothing(bench: Bench) -> None:
    bench.says("192.0.2.1", "web", uuid="\ud800")
    assert set(bench.read()) == {"db"}
    assert "host1 does not say which workloads it has: its answer has lone surrogates" in bench.warnings[0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"hosts": {}}, "Either 'inventory' or 'hosts'"),
        ({"inventory": ["hosts.yml"]}, "Either 'inventory' or 'hosts'"),
        ({"hosts": {}, "inventory": ["hosts.yml"]}, "there is no .*hosts.yml"),
        ({"direct_networks": ["10.0.0.1/8"]}, "direct_networks"),
        ({"timeout_s": 0}, "timeout_s: 0 is not allowed. Allowed: a whole number from 1"),
        ({"timeout_s": -5}, "timeout_s: -5 is not allowed"),
    ],
)
def test_refusals(bench: Bench, options: dict[str, t.Any], said: str) -> None:
    bench.options.update(options)
    with pytest.raises(AnsibleParserError, match=said):
        bench.read()


def test_names_of_the_file(tmp_path: Path) -> None:
    for name, good in (("workloads.yml", True), ("my.workloads.yaml", True), ("hosts.yml", False)):
        (tmp_path / name).touch()
        assert InventoryModule().verify_file(str(tmp_path / name)) is good
