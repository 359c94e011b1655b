"""Tables in LaTeX, with booktabs."""

from collections.abc import Sequence

SPECIAL = {each: f"\\{each}" for each in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
}


def escaped(text: str) -> str:
    """Text as LaTeX prints it.

    Example:
        >>> from fedjax_sim.core.latex import escaped
        >>> print(escaped("accuracy_p50 in %"))
        accuracy\\_p50 in \\%
    """
    return "".join(SPECIAL.get(each, each) for each in text)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A `tabular`: the first column to the left, the others to the right.

    Example:
        >>> from fedjax_sim.core.latex import table
        >>> print(table(["lr", "loss"], [["0.1", "0.5"]]))
        \\begin{tabular}{lr}
        \\toprule
        lr & loss \\\\
        \\midrule
        0.1 & 0.5 \\\\
        \\bottomrule
        \\end{tabular}
    """
    line = lambda cells: " & ".join(map(escaped, cells)) + r" \\"
    columns = "l" + "r" * (len(header) - 1)
    body = [line(header), r"\midrule", *map(line, rows)]
    return "\n".join([rf"\begin{{tabular}}{{{columns}}}", r"\toprule", *body, r"\bottomrule", r"\end{tabular}"])
