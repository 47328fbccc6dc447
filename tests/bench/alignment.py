"""Which widths the runtime's convolutions are fast at: the source of `channel_alignment` in targets/profiles.

    python tests/bench/alignment.py --target cpu-ort

Prints, for each width of a plain stack of 3x3 convolutions, the time in float and in static int8.
"""

import argparse
import logging
import tempfile
from pathlib import Path

import ab_noise
import numpy as np
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

from kdc.core.spec import DeviceFile
from targets.device import load_device
from targets.quick import quick_latencies


class Noise(CalibrationDataReader):
    """Four samples of noise: ranges do not change the time."""

    def __init__(self, channels):
        generator = np.random.default_rng(0)
        shape = (1, channels, ab_noise.SIZE, ab_noise.SIZE)
        self.samples = iter([{"x": generator.standard_normal(shape).astype(np.float32)} for _ in range(4)])

    def get_next(self):
        return next(self.samples, None)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="cpu-ort")
    parser.add_argument("--times", type=int, default=3, help="fresh processes for each file; the best counts")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    device = load_device(arguments.target)
    widths = [*range(8, 64, 2), 64, 66, 68, 72, 80]
    with tempfile.TemporaryDirectory() as name:
        files = []
        for width in widths:
            ab_noise.CHANNELS = width
            plain = ab_noise.network(Path(name) / f"float{width}.onnx")
            quantized = Path(name) / f"int8-{width}.onnx"
            quantize_static(
                plain.path,
                quantized,
                Noise(width),
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
            files += [plain, DeviceFile(quantized, device.runtime)]
        best = np.full(len(files), np.inf)
        for _ in range(arguments.times):
            for index in np.random.default_rng(0).permutation(len(files)):
                best[index] = min(best[index], quick_latencies([files[index]], device, seconds=0.15)[0])
    print("width  float, us  int8, us")
    for width, (floating, integer) in zip(widths, 1e3 * best.reshape(-1, 2), strict=True):
        print(f"{width:5d}  {floating:9.1f}  {integer:8.1f}")


if __name__ == "__main__":
    main()
