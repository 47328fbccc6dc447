"""Answers of files by kdc's own engines: `python answer_files.py JOB.json`; needs Python, numpy and the runtime alone.

JOB.json: [{"device": a Device's fields, "path": a device file, "inputs": an .npy file, "answers": the .npy to write}].
"""

import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from kdc.core.devicefile import DeviceFile
from targets.job import device_of
from targets.runtime import runtime_of

for task in json.loads(Path(sys.argv[1]).read_text()):
    device = device_of(task["device"])
    engine = runtime_of(device).load(DeviceFile(Path(task["path"]), device.runtime), device)
    samples = np.load(task["inputs"])
    found = [engine.run([samples[i : i + 1]])[0] for i in range(len(samples))]
    np.save(task["answers"], np.concatenate(found))
