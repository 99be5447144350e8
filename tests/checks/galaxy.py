# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Build what Galaxy gets, import it as Galaxy does, install it as a user does: ``galaxy.py IMPORTER WORK``.

IMPORTER is the bin directory of the environment that has galaxy-importer; WORK is a directory to work in.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path


def main(importer: Path, work: Path) -> None:
    """Run the three; the first failure ends it."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    subprocess.run(["ansible-galaxy", "collection", "build", "--output-path", work], check=True)
    (archive,) = work.glob("*.tar.gz")
    environment = {
        **os.environ,
        "GALAXY_IMPORTER_CHECK_REQUIRED_TAGS": "1",
        # ``./dev lint`` runs it by itself, with fewer exceptions.
        "GALAXY_IMPORTER_RUN_ANSIBLE_LINT": "0",
        "GALAXY_IMPORTER_RUN_FLAKE8": "1",
        "PATH": f"{importer}:{os.environ['PATH']}",
    }
    argv: list[str | Path] = [importer / "python", "-m", "galaxy_importer.main", archive]
    subprocess.run(argv, cwd=work, env=environment, check=True)
    target = str(work / "installed")
    subprocess.run(["ansible-galaxy", "collection", "install", "--offline", "-p", target, archive], check=True)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
    except subprocess.CalledProcessError as failure:
        sys.exit(str(failure))
