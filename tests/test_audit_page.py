"""`fcn audit`: what it prints, its JSON, `docs/audit.md`, and the page in a real browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import Fcn, refused, run_in

from reproduce.published.claims import load_claims
from reproduce.published.markdown import markdown
from reproduce.published.page import page
from reproduce.published.relations import load_relations
from reproduce.published.tables import SYMBOLS, tables
from reproduce.published.timing_chart import chart
from reproduce.published.timings import Timing, committed_timings
from reproduce.published.verdicts import Audit, Given, audit

ROOT = Path(__file__).resolve().parent.parent
CLAIMS = load_claims()
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
TIMINGS = [Timing("F15.T1-08", 20.0, "ms", "fcn-vgg16 forward", "a <card>", "2026-01-02", "wall")]


@cache
def whole() -> Audit:
    return audit(given=Given(timings=committed_timings()))


@pytest.fixture
def fcn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fcn:
    return run_in(tmp_path, monkeypatch)


def test_the_page_in_docs_is_not_stale() -> None:
    made = markdown(whole())
    stored = (ROOT / "docs" / "audit.md").read_text(encoding="utf-8")
    assert stored == made, "stale: run fcn audit --markdown docs/audit.md --force"
    assert made == markdown(whole())


def test_one_claim_in_detail(fcn: Fcn) -> None:
    result = fcn("audit", "--claim", "F15.T1-17", "--claim", "RS.CR-0[12]")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("F15.T1-17  reproduced\n")
    assert re.search(r"printed +907 px\n +ours +907\n +tier +recomputed", result.stdout)
    assert "RS.CR-01  reproduced" in result.stdout
    assert "RS.CR-02  reproduced" in result.stdout
    assert "C10 " in result.stdout  # the contradiction it is part of


def test_a_claim_whose_id_holds_a_star(fcn: Fcn) -> None:
    result = fcn("audit", "--claim", "DN.T1/* BoxSup (COCO)/mean")
    assert result.exit_code == 0
    assert result.stdout.count("DN.T1/") == 1


def test_a_paper(fcn: Fcn) -> None:
    result = fcn("audit", "--paper", "RS")
    assert result.exit_code == 0
    assert "repo shelhamer@1305c73, */solver.prototxt: 26 reproduced" in result.stdout
    assert re.search(r"RS.PC-03 +reproduced +136152917, ours 136152917 +voc-fcn32s · total", result.stdout)
    assert "F15" not in result.stdout


def test_json(fcn: Fcn) -> None:
    found = json.loads(fcn("audit", "--paper", "F15", "--json").stdout)
    claims = {row["id"]: row for row in found["claims"]}
    assert claims.keys() == {key for key in CLAIMS if key.startswith("F15")}
    assert claims["F15.T1-10"]["value"] == 134346581
    assert claims["F15.T1-10"]["tier"] == "recomputed"
    assert claims["F15.S43-09"]["status"] == "inconsistent"
    assert claims["F15.S43-09"]["contradictions"] == ["C8"]
    assert sum(row["seen"] + row["recalled"] for row in found["totals"].values()) == len(claims)
    assert [row["found"] for row in found["contradictions"]].count(None) == 11
    assert found["tiers"]["recomputed"]["reproduced"] > 10


def test_what_is_unexplained_exits_with_1(fcn: Fcn, monkeypatch: pytest.MonkeyPatch) -> None:
    from reproduce.published import verdicts

    assert fcn("audit", "--claim", "F15.S43-09").exit_code == 0  # wrong, and the contradictions say why
    kept = [row for row in load_relations() if row.claim != "F15.S42-01"]
    wrong = [row for row in load_relations() if row.claim == "F15.S42-02"]
    moved = [type(row)("F15.S42-01", *("=", row.expression, "")) for row in wrong]
    monkeypatch.setattr(verdicts, "load_relations", lambda: kept + moved)
    result = fcn("audit", "--claim", "F15.S42-01")
    assert result.exit_code == 1
    assert "3.0 mean IU points ≠ 62.4" in result.stdout


def test_bad_input(fcn: Fcn, tmp_path: Path) -> None:
    refused(fcn("audit", "--paper", "F14"), "F14", "F15")
    refused(fcn("audit", "--claim", "F15.T1-99"), "F15.T1-99", "F15.T1-")
    refused(fcn("audit", "--paper", "RS", "--claim", "F15.T1-01"), "F15.T1-01")
    refused(fcn("audit", "--weights", "voc-fcn8s"), "voc-fcn8s", "NAME=FILE")
    refused(fcn("audit", "--weights", "voc-fcn9s=x"), "voc-fcn9s")
    refused(fcn("audit", "--weights", "voc-fcn8s=missing.caffemodel"), "missing.caffemodel")
    refused(fcn("audit", "--data", "vok:x"), "vok")
    refused(fcn("audit", "--results", "missing.json"), "missing.json")
    refused(fcn("audit", "--results", "missing.json", "--html", "no/x.html"), "no/x.html", "folder")
    (tmp_path / "old.html").write_text("kept")
    refused(fcn("audit", "--claim", "RS.CR-01", "--html", "old.html"), "old.html", "--force")
    assert (tmp_path / "old.html").read_text() == "kept"


class Page(HTMLParser):
    """Ids, links, classes of cells, and what is open when the page ends."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.outside: list[str] = []
        self.cells: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.ids += [found["id"] or ""] if "id" in found else []
        self.links += [found["href"] or ""] if "href" in found else []
        self.outside += [found[key] or "" for key in ("src", "xlink:href") if key in found]
        if tag == "td":
            self.cells.append(found.get("class") or "")
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_every_cell_of_the_page_links_to_how_it_was_checked() -> None:
    text = page(whole(), TIMINGS)
    found = Page(text)
    assert found.open == []
    assert len(found.ids) == len(set(found.ids))
    assert {link.removeprefix("#") for link in found.links} - {"_"} <= set(found.ids)
    claims = [link for link in found.links if link.startswith("#claim-")]
    assert len(claims) == len(set(claims)) == len(CLAIMS)
    assert found.outside == []
    assert "<script" not in text
    assert "http" not in re.sub(r"<dd>.*?</dd>", "", text)  # nothing is fetched
    assert len([cell for cell in found.cells if cell]) == len(CLAIMS) + len(SYMBOLS)
    assert "a &lt;card&gt;" in text


def test_tables_are_laid_out_as_printed() -> None:
    table = next(one for one in tables(whole().verdicts.values()) if one.location == "Table 2")
    assert table.rows == ("FCN-32s-fixed", "FCN-32s", "FCN-16s", "FCN-8s")
    assert table.columns == ("pixel acc.", "mean acc.", "mean IU", "f.w. IU")
    assert table.cells["FCN-8s", "mean IU"].claim.value == "62.7"
    assert sum(len(one.cells) for one in tables(whole().verdicts.values())) == len(CLAIMS)


def test_times_stand_on_a_logarithmic_axis() -> None:
    slow = Timing("F15.T1-08", 2100.0, "ms", "fcn-vgg16 forward", "a card", "2026-01-02", "wall")
    text = chart({"F15.T1-08": CLAIMS["F15.T1-08"]}, [slow])
    then, now = (float(width) for width in re.findall(r'<rect class="\w+"[^>]* width="([\d.]+)"', text))
    assert now - then == pytest.approx((354 - 6) / 6, abs=0.2)  # ten times is one of six decades
    assert "210 ms" in text
    assert "2.1 s" in text


MEASURE = """
<script>
addEventListener("load", () => {
  const seen = id => getComputedStyle(document.getElementById(id)).display !== "none";
  const root = document.documentElement, panel = "claim-F15.T1-10";
  const cell = document.querySelector(`a[href="#${panel}"]`).parentElement;
  const before = seen(panel);
  location.hash = panel;
  setTimeout(() => {
    const box = document.getElementById(panel).getBoundingClientRect();
    const wide = [...document.querySelectorAll("h1,h2,h3,p,ul,nav,.wide,.bar,svg")];
    parent.postMessage(JSON.stringify({
      width: innerWidth, height: innerHeight, scroll: root.scrollWidth,
      beyond: wide.filter(e => e.getBoundingClientRect().right > innerWidth + 1).length,
      before, after: seen(panel), other: seen("claim-F15.T1-11"),
      bottom: box.bottom, top: box.top, right: box.right, text: cell.innerText,
      tone: getComputedStyle(cell).backgroundColor, plain: getComputedStyle(document.body).backgroundColor,
    }), "*");
  }, 50);
});
</script>
"""
WINDOW = """<!doctype html><body style="margin: 0"><script>
addEventListener("message", event => {{ document.body.innerHTML = "<pre>" + event.data + "</pre>"; }});
</script><iframe src="page.html" style="border: 0; width: {}px; height: {}px"></iframe></body>
"""


@pytest.mark.skipif(BROWSER is None, reason="no chromium, of Debian's packages, on this machine")
@pytest.mark.parametrize("size", [(1280, 900), (390, 844)])
def test_the_page_in_a_browser(size: tuple[int, int], tmp_path: Path) -> None:
    found = measured(page(whole(), TIMINGS).replace("</body>", MEASURE + "</body>"), size, tmp_path)
    assert found["width"] == size[0]
    assert found["scroll"] <= size[0]  # tables scroll in their frames, the page does not
    assert found["beyond"] == 0
    assert (found["before"], found["after"], found["other"]) == (False, True, False)
    assert found["bottom"] <= found["height"] + 1
    assert 0.4 * found["height"] <= found["top"]  # the panel covers the lower half at most
    assert found["right"] <= size[0]
    assert found["text"].replace(" ", "") == "134M✓"
    assert found["tone"] != found["plain"]


def measured(text: str, size: tuple[int, int], folder: Path) -> dict[str, Any]:
    """What MEASURE finds in the page, opened in a window of this size."""
    (folder / "page.html").write_text(text, encoding="utf-8")
    (folder / "window.html").write_text(WINDOW.format(*size), encoding="utf-8")  # no window is so narrow
    assert BROWSER is not None
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1300,950",
               f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=5000", "--dump-dom",
               (folder / "window.html").as_uri()]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    match = re.search(r"<pre>(.*?)</pre>", result.stdout, re.DOTALL)
    assert match, result.stdout[-400:]
    found: dict[str, Any] = json.loads(match[1])
    return found
