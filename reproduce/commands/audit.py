"""`fcn audit`: every published number, and what is known of it here."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import click

from caffe_weights.errors import InputError
from caffe_weights.files import check_output, replace_file
from reproduce.cli import EXIT_CHECK_FAILED
from reproduce.commands.common import (
    device_option,
    fcn_command,
    force_option,
    json_option,
    print_json,
    progress,
)

if TYPE_CHECKING:
    from reproduce.published.verdicts import Audit, Given


@fcn_command("audit")
@click.option(
    "--paper", metavar="ID", help="Only F15, F16, RS, DN, AD, X or SD, as claims begin; lists them."
)
@click.option("--claim", "wanted", metavar="ID", multiple=True,
              help="All that is known of a claim; may be repeated, and hold * and ?.")  # fmt: skip
@click.option("--weights", metavar="NAME=FILE", multiple=True,
              help="Weights of the published net NAME, to be scored; any format.")  # fmt: skip
@click.option("--data", metavar="KIND:DIR", multiple=True, help="A data set, to be counted and scored on.")
@click.option("--results", metavar="FILE", multiple=True,
              help="More timings, as benchmarks/published_timings.py writes them.")  # fmt: skip
@click.option("--html", metavar="FILE", help="Write the papers' tables as one page.")
@click.option("--markdown", metavar="FILE", help="Write totals and tables as Markdown.")
@device_option
@force_option
@json_option
def command(
    paper: str | None, wanted: tuple[str, ...], weights: tuple[str, ...], data: tuple[str, ...],
    results: tuple[str, ...], html: str | None, markdown: str | None, device: str, force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Hold every number that FCN, its repository, DeconvNet, Auto-DeepLab and re-implementations published
    against what the toolkit computes, and give each a verdict.

    \b
    reproduced, differs      computed or measured here, at the rounding of the print
    consistent, inconsistent by arithmetic on other claims
    measured elsewhere       a committed timing on the device it names
    other weights            scored, but not with the published file
    needs ...                weights, data, GPU or training; --claim says the command
    not built, out of scope  the toolkit has no such thing; another system's number

    Tiers tell what agreement is worth: recomputed, transcribed (only copied rightly), measured, rescored,
    retrained. Exit 1 when a claim audited differs or is inconsistent and nothing says why.

    \b
    Keys of --json:
      totals          by status: seen, recalled (not seen in a source)
      tiers           by tier: how many of each status
      claims          id, paper, location, row, column, printed, unit, recalled,
                      status, value (ours, in base units: a count, not millions),
                      tier, how, reason, command, notes, contradictions (ids)
      contradictions  id, what, which, claims (ids), found (from the claims;
                      null: in words only), values
    """
    from reproduce.published.claims import load_claims
    from reproduce.published.verdicts import audit

    only = _only(list(load_claims()), paper, wanted)
    for path in filter(None, (html, markdown)):
        check_output(path, force)
    given = _given(weights, data, results, device)
    with progress("auditing"):
        found = audit(given=given, only=only)
        _write(found, given, html, markdown, force)
    if as_json:
        from reproduce.published.report import as_json as report

        print_json(report(found))
    else:
        _print(found, bool(wanted), bool(paper))
    if any(verdict.unexplained for verdict in found.verdicts.values()):
        raise click.exceptions.Exit(EXIT_CHECK_FAILED)


def _only(ids: Sequence[str], paper: str | None, wanted: tuple[str, ...]) -> list[str] | None:
    """The claims chosen, None for all. InputError for one that there is not."""
    from reproduce.published.tables import find_paper, paper_of

    chosen = ids if paper is None else [key for key in ids if paper_of(key) == find_paper(paper)]
    if not wanted:
        return None if paper is None else list(chosen)
    for pattern in wanted:
        if not any(_means(pattern, key) for key in chosen):
            near = " or ".join(difflib.get_close_matches(pattern, chosen, n=3))
            raise InputError("--claim", repr(pattern), near or "the id of a claim", "see fcn audit --paper")
    return [key for key in chosen if any(_means(pattern, key) for pattern in wanted)]


def _means(pattern: str, identity: str) -> bool:
    """Whether an id, which may itself hold a star, is meant."""
    return pattern == identity or fnmatchcase(identity, pattern)


def _given(weights: tuple[str, ...], data: tuple[str, ...], results: tuple[str, ...], device: str) -> Given:
    from reproduce.data import parse_data
    from reproduce.published.identity import identify
    from reproduce.published.rescoring import Scoring
    from reproduce.published.timings import committed_timings, read_timings
    from reproduce.published.verdicts import Given

    folders = dict(parse_data(text) for text in data)
    timings = committed_timings() + [timing for path in results for timing in read_timings(path)]
    pairs = [_pair(text) for text in weights]
    return Given({net: identify(net, path) for net, path in pairs}, folders, timings, Scoring(device))


def _pair(text: str) -> tuple[str, str]:
    from reproduce.nets import find

    net, equals, path = text.partition("=")
    if not equals or not path:
        raise InputError("--weights", repr(text), "NAME=FILE, as voc-fcn8s=fcn8s-heavy-pascal.caffemodel")
    find(net)
    return net, path


def _write(found: Audit, given: Given, html: str | None, markdown: str | None, force: bool) -> None:
    if html is not None:
        from reproduce.published.page import page

        with replace_file(html, force) as temporary:
            temporary.write_text(page(found, given.timings), encoding="utf-8")
    if markdown is not None:
        from reproduce.published.markdown import markdown as text

        with replace_file(markdown, force) as temporary:
            temporary.write_text(text(found), encoding="utf-8")


def _print(found: Audit, in_detail: bool, as_list: bool) -> None:
    from reproduce.published import report

    if in_detail:
        for verdict in found.verdicts.values():
            click.echo("\n".join(report.detail(verdict, found.contradictions)))
        return
    click.echo("\n".join(report.overview(found)))
    if as_list:
        click.echo("\n".join(report.listing(found)))
    else:
        click.echo("\n" + "\n".join(report.contradictions(found.contradictions)))
