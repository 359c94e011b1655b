"""How long a run that is not kept says nothing: tests and doctests, which wait for no clock, have another number."""


def test_a_log_has_lines_of_runs_over_ten_seconds(unhurried):
    assert unhurried == {"bar": 1.0, "lines": 10.0, "notebook": 1.0}
