# Copyright (c) 2026, the cnvm.platform authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Draws what the demo said: ./dev demo | tee said; python3 tests/demo/picture.py < said > docs/images/teleport.svg"""

from __future__ import annotations

import re
import sys
from xml.sax.saxutils import escape

WIDTH, LINE, MARGIN = 8.43, 19, 22
STYLE = "font:14px ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace;fill:#d7dae0"
COLOURS = (
    (re.compile(r"^✓|\b0 resets\.|^\$ .*"), "#7ec699"),
    (re.compile(r" +\d+\.\d s$|running on \w+"), "#8b919c"),
    (re.compile(r"host\d → host\d"), "#e5c07b"),
)


def line(text: str, at: int) -> str:
    """One line of text, parts of it coloured."""
    spans: list[tuple[int, int, str]] = []
    for pattern, colour in COLOURS:
        spans += [(found.start(), found.end(), colour) for found in pattern.finditer(text)]
    made, done = "", 0
    for begin, end, colour in sorted(spans):
        if begin >= done:
            made += f'{escape(text[done:begin])}<tspan fill="{colour}">{escape(text[begin:end])}</tspan>'
            done = end
    return f'<text xml:space="preserve" x="{MARGIN}" y="{MARGIN + 34 + at * LINE}">{made}{escape(text[done:])}</text>'


def main() -> None:
    said = [text.rstrip() for text in sys.stdin.read().splitlines()]
    lines = ["$ ./dev demo", *[text for text in said if not text.startswith(("Making", "Installing", "Waiting"))]]
    width = round(2 * MARGIN + WIDTH * max(map(len, lines)))
    height = 2 * MARGIN + 26 + LINE * len(lines)
    dots = "".join(f'<circle cx="{22 + 18 * at}" cy="20" r="6" fill="#4b5263"/>' for at in range(3))
    print(f"""<!--
Copyright (c) 2026, the cnvm.platform authors
GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
SPDX-License-Identifier: GPL-3.0-or-later
-->
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">
<title>Output of ./dev demo</title>
<style>text{{{STYLE}}}</style>
<rect width="{width}" height="{height}" rx="10" fill="#22262e"/>
{dots}""")
    for at, text in enumerate(lines):
        if text:
            print(line(text, at))
    print("</svg>")


if __name__ == "__main__":
    main()
