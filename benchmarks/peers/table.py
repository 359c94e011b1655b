"""The table and the chart of a comparison, from what run.py printed (several files are joined, work by work).

python benchmarks/peers/table.py peers.json [more.json] --page docs/benchmarks.md --chart docs/peers.svg
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from configurations import CONFIGURATIONS

BEGIN, END = "<!-- peers: begin -->", "<!-- peers: end -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path)
    parser.add_argument("--page", type=Path, help="a page whose table between the two marks is replaced")
    parser.add_argument("--chart", type=Path)
    args = parser.parse_args()
    works = join([json.loads(path.read_text()) for path in args.results])
    text = markdown(works)
    if args.page:
        page = args.page.read_text()
        pattern = re.compile(f"{BEGIN}.*{END}", re.DOTALL)
        if not pattern.search(page):
            raise SystemExit(f"{args.page} has no {BEGIN} and {END} to write between.")
        args.page.write_text(pattern.sub(lambda _: f"{BEGIN}\n{text}{END}", page))
    else:
        print(text)
    if args.chart:
        chart(works, args.chart)


def join(results: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The works of several files, in order: {work: {configuration: summary}}; later files win."""
    works: dict[str, dict[str, Any]] = {}
    for result in results:
        for work, summaries in result["works"].items():
            works.setdefault(work, {}).update(summaries)
    return {work: works[work] for work in sorted(works)}


def markdown(works: dict[str, dict[str, Any]]) -> str:
    """A table of all configurations for each work, then ours over the best of each kind."""
    lines = []
    for work, summaries in works.items():
        head = "s/round | quartiles | first round, s | clients/s | examples/s | peak MB | final loss"
        lines += [f"| {work} | {head} |", "| --- " * 8 + "|"]
        for name in _ordered(summaries):
            summary, title = summaries[name], CONFIGURATIONS[name].title
            if "error" in summary:
                lines.append(f"| {title} | {summary['error'].replace('|', '/')} |" + " |" * 6)
                continue
            s = summary["s_per_round"]
            cells = [title, f"{s['median']:.4g}", f"{s['q1']:.4g} to {s['q3']:.4g}"]
            cells += [f"{summary['first_round_s']['median']:.2g}", f"{summary['clients_per_s']:,.0f}"]
            cells += [f"{summary['examples_per_s']:,}", f"{summary['peak_mb']['median']:.0f}"]
            lines.append("| " + " | ".join([*cells, f"{summary['final_loss']:.4f}"]) + " |")
        lines += ["", *ratios(summaries), ""]
    return "\n".join(lines)


def ratios(summaries: dict[str, Any]) -> list[str]:
    """How many times as long the best of each kind takes, and what memory we take of its."""
    ours = summaries.get("ours", {})
    if "s_per_round" not in ours:
        return []
    sentences = []
    for kind in ("framework", "by hand"):
        done = {n: s for n, s in summaries.items() if CONFIGURATIONS[n].kind == kind and "s_per_round" in s}
        if done:
            best = min(done, key=lambda n: done[n]["s_per_round"]["median"])
            ratio = done[best]["s_per_round"]["median"] / ours["s_per_round"]["median"]
            memory = ours["peak_mb"]["median"] / done[best]["peak_mb"]["median"]
            what = "best framework" if kind == "framework" else "best loop by hand"
            title = CONFIGURATIONS[best].title
            sentences.append(
                f"The {what}, {title}, takes {ratio:.2f} times our time; ours takes {memory:.2f} times its memory."
            )
    return sentences


def chart(works: dict[str, dict[str, Any]], path: Path) -> None:
    """Bars of seconds a round, on a logarithmic axis, a panel for each work."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    colours = {"ours": "#c0392b", "framework": "#2c6fa6", "by hand": "#8a8a8a"}
    figure, panels = plt.subplots(1, len(works), figsize=(4.6 * len(works), 4.2), squeeze=False)
    for panel, (work, summaries) in zip(panels[0], works.items(), strict=True):
        names = [n for n in _ordered(summaries) if "s_per_round" in summaries[n]][::-1]
        medians = [summaries[n]["s_per_round"]["median"] for n in names]
        low = [m - summaries[n]["s_per_round"]["q1"] for n, m in zip(names, medians, strict=True)]
        high = [summaries[n]["s_per_round"]["q3"] - m for n, m in zip(names, medians, strict=True)]
        bars = [colours[CONFIGURATIONS[n].kind] for n in names]
        panel.barh([CONFIGURATIONS[n].title for n in names], medians, xerr=[low, high], color=bars, ecolor="black")
        panel.set_xscale("log")
        panel.set_xlabel("s/round")
        panel.set_title(work)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)


def _ordered(summaries: dict[str, Any]) -> list[str]:
    """By kind, as configurations are listed."""
    kinds = ["ours", "framework", "by hand"]
    known = [name for name in CONFIGURATIONS if name in summaries]
    return sorted(known, key=lambda name: kinds.index(CONFIGURATIONS[name].kind))


if __name__ == "__main__":
    main()
