"""The looks of the report: its style sheet and the colours of its charts."""

# Stands for the colour of the text in charts, and is replaced by it; a colour that nothing else uses.
INK = "#010203"
# Told apart with any colour vision, and legible on light and dark ground (after Okabe and Ito).
LINES = ("#2f7fd6", "#e08214", "#1b9e77", "#c2559d", "#8c6bd1", "#b8860b")

STYLE = """
:root { --ground: #f6f7f9; --card: #ffffff; --ink: #1c2330; --soft: #5c6675; --line: #dfe3e9; --accent: #2463c5;
  --good: #14804a; --fill: #2f7fd6; --faint: #aab4c2; --base: #e08214; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #12151a; --card: #1b2028; --ink: #e6eaf0; --soft: #9aa5b4; --line: #303845; --accent: #7db1ff;
    --good: #4cc38a; --fill: #4f97e6; --faint: #586474; --base: #d9861f; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); line-height: 1.5; -webkit-text-size-adjust: 100%;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 1rem; letter-spacing: -0.01em; }
h2 { font-size: 1.2rem; margin: 0 0 0.25rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 0.5rem; }
section, details { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1.25rem;
  margin-top: 1.25rem; }
.caption, figcaption { color: var(--soft); font-size: 0.875rem; margin: 0 0 0.75rem; max-width: 75ch; }
.facts { display: flex; flex-wrap: wrap; gap: 0.5rem 2rem; margin: 0; }
.facts dt { color: var(--soft); font-size: 0.75rem; }
.facts dd { margin: 0; font-size: 0.9rem; overflow-wrap: anywhere; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(230px, 1fr)); gap: 1rem; margin-top: 1.5rem; }
.tile { background: var(--card); border: 1px solid var(--line); border-left: 4px solid var(--fill); border-radius: 10px;
  padding: 1rem 1.25rem; }
.what, .was { color: var(--soft); }
.what { font-size: 0.8125rem; }
.was { font-size: 1.3rem; font-weight: 450; }
.now { font-size: 2.1rem; font-weight: 650; line-height: 1.25; font-variant-numeric: tabular-nums; }
figure { margin: 0 0 1rem; }
figcaption { margin-bottom: 0.4rem; }
.bar { display: grid; grid-template-columns: minmax(7rem, 11rem) 1fr 3.8rem; gap: 0.75rem; align-items: center;
  font-size: 0.8125rem; line-height: 1.7; font-variant-numeric: tabular-nums; }
.bar > :last-child { text-align: right; }
.track { display: block; height: 0.7rem; background: var(--line); border-radius: 3px; overflow: hidden; }
.track span { display: block; height: 100%; background: var(--base); }
.trained .track span { background: var(--fill); }
.untrained .track span { background: var(--faint); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 0.8125rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.35rem 0.6rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
thead th { color: var(--soft); font-weight: 500; }
tbody th { font-weight: 500; }
th:first-child, th:nth-child(2), td:nth-child(2) { text-align: left; }
td.best { font-weight: 700; }
.settings td { text-align: left; white-space: normal; overflow-wrap: anywhere; font-family: ui-monospace, monospace; }
.settings th { vertical-align: top; }
.chart svg { display: block; width: 100%; min-width: 520px; height: auto; color: var(--ink); }
.chart text { font-family: inherit !important; }
.row { display: grid; grid-template-columns: 120px 1fr; gap: 1rem; padding: 1rem 0; border-top: 1px solid var(--line); }
.query { border-right: 2px solid var(--line); padding-right: 1rem; }
.query .text { font-weight: 600; }
.results { list-style: none; margin: 0; padding: 0; display: grid; gap: 0.75rem;
  grid-template-columns: repeat(auto-fill, minmax(96px, 1fr)); }
.picture { position: relative; width: 96px; }
.picture img, .blank { display: block; width: 96px; height: 96px; border-radius: 6px; object-fit: cover; }
.blank { display: grid; place-items: center; background: var(--ground); color: var(--soft); font-size: 0.75rem; }
.results img, .results .blank { border: 2px dashed var(--line); }
.results .relevant img, .results .relevant .blank { border: 3px solid var(--good); }
.sound { position: absolute; right: 5px; bottom: 5px; background: #000a; color: #fff; border-radius: 4px;
  padding: 0 0.3rem; font-size: 0.75rem; line-height: 1.4; }
.text { font-size: 0.75rem; line-height: 1.35; margin-top: 0.3rem; overflow-wrap: anywhere; }
.none { color: var(--soft); font-style: italic; }
.foot { display: flex; gap: 0.4rem; flex-wrap: wrap; font-size: 0.75rem; color: var(--soft); }
.check { color: var(--good); font-weight: 600; }
summary { cursor: pointer; font-weight: 600; }
@media (max-width: 560px) {
  main { padding: 1.25rem 0.75rem 3rem; }
  section, details { padding: 1rem 0.75rem; }
  .bar { grid-template-columns: 6.5rem 1fr 3.4rem; gap: 0.5rem; }
  .row { grid-template-columns: 1fr; }
  .query { border-right: 0; padding: 0; display: flex; gap: 0.75rem; }
}
@media print { section, .tile, .row { break-inside: avoid; } }
"""
