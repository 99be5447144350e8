# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plays the playbooks and roles without hosts: Ansible is real, the collection's modules say what the test tells them.

stage.answers["host1"]["guest_info"] = {"guests": []}
done = stage.playbook("recover", container="web")
assert stage.asked("container_recover") == [...]
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import typing as t
from pathlib import Path

import yaml

from ansible_collections.cnvm.platform.plugins.plugin_utils import _helper

ROOT = Path(_helper.collection_root())
# What stands for each module. A list of answers is one after the other, the last one for all that follow. "off" is no
# answer. "write" is a file that appears as it answers: {"path": …, "text": …}.
ACTOR = r"""
import json
from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase

class ActionModule(ActionBase):
    _requires_connection = False

    def run(self, tmp=None, task_vars=None):
        host = self._task.delegate_to or task_vars["inventory_hostname"]
        name = self._task.action.rpartition(".")[2]
        with open(task_vars["stage_answers"]) as file:
            answers = json.load(file)[host]
        if answers == "off":
            raise AnsibleConnectionFailure("No route to host")
        answer = answers.get(name, {})
        with open(task_vars["stage_asked"], "a+") as file:
            file.seek(0)
            before = [one for one in map(json.loads, file) if (one["host"], one["name"]) == (host, name)]
            one = {"host": host, "name": name, "options": self._task.args, "check": self._task.check_mode}
            file.write(json.dumps(one, default=str) + "\n")
        if isinstance(answer, list):
            answer = answer[min(len(before), len(answer) - 1)]
        if answer == "off":
            raise AnsibleConnectionFailure("No route to host")
        answer = {"changed": False, **answer}
        if "write" in answer:
            with open(answer["write"]["path"], "w") as file:
                file.write(answer.pop("write")["text"])
        return answer
"""


def unsaid(words: t.Iterable[str]) -> dict[str, t.Any]:
    """What a survey sends of words that nobody has filled in."""
    return dict.fromkeys(words, "")


@dataclasses.dataclass
class Stage:
    """Hosts that exist on paper only. ``answers``: what each says, {host: {module: result}}."""

    path: Path
    answers: dict[str, dict[str, t.Any]] = dataclasses.field(default_factory=dict)
    # Hosts that do not answer.
    off: set[str] = dataclasses.field(default_factory=set)
    # Variables of the group all, so of the controller, too.
    variables: dict[str, t.Any] = dataclasses.field(default_factory=dict)

    def build(self, *hosts: str) -> Stage:
        """The collection with an actor for each module, and hosts that answer with nothing."""
        collection = self.path / "ansible_collections/cnvm/platform"
        for name in ("galaxy.yml", "meta", "roles", "playbooks", "plugins/filter", "plugins/test",
                     "plugins/plugin_utils", "plugins/module_utils"):  # fmt: skip
            (collection / name).parent.mkdir(parents=True, exist_ok=True)
            (collection / name).symlink_to(ROOT / name)
        (collection / "plugins/action").mkdir()
        for module in (ROOT / "plugins/modules").glob("*.py"):
            (collection / "plugins/action" / module.name).write_text(ACTOR, encoding="utf-8")
        self.answers = {host: {} for host in hosts}
        return self

    def playbook(self, name: str, *args: str, check: bool = True, **variables: t.Any) -> str:
        """What the playbook ``name`` (of the collection, or a file) prints, in one line."""
        shared = {
            "ansible_connection": "local",
            # The first python3 in PATH need not be one that modules can run with.
            "ansible_python_interpreter": sys.executable,
            "stage_answers": str(self.path / "answers.json"),
            "stage_asked": str(self.path / "asked.json"),
            "ansible_become": False,
        }
        nowhere = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1}
        hosts = {host: nowhere if host in self.off else {} for host in self.answers}
        inventory = {"all": {"vars": self.variables}, "cnvm_hosts": {"hosts": hosts, "vars": shared}}
        (self.path / "hosts.yml").write_text(yaml.safe_dump(inventory), encoding="utf-8")
        answers = {**self.answers, **dict.fromkeys(self.off, "off")}
        (self.path / "answers.json").write_text(json.dumps(answers), encoding="utf-8")
        (self.path / "asked.json").write_text("", encoding="utf-8")
        (self.path / "ansible.cfg").touch()
        play = name if name.endswith(".yml") else f"cnvm.platform.{name}"
        done = subprocess.run(
            ["ansible-playbook", "-i", str(self.path / "hosts.yml"), "-e", json.dumps(variables), *args, play],
            cwd=self.path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
            env={
                **os.environ, "ANSIBLE_COLLECTIONS_PATH": str(self.path), "ANSIBLE_NOCOLOR": "1", "NO_COLOR": "1",
                "ANSIBLE_LOCALHOST_WARNING": "false", "XDG_STATE_HOME": str(self.path / "state"),
                "ANSIBLE_CONFIG": str(self.path / "ansible.cfg"),
                # As a program has it that starts Ansible in another directory, such as AWX: only shells see to it.
                "PWD": "/",
            },
        )  # fmt: skip
        said = " ".join(done.stdout.split())
        assert (done.returncode == 0) == check, said
        return said

    def asked(self, module: str, *, check: bool = False) -> list[tuple[str, dict[str, t.Any]]]:
        """Who was asked to do ``module`` for real (or in check mode), and with what options, in order."""
        lines = map(json.loads, (self.path / "asked.json").read_text(encoding="utf-8").splitlines())
        return [(one["host"], one["options"]) for one in lines if (one["name"], one["check"]) == (module, check)]
