"""The page: one HTML file with its style, its figures and the library that draws them, and nothing from elsewhere."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Union

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Heading:
    """Inside of a section."""

    text: str


@dataclass(frozen=True)
class Facts:
    """Names and what they are."""

    pairs: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Table:
    """Rows under a header; of a row the first cell is its header."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    """A line break in a cell begins a new line."""
    numbers: bool = True
    """Whether all columns but the first are aligned to the right."""


@dataclass(frozen=True)
class Code:
    """A text as it is, closed until it is opened."""

    summary: str
    text: str


@dataclass(frozen=True)
class Figure:
    """A figure with the sentence that says how to read it."""

    title: str
    caption: str
    figure: go.Figure
    zooms: bool = False
    """Whether it gets buttons to zoom and move with."""


Block = Union[Text, Heading, Facts, Table, Code, Figure]


@dataclass(frozen=True)
class Section:
    """A part of the page."""

    name: str
    """Its anchor."""
    title: str
    blocks: Sequence[Block]


def render(title: str, verdict: str, passed: bool, sections: Sequence[Section]) -> str:
    """The page as HTML.

    Args:
        title: Of the page.
        verdict: A sentence below it.
        passed: Whether the verdict is a good one.
        sections: What is on it. All texts are escaped.
    """
    import jinja2
    import markupsafe
    from plotly.offline import get_plotlyjs

    def data(figure: go.Figure) -> markupsafe.Markup:
        # In a script element only `</script` and `<!--` end or change what is read.
        return markupsafe.Markup(figure.to_json().replace("<", "\\u003c"))

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.globals["data"] = data
    environment.tests["of"] = lambda block, kind: type(block).__name__ == kind
    # A third of its size. The same page for the same run: no time in the header.
    library = base64.b64encode(gzip.compress(get_plotlyjs().encode(), 6, mtime=0)).decode()
    return environment.from_string(_TEMPLATE).render(
        title=title, verdict=verdict, passed=passed, sections=sections, style=markupsafe.Markup(_STYLE),
        script=markupsafe.Markup(_SCRIPT), library=library,
    )  # fmt: skip


_STYLE = """
:root { color-scheme: light; --back: #ffffff; --text: #1c2126; --soft: #59636e; --line: #d5dae0; --panel: #f4f6f8;
        --link: #0b5cad; --good: #14713d; --bad: #b3261e; }
@media screen and (prefers-color-scheme: dark) {
  :root { color-scheme: dark; --back: #15181d; --text: #e4e8ec; --soft: #a3adb8; --line: #39414a; --panel: #1e2329;
          --link: #7cb7f5; --good: #5cc98a; --bad: #f2938c; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 1rem; background: var(--back); color: var(--text);
       font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .5rem 0; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; padding-top: .75rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.75rem 0 .25rem; }
p { margin: .5rem 0; }
a { color: var(--link); }
.verdict { font-weight: 600; color: var(--bad); }
.verdict.good { color: var(--good); }
nav ul { display: flex; flex-wrap: wrap; gap: .1rem 1rem; list-style: none; margin: 1rem 0; padding: 0; }
nav a { display: inline-block; padding: .25rem 0; }
figure { margin: 1rem 0 1.5rem; }
figcaption, caption { color: var(--soft); font-size: .9rem; text-align: left; }
figcaption strong, caption { font-weight: 600; color: var(--text); }
caption { padding: .5rem 0; max-width: calc(100vw - 2rem); }
.plot { width: 100%; }
.scroll { overflow-x: auto; margin: .75rem 0; }
table { border-collapse: collapse; font-size: .9rem; }
th, td { padding: .3rem .9rem .3rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line);
         white-space: pre-line; overflow-wrap: normal; }
td { min-width: 4rem; }
thead th { color: var(--soft); font-weight: 600; }
tbody th { font-weight: 500; min-width: 8rem; }
.numbers td, .numbers thead th:not(:first-child) { text-align: right; font-variant-numeric: tabular-nums; }
.numbers td { white-space: pre; }
dl { display: grid; grid-template-columns: minmax(6rem, max-content) 1fr; gap: .2rem 1rem; margin: .75rem 0;
     font-size: .95rem; }
dt { color: var(--soft); }
dd { margin: 0; white-space: pre-line; }
summary { cursor: pointer; color: var(--link); }
pre { background: var(--panel); padding: .75rem; overflow-x: auto; font-size: .85rem; line-height: 1.45; }
.js-plotly-plot .main-svg text { fill: var(--text) !important; }
.js-plotly-plot .gridlayer path { stroke: var(--line) !important; }
.js-plotly-plot .hoverlayer path { fill: var(--panel) !important; stroke: var(--line) !important; }
.js-plotly-plot .modebar-btn path { fill: var(--soft) !important; }
.js-plotly-plot .modebar-group { background: none !important; }
@media screen and (max-width: 36rem) {
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .4rem; }
  .words thead { position: absolute; clip-path: inset(50%); }
  .words tr { display: block; border-bottom: 1px solid var(--line); padding: .4rem 0; }
  .words th, .words td { display: block; border: 0; padding: .1rem 0; }
  .words tbody th { font-weight: 600; }
  .words td::before { content: attr(data-column) ": "; color: var(--soft); }
}
@page { margin: 14mm; }
@media print {
  body { max-width: none; padding: 0; font-size: 10.5pt; }
  nav, .modebar-container { display: none; }
  figure, tr, dl { break-inside: avoid; }
  h2, h3, caption, thead { break-after: avoid; }
  .scroll { overflow: visible; }
  table { font-size: 8.5pt; }
  .numbers td { white-space: pre-line; padding-right: .5rem; }
  th, td { overflow-wrap: break-word; }
  pre { white-space: pre-wrap; }
  a { color: inherit; text-decoration: none; }
}
"""

_SCRIPT = """
(async () => {
  const plots = [...document.querySelectorAll('.plot')];
  const packed = Uint8Array.from(atob(document.getElementById('library').textContent), c => c.charCodeAt(0));
  const text = new Blob([packed]).stream().pipeThrough(new DecompressionStream('gzip'));
  const library = document.createElement('script');
  library.textContent = await new Response(text).text();
  document.head.append(library);
  for (const plot of plots) {
    const {data, layout} = JSON.parse(plot.nextElementSibling.textContent);
    const config = {responsive: true, displaylogo: false, displayModeBar: 'zooms' in plot.dataset,
                    modeBarButtons: [['zoom2d', 'pan2d', 'zoomIn2d', 'zoomOut2d', 'resetScale2d']]};
    await Plotly.newPlot(plot, data, layout, config);
  }
  const width = value => plots.forEach(plot => Plotly.relayout(plot, value));
  addEventListener('beforeprint', () => {
    document.querySelectorAll('details').forEach(each => each.open = true);
    width({width: 680});
  });
  addEventListener('afterprint', () => width({width: null, autosize: true}));
  document.documentElement.dataset.drawn = plots.length;
})();
"""

_TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{{ title }}</title>
<style>{{ style }}</style>
</head>
<body>
<header>
<h1>{{ title }}</h1>
<p class="verdict{{ ' good' if passed }}">{{ verdict }}</p>
<noscript><p>The figures need JavaScript; the tables do not.</p></noscript>
<nav aria-label="Sections"><ul>
{% for section in sections %}
<li><a href="#{{ section.name }}">{{ section.title }}</a></li>
{% endfor %}
</ul></nav>
</header>
<main>
{% for section in sections %}
<section aria-labelledby="{{ section.name }}">
<h2 id="{{ section.name }}">{{ section.title }}</h2>
{% for block in section.blocks %}
{% if block is of "Text" %}
<p>{{ block.text }}</p>
{% elif block is of "Heading" %}
<h3>{{ block.text }}</h3>
{% elif block is of "Facts" %}
<dl>
{% for name, value in block.pairs %}
<dt>{{ name }}</dt><dd>{{ value }}</dd>
{% endfor %}
</dl>
{% elif block is of "Table" %}
<div class="scroll" tabindex="0" role="region" aria-label="{{ block.caption }}">
<table class="{{ 'numbers' if block.numbers else 'words' }}">
<caption>{{ block.caption }}</caption>
<thead><tr>{% for cell in block.header %}<th scope="col">{{ cell }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in block.rows %}
<tr><th scope="row">{{ row[0] }}</th>{% for cell in row[1:] %}
<td data-column="{{ block.header[loop.index] }}">{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody>
</table></div>
{% elif block is of "Code" %}
<details><summary>{{ block.summary }}</summary>
<pre>{{ block.text }}</pre></details>
{% else %}
<figure>
<figcaption><strong>{{ block.title }}.</strong> {{ block.caption }}</figcaption>
<div class="plot" role="img" aria-label="{{ block.title }}"{{ ' data-zooms' if block.zooms }}
 style="min-height: {{ block.figure.layout.height }}px"></div>
<script type="application/json">{{ data(block.figure) }}</script>
</figure>
{% endif %}
{% endfor %}
</section>
{% endfor %}
</main>
<script type="text/plain" id="library">{{ library }}</script>
<script>{{ script }}</script>
</body>
</html>
"""
