"""Progress that nobody asked for, where the output is no terminal."""

from fedjax_sim.runs.progress import Progress


def test_it_is_no_part_of_a_programs_output(capsys):
    """However long a doctest, or a script in a pipe, takes."""
    with Progress("", 0, 1, display="lines", quiet=1e-9) as progress:
        assert progress._timer is not None
        progress._timer.join()
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("rounds 1 to 1")
