"""Opens an exported classifier in transformers with strict checks and prints its logits for a fixed image.

    python tests/reference/open_in_transformers.py DIR [LOGITS.json]

Fails if a tensor is missing, unexpected or has another shape. The image, which tests can create too, is
`pixel[row][column][channel] = (31 * row + 17 * column + 101 * channel + row * column) % 256` at the native
size of the checkpoint, normalised with the directory's image processor. With LOGITS.json, a list of numbers, the largest difference
relative to the largest logit must be at most 1e-4.
"""

import json
import sys

import numpy as np
import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification

folder = sys.argv[1]
model, report = AutoModelForImageClassification.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
problems = {name: found for name, found in report.items() if found}
if problems:
    sys.exit(f"{folder} does not match: {problems}")
# A classifier on one tower of a pair has the configuration of the pair.
side = getattr(model.config, "vision_config", model.config).image_size
row, column, channel = np.ogrid[:side, :side, :3]
pixels = ((31 * row + 17 * column + 101 * channel + row * column) % 256).astype(np.uint8)
processor = AutoImageProcessor.from_pretrained(folder)
inputs = processor(pixels, do_resize=False, do_center_crop=False, return_tensors="pt").pixel_values
with torch.no_grad():
    logits = model.eval()(inputs).logits[0]
print(type(model).__name__, {index: model.config.id2label[index] for index in list(model.config.id2label)[:5]})
print(json.dumps(logits.tolist()))
if len(sys.argv) > 2:
    found = torch.tensor(json.load(open(sys.argv[2])))
    assert found.shape == logits.shape, (found.shape, logits.shape)
    distance = ((found - logits).abs().max() / logits.abs().max()).item()
    print(f"relative difference {distance:.2e}")
    if not distance <= 1e-4:
        sys.exit(f"{folder}: the logits differ")
