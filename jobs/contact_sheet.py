"""Results as one self-contained HTML file: thumbnails inside, nothing to fetch, no script."""

import base64
import os
import tempfile
import webbrowser
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from html import escape
from pathlib import Path

import cv2

from pipeline.search import Match
from transforms import storage
from transforms.errors import ImageFailure, UserError
from transforms.fetch import FetchLimits, fetch_image
from transforms.image import Preprocessing, decode_pixels, read_header

# Pixels of a thumbnail; decoded at three times that, and averaged, so that edges are smooth.
_SIDE, _FINER = 224, 3
_QUALITY = 82
_THREADS = 8

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>Similar to {name}</title>
<style>
:root {{ color-scheme: light dark; font: 14px/1.4 system-ui, sans-serif }}
body {{ margin: 0 auto; padding: 24px; max-width: 1320px }}
header {{ display: flex; gap: 20px; align-items: end; margin-bottom: 28px }}
h1 {{ font-size: 20px; margin: 0 0 4px }}
ol {{ list-style: none; margin: 0; padding: 0; display: grid; gap: 20px;
     grid-template-columns: repeat(auto-fill, minmax(200px, 1fr)) }}
figure {{ margin: 0 }}
img, .none {{ width: 100%; aspect-ratio: 1; object-fit: cover; border-radius: 8px; background: #8883;
     display: block }}
header img, header .none {{ width: 160px }}
.none {{ display: grid; place-content: center; padding: 12px; box-sizing: border-box; opacity: .7 }}
figcaption {{ margin-top: 6px; display: grid; grid-template-columns: auto 1fr; gap: 0 8px }}
.score {{ font-variant-numeric: tabular-nums; font-weight: 600 }}
.uri {{ grid-column: 1 / -1; font-size: 12px; opacity: .7; overflow-wrap: anywhere }}
</style>
<header>{query}<div><h1>Similar images</h1><div class="uri">{name}</div><div>{count}</div></div></header>
<ol>
{cards}
</ol>
</html>
"""


def write_sheet(file: str | None, query: str, matches: Sequence[Match]) -> str:
    """Write the sheet to `file`, or to a new temporary one; returns its path. Raises `UserError`."""
    path = file or os.path.join(tempfile.mkdtemp(prefix="pnasvec-"), "similar.html")
    try:
        Path(path).write_text(sheet(query, matches), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {storage.first_line(error)}") from error
    return os.path.abspath(path)


def open_sheet(path: str) -> None:
    """Show it in the browser; raises `UserError` where there is none."""
    if not webbrowser.open(Path(path).as_uri()):
        raise UserError(f"no browser to open {path} with; say --html FILE instead of --open")


def sheet(query: str, matches: Sequence[Match]) -> str:
    """The page for these results; `query` is a URI, or a name for what was searched with."""
    with ThreadPoolExecutor(_THREADS) as pool:
        pictures = list(pool.map(_picture, [query, *(match.uri for match in matches)]))
    cards = (_card(match, picture) for match, picture in zip(matches, pictures[1:], strict=True))
    return _PAGE.format(
        name=escape(query),
        query=pictures[0],
        count=f"{len(matches)} of the index, the most similar first",
        cards="\n".join(cards),
    )


def _card(match: Match, picture: str) -> str:
    name, label = escape(match.uri.rsplit("/", 1)[-1]), escape(match.label or "")
    caption = (
        f'<span class="score">{match.score:.3f}</span><span>{label}</span><span class="uri">{name}</span>'
    )
    title = escape(match.uri)
    return f'<li><figure title="{title}">{picture}<figcaption>{caption}</figcaption></figure>'


def _picture(uri: str) -> str:
    """An <img> with the thumbnail inside, or why there is none."""
    try:
        data = base64.b64encode(thumbnail(uri)).decode()
    except ImageFailure as error:
        return f'<div class="none">{escape(type(error).__name__)}</div>'
    return f'<img alt="" src="data:image/jpeg;base64,{data}">'


def thumbnail(uri: str) -> bytes:
    """A square JPEG from the middle of an image; raises `ImageFailure`."""
    fine = Preprocessing(_SIDE * _FINER, _SIDE * _FINER, "fit-crop", allow_truncated=True)
    data = fetch_image(uri, FetchLimits()).data
    pixels = decode_pixels(data, read_header(data, fine), fine).pixels
    small = cv2.resize(pixels, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    _, encoded = cv2.imencode(".jpg", small[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    return encoded.tobytes()
