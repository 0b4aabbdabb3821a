"""The look of the evaluation report, for light and dark screens and for small ones."""

STYLE = """
:root { --line: #dedbd3; --third: #6d28d9; }
@media (prefers-color-scheme: dark) { :root { --line: #363b44; --third: #b794f6; } }
body { line-height: 1.55; }
main { max-width: 1180px; margin: 0 auto; padding: 48px 24px 96px; }
h1 { font-size: 34px; letter-spacing: -0.02em; margin: 0 0 6px; line-height: 1.2; }
h2 { font-size: 22px; letter-spacing: -0.01em; margin: 52px 0 6px; }
header p, section > p { color: var(--soft); margin: 0 0 18px; max-width: 50em; overflow-wrap: anywhere; }
small { color: var(--soft); font-size: 13px; font-weight: 400; }
.facts { display: flex; flex-wrap: wrap; gap: 14px 44px; margin-top: 24px; }
.facts div { line-height: 1.3; } .facts b { display: block; font-size: 24px; }
.facts span { color: var(--soft); font-size: 14px; }
.card { padding: 16px 18px; }
.radar svg { display: block; width: 100%; max-width: 760px; height: auto; margin: 0 auto; }
.radar text { font-family: inherit !important; }
.legend { display: flex; flex-wrap: wrap; gap: 6px 26px; justify-content: center; font-size: 14px; }
.legend i { display: inline-block; width: 14px; height: 10px; border-radius: 3px; margin-right: 8px; }
.legend i.paper { height: 0; border-top: 2px dashed var(--ink); border-radius: 0; vertical-align: middle; }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: 14.5px; }
th { font-weight: 500; color: var(--soft); text-align: left; font-size: 13px; vertical-align: bottom; }
th, td { padding: 7px 14px 7px 0; border-bottom: 1px solid var(--line); }
tr:last-child td { border: 0; }
th.n, td.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td:nth-last-child(2), td:last-child { white-space: nowrap; }
td em { color: var(--wrong); font-style: normal; }
details { border-top: 1px solid var(--line); padding: 10px 0; }
details:last-child { border-bottom: 1px solid var(--line); }
section > details { border: 1px solid var(--line); border-radius: 12px; background: var(--card);
  padding: 10px 16px; margin-top: 14px; }
summary { cursor: pointer; font-weight: 550; }
ul { margin: 10px 0 4px; padding-left: 20px; font-size: 14.5px; }
li { overflow-wrap: anywhere; }
.strip { display: flex; gap: 14px; overflow-x: auto; scroll-snap-type: x mandatory; padding: 14px 0 10px; }
.strip .card { flex: 0 0 min(360px, 86vw); scroll-snap-align: start; background: var(--ground); }
.images { display: grid; gap: 6px; margin: 8px 0 4px; } .images img { display: block; width: 100%;
  max-height: 260px; object-fit: contain; border-radius: 8px; background: var(--line); }
.images.n2, .images.n3, .images.n4 { grid-template-columns: 1fr 1fr; }
dl { margin: 6px 0 0; font-size: 14.5px; } dt { color: var(--soft); font-size: 13px; margin-top: 8px; }
dd { margin: 0; white-space: pre-line; overflow-wrap: anywhere; max-height: 220px; overflow-y: auto; }
dd.answer { color: var(--wrong); font-weight: 600; } dd.reference { color: var(--right); font-weight: 600; }
@media (max-width: 640px) { main { padding: 28px 16px 64px; } }
"""
