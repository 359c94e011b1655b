"""What the names of metrics and facts mean: one table of words, for whatever shows them."""

import re

MEANINGS: dict[str, str] = {
    "client/loss": "Loss in training, over the examples of the round's clients, each before its step.",
    "client/accuracy": "Share of examples classified rightly in training, as the clients took their steps.",
    "cohort/clients": "Clients drawn for the round.",
    "cohort/examples": "Examples that the drawn clients hold, each once.",
    "cohort/contributed": "Clients whose update went into the mean: drawn, with examples, and finite.",
    "cohort/weight": "Sum of the clients' weights in the mean.",
    "cohort/nonfinite": "Clients whose update held NaN or infinity.",
    "plan/examples": "Examples trained on, as often as epochs go over them.",
    "plan/steps": "Local steps of all clients together.",
    "plan/efficiency": "Share of the computed batches that were real ones; the others are padding.",
    "plan/balance": "Mean load of a device over the greatest: 1 when none waits for another.",
    "privacy/epsilon": "Upper bound on epsilon of all rounds up to this one, by Rényi accounting, at the run's delta.",
    "aggregate/uplink_bits": "Bits that the round's clients sent, together.",
    "aggregate/downlink_bits": "Bits that the round's clients received, together.",
    "aggregate/clip_fraction": "Share of clients whose update was longer than the clip, and so was clipped.",
    "aggregate/clip_norm": "The L2 norm to which updates are clipped in the round.",
    "aggregate/signal_to_noise": "Norm of the sum over that of the noise that was added to it.",
    "aggregate/noise_multiplier": "Noise over one client's part, as it came about with the clients that sent.",
    "aggregate/abandoned": "1 where the round was refused and changed nothing.",
    "aggregate/averaged": "1 where too few clients contributed for the rule, and it took their mean.",
    "population/abandoned": "1 where too few clients arrived, so that the round changed nothing but the clock.",
    "aggregate/distance_to_honest": "L2 distance of the aggregate from the mean of the honest clients' updates.",
    "clock/time": "Simulated seconds since the run began.",
    "clock/round_time": "Simulated seconds that the round took.",
    "clock/bytes_up": "Bytes that clients have sent in all rounds so far.",
    "clock/bytes_down": "Bytes that clients have received in all rounds so far.",
    "clock/edge_bytes_up": "Bytes that edges have sent the server in all rounds so far.",
    "clock/edge_bytes_down": "Bytes that edges have received of the server in all rounds so far.",
    "experiment": "The experiment whose config.py was run.",
    "preset": "The set of values that the configuration started from.",
    "started": "When the run was begun.",
    "rounds": "Rounds completed, of those asked for.",
    "training": "Time in rounds, of all processes that ran some.",
    "seed": "What everything random follows from.",
    "clients": "Clients of the population.",
    "examples": "Examples of all clients.",
    "cohort": "Clients of a round.",
    "sampler": "Who takes part in a round.",
    "parameters": "Numbers of the model.",
    "devices": "What the rounds ran on.",
}
"""Name to a sentence."""

LAST: dict[str, str] = {
    "loss": "Mean loss",
    "accuracy": "Share of examples classified rightly",
    "perplexity": "The exponential of the mean loss of a token",
    "auc": "Area under the receiver operating characteristic",
    "ece": "Expected calibration error",
    "f1": "Harmonic mean of precision and recall",
}
"""Of other names by their last part."""

ABANDONED = ("aggregate/abandoned", "population/abandoned")
"""Metrics of a round that was given up, by its reducer or the host, or by the sampler."""

FIRST: dict[str, str] = {
    "client": "in local training, over the round's clients",
    "clients": "on each client's own data",
    "test": "on held-out data",
    "train": "on the clients' data",
    "validation": "on held-out data",
    "aggregate": "in the aggregation",
}
"""And by their first."""


def meaning(name: str) -> str:
    """A sentence for a name; empty where nothing is known of it.

    Example:
        >>> from fedjax_sim.runs.metric_words import meaning
        >>> meaning("clients/accuracy_p10")
        "Share of examples classified rightly, on each client's own data: the 10th percentile of clients."
        >>> meaning("something")
        ''
    """
    if name in MEANINGS:
        return MEANINGS[name]
    stem, percent = re.fullmatch(r"(.*?)(?:_p(\d+))?", name, re.S).groups()  # type: ignore[union-attr]
    if stem in MEANINGS and percent is None:
        return MEANINGS[stem]
    first, slash, last = stem.rpartition("/")
    what, where = LAST.get(last), FIRST.get(first if slash else "test")
    if what is None:
        return ""
    said = what if where is None else f"{what}, {where}"
    return f"{said}: the {percent}th percentile of clients." if percent else f"{said}."
