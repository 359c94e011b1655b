"""Who holds which classes, as a picture."""

import fedjax_sim as fs

digits = fs.data.load("digits")
clients = fs.data.federate(digits.train, fs.partition.dirichlet(0.1, 20), seed=0)
print(fs.data.statistics(clients))
fs.plots.partition(clients).savefig("partition.pdf")
