"""The style sheet of HTML pages: colours for light and for dark; paper is always light."""

__all__ = ["STYLE"]

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --muted: #4d5560; --line: #c9d0d8;
    --paper: #ffffff; --surface: #f3f5f7; --link: #1d4f8c;
  --series-1: #1d5fa8; --series-2: #a8500a; --series-3: #1a7244; --series-4: #7a3aa8;
    --series-5: #a82a2a; --series-6: #4d5560; }
@media screen and (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ed; --muted: #a9b2bd; --line: #3d4650; --paper: #15181c; --surface: #1f242a;
    --link: #86b7f0;
    --series-1: #6aaaf0; --series-2: #f0a052; --series-3: #5cc48c; --series-4: #c49af0;
    --series-5: #f08a8a; --series-6: #a9b2bd; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1.5rem 1.25rem 3rem; background: var(--paper);
    color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial,
    sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .4rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .7rem; padding-bottom: .25rem;
    border-bottom: 1px solid var(--line); }
a { color: var(--link); }
nav ul { list-style: none; display: flex; flex-wrap: wrap; gap: .25rem 1.1rem; margin: 1rem 0 0;
    padding: 0; }
p, figcaption { max-width: 46rem; }
dl { display: grid; grid-template-columns: minmax(8rem, max-content) 1fr; gap: .3rem 1.2rem;
    margin: 0 0 1rem; }
dt { color: var(--muted); overflow-wrap: anywhere; }
dd { margin: 0; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: .4rem 0 1rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .6rem; border-bottom: 1px solid var(--line); text-align: left;
    vertical-align: top; }
thead th { color: var(--muted); font-weight: 500; }
tbody th { font-weight: 400; }
.figure { text-align: right; }
td.figure { white-space: nowrap; }
tr.mark th, tr.mark td { font-weight: 600; background: var(--surface); }
figure { margin: 1rem 0; }
figcaption { color: var(--muted); font-size: .9rem; margin-top: .3rem; }
.beside { display: flex; flex-wrap: wrap; gap: 1rem 2.5rem; }
.beside figure { flex: 0 1 22rem; }
svg { display: block; width: 100%; height: auto; }
svg * { stroke-linejoin: round; stroke-linecap: butt; }
svg image { image-rendering: pixelated; }
pre { background: var(--surface); padding: .8rem 1rem; overflow-x: auto; font-size: .85rem;
    line-height: 1.45; white-space: pre-wrap; }
footer { margin-top: 3rem; color: var(--muted); font-size: .9rem; }
@media (max-width: 36rem) { table { font-size: .8rem; } th, td { padding-inline: .3rem; }
  dl { grid-template-columns: 1fr; } dd { margin-bottom: .4rem; } }
@media print { svg { min-width: 0 !important; } nav { display: none; } body { max-width: none;
    padding: 0; font-size: 10.5pt; }
  figure, tr, dl { break-inside: avoid; } h2 { break-after: avoid; } * { print-color-adjust: exact;
    -webkit-print-color-adjust: exact; } }
"""
