# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``ansible-test sanity`` with every Python from 3.9 that works on this machine: ``ansible_test.py HOME``.

HOME is a home directory for ansible-test alone; it keeps its virtual environments there.
"""

from __future__ import annotations

import ast
import configparser
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

# ansible-test fetches this script from a host that not everybody reaches, for what each Python has on board.
# The version in the file's name is the one that ansible-core 2.19 asks for.
GET_PIP_NAME = "get_pip_24_2.py"
GET_PIP = """\
import subprocess, sys
arguments = [one for one in sys.argv[1:] if one not in ('--no-setuptools', '--no-wheel')]
subprocess.check_call([sys.executable, '-m', 'ensurepip'])
subprocess.check_call([sys.executable, '-m', 'pip', 'install', *arguments])
"""


def pip_settings(listing: str, environment: dict[str, str]) -> configparser.RawConfigParser:
    """What pip would go by here, as a file's content: ``pip config list``, and the proxy of the environment.

    ansible-test hides the environment from the pip that it calls.
    """
    settings = configparser.RawConfigParser()
    settings["global"] = {"quiet": "2"}
    for option, names in (("proxy", ("https_proxy", "HTTPS_PROXY")), ("cert", ("REQUESTS_CA_BUNDLE",))):
        for name in names:
            if environment.get(name):
                settings["global"][option] = environment[name]
    # What comes last counts, and the environment counts most.
    for line in sorted(listing.splitlines(), key=lambda line: line.startswith(":env:")):
        found = re.fullmatch(r"(.+?)\.([^.=]+)=(['\"].*)", line)
        if found:
            section, option, value = found.groups()
            settings.read_dict({"global" if section == ":env:" else section: {option: ast.literal_eval(value)}})
    return settings


def works(python: Path) -> bool:
    """Whether ``python`` runs and can make environments; a file of that name may be a shim that leads nowhere."""
    return subprocess.run([python, "-c", "import ensurepip"], capture_output=True, check=False).returncode == 0


def link_pythons(folder: Path, path: list[str]) -> None:
    """Fill ``folder`` with python3.9 to python3.13 as far as they can be found and can make environments."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    for name in (f"python3.{minor}" for minor in range(9, 14)):
        for python in [*(Path(one, name) for one in path), *sorted(pyenv.glob(f"versions/*/bin/{name}"))]:
            if python.exists() and works(python):
                (folder / name).symlink_to(python)
                break


def main(home: Path) -> None:
    """Prepare ``home`` and become ansible-test."""
    # ansible-test takes every python3.N that it finds; a version manager's shims are there for all of them.
    path = [one for one in os.environ["PATH"].split(os.pathsep) if not one.endswith("/shims")]
    link_pythons(home / "bin", path)

    get_pip = home / ".ansible/test/cache" / GET_PIP_NAME
    get_pip.parent.mkdir(parents=True, exist_ok=True)
    get_pip.write_text(GET_PIP)

    pip = [sys.executable, "-m", "pip", "config", "list"]
    listing = subprocess.run(pip, stdout=subprocess.PIPE, text=True, check=True).stdout
    (home / ".pip").mkdir(exist_ok=True)
    with open(home / ".pip/pip.conf", "w", encoding="utf-8") as file:
        pip_settings(listing, dict(os.environ)).write(file)

    os.environ.update(HOME=str(home), PATH=os.pathsep.join([path[0], str(home / "bin"), *path[1:]]))
    os.execvp("ansible-test", ["ansible-test", "sanity", "--local", "--color", "no"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
