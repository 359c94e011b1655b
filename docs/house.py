"""Draws docs/house.svg: the package's rooms on their floors, and who imports whom. `python docs/house.py` writes it."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1] / "fedjax_sim"
FLOORS = [
    ["cli"],
    ["sweeps"],
    ["simulation"],
    ["engine.round"],
    ["engine.parts"],
    ["engine.plan", "engine.store"],
    ["engine.device"],
    ["attacks", "lora"],
    ["algorithms", "runs"],
    ["models"],
    ["server", "aggregate", "client", "data", "privacy", "population"],
    ["secure"],
    ["core"],
]
"""From the roof down."""
WIDTH, HEIGHT, ROOM, FLOOR = 1000, 30, 118, 64


def room_of(module: str) -> str | None:
    """The room that a module of the package is in; None for the public names."""
    parts = module.split(".")[1:]
    room = ".".join(parts[:2] if parts[:1] == ["engine"] else parts[:1])
    return room if any(room in floor for floor in FLOORS) else None


def imports() -> list[tuple[str, str]]:
    """Pairs of rooms of which the first imports from the second."""
    found = set()
    for path in sorted(ROOT.rglob("*.py")):
        here = room_of(".".join(["fedjax_sim", *path.relative_to(ROOT).with_suffix("").parts]))
        for node in ast.walk(ast.parse(path.read_text())):
            if here and isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fedjax_sim"):
                found |= {(here, there) for a in node.names if (there := room_of(f"{node.module}.{a.name}"))}
    return sorted((here, there) for here, there in found if here != there)


def places() -> dict[str, tuple[float, float]]:
    """The middle of each room."""
    at = {}
    for f, floor in enumerate(FLOORS):
        for r, room in enumerate(floor):
            at[room] = (WIDTH * (r + 1) / (len(floor) + 1), 24 + FLOOR * f)
    return at


def svg() -> str:
    """The picture."""
    at, lines = places(), []
    for here, there in imports():
        (x, y), (u, v) = at[here], at[there]
        lines.append(
            f'<path d="M{x:.0f} {y + HEIGHT / 2:.0f} C{x:.0f} {(y + v) / 2:.0f} {u:.0f} {(y + v) / 2:.0f} '
            f'{u:.0f} {v - HEIGHT / 2:.0f}" fill="none" stroke="#4477aa" stroke-opacity="0.35">'
            f"<title>{here} imports {there}</title></path>"
        )
    for room, (x, y) in at.items():
        lines.append(
            f'<rect x="{x - ROOM / 2:.0f}" y="{y - HEIGHT / 2:.0f}" width="{ROOM}" height="{HEIGHT}" rx="6" '
            f'fill="white" stroke="#223344"/><text x="{x:.0f}" y="{y + 5:.0f}" text-anchor="middle">{room}</text>'
        )
    height = 24 + FLOOR * (len(FLOORS) - 1) + HEIGHT
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
    return head + 'font-size="14">\n' + "\n".join(lines) + "\n</svg>\n"


if __name__ == "__main__":
    (Path(__file__).parent / "house.svg").write_text(svg())
