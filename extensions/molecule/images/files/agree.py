# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether QEMU sees images as disk_image_info does (JSON on stdin), finds them sound, and with the content they had."""

from __future__ import annotations

import json
import re
import subprocess
import sys


def qemu_img(*words: str) -> str:
    return subprocess.run(["qemu-img", *words], check=True, stdout=subprocess.PIPE, text=True).stdout


def main(content: str) -> None:
    compared = 0
    for image in json.load(sys.stdin):
        path, driver = image["path"], {"vhd": "vpc"}.get(image["format"], image["format"])
        told = json.loads(qemu_img("info", "-f", driver, "--output=json", path))
        if told["virtual-size"] != image["virtual_bytes"] or image["cluster_bytes"] not in (
            None,
            told.get("cluster-size"),
        ):
            sys.exit(f"{path}: {told} is not {image}")
        if driver in ("qcow2", "vdi", "vhdx"):
            qemu_img("check", "-q", "-f", driver, path)
        if re.search(r"/(base|one|two|from-.*)\.", path):
            # Beyond the end of the shorter one there are zeros only.
            qemu_img("compare", "-q", "-f", "raw", "-F", driver, content, path)
            compared += 1
    sys.stdout.write(f"{compared}\n")


if __name__ == "__main__":
    main(sys.argv[1])
