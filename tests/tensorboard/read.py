"""Prints the scalars of a folder of event files as JSON, as TensorBoard itself reads them: {run: {tag: [[step, value], …]}}.

    python read.py FOLDER          # needs the package `tensorboard`
"""

import json
import sys

from tensorboard.backend.event_processing import event_multiplexer

multiplexer = event_multiplexer.EventMultiplexer().AddRunsFromDirectory(sys.argv[1])
multiplexer.Reload()
runs = {}
for run, tags in multiplexer.Runs().items():
    names = tags["scalars"] + tags["tensors"]
    read = lambda tag: multiplexer.Scalars(run, tag) if tag in tags["scalars"] else multiplexer.Tensors(run, tag)
    value = lambda event: event.value if hasattr(event, "value") else event.tensor_proto.float_val[0]
    runs[run] = {tag: [[event.step, value(event)] for event in read(tag)] for tag in names}
json.dump(runs, sys.stdout)
