"""Runs several command lines, one after another, in one process.

`python -m tests.run_command_lines FILE`: FILE is a JSON list of command lines, each a list of words. Prints a JSON
list with the exit code, stderr and duration in seconds of each command.
"""

import contextlib
import io
import json
import pathlib
import sys
import time

from jaxdp import evaluate, predict, train
from jaxdp.cli import train_flags
from jaxdp.runtime import world

COMMANDS = {
    "train": lambda: train_flags.main(train.__doc__, train_flags.parse_train, train.train),
    "evaluate": lambda: train_flags.main(evaluate.__doc__, train_flags.parse_evaluate, evaluate.evaluate),
    "predict": lambda: world.run(lambda of_world: predict.predict(sys.argv[1:], of_world)),
}

told = []
for command, *words in json.loads(pathlib.Path(sys.argv[1]).read_text()):
    said, code, begin = io.StringIO(), 0, time.monotonic()
    # ml_collections keeps the last config file of each name in sys.modules.
    for name in [name for name in sys.modules if name.endswith("_config")]:
        del sys.modules[name]
    sys.argv = [command, *words]
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            COMMANDS[command]()
        except SystemExit as end:
            code = end.code
    told.append([code, said.getvalue(), time.monotonic() - begin])
print(json.dumps(told))
