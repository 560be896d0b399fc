"""Trains the head in PyTorch, to compare with `wikicap-pipeline bench head --precision f32` on a CPU.

Run:  python tests/peers/head.py [BATCH_SIZE [STEPS]]
Needs torch. Trains a linear layer with 768 inputs and 92,366 classes in f32: unsplit logits, cross-entropy, SGD with momentum
0.9. Prints the rows per second after two warm-up steps and the peak memory of the process.
"""

import resource
import sys
import time

import torch

CLASSES, DIM = 92_366, 768
batch_size = int(sys.argv[1]) if len(sys.argv) > 1 else 128
steps = int(sys.argv[2]) if len(sys.argv) > 2 else 2048 // batch_size

torch.manual_seed(0)
layer = torch.nn.Linear(DIM, CLASSES)
sgd = torch.optim.SGD(layer.parameters(), lr=0.01, momentum=0.9, fused=True)
features, labels = torch.randn(batch_size, DIM), torch.randint(0, CLASSES, (batch_size,))


def step():
    loss = torch.nn.functional.cross_entropy(layer(features), labels)
    sgd.zero_grad()
    loss.backward()
    sgd.step()


step()
step()
started = time.perf_counter()
for _ in range(steps):
    step()
seconds = time.perf_counter() - started
peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
print(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads, batch {batch_size}: "
      f"{batch_size * steps / seconds:.0f} rows/s, peak {peak_mib} MiB")
