# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: workloads
short_description: Guests and containers of all hosts as an inventory
version_added: 0.1.0
author:
  - the cnvm.platform authors (@cnvm)
description:
  - Asks all hosts at once, over SSH, which guests and containers they have. Each of these becomes a host of the
    inventory, reached through the host that has it.
  - The name of the file with these options must end in C(workloads.yml) or C(workloads.yaml).
  - A host that does not answer is named in a warning. The others are not affected. With O(cache), what it said the last
    time is used instead, and marked C(cnvm_stale), and it is asked again each time until it answers.
  - Host keys are checked, those of hosts and those of workloads.
notes:
  - It uses the C(ssh) of the controller with the variables that Ansible's own SSH connection reads (such as
    C(ansible_host), C(ansible_user), C(ansible_ssh_common_args)), and keys only. A user other than root needs C(sudo)
    without a password. A connection that Ansible's last task has left open (C(ControlPersist)) is used.
  - "Groups, each with O(prefix) before it: C(guests), C(containers), C(state_STATE), C(host_HOST), C(group_GROUP),
    C(type_TYPE) and C(template_TEMPLATE) by the tags of these names (the last one also by a disk's template),
    C(tag_NAME_VALUE) by others, C(image_IMAGE) for containers, C(reachable) for those with an address whose host has
    answered, and C(stale). Tags of a container are its labels."
  - "Variables: C(cnvm_kind), C(cnvm_host), C(cnvm_state), C(cnvm_managed), C(cnvm_tags), C(cnvm_group), C(cnvm_type),
    C(cnvm_template), C(cnvm_stale), C(cnvm_jump_host), C(cnvm_unreachable_reason), and C(cnvm_workload), which is what
    M(cnvm.platform.guest_info) or M(cnvm.platform.container_info) returns, without C(definition)."
  - A workload without an address, such as a guest that is off, has no C(ansible_host), and C(cnvm_unreachable_reason)
    says why. Connecting to it fails at once with that reason. Take C(GROUP:&cnvm_reachable) as the hosts of a play, or
    set O(only_reachable).
  - Two workloads of the same name are called C(NAME.HOST), and so is one with the name of a host that stands in the
    files of O(inventory) or in a source that Ansible has read before this one. So is one with the name of a group of
    these, of Ansible's own groups, or of those that are made here, also by O(keyed_groups) and O(groups). What comes
    after is not known here, so let this be the last source (C(-i hosts.yml -i workloads.yml)).
  - The key of a workload is looked for under its address on the overlay. An address of a libvirt network can be that of
    other guests on other hosts; such a guest's key is looked for under C(NAME.HOST).
options:
  plugin:
    description: The name of this plugin.
    type: str
    required: true
    choices: [cnvm.platform.workloads]
  inventory:
    description:
      - Other inventory files, relative to this one, that have the hosts to ask.
      - Needed when O(hosts) is not set.
    type: list
    elements: str
    default: []
  pattern:
    description: Which hosts of O(inventory) to ask.
    type: str
    default: cnvm_hosts
  hosts:
    description: The hosts to ask, by name, with their variables, instead of O(inventory).
    type: dict
    default: {}
  timeout_s:
    description: After how many seconds a host that does not answer is given up, from V(1) to V(3600).
    type: int
    default: 15
  direct_networks:
    description:
      - Networks such as V(192.0.2.0/24) of which the controller itself reaches the workloads, without a jump through
        the host.
    type: list
    elements: str
    default: []
  accept_new_host_keys:
    description:
      - Whether to accept the key of a workload that was never seen before. A key that has changed is always refused.
    type: bool
    default: false
  only_reachable:
    description: Whether to leave out workloads without an address.
    type: bool
    default: false
  prefix:
    description: What the names of groups begin with.
    type: str
    default: cnvm_
extends_documentation_fragment:
  - constructed
  - inventory_cache
"""

EXAMPLES = r"""
# Beside hosts.yml, with the group cnvm_hosts in it:
#   ansible-inventory -i workloads.yml --graph
#   ansible -i workloads.yml 'cnvm_group_front:&cnvm_reachable' -m ansible.builtin.ping
plugin: cnvm.platform.workloads
inventory: [hosts.yml]
compose:
  ansible_user: "'cnvm' if cnvm_kind == 'container' else 'debian'"

---
# Asked at most every five minutes. Of a host that is off, what it said before; that one is asked each time.
plugin: cnvm.platform.workloads
inventory: [hosts.yml]
cache: true
cache_plugin: ansible.builtin.jsonfile
cache_connection: ~/.cache/cnvm-workloads
cache_timeout: 300

---
# Hosts that stand here, guests on a bridge of their network, groups of one's own.
plugin: cnvm.platform.workloads
hosts:
  host1: {ansible_host: 192.0.2.11, ansible_user: root}
  host2: {ansible_host: 192.0.2.12, ansible_user: root}
direct_networks: [192.0.2.0/24]
only_reachable: true
keyed_groups:
  - {key: cnvm_workload.vcpus | default(0) | string, prefix: vcpus}
groups:
  databases: "'db' in inventory_hostname"
"""

import dataclasses
import os
import re
import time
import typing as t

from ansible import template
from ansible.errors import AnsibleError, AnsibleParserError
from ansible.inventory.data import InventoryData
from ansible.inventory.host import Host
from ansible.inventory.manager import InventoryManager
from ansible.plugins.inventory import BaseInventoryPlugin, Cacheable, Constructable, get_cache_plugin
from ansible.utils.unsafe_proxy import wrap_var
from ansible.vars.hostvars import HostVars
from ansible.vars.manager import VariableManager

from ansible_collections.cnvm.platform.plugins.module_utils._core.errors import InputError
from ansible_collections.cnvm.platform.plugins.module_utils._core.values import integer
from ansible_collections.cnvm.platform.plugins.plugin_utils import _ssh, _workloads

_Variables = dict[str, dict[str, t.Any]]
# Files that are being read: one that names itself would be read for ever.
_reading: set[str] = set()


# Since ansible-core 2.19 texts are no templates unless this says so, and ansible-inventory marks all others.
_harmless = getattr(template, "trust_as_template", str)
# Without one of these no text is a template, nor can a part of it become one: they begin one, or the line (#jinja2:)
# that says which other signs do. That line counts in the beginning only, but a filter brings it there.
_OF_TEMPLATES = re.compile(r"[{}#\x00-\x1f]")


def _no_template(value: t.Any) -> t.Any:
    """``value`` with each text in it that Ansible could take for a template marked: what comes from hosts is none.

    A key cannot be marked: in one the signs of a template are replaced.
    """
    if isinstance(value, dict):
        return {_OF_TEMPLATES.sub("_", str(key)): _no_template(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_no_template(one) for one in value]
    if isinstance(value, str):
        return wrap_var(value) if _OF_TEMPLATES.search(value) else _harmless(value)
    return value


class _Trial(InventoryData):
    """An inventory for one host, which may have the name of a group: Ansible's own would take the group for it."""

    def add_child(self, group: str, child: str) -> bool:
        if child in self.hosts:
            return self.groups[group].add_host(self.hosts[child])
        return super().add_child(group, child)


class _Given(InventoryData):
    """The hosts of the option, which Ansible's ``hostvars`` takes for the manager of their variables, too."""

    def get_vars(self, host: Host, **dummy: object) -> dict[str, t.Any]:
        return host.get_vars()


class InventoryModule(BaseInventoryPlugin, Constructable, Cacheable):
    """Ansible's way to find it."""

    NAME = "cnvm.platform.workloads"

    def verify_file(self, path: str) -> bool:
        return super().verify_file(path) and path.endswith(("workloads.yml", "workloads.yaml"))

    def parse(self, inventory: t.Any, loader: t.Any, path: str, cache: bool = True) -> None:
        super().parse(inventory, loader, path, cache)
        self._read_config_data(path)
        try:
            direct = _workloads.networks(self.get_option("direct_networks"))
            integer(self.get_option("timeout_s"), "timeout_s", least=1, most=3600)
        except ValueError as error:
            raise AnsibleParserError(f"direct_networks: {error}.") from error
        except InputError as error:
            raise AnsibleParserError(str(error)) from error
        settings = _workloads.Settings(self.get_option("prefix"), direct, self.get_option("accept_new_host_keys"))
        asked, others, groups = self._host_variables(path)
        places = self._answers(path, self._places(asked), fresh=not cache)
        # What this file gave an inventory before is not there when it is read again: Ansible begins with an empty one.
        there = {str(name): host.get_vars() for name, host in inventory.hosts.items()}
        groups |= set(inventory.groups)

        def listed() -> tuple[list[_workloads.Entry], list[str]]:
            only = self.get_option("only_reachable")
            found, warnings = _workloads.entries(places, settings, (there, others), groups)
            return [one for one in found if not (only and one.variables["cnvm_unreachable_reason"])], warnings

        # Which groups they will make is known by a trial alone: some come of the user's expressions.
        groups |= self._groups_of(listed()[0])
        entries, warnings = listed()
        for text in warnings:
            self.display.warning(text)
        for entry in entries:
            self._add(entry)

    # --- the hosts to ask ---

    def _places(self, asked: t.Mapping[str, dict[str, t.Any]]) -> list[_workloads.Place]:
        """The hosts, with the way to each, or with why there is none."""
        found = []
        for name, everything in sorted(asked.items()):
            try:
                found.append(self._place(name, everything))
            except AnsibleError as error:
                problem = " ".join(str(error).split()).rstrip(".")
                found.append(_workloads.Place(name, problem=f"its variables say no way to it ({problem})"))
        return found

    def _place(self, name: str, everything: object) -> _workloads.Place:
        if not isinstance(everything, dict):
            raise AnsibleError(f"hosts: {everything!r} is not a mapping of variables")
        templar = template.Templar(loader=self.loader, variables=everything)
        variables = {key: everything[key] for key in _ssh.VARIABLES if key in everything}
        for key, value in variables.items():
            try:
                variables[key] = templar.template(value)
            except AnsibleError as error:
                raise AnsibleError(f"{key}: {error}") from error
        if variables.get("ansible_connection") == "local":
            return _workloads.Place(name)
        argv, destination = _ssh.command(name, variables, self.get_option("timeout_s"))
        return _workloads.Place(name, destination, argv, open=_ssh.open_connection(name, variables))

    def _host_variables(self, path: str) -> tuple[_Variables, _Variables, set[str]]:
        """Of each host to ask its variables, and those of the others, as a play has them; its own ones of each host
        that stands in the same files; and the groups in these."""
        given, files = self.get_option("hosts"), self.get_option("inventory")
        if bool(given) == bool(files):
            raise AnsibleParserError("Either 'inventory' or 'hosts' must say which hosts to ask.")
        if given:
            return self._from_option({str(name): variables or {} for name, variables in given.items()}), {}, set()
        return self._from_files(path, [os.path.join(os.path.dirname(path), str(file)) for file in files])

    def _from_option(self, given: _Variables) -> _Variables:
        hosts = _Given()
        for name, own in given.items():
            hosts.add_host(name)
            for key, value in own.items() if isinstance(own, dict) else ():
                hosts.hosts[name].set_variable(key, value)
        # A plain mapping would be templated as a whole before ansible-core 2.19, with the template that asks for it.
        hostvars = HostVars(t.cast("t.Any", hosts), t.cast("t.Any", hosts), t.cast("t.Any", self.loader))
        return {
            name: {**hosts.hosts[name].get_vars(), "hostvars": hostvars} if isinstance(own, dict) else own
            for name, own in given.items()
        }

    def _from_files(self, path: str, files: t.Sequence[str]) -> tuple[_Variables, _Variables, set[str]]:
        if path in _reading:
            raise AnsibleParserError(f"{path} names itself as the inventory with its hosts.")
        for file in files:
            if not os.path.exists(file):
                raise AnsibleParserError(f"inventory: there is no {file}.")
        _reading.add(path)
        try:
            manager = InventoryManager(loader=self.loader, sources=[os.path.abspath(file) for file in files])
        finally:
            _reading.discard(path)
        variables = VariableManager(loader=self.loader, inventory=manager)
        HostVars(manager, variables, t.cast("t.Any", self.loader))  # makes itself known to the latter
        pattern = self.get_option("pattern")
        hosts = manager.list_hosts(pattern)
        if not hosts:
            raise AnsibleParserError(f"pattern: no host of {', '.join(files)} is in {pattern!r}.")
        others = {str(name): host.get_vars() for name, host in manager.hosts.items()}
        return {host.name: variables.get_vars(host=host) for host in hosts}, others, set(manager.groups)

    # --- what they say ---

    def _answers(self, path: str, places: t.Sequence[_workloads.Place], *, fresh: bool) -> list[_workloads.Place]:
        """The places with what each has said: now, or within the time of the cache."""
        known = self._recall(path).get("hosts", {})
        now = time.time()
        hosts = {place.name: known.get(place.name, {}) for place in places}
        asked = [place for place in places if fresh or place.problem or not self._is_good(hosts[place.name], now)]
        if asked:
            hosts |= self._ask(asked, hosts, now)
            self._keep(path, {"hosts": hosts})
        found: list[_workloads.Place] = []
        for place in places:
            found += self._with_answer(place, hosts[place.name])
        return found

    def _is_good(self, said: t.Mapping[str, t.Any], now: float) -> bool:
        """Whether a host need not be asked again. One that was silent is, and so is one whose libvirt was."""
        if "answer" not in said or said["error"] or said["answer"].get("guests_error"):
            return False
        timeout = self.get_option("cache_timeout")
        return not timeout or 0 <= now - said["answered_at"] <= timeout

    def _ask(
        self, places: t.Sequence[_workloads.Place], before: t.Mapping[str, t.Any], now: float
    ) -> dict[str, dict[str, t.Any]]:
        """{host: its last answer, when it gave that, and what went wrong after it}."""
        helper, timeout_s = _ssh.helper_command("workloads"), self.get_option("timeout_s")

        def command(place: _workloads.Place, options: tuple[str, ...]) -> list[str]:
            if place.ssh is None:
                return ["sh", "-c", helper]
            return [place.ssh[0], *options, *place.ssh[1:], place.destination, helper]

        answers = _ssh.ask_all(
            {place.name: command(place, place.open) for place in places if not place.problem}, timeout_s
        )
        # A connection can be open still to a host that has been started anew since.
        again = [place for place in places if place.open and answers[place.name][1]]
        answers |= _ssh.ask_all({place.name: command(place, ()) for place in again}, timeout_s) if again else {}
        answers |= {place.name: (None, place.problem) for place in places if place.problem}
        found = {}
        for name, (answer, error) in answers.items():
            error = error or _workloads.check_answer(answer)
            last = before.get(name, {})
            if error:
                found[name] = {**last, "error": error}
                continue
            found[name] = {"answer": answer, "answered_at": now, "error": ""}
            if answer.get("guests_error") and last.get("answer"):
                found[name]["guests"] = last.get("guests") or last["answer"]["guests"]
        return found

    def _with_answer(self, place: _workloads.Place, said: t.Mapping[str, t.Any]) -> list[_workloads.Place]:
        """The place with its answer; twice when a part of it is from an earlier time."""

        def made(answer: t.Any, *, stale: bool) -> _workloads.Place:
            return dataclasses.replace(place, answer=answer, stale=stale)

        answer: dict[str, t.Any] = said.get("answer") or {}
        if said["error"]:
            when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(said.get("answered_at", 0)))
            then = f"They are as of {when}." if answer else "They are left out."
            self.display.warning(f"The host {place.name} does not say which workloads it has: {said['error']}. {then}")
        elif answer.get("guests_error"):
            self.display.warning(f"The host {place.name} does not say which guests it has: {answer['guests_error']}")
        # Those guests are of a time before the answer in which libvirt was silent.
        earlier = [made({"guests": said.get("guests", [])}, stale=True)] if answer.get("guests_error") else []
        return [made(answer, stale=bool(said["error"])), *earlier]

    # --- the cache: of a host that is gone an old answer is taken, so it is we who look how old one is ---

    def _recall(self, path: str) -> dict[str, t.Any]:
        if not self.get_option("cache"):
            return {}
        where = {"_uri": self.get_option("cache_connection"), "_prefix": self.get_option("cache_prefix")}
        options = {key: value for key, value in where.items() if value is not None}
        self._cache = get_cache_plugin(self.get_option("cache_plugin"), _timeout=0, **options)
        try:
            known = self._cache[self.get_cache_key(path)]
        except (KeyError, AnsibleError):
            return {}
        return known if isinstance(known, dict) and isinstance(known.get("hosts"), dict) else {}

    def _keep(self, path: str, value: dict[str, t.Any]) -> None:
        if self.get_option("cache"):
            self._cache[self.get_cache_key(path)] = value

    # --- the inventory ---

    def _groups_of(self, entries: t.Iterable[_workloads.Entry]) -> set[str]:
        """The names of all groups that these will be in, and of those above them."""
        inventory: t.Any = self.inventory
        found: set[str] = set()
        try:
            for entry in entries:
                self.inventory = _Trial()
                # Hosts get inventory_file and inventory_dir of it.
                self.inventory.current_source = inventory.current_source
                self._add(entry)
                found |= set(self.inventory.groups)
        finally:
            self.inventory = inventory
        return found

    def _add(self, entry: _workloads.Entry) -> None:
        variables = {key: _no_template(value) for key, value in entry.variables.items()}
        inventory: t.Any = self.inventory
        inventory.add_host(entry.name)
        for key, value in variables.items():
            inventory.set_variable(entry.name, key, value)
        strict = self.get_option("strict")
        known = {"inventory_hostname": entry.name, **variables}
        self._set_composite_vars(self.get_option("compose"), known, entry.name, strict=strict)
        for group in entry.groups:
            inventory.add_child(inventory.add_group(group), entry.name)
        self._add_host_to_composed_groups(self.get_option("groups"), variables, entry.name, strict=strict)
        self._add_host_to_keyed_groups(self.get_option("keyed_groups"), variables, entry.name, strict=strict)
