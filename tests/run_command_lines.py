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

from jaxdp.cli import command

told = []
for words in json.loads(pathlib.Path(sys.argv[1]).read_text()):
    said, code, begin = io.StringIO(), 0, time.monotonic()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            command.main(words)
        except SystemExit as end:
            code = end.code
    told.append([code, said.getvalue(), time.monotonic() - begin])
print(json.dumps(told))
