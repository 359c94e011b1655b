"""What a run shows: lines, the bar and the notebook's element. The clock is injected where a number depends on time."""

import contextlib
import fcntl
import io
import math
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import textwrap
import threading
import time
import types
from pathlib import Path

import jax.numpy as jnp
import optax
import pytest

import fedjax_sim as fs
from fedjax_sim.runs import progress, progress_displays
from fedjax_sim.runs.progress import Progress

ROOT = Path(__file__).parents[2]
HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"


class Clock:
    def __init__(self):
        self.now = 1000.0  # any beginning

    def __call__(self):
        return self.now


class Metrics(dict):
    """A round's metrics, which count how often each is read."""

    def __init__(self, round, **values):
        names = {"loss": "client/loss", "accuracy": "client/accuracy", "clients": "cohort/clients"}
        names |= {"examples": "plan/examples", "test": "test/accuracy"}
        super().__init__({names.get(name, name): value for name, value in values.items()})
        self.round, self.read = round, []

    def __getitem__(self, name):
        self.read.append(name)
        return super().__getitem__(name)


def plain(text):
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def last_line_after(times, total=None, first=0, then=None, **values):
    """The line after rounds that ended at these seconds; the run is interrupted there if there are more to come."""
    clock, out = Clock(), io.StringIO()
    total = len(times) if total is None else total
    with contextlib.suppress(KeyboardInterrupt), Progress("", first, total, "lines", out, clock) as progress:
        for i, seconds in enumerate(times):
            clock.now = 1000.0 + seconds
            progress.round(Metrics(first + i, **values))
        clock.now = 1000.0 + (times[-1] if then is None else then)
        raise KeyboardInterrupt
    return out.getvalue().splitlines()[-1]


# Lines


def test_lines_say_what_is_going_on_and_the_last_round_always_has_one():
    clock, out = Clock(), io.StringIO()
    with Progress("digits", 0, 3, "lines", out, clock) as progress:
        progress.say("compiling")
        for i in range(3):
            clock.now += 1.5
            test = {"test": 0.5} if i == 1 else {}
            progress.round(Metrics(i, loss=0.4121, accuracy=0.8714, clients=20, examples=31950, **test))
    lines = out.getvalue().splitlines()
    assert lines[:2] == ["digits: rounds 1 to 3", "[  0.0 s] compiling"]
    assert lines[-1] == (
        "[  4.5 s] round 3/3: loss 0.412, accuracy 0.871, test/accuracy 0.500 (round 2), 13.3 clients/s, "
        "21.3k examples/s"
    )
    assert [line for line in lines if "round 3/3" in line] == lines[-1:]


def test_a_resumed_run_counts_the_rounds_before_it():
    out = io.StringIO()
    with Progress("digits", 37, 63, "lines", out, Clock()):
        pass
    assert out.getvalue() == "digits: rounds 38 to 100\n"
    assert last_line_after([1], total=63, first=37, loss=2.0).endswith("round 38/100: loss 2.000")


def test_a_run_of_no_rounds_says_nothing():
    out = io.StringIO()
    with Progress("digits", 5, 0, "lines", out):
        pass
    assert out.getvalue() == ""


def test_a_thread_prints_while_the_main_thread_waits():
    out = io.StringIO()
    with Progress("digits", 0, 9, "lines", out) as progress:
        progress.say("compiling")
        begin = time.monotonic()
        while out.getvalue().count("compiling") < 2 and time.monotonic() - begin < 30:
            time.sleep(0.05)
        assert out.getvalue().count("compiling") == 2


def test_a_message_is_printed_at_once_when_it_is_new_and_goes_with_the_next_round():
    clock, out = Clock(), io.StringIO()
    with Progress("digits", 0, 9, "lines", out, clock) as progress:
        progress.say("compiling")
        clock.now += 0.5
        progress.say("evaluating")  # too soon for another line
        assert "evaluating" not in out.getvalue()
        clock.now += 1.0
        progress.say("evaluating")
        assert out.getvalue().splitlines()[-1] == "[  1.5 s] evaluating"
        progress.round(Metrics(0, loss=1.0))
    assert out.getvalue().splitlines()[-1] == "[  1.5 s] round 1/9: loss 1.000"


def test_a_long_evaluation_does_not_say_the_numbers_of_its_round_again():
    clock, out = Clock(), io.StringIO()
    with Progress("digits", 0, 2, "lines", out, clock) as progress:
        progress.say("compiling")
        clock.now += 1.0
        progress.round(Metrics(0, loss=1.0))
        progress.say("evaluating")
        clock.now += 1.0
        progress.say("saving")
        assert out.getvalue().splitlines()[-2:] == [
            "[  1.0 s] round 1/2: evaluating, loss 1.000",
            "[  2.0 s] round 1/2: saving",
        ]
        progress.round(Metrics(1, loss=0.5))


def test_lines_thin_out(monkeypatch):
    """A waiting thread's timeouts advance the clock, so that ten minutes pass in no time."""
    clock, out, over = Clock(), io.StringIO(), threading.Event()

    class Event:
        def wait(self, timeout):
            clock.now += timeout + 1e-6
            if clock.now > 1600:
                over.set()
            return over.is_set()

        def set(self): ...

    theirs = types.SimpleNamespace(Event=Event, Lock=threading.Lock, Thread=threading.Thread)
    monkeypatch.setattr(progress_displays, "threading", theirs)
    with Progress("", 0, 1, "lines", out, clock):
        assert over.wait(30)
    stamps = [float(s) for s in re.findall(r"\[ *([\d.]+) s\] starting", out.getvalue())]
    for before, stamp in zip([0.0, *stamps], stamps, strict=False):
        assert stamp - before == pytest.approx(0.9 if stamp < 30 else 5 if stamp < 300 else 30, abs=0.11)
    assert stamps[-1] > 560


def test_a_line_is_one_call_and_is_flushed():
    calls = []

    class Stream(io.StringIO):
        def write(self, text):
            calls.append(text)
            return len(text)

        def flush(self):
            calls.append("flush")

    with Progress("digits", 0, 1, "lines", Stream(), Clock()) as progress:
        progress.round(Metrics(0, loss=1.0))
        progress.note("a damaged checkpoint was left out")
    assert calls == [
        *("digits: rounds 1 to 1\n", "flush"),
        *("[  0.0 s] round 1/1: loss 1.000\n", "flush"),
        *("a damaged checkpoint was left out\n", "flush"),
    ]


@pytest.mark.parametrize("display", ["lines", "bar"])
@pytest.mark.parametrize("error", [BrokenPipeError(32, "Broken pipe"), ValueError("I/O operation on closed file")])
def test_a_reader_that_goes_away_ends_the_display_and_not_the_run(display, error):
    calls = []

    class Stream(io.StringIO):
        def write(self, text):
            calls.append(text)
            raise error

    with Progress("digits", 0, 2, display, Stream(), Clock()) as progress:
        for i in range(2):
            progress.say("evaluating")
            progress.note("a note")
            progress.round(Metrics(i, loss=1.0))
    assert len(calls) == 1


def test_what_a_stream_cannot_encode_is_escaped():
    raw = io.BytesIO()
    with Progress("δ = 1", 0, 1, "lines", io.TextIOWrapper(raw, "ascii"), Clock()) as progress:
        progress.note("µ")
        assert raw.getvalue() == b"\\u03b4 = 1: rounds 1 to 1\n\\xb5\n"


def test_a_run_that_fails_shows_how_far_it_came_and_keeps_its_error():
    out = io.StringIO()
    with pytest.raises(ZeroDivisionError), Progress("", 0, 9, "lines", out, Clock()) as progress:  # noqa: PT012
        progress.round(Metrics(0, loss=1.0))
        raise ZeroDivisionError
    assert out.getvalue().splitlines()[-1] == "[  0.0 s] round 1/9: loss 1.000"
    assert "progress" not in {thread.name for thread in threading.enumerate()}


# Rates and times


def test_compilation_does_not_count():
    line = last_line_after([60, 61, 62], total=12, clients=20, examples=450)
    assert line == "[ 62.0 s] round 3/12: 20 clients/s, 450 examples/s, 9 s left"


def test_there_are_no_rates_before_a_second_round():
    assert last_line_after([60], total=12, clients=20, examples=450, loss=1.0) == "[ 60.0 s] round 1/12: loss 1.000"


def test_rates_are_recent():
    """100 rounds of 10 s each, then 400 of 0.1 s: only the last half minute counts."""
    times = [10 * i for i in range(1, 101)] + [1000 + i / 10 for i in range(1, 401)]
    assert last_line_after(times, clients=20).endswith("round 500/500: 200 clients/s")


def test_slow_rounds_are_averaged_over_eight():
    times = [1000 * i for i in range(1, 9)]
    times += [8000 + 100 * i + 50 * (i % 2) for i in range(1, 9)]
    assert last_line_after(times, total=17, clients=20).endswith("0.2 clients/s, 1 min 40 s left")


def test_a_block_of_rounds_told_of_in_a_burst_counts_as_a_whole():
    """Blocks of eight rounds, a second each; told of within 0.7 ms."""
    times = [5 + block + i * 1e-4 for block in range(4) for i in range(8)]
    assert last_line_after(times[:8], total=64, clients=20).endswith("round 8/64")
    line = last_line_after(times, total=64, clients=20)
    assert line == "[  8.0 s] round 32/64: 160 clients/s, 4 s left"


def test_a_thousand_rounds_a_second_are_counted_right():
    for count in (50, 1000, 3000):
        line = last_line_after([7 + i / 1000 for i in range(count)], clients=20, examples=1200)
        assert line.endswith(": 20k clients/s, 1.2M examples/s")


@pytest.mark.parametrize(
    "clients, seconds, text",
    [
        (3, 10, "0.3 clients/s"),
        (9, 1, "9 clients/s"),
        (999.4, 1, "999 clients/s"),
        (999.6, 1, "1k clients/s"),
        (21345, 1, "21.3k clients/s"),
        (1.2e6, 1, "1.2M clients/s"),
        (3.456e9, 1, "3.46G clients/s"),
    ],
)
def test_rates_read_well_at_any_size(clients, seconds, text):
    assert last_line_after([5, 5 + seconds], clients=clients).endswith(f"round 2/2: {text}")


@pytest.mark.parametrize(
    "per_round, then, left",
    [
        (1, 2, "10 s left"),
        (1, 2.4, "10 s left"),  # 9.6
        (1, 2.6, "9 s left"),  # 9.4: the round under way counts
        (1, 50, "9 s left"),  # and never as done
        (9.9, 19.8, "99 s left"),
        (10, 20, "1 min 40 s left"),
        (12.5, 25, "2 min 05 s left"),
        (372, 744, "1 h 02 min left"),
        (18360, 36720, "2 d 03 h left"),
    ],
)
def test_time_left_goes_down_within_a_round(per_round, then, left):
    line = last_line_after([per_round, 2 * per_round], total=12, then=then)
    assert line.endswith(f"round 2/12: {left}")


def test_elapsed_time_stays_short_in_long_runs():
    assert last_line_after([7325]) == "[2 h 02 min] round 1/1"


@pytest.mark.parametrize(
    "value, text",
    [
        (0.0, "0.000"), (12.34567, "12.346"), (0.00123456, "0.00123"), (1e-7, "1e-07"), (123456.0, "1.23e+05"),
        (-2.5, "-2.500"), (math.nan, "nan"), (math.inf, "inf"),
    ],
)  # fmt: skip
def test_losses_read_well_at_any_size(value, text):
    assert last_line_after([1], loss=value) == f"[  1.0 s] round 1/1: loss {text}"


# What is read


def test_only_what_is_shown_is_read_and_not_in_every_round():
    clock, every = Clock(), []
    with Progress("", 0, 1000, "lines", io.StringIO(), clock) as progress:
        for i in range(1000):
            clock.now += 0.001
            test = {"test": 0.5} if i == 500 else {}
            every.append(Metrics(i, loss=1.0, clients=20, examples=450, **{"plan/steps": 3}, **test))
            progress.round(every[-1])
    read = [name for metrics in every for name in metrics.read]
    assert set(read) == {"client/loss", "cohort/clients", "plan/examples", "test/accuracy"}
    assert read.count("test/accuracy") == 1
    assert read.count("client/loss") <= 12
    assert "client/loss" in every[-1].read


def test_values_that_are_no_numbers_are_left_out():
    values = {"test/histogram": [1, 2], "test/name": "a", "test/none": None, "test/mean": jnp.asarray(0.25)}
    assert last_line_after([1], **values) == "[  1.0 s] round 1/1: test/mean 0.250"


def test_an_evaluated_value_is_told_from_the_clients_and_stays():
    class Round(dict):
        round = 0

    out, clock = io.StringIO(), Clock()
    with Progress("", 0, 2, "lines", out, clock) as progress:
        progress.round(Round({"client/loss": 1.0, "loss": 2.0, "test/loss": 3.0}))
        second = Round({"client/loss": 0.5, "test/loss": 4.0})
        second.round = 1
        progress.round(second)
    assert out.getvalue().splitlines()[-1] == "[  0.0 s] round 2/2: loss 0.500, test/loss 4.000"


def test_a_line_does_not_say_the_numbers_of_an_evaluation_again():
    out, clock = io.StringIO(), Clock()
    with Progress("", 0, 4, "lines", out, clock) as progress:
        for i, test in enumerate(({"test": 0.5}, {}, {"test": 0.75}, {})):
            clock.now += 1.0
            progress.round(Metrics(i, loss=1.0, **test))
            clock.now += 1.0
            progress.say(f"message {i}")  # has a line printed, now that a second has passed
    said = [re.findall(r"test/accuracy [\d.]+(?: \(round \d\))?", line) for line in out.getvalue().splitlines()]
    assert [each for each in said if each] == [["test/accuracy 0.500"], ["test/accuracy 0.750"]]


def test_a_short_run_without_a_folder_says_nothing_and_a_long_one_says_lines():
    task = fs.Task(lambda key: jnp.zeros(()), lambda w, batch, key: (w - batch["x"]) ** 2)
    data = fs.data.FederatedData({"x": jnp.arange(4.0)}, offsets=[0, 2, 4])
    sim = fs.Simulation(fs.fedavg(task, optax.sgd(0.1)), data, fs.sampler.uniform(2), fs.Batching(2))
    said = {}
    for name, wanted, begun in (("short", True, False), ("long", True, True), ("off", False, True)):
        out, log = io.StringIO(), io.StringIO()
        streams = contextlib.redirect_stdout(out), contextlib.redirect_stderr(log)
        with streams[0], streams[1], pytest.MonkeyPatch.context() as patch:
            if begun:  # the ten seconds are over at once
                patch.setattr(progress.threading, "Timer", lambda seconds, begin: types.SimpleNamespace(
                    start=begin, cancel=lambda: None, join=lambda: None))  # fmt: skip
            sim.run(sim.init(), 3, progress=wanted)
        said[name] = log.getvalue()
        assert out.getvalue() == ""  # a program's output is its own
    assert said["short"] == said["off"] == ""
    assert said["long"].startswith("rounds 1 to 3\n")
    assert "round 3/3: loss" in said["long"]
    assert "progress" not in {thread.name for thread in threading.enumerate()}


# The bar


def bar(monkeypatch, columns, act, title="digits", first=0, rounds=100):
    """What the bar leaves in a terminal of that width: the output, and its last drawing's lines."""
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm-256color")
    clock, out = Clock(), io.StringIO()
    with contextlib.suppress(KeyboardInterrupt), Progress(title, first, rounds, "bar", out, clock) as progress:
        act(progress, clock)
    drawn = out.getvalue()
    return drawn, plain(drawn[drawn.rindex("\x1b[2K") :]).splitlines()


def forty_rounds(progress, clock):
    for i in range(40):
        clock.now += 0.5
        progress.round(Metrics(i, loss=0.4121, accuracy=0.871, clients=20, examples=450, test=0.88))


def test_the_bar_has_all_in_two_lines(monkeypatch):
    _, lines = bar(monkeypatch, 100, forty_rounds)
    assert re.fullmatch(r"digits ━{29}╸━{44} 40/100  40 %  20 s", lines[0])
    assert lines[1].rstrip() == (
        "loss 0.412, accuracy 0.871, test/accuracy 0.880, 40 clients/s, 900 examples/s, 30 s left"
    )
    assert len(lines) == 2


@pytest.mark.parametrize("columns", [20, 40, 60])
def test_the_bar_fits_a_narrow_terminal(monkeypatch, columns):
    drawn, lines = bar(monkeypatch, columns, forty_rounds, title="a rather long title of a run")
    assert len(lines) == 2
    assert all(len(line) <= columns for line in plain(drawn).splitlines())
    assert "loss 0.412" in lines[1]
    assert columns < 40 or ("40 clients/s, 30 s left" in lines[1] and "40/100  40 %" in lines[0])


def test_a_note_stays_above_the_bar_as_it_is(monkeypatch):
    note = "[bold]3[/bold] is damaged" + ", and so is 4" * 12

    def act(progress, clock):
        progress.note(note)
        forty_rounds(progress, clock)

    drawn, lines = bar(monkeypatch, 40, act)
    assert plain(drawn).count(note) == 1
    assert len(lines) == 2


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_the_cursor_comes_back_and_threads_end_after_an_error(monkeypatch, error):
    def act(progress, clock):
        progress.say("compiling")
        raise error

    before, stdout = threading.active_count(), sys.stdout
    with contextlib.suppress(error):
        drawn, lines = bar(monkeypatch, 80, act)
    if error is KeyboardInterrupt:
        assert drawn.rindex(HIDE) < drawn.rindex(SHOW)
        assert lines[1].rstrip() == "compiling"
    assert sys.stdout is stdout
    begin = time.monotonic()
    while threading.active_count() > before and time.monotonic() - begin < 30:
        time.sleep(0.02)
    assert threading.active_count() == before


def test_a_run_of_no_rounds_has_a_full_bar(monkeypatch):
    _, lines = bar(monkeypatch, 60, lambda progress, clock: None, first=7, rounds=0)
    assert "7/7 100 %" in lines[0]


SCRIPT = """
import signal
import time
from fedjax_sim.runs.progress import Progress

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs start with it ignored

class Metrics(dict):
    round = 0

with Progress("whole", 0, 3) as progress:
    progress.say("compiling")
    time.sleep(0.3)
    for i in range(3):
        metrics = Metrics({"client/loss": 0.5})
        metrics.round = i
        progress.round(metrics)
        print("printed in round", i)
print("between")
with Progress("interrupted", 0, 3) as progress:
    progress.say("compiling once more")
    time.sleep(60)
"""


@pytest.fixture(scope="module")
def terminal():
    """What a script writes to a real terminal, 60 columns wide, and its exit status; it gets a Ctrl-C at its end."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 20, 60, 0, 0))
    env = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        cwd=ROOT,
        env={**env, "TERM": "xterm-256color"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    # Our copy of the script's side stays open until all is read: some kernels drop what is on its way when the last
    # one closes.
    out, interrupted = b"", False
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        ended = process.poll() is not None
        if select.select([ours], [], [], 0.5)[0]:
            out += os.read(ours, 65536)
        elif ended:
            break
        if b"compiling once more" in out and not interrupted:
            process.send_signal(signal.SIGINT)
            interrupted = True
    os.close(theirs)
    os.close(ours)
    process.kill()
    return out.decode(), process.wait(30)


def test_a_real_terminal_shows_what_is_going_on_and_the_end(terminal):
    first, _, _ = terminal[0].partition("between")
    assert "compiling" in first
    end = [line.strip() for line in plain(first).splitlines()[-2:]]
    assert re.fullmatch(r"whole ━+ 3/3 100 %  \d+ s", end[0])
    assert "loss 0.500" in end[1]


def test_what_the_user_prints_stays_above_the_bar(terminal):
    first, _, _ = terminal[0].partition("between")
    for i in range(3):
        assert first.count(f"\x1b[2Kprinted in round {i}\r\n") == 1  # in place of the bar, which moves down
    assert first.rindex("printed in round") < first.rindex("3/3")


def test_a_real_terminal_is_restored_after_ctrl_c(terminal):
    out, status = terminal
    assert "KeyboardInterrupt" in out
    assert out.count(HIDE) == 2
    assert out.rindex(HIDE) < out.rindex(SHOW) < out.rindex("KeyboardInterrupt")
    assert status not in (0, -signal.SIGKILL)


# The notebook


def test_a_notebook_keeps_the_final_state():
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel", reason="notebooks run in a kernel: pip install ipykernel nbconvert")
    code = """
    from fedjax_sim.runs.progress import Progress
    class Metrics(dict):
        round = 0
    with Progress("a < b", 0, 50) as progress:
        progress.say("compiling")
        for i in range(50):
            metrics = Metrics({"client/loss": 0.5})
            metrics.round = i
            progress.round(metrics)
        progress.note("a note")
    """
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(textwrap.dedent(code))])
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(ROOT)}}).execute()
    shown, note = notebook.cells[0].outputs
    assert '<progress value="50" max="50"></progress> a &lt; b: round 50/50: loss 0.500' in shown.data["text/html"]
    assert shown.data["text/plain"].startswith("a < b: round 50/50: loss 0.500")
    assert note.text == "a note\n"


@pytest.fixture
def kernel(monkeypatch):
    """An IPython that looks like a kernel's; the fixture is the list of (time, bundle) it was shown."""
    drawn, clock = [], Clock()

    class ZMQInteractiveShell: ...

    class Handle:
        def update(self, bundle, raw):
            drawn.append((clock.now - 1000, bundle))

    def display(bundle, raw, display_id):
        drawn.append((clock.now - 1000, bundle))
        return Handle()

    ipython, shows = types.ModuleType("IPython"), types.ModuleType("IPython.display")
    ipython.get_ipython = type("Shell", (ZMQInteractiveShell,), {})  # Colab's is a subclass
    shows.display = display
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", shows)
    return drawn, clock


def test_a_notebook_is_redrawn_at_most_four_times_a_second(kernel):
    drawn, clock = kernel
    with Progress("digits", 0, 4000, clock=clock) as progress:
        for i in range(4000):
            clock.now += 0.001
            if i % 100 == 50:
                progress.say("evaluating")
            progress.round(Metrics(i, loss=1.0))
        clock.now += 0.001
    times = [t for t, _ in drawn]
    assert 8 <= len(times) <= 18
    assert all(later - t > 0.999 for t, later in zip(times[:-1], times[4:-1], strict=False))
    assert "round 4000/4000" in drawn[-1][1]["text/plain"]


def test_a_notebook_shows_a_message_at_once_between_rounds(kernel):
    drawn, clock = kernel
    with Progress("digits", 0, 100, clock=clock) as progress:
        for i in range(30):
            clock.now += 0.1
            progress.round(Metrics(i, loss=1.0))
        progress.say("evaluating")
        assert drawn[-1][0] == pytest.approx(3.0)
        assert drawn[-1][1]["text/plain"].startswith("digits: round 30/100: evaluating, loss 1.000")


# Which display


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shows_a_bar(stream, **settings):
    with Progress("digits", 0, 1, stream=stream, **settings):
        pass
    return "rounds 1 to 1" not in stream.getvalue()


def test_auto_is_a_bar_in_a_terminal_and_lines_elsewhere(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    assert shows_a_bar(Terminal())
    assert not shows_a_bar(io.StringIO())
    assert not shows_a_bar(Terminal(), display="lines")
    monkeypatch.setenv("TERM", "dumb")
    assert not shows_a_bar(Terminal())


def test_a_stream_given_in_a_notebook_is_used(kernel):
    out = io.StringIO()
    with Progress("digits", 0, 1, stream=out):
        pass
    assert out.getvalue() == "digits: rounds 1 to 1\n"
    assert kernel[0] == []


def test_no_standard_output_is_no_error(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    with Progress("digits", 0, 1) as progress:
        progress.round(Metrics(0, loss=1.0))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"display": "box"}, "display='box': must be \"auto\", \"bar\", \"lines\" or \"notebook\"."),
        ({"display": "notebook"}, "display='notebook': there is no IPython kernel to show it; leave it at \"auto\"."),
        ({"first": -1}, "first=-1: must be a whole number, at least 0."),
        ({"rounds": 1.5}, "rounds=1.5: must be a whole number, at least 0."),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(changes, message):
    with pytest.raises(fs.FedSimError) as error:
        Progress(**{"title": "digits", "first": 0, "rounds": 1, **changes})
    assert str(error.value) == message
