"""How the page of the audit looks: a colour for each verdict, in light and dark; tables that scroll."""

from __future__ import annotations

STYLE = """
:root { --ink: #1c2430; --soft: #5b6675; --line: #dfe4ea; --back: #fff; --panel: #f5f7f9; --good: #2c7a4b;
  --bad: #b3261e; --fits: #2563a8; --odd: #c05a12; --time: #0f766e; --other: #8a6a00; --need: #6d4fb3;
  --none: #8a94a1; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaef; --soft: #9aa5b3; --line: #333c47;
  --back: #14181d; --panel: #1d232a; --good: #5cc48a; --bad: #ff8a80; --fits: #7ab3ee; --odd: #f0a060;
  --time: #4fd1c5; --other: #e2b04a; --need: #b39ddb; --none: #7d8894; } }
.reproduced { --tone: var(--good); } .differs { --tone: var(--bad); } .consistent { --tone: var(--fits); }
.inconsistent { --tone: var(--odd); } .measured-elsewhere { --tone: var(--time); }
.other-weights { --tone: var(--other); } .not-built, .out-of-scope { --tone: var(--none); }
.needs-weights, .needs-data, .needs-weights-and-data, .needs-GPU, .needs-training { --tone: var(--need); }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 40vh; max-width: 76rem; color: var(--ink);
  background: var(--back); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .6rem; } h2 { font-size: 1.25rem; margin: 2.4rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 .3rem; } p { margin: .4rem 0; } a { color: inherit; }
.soft { color: var(--soft); font-size: .86rem; overflow-wrap: anywhere; }
nav { display: flex; flex-wrap: wrap; gap: .4rem .9rem; margin: 1rem 0; }
.bar { display: flex; height: .8rem; border-radius: 4px; overflow: hidden; gap: 1px; margin: .5rem 0 .8rem; }
.bar i { background: var(--tone); min-width: 2px; }
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; width: fit-content;
  max-width: 100%; margin: .4rem 0; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; }
th, td { padding: .28rem .55rem; text-align: left; border-bottom: 1px solid var(--line);
  vertical-align: top; }
tr:last-child > * { border-bottom: 0; } th { font-weight: 600; }
tr > th:first-child { position: sticky; left: 0; background: var(--back); z-index: 1; }
.grid td { white-space: nowrap; } .grid tr > th:first-child { min-width: 7rem; max-width: 16rem; }
.list th { font-weight: 400; max-width: 44rem; } .list td { max-width: 22rem; overflow-wrap: anywhere; }
td[class] { background: color-mix(in srgb, var(--tone) 13%, var(--back)); }
td a { text-decoration: none; display: block; } td a:focus, td a:hover { text-decoration: underline; }
td b, h4 b { color: var(--tone); margin-left: .35rem; } .totals td b { margin: 0; display: inline-block;
  min-width: 1.9rem; } .totals small { max-width: 34rem; }
td small { display: block; color: var(--soft); }
.totals tr > :not(:first-child) { text-align: right; }
ul { padding-left: 1.1rem; } li { margin: .4rem 0; overflow-wrap: anywhere; }
svg.times { display: block; width: 100%; max-width: 34rem; } svg text { font: 10px system-ui, sans-serif;
  fill: var(--soft); } svg .title { fill: var(--ink); } svg .in { fill: var(--back); }
svg .grid { stroke: var(--line); } svg .then { fill: var(--none); } svg .now { fill: var(--time); }
.key { display: inline-block; width: .8rem; height: .6rem; } .key.then { background: var(--none); }
.key.now { background: var(--time); }
aside { display: none; position: fixed; z-index: 5; left: 0; right: 0; bottom: 0; max-height: 55vh;
  overflow: auto; margin: 0 auto; max-width: 60rem; padding: .8rem 1rem 1rem; background: var(--panel);
  border: 1px solid var(--line); border-radius: 10px 10px 0 0; box-shadow: 0 -6px 24px #0003; }
aside:target { display: block; } aside h4 { margin: 0 2rem .4rem 0; font-size: 1.05rem; }
aside .close { float: right; font-size: 1.5rem; line-height: 1; padding: 0 .4rem; text-decoration: none; }
aside dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 34rem) { body { padding: 1rem .7rem 50vh; }
  th, td { padding: .25rem .4rem; } .grid tr > th:first-child { min-width: 8.8rem; max-width: 9.2rem;
  overflow-wrap: break-word; } .list th { max-width: 13rem; overflow-wrap: anywhere; }
  .list td { max-width: 10rem; } aside dl { grid-template-columns: 1fr; gap: 0; }
  aside dd { margin-bottom: .35rem; } }
@media print { aside { display: none !important; } }
"""
