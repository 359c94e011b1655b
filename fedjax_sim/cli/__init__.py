"""The command line, `fedjax-sim`."""

from fedjax_sim.cli.commands import main as main
