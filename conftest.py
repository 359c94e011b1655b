"""What tests and doctests share: a run prints as little on a slow machine as on a fast one."""

import pytest


@pytest.fixture(autouse=True, scope="session")
def unhurried():
    """A run says in a log how far it is once it has taken ten seconds: never here. Gives the seconds of users' runs."""
    from fedjax_sim.runs import progress

    before = dict(progress.QUIET)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(progress.QUIET, "lines", 86_400.0)
        yield before
