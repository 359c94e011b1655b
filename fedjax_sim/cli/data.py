"""`fedjax-sim data`: sets and pretrained models that go by a name."""

import argparse
from pathlib import Path

from fedjax_sim.cli.terminal import draw, say
from fedjax_sim.core.errors import ArgumentError


def data(words: list[str]) -> None:
    """Data sets and pretrained models: list them, tell of one, fetch one."""
    from fedjax_sim.data import catalogue, load, pretrained

    parser = argparse.ArgumentParser(prog="fedjax-sim data", description=data.__doc__)
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("list", help="the sets that fs.data.load knows, and the models that fs.models.load does")
    info = actions.add_parser("info", help="licence, source, size, what a client is, and the options of fs.data.load")
    fetch = actions.add_parser("fetch", help="bring its files into the cache folder, and check them")
    for one in info, fetch:
        one.add_argument("NAME", help="the name, as in `fedjax-sim data list`")
    fetch.add_argument("--cache-dir", metavar="DIR", help="the cache folder; the user's if left out")
    given = parser.parse_args(words)
    if given.action == "list":
        return _list()
    known = {**catalogue(), **pretrained()}
    if given.NAME not in known:
        raise ArgumentError(f"NAME={given.NAME!r}: unknown data set; there are {', '.join(known)}.")
    if given.action == "info":
        return _info(given.NAME)
    if given.NAME in pretrained() or catalogue()[given.NAME].files:
        return say(str(known[given.NAME].fetch(given.NAME, given.cache_dir)))
    load(given.NAME, cache_dir=given.cache_dir)
    say(f"{given.NAME} needs no files that are not here.")


def _list() -> None:
    from rich.table import Table
    from rich.text import Text

    from fedjax_sim.data import catalogue, pretrained

    table = Table("name", "what it is", "clients", "partition", box=None, pad_edge=False)
    for name, entry in catalogue().items():
        table.add_row(name, *(Text(text) for text in (entry.title, entry.client, entry.partition)))
    for name, model in pretrained().items():
        table.add_row(name, Text(model.title), "a model: fs.models.load", "")
    draw(table)


def _info(name: str) -> None:
    from rich.table import Table
    from rich.text import Text

    from fedjax_sim.data import cache_folder, catalogue, pretrained

    if name in pretrained():
        model = pretrained()[name]
        rows = {"title": model.title, "licence": model.licence, "source": model.source}
        rows |= {"size": f"{model.file.size / 1e6:.0f} MB", "loaded by": f"fs.models.load({name!r})"}
        places = [f"package {model.file.package}"]
    else:
        entry = catalogue()[name]
        options = [f"{option}={value!r}" for option, value in entry.options.items()]
        rows = {**entry.about, "size": entry.size, "options": ", ".join(options) or "none"}
        places = entry.places
    if places:
        rows |= {"comes from": "\n".join(places), "is kept in": str(Path(cache_folder(), "raw", name))}
    table = Table(box=None, pad_edge=False, show_header=False)
    for key, text in rows.items():
        table.add_row(key, Text(text))
    draw(table)
