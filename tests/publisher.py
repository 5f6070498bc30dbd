"""Runs convert_to_hf.py many times without importing its libraries anew each time.

For each line of JSON on standard input ({"arguments", "environment", "output"}) it forks a process
that runs the command, prints that process's id, waits for a line, lets it go, and prints how it
ended. The environment that libraries read when they are imported is that of this process.
"""

import json
import os
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import huggingface_hub
import torch
import transformers

import convert_to_hf
from impossible import asking, checkpoint
from impossible.settings import run_command

torch.set_num_threads(1)
asking.TIMEOUT = 2
_ = transformers.GPT2LMHeadModel, huggingface_hub.snapshot_download  # imported when named
for line in sys.stdin:
    job = json.loads(line)
    gate_out, gate_in = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.read(gate_out, 1)
        with open(job["output"], "w") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        os.environ.update(job["environment"])
        random.seed(0)  # the same revision is downloaded each time: as many requests
        sys.argv = ["convert_to_hf.py", *job["arguments"]]
        code = 0
        try:
            run_command(
                "convert_to_hf.py",
                convert_to_hf.main,
                convert_to_hf.__doc__,
                checkpoint.settings_of_run,
            )
        except SystemExit as leaving:
            code = leaving.code
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    print(pid, flush=True)
    sys.stdin.readline()
    os.write(gate_in, b"g")
    os.close(gate_in)
    os.close(gate_out)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
