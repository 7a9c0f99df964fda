"""Runs several command lines, one after another, in one process.

`python -m tests.mistaken FILE`: FILE is a JSON list of command lines, each a list of words. Prints a JSON list with the
exit code, stderr and duration in seconds of each command.
"""

import contextlib
import io
import json
import pathlib
import sys
import time

from jaxdp import cli, evaluate, predict, train, world

COMMANDS = {
    "train": lambda: cli.main(train.__doc__, cli.parse_train, train.train),
    "evaluate": lambda: cli.main(evaluate.__doc__, cli.parse_evaluate, evaluate.evaluate),
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
