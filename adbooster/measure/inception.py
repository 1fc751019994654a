"""Inception features of whole pictures from an ONNX file: what FID (Heusel et al., 2017) and KID compare."""

from pathlib import Path

import numpy as np
import onnxruntime

from adbooster.pictures import images

INCEPTION_PX = 299


class Inception:
    """An ONNX network that gives features [N,D] of pictures."""

    def __init__(self, path: Path, device: str, threads: int):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[device]
        self.session = onnxruntime.InferenceSession(str(path), options, providers=[provider])

    def features(self, picture_u8: np.ndarray) -> np.ndarray:
        small = images.resize(picture_u8, INCEPTION_PX, INCEPTION_PX)
        x_1CHW = (np.asarray(small, np.float32) / 127.5 - 1).transpose(2, 0, 1)[None]
        return np.asarray(self.session.run(None, {self.session.get_inputs()[0].name: x_1CHW})[0]).reshape(-1)
