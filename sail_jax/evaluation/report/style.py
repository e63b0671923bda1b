"""The style sheet of the report, and the colours of its charts."""

# Placeholder in charts for the colour of the page's text, which replaces it; nothing else uses this colour.
INK = "#010203"
# Distinct with any colour vision, and legible on light and dark backgrounds (after Okabe and Ito).
LINES = ("#2f7fd6", "#e08214", "#1b9e77", "#c2559d", "#8c6bd1", "#b8860b", "#3aa6b9", "#d1495b")
GREY = "#8f9baa"

STYLE = """
:root { --ground: #f6f7f9; --card: #ffffff; --ink: #1c2330; --soft: #5c6675; --line: #dfe3e9; --accent: #2463c5;
  --good: #14804a; --fill: #2f7fd6; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #12151a; --card: #1b2028; --ink: #e6eaf0; --soft: #9aa5b4; --line: #303845; --accent: #7db1ff;
    --good: #4cc38a; --fill: #4f97e6; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); line-height: 1.5; -webkit-text-size-adjust: 100%;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 1rem; letter-spacing: -0.01em; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 0 0 0.25rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 0.5rem; overflow-wrap: anywhere; }
nav { display: flex; flex-wrap: wrap; gap: 0.25rem 1.25rem; margin-top: 1.25rem; font-size: 0.875rem; }
nav a { color: var(--accent); text-decoration: none; padding: 0.2rem 0; }
section, main > details, .card { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 1.25rem; margin-top: 1.25rem; scroll-margin-top: 0.5rem; }
section p { overflow-wrap: anywhere; font-size: 0.9rem; }
.tables { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 0 2.5rem; }
.tables > div { min-width: 0; }
.caption { color: var(--soft); font-size: 0.875rem; margin: 0 0 0.75rem; max-width: 80ch; }
.facts { display: flex; flex-wrap: wrap; gap: 0.5rem 2rem; margin: 0; }
.facts dt { color: var(--soft); font-size: 0.75rem; }
.facts dd { margin: 0; font-size: 0.9rem; overflow-wrap: anywhere; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 230px), 1fr)); gap: 1rem;
  margin-top: 1.5rem; }
.tile { background: var(--card); border: 1px solid var(--line); border-left: 4px solid var(--fill); border-radius: 10px;
  padding: 1rem 1.25rem; }
.what, .was, .soft { color: var(--soft); }
.what { font-size: 0.8125rem; overflow-wrap: anywhere; }
.was { font-size: 1.3rem; font-weight: 450; }
.now { font-size: 2.1rem; font-weight: 650; line-height: 1.25; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.8125rem; font-variant-numeric: tabular-nums;
  min-width: min(100%, 30rem); }
th, td { padding: 0.35rem 0.75rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
thead th { color: var(--soft); font-weight: 500; }
tbody th { font-weight: 500; }
th:first-child { text-align: left; padding-left: 0; position: sticky; left: 0; background: var(--card); }
tbody th:first-child, thead th { max-width: min(18rem, 40vw); overflow: hidden; text-overflow: ellipsis; }
header > .scroll th:first-child { background: var(--ground); }
td.best { font-weight: 750; }
th.group { text-align: center; color: var(--ink); border-left: 1px solid var(--line); }
.texts th, .texts td { text-align: left; white-space: normal; overflow-wrap: anywhere; vertical-align: top;
  min-width: 8rem; }
.code td { font-family: ui-monospace, monospace; font-size: 0.75rem; }
section details { margin-top: 0.75rem; font-size: 0.875rem; }
summary { cursor: pointer; font-weight: 600; }
section summary { color: var(--accent); font-weight: 500; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 320px), 1fr)); gap: 1.5rem 1.25rem;
  align-items: start; }
figure { margin: 0; min-width: 0; }
figure svg { display: block; width: 100%; height: auto; color: var(--ink); }
figure text { font-family: inherit !important; }
.row { display: grid; grid-template-columns: 120px minmax(0, 1fr); gap: 1rem; padding: 1rem 0;
  border-top: 1px solid var(--line); }
.query { border-right: 2px solid var(--line); padding-right: 1rem; }
.query .text { font-weight: 600; }
.strips { display: grid; gap: 0.75rem; align-content: start; }
.run { font-size: 0.8125rem; color: var(--soft); overflow-wrap: anywhere; margin-bottom: -0.4rem; }
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
@media (max-width: 560px) {
  main { padding: 1.25rem 0.75rem 3rem; }
  section, main > details, .card { padding: 1rem 0.75rem; }
  h1 { font-size: 1.35rem; }
  th, td { padding: 0.35rem 0.5rem; }
  .row { grid-template-columns: minmax(0, 1fr); }
  .query { border-right: 0; padding: 0; display: flex; gap: 0.75rem; }
  .results { gap: 0.75rem 0.5rem; }
}
@media print { section, .tile, .row, figure { break-inside: avoid; } }
"""
