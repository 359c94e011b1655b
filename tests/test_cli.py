"""The command line, in processes of its own, as a user starts it."""

import re
import subprocess
import sys


def fedjax_sim(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fedjax_sim.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_run_reports_accuracy_and_quantiles():
    done = fedjax_sim("run", "--rounds", "3", "--cohort-size", "5", "--epochs", "1")
    assert done.returncode == 0, done.stderr
    assert re.search(r"round 3/3: loss \d", done.stdout)
    accuracy = re.search(r"test accuracy (\d\.\d+)", done.stdout)
    assert accuracy
    assert 0 < float(accuracy[1]) < 1
    assert "50 %" in done.stdout


def test_the_seed_decides_the_result():
    runs = [fedjax_sim("run", "--rounds", "1", "--cohort-size", "2", "--seed", seed) for seed in ("1", "1")]
    first, same = (re.findall(r"test accuracy.*", run.stdout) for run in runs)
    assert first == same != []


def test_a_bad_argument_is_one_line_and_a_status():
    done = fedjax_sim("run", "--cohort-size", "101")
    assert done.returncode == 2
    assert done.stderr.strip() == ("fedjax-sim: cohort_size=101: the population has only 100 clients; draw fewer.")
