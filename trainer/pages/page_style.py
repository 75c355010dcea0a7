"""Style sheet of all HTML pages: one column, framed pictures, light and dark."""

STYLE = """
:root { --paper: #faf7f0; --card: #fffdf8; --ink: #24211c; --soft: #6d665a; --line: #e3dccd; --accent: #8a4b1f;
  --good: #3f7a4d; --low: #b4532a; --shadow: 0 1px 2px rgba(60, 45, 20, .08), 0 6px 18px rgba(60, 45, 20, .06); }
@media (prefers-color-scheme: dark) {
  :root { --paper: #17161a; --card: #201f24; --ink: #ece7dd; --soft: #a39c8f; --line: #35333a; --accent: #e0a36c;
    --good: #86c493; --low: #e88f66; --shadow: 0 1px 2px rgba(0, 0, 0, .4); }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); line-height: 1.55;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 40px 24px 80px; }
h1, h2, h3 { font-family: "Iowan Old Style", "Palatino Linotype", Palatino, "Book Antiqua", Georgia, serif; line-height: 1.2; }
h1 { font-size: 2.5rem; margin: 0 0 .2em; font-weight: 600; letter-spacing: -.01em; }
h2 { font-size: 1.55rem; margin: 2.2em 0 .35em; font-weight: 600; padding-top: .8em; border-top: 1px solid var(--line); }
h3 { font-size: 1.1rem; margin: 1.4em 0 .4em; }
p { margin: .3em 0 .9em; max-width: 74ch; }
p.lead { font-size: 1.12rem; color: var(--soft); }
a { color: var(--accent); }
code { font: .88em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; background: var(--card); padding: .08em .35em;
  border: 1px solid var(--line); border-radius: 4px; overflow-wrap: anywhere; }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 10px; overflow: hidden;
  box-shadow: var(--shadow); }
figure img { display: block; width: 100%; height: auto; }
figcaption { padding: .45em .7em .55em; font-size: .84rem; line-height: 1.35; color: var(--soft); overflow-wrap: anywhere; }
figcaption b, .recipe b { color: var(--ink); font-weight: 600; }
.gallery { display: grid; gap: 14px; grid-template-columns: repeat(auto-fill, minmax(var(--tile, 160px), 1fr)); margin: 1em 0 1.4em; }
.recipe { display: grid; grid-template-columns: minmax(0, 1fr) auto minmax(0, 1fr); gap: 18px; align-items: center;
  background: var(--card); border: 1px solid var(--line); border-radius: 14px; padding: 16px; margin: 0 0 16px; box-shadow: var(--shadow); }
.recipe .sources { display: flex; flex-wrap: wrap; gap: 7px; align-items: flex-start; }
.recipe .source { width: 88px; text-align: center; font-size: .8rem; line-height: 1.3; color: var(--soft); }
.recipe .source img { width: 88px; border-radius: 8px; display: block; margin-bottom: 5px; }
.recipe .plus { align-self: center; font-size: 1.3rem; color: var(--soft); padding-bottom: 26px; }
.recipe .equals { font-size: 2rem; color: var(--accent); }
.recipe .result { display: grid; gap: 10px; grid-template-columns: repeat(auto-fit, minmax(110px, 180px)); }
.recipe .result img { width: 100%; border-radius: 10px; display: block; }
.recipe .prompt { grid-column: 1 / -1; font-size: .82rem; color: var(--soft); margin: 0; max-width: none; }
.strip { display: grid; gap: 10px; grid-template-columns: repeat(var(--columns), minmax(0, 1fr)); margin: .6em 0 1.6em; }
.tiles { display: grid; gap: 14px; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); margin: 1.2em 0; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 12px 14px; }
.tile strong { display: block; font: 600 1.7rem/1.15 "Iowan Old Style", Palatino, Georgia, serif; }
.tile span { font-size: .82rem; color: var(--soft); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: 1em 0; font-size: .92rem; font-variant-numeric: tabular-nums; background: var(--card); }
th, td { padding: .45em .8em; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
th:first-child, td:first-child { text-align: left; }
th { font-weight: 600; color: var(--soft); font-size: .82rem; white-space: nowrap; }
tr.best td { font-weight: 600; }
.note { border-left: 3px solid var(--accent); padding: .5em 1em; background: var(--card); color: var(--soft); font-size: .92rem;
  margin: 1em 0; max-width: 78ch; }
.key { display: inline-block; width: .85em; height: .85em; border-radius: 3px; margin: 0 .35em 0 .9em; vertical-align: -.06em; }
details { margin: .8em 0; } summary { cursor: pointer; color: var(--accent); }
footer { margin-top: 4em; color: var(--soft); font-size: .84rem; border-top: 1px solid var(--line); padding-top: 1em; }
@media (max-width: 640px) { .strip { --columns: 2 !important; } .recipe { grid-template-columns: 1fr; justify-items: center; } h1 { font-size: 1.9rem; } }
"""
