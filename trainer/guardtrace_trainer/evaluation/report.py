"""A report as one HTML file that needs nothing else: pictures inside, no scripts, all text escaped."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; margin: .5rem 0 1rem; } caption { text-align: left; color: #555; padding: .2rem 0; }
th, td { border-bottom: 1px solid #ddd; padding: .2rem .7rem .2rem 0; text-align: left; vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
img { max-width: 100%; } p.note { color: #555; } pre { white-space: pre-wrap; }
"""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


class Report:
    """Sections in the order in which they are added; every text is escaped here and nowhere else."""

    def __init__(self, title: str) -> None:
        self._title = html.escape(title)
        self._parts: list[str] = []

    def heading(self, text: str) -> None:
        """Begin a section."""
        self._parts.append(f"<h2>{html.escape(text)}</h2>")

    def note(self, text: str) -> None:
        """A sentence or two that explain."""
        self._parts.append(f'<p class="note">{html.escape(text)}</p>')

    def text(self, text: str) -> None:
        """Text as it stands, line breaks kept."""
        self._parts.append(f"<pre>{html.escape(text)}</pre>")

    def table(self, head: Sequence[str], rows: Iterable[Sequence[Any]], caption: str = "") -> None:
        """Numbers stand right; None is a dash."""
        said = f"<caption>{html.escape(caption)}</caption>" if caption else ""
        top = "".join(f"<th>{html.escape(name)}</th>" for name in head)
        body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
        self._parts.append(f"<table>{said}<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>")

    def settings(self, values: Mapping[str, Any]) -> None:
        """Names and values."""
        self.table(("setting", "value"), [(name, _plain(value)) for name, value in values.items()])

    def picture(self, png: bytes, about: str) -> None:
        """A PNG, inside the file; ``about`` is what it shows."""
        data = base64.b64encode(png).decode()
        self._parts.append(f'<p><img alt="{html.escape(about)}" src="data:image/png;base64,{data}"></p>')

    def html(self) -> str:
        """The whole file."""
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
            f"<title>{self._title}</title><style>{STYLE}</style></head>\n"
            f"<body><h1>{self._title}</h1>\n" + "\n".join(self._parts) + "\n</body></html>\n"
        )


def percent(value: float | None, interval: Sequence[float] | None = None) -> str:
    """A share in percent, with its interval."""
    if value is None:
        return "–"
    if not interval:
        return f"{100 * value:.1f} %"
    return f"{100 * value:.1f} % ({100 * interval[0]:.1f}–{100 * interval[1]:.1f})"


def with_interval(found: Mapping[str, Any] | None, unit: str = "") -> str:
    """``{"value", "interval"}`` as text."""
    if found is None:
        return "–"
    low, high = found["interval"]
    return f"{found['value']:.4g}{unit} ({low:.4g}–{high:.4g})"


def _cell(value: Any) -> str:
    if value is None:
        return "<td>–</td>"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f'<td class="number">{value:g}</td>'
    return f"<td>{html.escape(str(value))}</td>"


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_plain(inner)}" for key, inner in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_plain, value))
    return "–" if value is None else str(value)
