"""Reference numbers for `decode::augment`: crops that torchvision's RandomResizedCrop draws from given random numbers, and the
pixels of some of them.

Run:  python tests/reference/views.py
Needs torch, torchvision, NumPy and Pillow. Writes views.json beside itself. torch's generator is replaced by a list of numbers in [0, 1), so that another
program can draw the same.
"""

import json
import random
from pathlib import Path

import numpy
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as F

SIZES = [(300, 200), (200, 300), (64, 64), (1, 1), (2, 700), (900, 5), (31, 17), (1024, 768)]


class Numbers:
    def __init__(self, seed):
        self.random, self.used = random.Random(seed), []

    def next(self):
        self.used.append(self.random.random())
        return self.used[-1]


numbers = None


def uniform_(tensor, low, high):
    low, high = float(low), float(high)
    return tensor.fill_(low + (high - low) * numbers.next())


def randint(low, high, size):
    return torch.tensor([low + int(numbers.next() * (high - low))])


torch.Tensor.uniform_, torch.randint = uniform_, randint
drawn = []
for seed in range(30):
    for width, height in SIZES:
        numbers = Numbers(f"{seed} {width} {height}")
        crop = RandomResizedCrop.get_params(torch.empty(3, height, width), (0.08, 1.0), (3 / 4, 4 / 3))
        mirrored = numbers.next() < 0.5
        drawn.append(
            dict(width=width, height=height, numbers=numbers.used, crop=[int(value) for value in crop], mirrored=mirrored)
        )

# The image whose pixel (row y, column x, channel c) is (31 y + 17 x + 101 c + x y) mod 256.
WIDTH, HEIGHT, SIZE = 60, 40, 8
y, x, c = numpy.ogrid[:HEIGHT, :WIDTH, :3]
image = Image.fromarray(((31 * y + 17 * x + 101 * c + x * y) % 256).astype(numpy.uint8))
pixels = []
for crop, mirrored in [((0, 0, 40, 60), False), ((0, 0, 40, 60), True), ((5, 7, 20, 15), True), ((39, 59, 1, 1), False), ((3, 2, 6, 50), True)]:
    part = F.resized_crop(image, *crop, [SIZE, SIZE])
    part = F.hflip(part) if mirrored else part
    pixels.append(dict(crop=crop, mirrored=mirrored, rgb=numpy.asarray(part).tobytes().hex()))

lines = [",\n".join(json.dumps(entry) for entry in entries) for entries in (drawn, pixels)]
text = f'{{"drawn": [{lines[0]}],\n"pixels": [{lines[1]}]}}\n'
Path(__file__).with_name("views.json").write_text(text)
